"""Users' own data, by recipe alone: what is stored, decoded and generated is what plain arithmetic says."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import xarray as xr
from tiny_runs import ALL, CASES, Case, run

import diffats
from diffats.bundle import Bundle
from diffats.config import Recipe
from diffats.errors import InputError
from diffats.patches import to_patches
from diffats.primitives import decode
from diffats.stages import StageResult, Workspace, align, decompose, evaluate, generate, select_anchor, train


class Done:
    """A case that has been run."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.root = name, folder / "root"
        self.case: Case = CASES[name](folder)
        self.results: dict[str, StageResult] = run(self.case.recipe, ALL)
        work = self.work
        tucker = select_anchor.require_tucker(work)
        primitives = align.primitives_version(work)
        assert primitives is not None
        self.tucker, self.primitives = tucker.dataset().load(), primitives.dataset().load()
        self.model: Bundle = diffats.load(self.root)

    @property
    def recipe(self) -> Recipe:
        return self.case.recipe

    @property
    def work(self) -> Workspace:
        return Workspace(self.recipe)

    @property
    def train(self) -> np.ndarray:
        return np.flatnonzero(self.tucker["split"].values == "train")

    @property
    def raw(self) -> np.ndarray:
        """Raw samples in the store's order."""
        if "time_start" in self.tucker.coords:
            return self.case.raw[self.tucker["time_start"].values // 4]
        return self.case.raw

    @property
    def scaled(self) -> np.ndarray:
        """Centred and scaled by plain arithmetic; missing points are 0."""
        data, x = self.recipe.data, self.raw
        axes = tuple(range(2 if "component" in self.recipe.tensor_modes else 1, x.ndim))
        mean = np.zeros((1,) * x.ndim)
        if data.center == "point":
            mean = x[self.train].mean(axis=0, keepdims=True)
        elif data.center == "variable":
            mean = np.nanmean(x[self.train].mean(axis=0, keepdims=True), axis=axes, keepdims=True)
        about = mean if data.center != "none" else np.nanmean(x[self.train], axis=(0, *axes), keepdims=True)
        spread = np.sqrt(np.nanmean((x[self.train] - about) ** 2, axis=(0, *axes), keepdims=True))
        return np.nan_to_num((x - mean) / (spread if data.scale == "variable" else 1.0))

    def decoded(self) -> np.ndarray:
        """Stored primitives decoded, still centred and scaled, masked points included."""
        layout = self.model.layout
        streams = {stream.name: self.primitives[stream.name].values.astype(np.float64) for stream in layout.streams}
        return np.asarray(decode(streams, layout))

    def stack(self, ds: xr.Dataset) -> np.ndarray:
        arrays = [ds[name].values for name in self.model.template.data_vars]
        return np.stack(arrays, axis=1) if len(arrays) > 1 else arrays[0]


_done: dict[str, Done] = {}


@pytest.fixture(scope="session", params=list(CASES))
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return finished(request.param, tmp_path_factory)


def finished(name: str, factory: pytest.TempPathFactory) -> Done:
    if name not in _done:
        _done[name] = Done(factory.mktemp(name), name)
    return _done[name]


@pytest.fixture(scope="session", autouse=True)
def forget() -> Iterator[None]:
    yield
    _done.clear()


# What is stored --------------------------------------------------------------------------------------------------


def tails(x: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Energy that the best subspace of a mode leaves out, by sample."""
    unfolded = np.moveaxis(x, axis, 1).reshape(len(x), x.shape[axis], -1)
    return (np.linalg.svd(unfolded, compute_uv=False)[:, rank:] ** 2).sum(axis=1)


def test_stored_primitives_decode_to_the_best_projection(done: Done) -> None:
    x, layout = done.scaled, decompose.layout_of(select_anchor.require_tucker(done.work))
    lost = ((x - done.decoded()) ** 2).reshape(len(x), -1).sum(axis=1)
    if layout.kind == "mgp":
        patches = to_patches(x, tuple(layout.patch.values()))  # (n, channel, patch, pixel)
        discarded = [(np.linalg.svd(patches, compute_uv=False)[..., 2:] ** 2).sum(axis=(1, 2))]
    else:
        discarded = [tails(x, layout.modes.index(mode) + 1, rank) for mode, rank in layout.ranks.items()]
    slack = 1e-4 * (x**2).reshape(len(x), -1).sum(axis=1)
    assert (lost <= np.sum(discarded, axis=0) + slack).all()
    assert (lost >= np.max(discarded, axis=0) - slack).all()


def test_stored_primitives_are_the_sample_on_its_own_factors(done: Done) -> None:
    if done.recipe.primitive.kind == "mgp":
        pytest.skip("the bounds above are equal for one truncated mode")
    projected = done.scaled
    modes = done.recipe.tensor_modes
    for stream in decompose.layout_of(select_anchor.require_tucker(done.work)).tucker_streams[1:]:
        U = done.tucker[stream.name].values.astype(np.float64)
        axis = modes.index(str(stream.mode)) + 1
        moved = np.moveaxis(projected, axis, 1)
        flat = U @ (np.swapaxes(U, 1, 2) @ moved.reshape(len(moved), moved.shape[1], -1))
        projected = np.moveaxis(flat.reshape(moved.shape), 1, axis)
    np.testing.assert_allclose(done.decoded(), projected, atol=2e-5 * np.abs(projected).max())


def test_errors_are_those_of_the_decoded_fields(done: Done) -> None:
    x, decoded = done.raw, done.model.scaling.undo(done.decoded())  # before whole numbers are rounded
    flat, lost = x.reshape(len(x), -1), (x - decoded).reshape(len(x), -1)
    mean = x[done.train].mean(axis=0)
    relative = np.sqrt(np.nansum(lost**2, axis=1) / np.nansum(flat**2, axis=1))
    anomaly = np.sqrt(np.nansum(lost**2, axis=1) / np.nansum((x - mean).reshape(len(x), -1) ** 2, axis=1))
    np.testing.assert_allclose(done.tucker["relative_error"], relative, rtol=5e-3, atol=1e-6)
    np.testing.assert_allclose(done.tucker["anomaly_error"], anomaly, rtol=5e-3, atol=1e-5)
    metrics = done.results["decompose"].metrics
    assert metrics["anomaly_error_mean"] == pytest.approx(anomaly.mean(), rel=1e-2)
    tolerance = done.recipe.decompose.tolerance
    if tolerance is not None:
        assert np.sqrt(np.mean(anomaly[done.train] ** 2)) <= 1.1 * tolerance  # the pilot fits its own mean


def test_factors_are_aligned_to_the_anchor_of_a_training_sample(done: Done) -> None:
    anchors = done.model.anchors
    for mode, picks in done.results["select_anchor"].facts["chosen"].items():
        pick = picks if isinstance(picks, int) else picks[0]
        assert pick in done.train
        factor = done.primitives[f"factor_{mode}"][pick].values
        anchor = anchors[mode]
        if isinstance(picks, list):
            factor, anchor = factor[0], anchor[0]
        np.testing.assert_allclose(factor, anchor, atol=1e-5)


# What comes out --------------------------------------------------------------------------------------------------


def check_metadata(done: Done, ds: xr.Dataset) -> None:
    source, windows = done.case.dataset, done.recipe.data.windows.size
    for name in done.model.template.data_vars:
        assert ds[name].dims == ("sample", *done.recipe.data.modes)
        assert ds[name].attrs.get("units") == source[name].attrs.get("units")
        assert ds[name].attrs.get("standard_name") == source[name].attrs.get("standard_name")
    for dim in done.recipe.data.modes:
        if dim in source.coords and dim not in windows:
            assert ds[dim].values.tolist() == source[dim].values.tolist()
            assert ds[dim].attrs.get("units") == source[dim].attrs.get("units")
    assert ds.attrs.items() >= source.attrs.items()


def test_coordinates_units_and_attributes_reach_what_comes_out(done: Done) -> None:
    model = done.model
    check_metadata(done, model.decode(done.primitives))
    check_metadata(done, model.sample(2, steps=1))
    stored = generate.samples_version(done.work, train.require_bundle(done.work))
    assert stored is not None
    ds = stored.dataset().load()
    check_metadata(done, ds)
    assert ds.sizes["sample"] == 6
    assert (ds["status"] == 1).all()


def test_encode_and_decode_agree_with_the_store(done: Done) -> None:
    x = done.raw[:4]
    names = list(done.model.template.data_vars)
    dims = ("sample", *done.recipe.data.modes)
    fields = {name: (dims, x[:, i] if len(names) > 1 else x) for i, name in enumerate(names)}
    ds = xr.Dataset(fields, coords={"run": ("sample", list("abcd"))})
    primitives = done.model.encode(ds)
    assert primitives["run"].values.tolist() == list("abcd")
    decoded = done.model.decode(primitives)
    assert decoded["run"].values.tolist() == list("abcd")
    stored = done.model.decode(done.primitives.isel(sample=slice(4)))
    scale = np.nanmax(np.abs(x))
    np.testing.assert_allclose(done.stack(decoded), done.stack(stored), atol=1e-4 * scale)
    for name in done.model.anchors:
        close = primitives[f"overlap_{name}"].values > 0.1
        expected = done.primitives[f"factor_{name}"].values[:4][close]
        np.testing.assert_allclose(primitives[f"factor_{name}"].values[close], expected, atol=2e-3)


def test_samples_depend_on_seed_and_number_alone(done: Done) -> None:
    three, two = done.model.sample(3, seed=5, steps=1), done.model.sample(2, seed=5, steps=1)
    for name in done.model.template.data_vars:
        np.testing.assert_allclose(
            three[name][:2], two[name], rtol=1e-5, atol=1e-5 * float(np.nanmax(np.abs(three[name])))
        )
        mask = np.isnan(done.raw[0])
        assert np.array_equal(np.isnan(done.stack(three)[0]), mask)


def test_evaluation_has_its_references(done: Done) -> None:
    metrics = done.results["evaluate"].facts["metrics"]
    if done.work.recipe.makes_forecasts:  # drawn under the test samples' conditions, so no draw of their own
        assert not {"energy_distance", "precision", "spread_ratio"} & metrics.keys()
    else:
        assert metrics["energy_distance"]["train_vs_test"] is not None
        assert metrics["energy_distance"]["gaussian"] is not None
        within = metrics.get("energy_distance_within", {})
        assert bool(within) == done.recipe.data.condition.any
        assert not within or within["parts"][0]["samples"] >= 2
    assert ("crps" in metrics) == generate.conditioned_on_fields(done.work)
    read = evaluate.read_evaluation(done.work)
    assert read is not None
    assert read[0] == metrics


# Conditions ------------------------------------------------------------------------------------------------------


def test_windows_of_a_360_day_calendar_keep_their_dates(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = finished("climate", tmp_path_factory)
    origin = done.tucker["time_origin"].values
    assert isinstance(origin[0], cftime.Datetime360Day)
    assert [(date.year - 1900) * 12 + date.month - 1 for date in origin] == done.tucker["time_start"].values.tolist()
    assert np.isnan(done.raw[0]).sum() == 8 * 6


def test_an_initial_slice_may_be_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = finished("climate", tmp_path_factory)
    first = xr.DataArray(done.raw[0, 0], dims=("lat", "lon")).transpose("lon", "lat")
    ds = done.model.sample(2, conditions={"initial": first}, steps=1)
    np.testing.assert_allclose(ds["condition_initial"][1], done.raw[0, 0])
    assert ds["condition_initial"].dims == ("sample", "lat", "lon")
    with pytest.raises(InputError, match="NaN"):
        done.model.sample(1, conditions={"initial": np.full((6, 8), np.nan)})
    with pytest.raises(InputError, match=r"shape \(5, 8\)"):
        done.model.sample(1, conditions={"initial": np.zeros((5, 8))})


def test_a_scalar_that_spans_decades_is_taken_as_a_logarithm(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = finished("runs", tmp_path_factory)
    assert done.model.conditions.scalar_log == (True,)
    assert set(done.primitives["group"].values[done.primitives["split"] == "test"]) == {1}
    ds = done.model.sample(3, conditions={"nu": [0.01, 0.1, 1.0]}, steps=1)
    assert ds["condition_nu"].values.tolist() == [0.01, 0.1, 1.0]
    assert done.model.sample(2, conditions={"nu": 0.01}, steps=1)["condition_nu"].values.tolist() == [0.01, 0.01]
    for wrong, match in (({"nu": -1.0}, "positive"), ({"nu": "much"}, "no number"), ({"mu": 1.0}, "unknown condition")):
        with pytest.raises(InputError, match=match):
            done.model.sample(1, conditions=wrong)


def test_labels_are_given_by_name_and_may_be_missing(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = finished("images", tmp_path_factory)
    assert done.model.label_names == ["cat", "dog", "missing"]
    ds = done.model.sample(3, conditions={"label": ["dog", "missing", 0]}, steps=1)
    assert ds["condition_label"].values.tolist() == ["dog", "missing", "cat"]
    with pytest.raises(InputError, match="cow"):
        done.model.sample(1, conditions={"label": "cow"})


def test_labels_that_are_numbers_are_meant_by_value(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = diffats.load(finished("images", tmp_path_factory).root)
    model.label_names = ["1", "2", "5"]
    assert model.condition_rows(3, 0, {"label": [5, 1, 2]})["label"].tolist() == [2, 0, 1]
    with pytest.raises(InputError, match='"0"'):
        model.condition_rows(1, 0, {"label": 0})


def test_static_fields_condition_every_sample(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = finished("winds", tmp_path_factory)
    land = done.case.dataset["land"].values
    ds = done.model.sample(2, steps=1)
    assert ds["condition_land"].dims == ("sample", "lat", "lon")
    np.testing.assert_allclose(ds["condition_land"], np.stack([land, land]))
    stored = generate.samples_version(done.work, train.require_bundle(done.work))
    assert stored is not None
    np.testing.assert_allclose(stored.dataset()["condition_land"][3], land)


# A bundle on its own ---------------------------------------------------------------------------------------------

_ELSEWHERE = """
    import pickle, sys

    def refuse(*arguments, **options):
        raise AssertionError("something was unpickled")

    pickle.load = pickle.loads = refuse
    import diffats

    model = diffats.load(sys.argv[1])
    ds = model.sample(3)
    again = model.decode(model.encode(ds.fillna(0) if model.scaling.mask is None else ds))
    print(dict(again.sizes))
    assert "mlflow" not in sys.modules and "tasks" not in sys.modules
"""


def test_a_fresh_process_elsewhere_loads_it_without_pickle(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    done = finished("climate", tmp_path_factory)
    files = {file.suffix for file in done.model.directory.iterdir()}
    assert files == {".json", ".safetensors"}
    moved = tmp_path / "moved"
    done.model.directory.rename(moved)
    try:
        code: Any = [sys.executable, "-W", "error", "-c", textwrap.dedent(_ELSEWHERE), str(moved)]
        made = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    finally:
        moved.rename(done.model.directory)
    assert made.returncode == 0, made.stderr
    assert "'sample': 3" in made.stdout
