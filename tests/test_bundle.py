"""A bundle: saved whole, refused when damaged, and what it makes of what it is given."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tiny_runs import MODEL, changed, images, run

import diffats
from diffats import bundle
from diffats.bundle import Bundle
from diffats.errors import InputError, IntegrityError, StoreNotFoundError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    run(images(folder).recipe, MODEL)
    return folder / "root"


@pytest.fixture
def model(root: Path) -> Bundle:
    return diffats.load(root)


def rgb(n: int = 2) -> xr.DataArray:
    return xr.DataArray(
        np.random.default_rng(0).normal(size=(n, 3, 8, 8)), dims=("image", "channel", "y", "x"), name="rgb"
    )


# Loading ---------------------------------------------------------------------------------------------------------


def test_a_root_stands_for_a_bundle(root: Path, model: Bundle) -> None:
    assert model.directory.parent == root / "bundles"
    assert bundle.load(model.directory).provenance == model.provenance


def test_a_root_stands_for_the_bundle_that_was_asked_for_last(tmp_path: Path) -> None:
    recipe = images(tmp_path).recipe
    longer = changed(recipe, train={"steps": 6})
    run(recipe, [*MODEL[:-1]])
    first = diffats.load(recipe.root).directory
    run(longer, ["train"])
    second = diffats.load(recipe.root).directory
    assert second != first
    assert run(recipe, ["train"])["train"].skipped
    assert diffats.load(recipe.root).directory == first
    latest = first.parent / bundle.LATEST
    for name in ("gone", ""):
        latest.write_text(name)
        os.utime(second / "bundle.json")
        assert diffats.load(recipe.root).directory == second
    latest.unlink()
    shutil.copytree(first, first.with_name(".killed.partial"))  # left by a save that was cut short
    os.utime(first.with_name(".killed.partial") / "bundle.json")
    assert diffats.load(recipe.root).directory == second


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="diffats train"):
        diffats.load(tmp_path)


@pytest.mark.parametrize("file", ["bundle.json", "arrays.safetensors", "weights.safetensors"])
def test_a_damaged_bundle_is_refused(model: Bundle, tmp_path: Path, file: str) -> None:
    shutil.copytree(model.directory, tmp_path / "bundle")
    broken = tmp_path / "bundle" / file
    broken.write_bytes(broken.read_bytes()[:-7] if file != "bundle.json" else b"{")
    with pytest.raises(IntegrityError, match="bundle"):
        bundle.load(tmp_path / "bundle").sample(1)


def test_a_bundle_of_a_later_release_is_refused(model: Bundle, tmp_path: Path) -> None:
    shutil.copytree(model.directory, tmp_path / "bundle")
    file = tmp_path / "bundle" / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(IntegrityError, match="format 99"):
        bundle.load(tmp_path / "bundle")


def test_nothing_in_a_bundle_names_this_machine(model: Bundle, root: Path) -> None:
    assert str(root.parent) not in (model.directory / "bundle.json").read_text()


# Encoding --------------------------------------------------------------------------------------------------------


def test_dims_may_come_in_any_order_and_length_one_dims_are_left_out(model: Bundle) -> None:
    plain = model.encode(rgb().to_dataset())
    shuffled = rgb().expand_dims(height=[2.0]).transpose("x", "channel", "image", "height", "y")
    xr.testing.assert_allclose(model.encode(shuffled.to_dataset()), plain)
    one = model.encode(rgb().isel(image=1).to_dataset())
    np.testing.assert_allclose(one["core"][0], plain["core"][1], atol=1e-5)


def test_the_same_grid_in_another_order_gives_the_same_primitives(model: Bundle) -> None:
    south = np.linspace(-40.0, 30.0, 8)
    model.template = model.template.assign_coords(y=south[::-1], channel=["r", "g", "b"])
    fields = rgb().assign_coords(y=south[::-1], channel=["r", "g", "b"]).to_dataset()
    expected = model.encode(fields)
    for other in (fields.sortby("y"), fields.isel(channel=[2, 0, 1]), fields.isel(y=slice(None, None, -1))):
        xr.testing.assert_identical(model.encode(other), expected)
    assert "y" not in expected.dims or expected["y"].values.tolist() == south[::-1].tolist()


@pytest.mark.parametrize(
    ("coords", "match"),
    [
        ({"y": np.arange(8.0) - 180}, 'coordinate "y".*-180.0 .. -173.0, expected 0.0'),
        ({"channel": list("rgx")}, "channel"),
    ],
)
def test_another_grid_is_refused(model: Bundle, coords: dict[str, object], match: str) -> None:
    model.template = model.template.assign_coords(y=np.arange(8.0), channel=list("rgb"))
    fields = rgb().assign_coords(y=np.arange(8.0), channel=list("rgb")).assign_coords(coords).to_dataset()
    with pytest.raises(InputError, match=match):
        model.encode(fields)


def test_another_unit_is_refused(model: Bundle) -> None:
    model.template["rgb"].attrs["units"] = "K"
    fields = rgb().assign_attrs(units="degC").to_dataset()
    with pytest.raises(InputError, match=r'"degC", the model is of "K"'):
        model.encode(fields)


def test_coordinates_of_samples_come_along(model: Bundle) -> None:
    times = np.array(["2001-01-01", "2001-01-02"], "M8[ns]")
    ds = rgb().rename(image="time").assign_coords(time=times, place=("time", [7, 8])).to_dataset()
    decoded = model.decode(model.encode(ds))
    assert decoded["time"].dims == decoded["place"].dims == ("sample",)
    np.testing.assert_array_equal(decoded["time"], times)
    assert decoded["rgb"].dims == ("sample", "channel", "y", "x")


@pytest.mark.parametrize(
    ("ds", "match"),
    [
        (rgb().to_dataset(name="bgr"), 'no variable "rgb"'),
        (rgb().isel(x=slice(4)).to_dataset(), r"sizes \(3, 8, 4\)"),
        (rgb().isel(channel=0).to_dataset(), "expected channel, y, x"),
        (rgb().expand_dims(run=2).to_dataset(), "one dim of samples"),
        (rgb().where(rgb() < 2).to_dataset(), "NaN"),
    ],
)
def test_fields_that_do_not_fit_are_refused(model: Bundle, ds: xr.Dataset, match: str) -> None:
    with pytest.raises(InputError, match=match):
        model.encode(ds)


def test_primitives_that_lack_a_stream_are_refused(model: Bundle) -> None:
    with pytest.raises(InputError, match='no variable "core"'):
        model.decode(model.encode(rgb().to_dataset()).drop_vars("core"))


# Sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 10**6}, {"n": 1, "steps": 0}, {"n": 1, "sampler": "euler"}])
def test_numbers_that_cannot_be_are_refused(model: Bundle, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        model.sample(**options)  # type: ignore[arg-type]


def test_conditions_of_a_sample_depend_on_seed_and_number_alone(model: Bundle) -> None:
    five = model.drawn_conditions(np.arange(5), 3)["label"]
    assert model.drawn_conditions(np.array([4, 1]), 3)["label"].tolist() == [five[4], five[1]]


def test_guidance_needs_a_model_that_has_dropped_its_conditions(model: Bundle) -> None:
    other = bundle.load(model.directory)
    assert other.examples  # it is conditional
    condition = other.recipe.data.condition.model_copy(update={"dropout": 0.0})
    data = other.recipe.data.model_copy(update={"condition": condition})
    other.recipe = other.recipe.model_copy(update={"data": data})
    with pytest.raises(InputError, match=r"guidance 2: .* Use guidance 1"):
        other.sample(1, guidance=2.0)
    assert other.sample(1).sizes["sample"] == 1
