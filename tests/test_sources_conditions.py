"""Labels, scalars, fields and the initial slice, as raw values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources import Samples, open_samples

X = np.random.default_rng(0).normal(size=(6, 8, 10))


def opened(tmp_path: Path, extra: dict[str, Any], **options: Any) -> Samples:
    dataset = xr.Dataset({"u": (("run", "y", "x"), X), **extra})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return open_samples(
        Data(
            **{
                "source": str(tmp_path / "a.nc"),
                "variables": ["u"],
                "modes": ["y", "x"],
                "sample_dim": "run",
                **options,
            }
        )
    )


def raw(samples: Samples, indices: list[int]) -> dict[str, np.ndarray]:
    return samples.conditions(indices, samples.read(indices))


def test_unconditional(tmp_path: Path) -> None:
    samples = opened(tmp_path, {})
    assert raw(samples, [0, 1]) == {}
    assert samples.label_names == ()


def test_initial_slice(tmp_path: Path) -> None:
    samples = opened(tmp_path, {}, condition={"initial": {"dim": "y", "index": -1}})
    np.testing.assert_array_equal(raw(samples, [2, 4])["initial"], X[[2, 4], -1])


def test_initial_slice_keeps_the_component_mode(tmp_path: Path) -> None:
    samples = opened(
        tmp_path, {"v": (("run", "y", "x"), -X)}, variables=["u", "v"], condition={"initial": {"dim": "x"}}
    )
    initial = raw(samples, [3])["initial"]
    assert initial.shape == (1, 2, 8)
    np.testing.assert_array_equal(initial[0, 1], -X[3, :, 0])


def test_scalars(tmp_path: Path) -> None:
    extra = {
        "nu": ("run", np.arange(6, dtype=np.int16)),
        "length": ((), 2.5),
        "forcing": (("run", "x"), np.arange(60.0).reshape(6, 10)),
    }
    samples = opened(
        tmp_path,
        extra,
        windows={"size": {"x": 4}, "stride": {"x": 3}},
        condition={"scalars": ["nu", "length", "forcing"]},
    )
    got = raw(samples, [0, 4])  # runs 0 and 1, starts 0 and 3
    np.testing.assert_array_equal(got["scalar_nu"], [0, 1])
    np.testing.assert_array_equal(got["scalar_length"], [2.5, 2.5])
    np.testing.assert_array_equal(got["scalar_forcing"], [1.5, 14.5])  # the mean over the window


def test_fields_are_windowed_along(tmp_path: Path) -> None:
    extra = {
        "topography": (("y", "x"), np.arange(80).reshape(8, 10).astype(np.int16)),
        "forcing": (("x", "level", "run"), np.arange(10 * 3 * 6.0).reshape(10, 3, 6)),
    }
    samples = opened(tmp_path, extra, windows={"size": {"x": 4}, "stride": {"x": 3}}, condition={"fields": list(extra)})
    got = raw(samples, [1, 5])  # run 0 start 3, run 1 start 6
    assert got["field_topography"].dtype == np.float32
    np.testing.assert_array_equal(got["field_topography"][0], extra["topography"][1][:, 3:7])
    np.testing.assert_array_equal(got["field_forcing"][1], extra["forcing"][1][6:10, :, 1])


def test_labels_majority_with_ties_to_the_lowest(tmp_path: Path) -> None:
    kind = np.full((8, 10), 7, dtype=np.int8)
    kind[:4, :4] = 3  # half of the first window: a tie
    kind[:5, 3:7] = 5
    kind[:4, :4] = 3
    samples = opened(
        tmp_path,
        {"kind": (("y", "x"), kind)},
        windows={"size": {"x": 4}, "stride": {"x": 3}},
        condition={"labels": "kind"},
    )
    assert samples.label_names == ("3", "5", "7")
    assert raw(samples, [0, 1, 2])["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [object, "U1", "S1"])
def test_text_labels(tmp_path: Path, dtype: Any) -> None:
    samples = opened(tmp_path, {"case": ("run", np.array(list("bacbca"), dtype=dtype))}, condition={"labels": "case"})
    assert samples.label_names == ("a", "b", "c")
    label = raw(samples, [5, 0, 2])["label"]
    assert label.dtype == np.int64
    assert label.tolist() == [0, 1, 2]


def test_flags_name_the_classes(tmp_path: Path) -> None:
    flags = {"flag_values": np.array([4, 2, 9], dtype=np.int8), "flag_meanings": "sea land ice"}
    samples = opened(
        tmp_path, {"kind": ("run", np.array([2, 4, 4, 2, 2, 4], dtype=np.int8), flags)}, condition={"labels": "kind"}
    )
    assert samples.label_names == ("land", "sea", "ice")
    assert raw(samples, [0, 1])["label"].tolist() == [0, 1]


def test_flags_that_do_not_cover_the_data(tmp_path: Path) -> None:
    flags = {"flag_values": np.array([1, 2], dtype=np.int8), "flag_meanings": "a b"}
    samples = opened(
        tmp_path, {"kind": ("run", np.array([1, 2, 3, 1, 2, 1], dtype=np.int8), flags)}, condition={"labels": "kind"}
    )
    with pytest.raises(SourceError, match="3 is not among the variable's flag_values"):
        raw(samples, [0, 2])


def test_every_class_has_a_name_of_its_own(tmp_path: Path) -> None:
    stations = opened(tmp_path, {"kind": ("run", [1000001.0, 1000002.0] * 3)}, condition={"labels": "kind"})
    assert stations.label_names == ("1000001", "1000002")
    absent = np.array(["missing", "", "a"] * 2, dtype=object)
    (tmp_path / "named").mkdir()
    named = opened(tmp_path / "named", {"kind": ("run", absent)}, condition={"labels": "kind"})
    assert named.label_names == ("a", "missing", "(missing)")
    assert raw(named, [0, 1, 2])["label"].tolist() == [1, 2, 0]


def test_missing_labels_are_a_class(tmp_path: Path) -> None:
    samples = opened(tmp_path, {"kind": ("run", [1.0, np.nan, 2.0, 1.0, 1.0, 2.0])}, condition={"labels": "kind"})
    assert samples.label_names == ("1", "2", "missing")
    assert raw(samples, [0, 1, 2])["label"].tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("extra", "condition", "message"),
    [
        (
            {"when": ("run", np.arange(6).astype("M8[D]").astype("M8[ns]"))},
            {"scalars": ["when"]},
            "datetime64.*real numbers",
        ),
        ({"case": ("run", list("abcabc"))}, {"scalars": ["case"]}, r"Name it in data\.condition\.labels"),
        ({"nu": ("run", [1, 2, np.nan, 4, 5, 6])}, {"scalars": ["nu"]}, "missing for 1 of 6 samples"),
        ({"case": ("run", list("abcabc"))}, {"fields": ["case"]}, "expected real numbers"),
        (
            {"when": ("run", np.arange(6).astype("M8[D]").astype("M8[ns]"))},
            {"labels": "when"},
            "expected integers, text",
        ),
    ],
)
def test_conditions_that_cannot_be_used(tmp_path: Path, extra: dict[str, Any], condition: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        opened(tmp_path, extra, condition=condition)
