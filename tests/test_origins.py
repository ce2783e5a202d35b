"""Every stored sample says where it comes from: its run, and where its windows begin."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_sources_splits import opened, ramp
from tiny_runs import MODEL, PRIMITIVES, changed, images, run, small_recipe, waves

import diffats
from diffats.config import Recipe
from diffats.errors import SourceError
from diffats.sources import origins
from diffats.stages import Workspace, align, decompose
from diffats.store import Store

LABELS: dict[str, Any] = {
    "text": np.array(["a", "bc", "d", "é", "f", "g"]),
    "objects": np.array(["a", "bc", "d", "é", "f", "g"], dtype=object),
    "bytes": np.array([b"a", b"b", b"c", b"d", b"e", b"f"]),
    "numbers": np.array([2.5, -1, 7, 0, 3, 4]),
    "whole": np.array([20, 10, 70, 0, 30, 40], dtype=np.uint8),
    "dates": np.datetime64("2001-01-01") + 30 * np.arange(6),
    "calendar": np.array([cftime.Datetime360Day(2001, month, 30) for month in range(1, 7)]),
}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_sample_can_be_read_again_by_its_origin(data: st.DataObject) -> None:
    runs, windows = data.draw(st.sampled_from([None, 3, 5])), {"y": data.draw(st.integers(1, 5))}
    stride = {"y": data.draw(st.integers(1, 5))}
    source = ramp(**({} if runs is None else {"run": runs}), y=21, x=2)
    labels = np.array(list("vwxyz"), dtype=object)[:runs]
    named = runs is not None and data.draw(st.booleans())
    source = source.assign_coords(y=np.linspace(0, 1, 21), **({"run": labels} if named else {}))
    options = {"modes": ["y", "x"], "sample_dim": None if runs is None else "run"}
    try:
        samples = opened(source, **options, windows={"size": windows, "stride": stride})
    except SourceError:
        assume(False)  # overlapping windows of one short field: too few blocks
        raise
    coords = samples.sample_coords(np.arange(samples.n))
    fields = samples.read(np.arange(samples.n))
    for i in range(samples.n):
        first = float(coords["y_origin"].values[i])
        whole = source["u"]
        if runs is not None:
            label = coords["run"].values[i]
            whole = whole.sel(run=label) if named else whole.isel(run=int(label))
        start = int(coords["y_start"].values[i])
        assert float(source["y"][start]) == first
        np.testing.assert_array_equal(fields[i], whole.sel(y=slice(first, None)).isel(y=slice(windows["y"])))
    assert (coords["split"].values == "test").tolist() == samples.is_test.tolist()


def recipe_with(folder: Path, labels: Any, file: str = "u.zarr", **sections: Any) -> Recipe:
    """Six runs of 24 times, in windows of six."""
    time = np.datetime64("2001-01-01") + np.arange(24)
    source = xr.Dataset({"u": (("run", "time", "x"), waves(6, 24, 6).astype("f4"))}, coords={"time": time})
    source = source if labels is None else source.assign_coords(run=labels)
    source.attrs["source"] = "a model of waves"
    if file.endswith(".nc"):
        source.to_netcdf(folder / file)
    else:
        source.to_zarr(folder / file, zarr_format=3, consolidated=False)
    data = {
        "source": str(folder / file),
        "modes": ["time", "x"],
        "sample_dim": "run",
        "windows": {"size": {"time": 6}, "stride": {"time": 3}},
        "split": {"test": 0.34},
        "condition": {"initial": {"dim": "time"}},
    }
    return small_recipe(folder / "root", data, decompose={"ranks": {"time": 3, "x": 3}}, **sections)


@pytest.mark.parametrize("file", ["u.zarr", "u.nc"])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")  # the source's
def test_labels_of_any_kind_reach_the_primitives(kind: str, file: str, tmp_path: Path) -> None:
    labels = LABELS[kind]
    recipe = recipe_with(tmp_path, labels, file)
    run(recipe, ["decompose", "select_anchor", "align"])
    for group in ("tucker", "primitives"):
        stored = diffats.open_version(recipe.location, group)
        assert stored.sizes["sample"] == 42
        want = [_text(label) for label in np.repeat(labels, 7)]
        assert [_text(label) for label in stored["run"].values] == want
        np.testing.assert_array_equal(stored["time_start"], np.tile(3 * np.arange(7), 6))
        np.testing.assert_array_equal(stored["time_origin"].values, stored_times(stored["time_start"].values))
        sides = {
            _text(run): set(part["split"].values)
            for run, part in stored.reset_coords()[["split", "run"]].groupby("run")
        }
        assert sorted(map(len, sides.values())) == [1] * 6


def stored_times(starts: np.ndarray) -> np.ndarray:
    return np.datetime64("2001-01-01", "ns") + starts * np.timedelta64(1, "D")


def _text(label: Any) -> str:
    if isinstance(label, bytes):
        return label.decode()
    return str(np.datetime64(label, "D") if isinstance(label, np.datetime64) else label)


def test_generated_samples_say_where_their_conditions_are_from(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, None)
    run(recipe, MODEL)
    generated, primitives = (diffats.open_version(recipe.location, group) for group in ("samples", "primitives"))
    of = generated["of_sample"].values
    assert set(primitives["split"].values[of]) == {"test"}
    for name in ("run", "time_start", "time_origin"):
        np.testing.assert_array_equal(generated[f"of_{name}"], primitives[name].values[of])
    assert "of_split" not in generated.coords


def test_text_is_ordinary_and_source_is_what_the_source_says(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path, LABELS["objects"])
    run(recipe, MODEL)
    model = diffats.load(recipe.location)
    for group in ("tucker", "primitives", "samples"):
        stored = diffats.open_version(recipe.location, group)
        assert stored.attrs["source"] == model.sample(1).attrs["source"] == "a model of waves"
        assert stored.attrs["source_digest"] == Workspace(recipe).source_digest
        for name, variable in stored.variables.items():
            assert variable.dtype.kind != "T", name
            assert variable.values.dtype.kind != "T", name
    stored = diffats.open_version(recipe.location)
    assert set(stored["split"].values.astype(str)) == {"train", "test"}
    assert stored["aligned_mode"].astype(str).values.tolist() == ["time", "x"]
    assert stored.isel(sample=stored["run"] == "bc").sizes["sample"] == 7
    stored.load().drop_attrs().to_netcdf(tmp_path / "again.nc")
    assert "source" not in diffats.open_version(recipe.location, "anchor").attrs
    Store.open(Workspace(recipe).store_location).export(tmp_path / "all.zarr")
    with xr.open_datatree(tmp_path / "all.zarr", engine="zarr") as tree:
        exported = tree["primitives"].to_dataset().load()
    assert exported.attrs["source"] == "a model of waves"
    for name in ("run", "time_start", "time_origin", "split"):
        assert exported[name].values.tolist() == stored[name].values.tolist()


# --- stores of a release that knew less ----------------------------------------------------------------------------


def without_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: nothing said of which entry a sample is, where the dim of samples has no coordinate."""
    monkeypatch.setattr(origins, "_of_entries", lambda *_: {})


