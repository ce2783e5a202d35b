"""Whole runs in spectral coordinates and with calibrated output, of every kind of data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import xarray as xr
from tiny_runs import ALL, MODEL, PRIMITIVES, changed, content, run, small_recipe, trajectories

import diffats
from diffats import bundle
from diffats.config import Recipe
from diffats.digests import file_digest
from diffats.errors import IntegrityError
from diffats.loader import PrimitiveSet
from diffats.primitives import turned_axes
from diffats.stages import Workspace, decompose, fit_normalisation, train, versions

SPECTRAL = {"normalise": {"coordinates": "spectral"}, "train": {"calibrate": True}}


@pytest.mark.parametrize("case", [tiny_runs.climate, tiny_runs.runs, tiny_runs.images])
def test_every_kind_of_data_goes_through_and_travels(case, tmp_path: Path) -> None:
    recipe = changed(case(tmp_path).recipe, **SPECTRAL)
    results = run(recipe)
    assert results["generate"].failed == 0
    model = bundle.load(recipe.root, device="cpu")
    assert set(model.normalisation.coordinates) == {s.name for s in model.layout.streams if turned_axes(s)}
    drawn = model.sample(3)
    shutil.copytree(model.directory, tmp_path / "elsewhere")
    shutil.rmtree(Path(recipe.root) / "store")
    again = bundle.load(tmp_path / "elsewhere", device="cpu").sample(3)
    for name, values in drawn.data_vars.items():
        np.testing.assert_array_equal(values, again[name])


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("spectral")
    data = trajectories(folder / "waves.zarr", 30, 6, 8)
    recipe = small_recipe(folder / "root", data, decompose={"ranks": {"t": 3, "x": 3}}, **SPECTRAL)
    run(recipe)
    return recipe


@pytest.fixture
def copied(spectral: Recipe, tmp_path: Path) -> Recipe:
    shutil.copytree(spectral.root, tmp_path / "root")
    return changed(spectral, root=str(tmp_path / "root"))


def test_another_run_gives_the_same_bits_with_any_number_of_workers(spectral: Recipe, tmp_path: Path) -> None:
    again = changed(spectral, root=str(tmp_path / "again"), compute={"workers": 2})
    run(again, MODEL)
    assert content(again) == content(spectral)
    files = [diffats.load(each.root).directory / bundle.CALIBRATION for each in (spectral, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def pulses(place: Path, n: int = 120) -> dict[str, object]:
    """Pulses near one place of a circle, that spread: only shifts make them alike everywhere."""
    rng = np.random.default_rng(0)
    t, x = np.arange(6)[:, None], np.arange(16)
    at, width = 4 + rng.normal(0, 0.3, (n, 1, 1)), 0.7 + 0.1 * rng.random((n, 1, 1))
    field = np.exp(-0.5 * ((x - at - 0.3 * t) / (width + 0.05 * t)) ** 2).astype("f4")
    xr.Dataset({"u": (("run", "t", "x"), field)}).to_zarr(place, zarr_format=3, consolidated=False)
    return {"source": str(place), "variables": ["u"], "modes": ["t", "x"], "sample_dim": "run"}


@pytest.mark.parametrize("workers", [1, 2])
def test_statistics_are_of_samples_as_they_are_shifted_in_training(tmp_path: Path, workers: int) -> None:
    recipe = small_recipe(
        tmp_path / "root",
        pulses(tmp_path / "pulses.zarr"),
        decompose={"ranks": {"t": 3, "x": 3}},
        normalise={"beta": 1.0},
        train={"shift": ["x"]},
        compute={"workers": workers},
    )
    run(recipe, PRIMITIVES)
    work = Workspace(recipe)
    primitives, version = train.require_normalisation(work)
    statistics, conditions = fit_normalisation.read_normalisation(version)
    shifts = fit_normalisation.random_shifts(work, decompose.layout_of(primitives), primitives)
    data = PrimitiveSet(primitives.dataset(), decompose.layout_of(primitives), statistics, conditions, shifts=shifts)
    z = np.concatenate([data.read_step(1, step, 64)[0] for step in range(8)])
    spread = np.sqrt(np.mean(z**2, axis=0))
    assert spread.max() < 3  # of numbers that are 1 where the statistics are of what is seen
    assert 0.7 < np.median(spread) < 1.3
    still = PrimitiveSet(primitives.dataset(), decompose.layout_of(primitives), statistics, conditions)
    assert np.sqrt(np.mean(still.read(still.train)[0] ** 2, axis=0)).max() < 30  # where they are stored
    other = changed(recipe, train={"shift": []})
    assert fit_normalisation.normalisation_version(Workspace(other)) is None


def test_all_of_it_is_there_the_second_time(copied: Recipe) -> None:
    assert {name for name, result in run(copied).items() if result.skipped} == set(ALL)


def test_calibration_is_neither_trained_again_nor_mixed_up(copied: Recipe) -> None:
    calibrated, plain = copied, changed(copied, train={"calibrate": False})
    steps: list[int] = []
    (result,) = run(plain, ["train"], progress=lambda done, total, failed: steps.append(done)).values()
    assert not result.skipped
    assert steps == []  # the weights were there
    first, second = (train.require_bundle(Workspace(each)) for each in (calibrated, plain))
    assert train.weights_digest(first.directory) == train.weights_digest(second.directory)
    assert first.directory != second.directory
    assert not (second.directory / bundle.CALIBRATION).exists()
    assert not first.sample(2)["u"].equals(second.sample(2)["u"])
    assert diffats.load(copied.root).directory == second.directory  # what was asked for last


def test_both_coordinates_are_kept_side_by_side_and_pruning_spares_what_a_model_was_made_from(copied: Recipe) -> None:
    stream = changed(copied, normalise={"coordinates": "stream"})
    run(stream, MODEL)
    found = [fit_normalisation.normalisation_version(Workspace(each)) for each in (copied, stream)]
    assert None not in found
    assert len({version.fingerprint for version in found if version is not None}) == 2
    assert "coordinates" in json.dumps(found[0].attrs["recipe"] if found[0] else "")
    versions.prune(Workspace(stream), keep=1, grace=0)
    assert {result.skipped for result in run(copied, PRIMITIVES).values()} == {True}


def test_other_powers_and_floors_are_other_versions(spectral: Recipe) -> None:
    work = [Workspace(changed(spectral, normalise=each)) for each in ({}, {"beta": 1.0}, {"floor": 0.1}, {"beta": 0.5})]
    identities = [fit_normalisation.coordinates_asked_for(each) for each in work]
    assert identities[0] == identities[3]
    assert len({json.dumps(each) for each in identities}) == 3


def test_a_model_of_before_there_was_a_choice_is_what_it_was(tmp_path: Path) -> None:
    data = trajectories(tmp_path / "waves.zarr", 30, 6, 8)
    plain = {"normalise": {"coordinates": "stream"}, "train": {"calibrate": False}, "generate": {"impose": False}}
    recipe = small_recipe(tmp_path / "root", data, decompose={"ranks": {"t": 3, "x": 3}}, **plain)
    run(recipe, MODEL)
    model = bundle.load(recipe.root, device="cpu")
    description = json.loads((model.directory / "bundle.json").read_text())
    assert description["format"] == bundle.PLAIN_FORMAT
    assert "normalise" not in description["recipe"]  # as earlier releases wrote it, and read it
    assert "calibrate" not in description["recipe"]["train"]
    assert "log_snr_shift" not in description["recipe"]["diffusion"]
    assert not {"impose", "max_extrapolation"} & description["recipe"]["generate"].keys()
    assert model.recipe.normalise.coordinates == "stream"
    assert not model.recipe.train.calibrate
    assert not model.recipe.imposes


def test_a_calibration_that_was_laid_beside_a_model_is_not_used(spectral: Recipe, tmp_path: Path) -> None:
    calibrated = diffats.load(spectral.root).directory
    plain = changed(spectral, root=str(tmp_path / "root"), train={"calibrate": False})
    shutil.copytree(spectral.root, plain.root)
    run(plain, ["train"])
    directory = diffats.load(plain.root).directory
    before = bundle.load(directory).sample(1)
    shutil.copyfile(calibrated / bundle.CALIBRATION, directory / bundle.CALIBRATION)
    assert bundle.load(directory).sample(1)["u"].equals(before["u"])
    shutil.copytree(calibrated, tmp_path / "without")
    description = json.loads((tmp_path / "without" / "bundle.json").read_text())
    del description["digest"], description["files"][bundle.CALIBRATION]
    (tmp_path / "without" / "bundle.json").write_text(bundle.as_stored(description))
    with pytest.raises(IntegrityError, match="calibrated"):
        bundle.load(tmp_path / "without")


@pytest.mark.parametrize("what", ["deviation_factor_t", "basis0_factor_t", "scale_core", "beta_factor_x"])
def test_coordinates_that_do_not_fit_are_refused(copied: Recipe, what: str) -> None:
    from safetensors.numpy import load_file, save_file

    directory = diffats.load(copied.root).directory
    arrays = load_file(directory / bundle.ARRAYS)
    key = f"normalisation.{what}"
    arrays[key] = arrays[key][..., :-1].copy() if arrays[key].ndim else np.asarray(np.inf)
    save_file(arrays, directory / bundle.ARRAYS)
    description = json.loads((directory / "bundle.json").read_text())
    del description["digest"]
    description["files"][bundle.ARRAYS] = file_digest(directory / bundle.ARRAYS)
    (directory / "bundle.json").write_text(bundle.as_stored(description))
    with pytest.raises(IntegrityError, match=r"Train again|train again"):
        bundle.load(directory)


def test_a_damaged_calibration_is_refused(copied: Recipe) -> None:
    directory = diffats.load(copied.root).directory
    file = directory / bundle.CALIBRATION
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="digest"):
        bundle.load(directory)


def test_the_report_shows_how_much_each_axis_varies(copied: Recipe) -> None:
    (result,) = run(copied, ["report"]).values()
    page = Path(result.location).read_text(encoding="utf-8")
    assert "Deviations on the principal axes" in page