def test_what_an_earlier_release_finished_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(tmp_path, None)
    with monkeypatch.context() as patch:
        without_runs(patch)
        run(recipe, ["decompose"])
    tucker = decompose.tucker_version(Workspace(recipe))
    assert tucker is not None
    results = run(recipe, PRIMITIVES)
    assert results["decompose"].skipped
    primitives = align.primitives_version(Workspace(recipe))
    assert primitives is not None
    assert primitives.attrs["tucker"] == tucker.snapshot
    assert "run" not in primitives.dataset()
    assert not Store.open(Workspace(recipe).store_location).verify()


def test_what_an_earlier_release_began_is_finished_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = changed(recipe_with(tmp_path, None), data={"max_failed": 0.01})
    with monkeypatch.context() as patch:
        without_runs(patch)
        patch.setattr("diffats.store.version.Version.fill", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(recipe, ["decompose"])
    begun = decompose.tucker_version(Workspace(recipe))
    assert begun is not None
    assert not begun.complete
    run(recipe, ["decompose"])
    done = decompose.tucker_version(Workspace(recipe))
    assert done is not None
    assert done.complete
    assert done.fingerprint == begun.fingerprint
    assert "run" not in done.dataset()
    assert not Store.open(Workspace(recipe).store_location).verify()


def test_what_grows_gets_the_origins_of_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp())
    field = waves(9, 24, 6).astype("f4")

    def written(n: int) -> Recipe:
        source = xr.Dataset({"u": (("run", "time", "x"), field[:n])})
        source.to_zarr(folder / "u.zarr", zarr_format=3, consolidated=False, mode="w")
        data = {
            "source": str(folder / "u.zarr"),
            "modes": ["time", "x"],
            "sample_dim": "run",
            "grows": True,
            "windows": {"size": {"time": 6}, "stride": {"time": 3}},
            "split": {"test": 0.34},
        }
        return small_recipe(folder / "root", data, decompose={"ranks": {"time": 3, "x": 3}}, drift={"action": "warn"})

    with monkeypatch.context() as patch:
        without_runs(patch)
        recipe = written(6)
        run(recipe, PRIMITIVES)
    before = diffats.open_version(recipe.location)
    run(written(9), PRIMITIVES)
    after = diffats.open_version(recipe.location)
    assert (before.sizes["sample"], after.sizes["sample"]) == (42, 63)
    assert "run" not in before
    np.testing.assert_array_equal(after["run"], np.repeat(np.arange(9), 7))
    np.testing.assert_array_equal(after["split"].values[:42], before["split"].values)
    np.testing.assert_array_equal(after["core"].values[:42], before["core"].values)
    assert not Store.open(Workspace(recipe).store_location).verify()


def test_a_coordinate_called_label_may_be_the_class(tmp_path: Path) -> None:
    """Coordinates of samples travel with the primitives, beside their conditions."""
    case = images(tmp_path)
    data = case.dataset.rename(kind="label").set_coords("label")
    data["label"] = data["label"].astype("U3")
    data.to_zarr(tmp_path / "named.zarr", zarr_format=2, consolidated=False)
    named = {"source": str(tmp_path / "named.zarr"), "condition": {"labels": "label"}}
    recipe = changed(case.recipe, data={**case.recipe.model_dump(mode="json")["data"], **named}, train={"steps": 1})
    results = run(recipe, MODEL)
    assert results["generate"].failed == 0
