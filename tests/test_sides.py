"""What is said of a split: gaps as brute force finds them, what is held out, and who should be careful."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources_splits import opened, ramp

from diffats.sources import Samples, sides

SERIES: dict[str, Any] = {"modes": ["time", "x"], "windows": {"size": {"time": 4}, "stride": {"time": 2}}}


def daily(n: int = 120) -> xr.Dataset:
    return ramp(time=n, x=2).assign_coords(time=xr.date_range("2001-01-01", periods=n, freq="D"))


def least_gap(samples: Samples, dim: str) -> int | None:
    """The fewest points between a training and a test window that differ in no other place."""
    found = []
    for i, j in itertools.product(np.flatnonzero(samples.is_test), np.flatnonzero(~samples.is_test)):
        others = [samples.starts[name] for name in samples.starts if name != dim]
        others += [] if samples.position is None else [samples.position]
        if all(place[i] == place[j] for place in others):
            found.append(abs(int(samples.starts[dim][i] - samples.starts[dim][j])) - samples.sizes[dim])
    return min(found, default=None)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([None, 4]), st.integers(2, 5), st.integers(1, 6), st.sampled_from(["sample", "block"]))
def test_gaps_are_those_of_brute_force(runs: int | None, size: int, stride: int, by: str) -> None:
    data = ramp(**({} if runs is None else {"run": runs}), y=40, x=24)
    options = {"modes": ["y", "x"], "sample_dim": None if runs is None else "run"}
    windows = {"size": {"y": size, "x": 6}, "stride": {"y": stride, "x": 3}}
    samples = opened(data, **options, windows=windows, split={"by": by, "test": 0.2})
    found = sides.gaps(samples)
    for dim in ("y", "x"):
        assert found.get(dim, {}).get("points") == least_gap(samples, dim)
        assert found.get(dim, {"points": 0})["points"] >= 0
    if by == "sample" and runs is not None:
        assert not found


def test_dates_that_are_held_out() -> None:
    end = opened(daily(), **SERIES, split={"by": "coordinate", "coordinate": "time", "test": 0.2})
    held = {"along": ["time"], "kind": "stretches", "count": 1, "first": ["2001-04-07 .. 2001-04-30"]}
    assert sides.held_out(end) == held
    assert sides.gaps(end) == {"time": {"points": 0, "distance": 86400.0, "unit": "s"}}
    blocks = opened(daily(), **SERIES, split={"by": "block", "test": 0.2})
    found = sides.held_out(blocks)
    assert (found["along"], found["kind"], found["count"] >= 2) == (["time"], "stretches", True)
    covered = {
        str(day)[:10]
        for start in blocks.starts["time"][blocks.is_test]
        for day in daily().time.values[start : start + 4]
    }
    for ends in found["first"]:
        first, last = ends.split(" .. ")
        assert {first, last} <= covered


def test_snapshots_in_time_are_near_each_other() -> None:
    samples = opened(daily(), modes=["x"], sample_dim="time")
    assert sides.gaps(samples)["time"] == {"points": 0, "distance": 86400.0, "unit": "s"}
    end = opened(daily(), modes=["x"], sample_dim="time", split={"by": "coordinate", "coordinate": "time"})
    assert sides.held_out(end)["first"] == ["2001-04-19 .. 2001-04-30"]
    assert sides.held_out_text(sides.held_out(end)) == "12 entries of time: 2001-04-19 .. 2001-04-30"


def test_runs_groups_and_blocks_that_are_held_out() -> None:
    data = ramp(run=40, t=12, x=2).assign_coords(run=np.array([f"r{i}" for i in range(40)], dtype=object))
    options: dict[str, Any] = {"modes": ["t", "x"], "sample_dim": "run", "windows": {"size": {"t": 4}}}
    samples = opened(data, **options, split={"test": 0.2})
    found = sides.describe(samples)
    runs = [f"r{i}" for i in np.unique(samples.position[samples.is_test])]  # type: ignore[index]
    assert found["held_out"] == {"along": ["run"], "kind": "entries", "count": 8, "first": runs[:5]}
    assert (found["test_groups"], found["gaps"], found["holds_out"]) == (8, {}, "runs")
    grouped = data.assign_coords(flow=("run", np.arange(40) // 4))
    held = sides.held_out(opened(grouped, **options, split={"test": 0.2, "group": "flow"}))
    assert (held["along"], held["count"], len(held["first"])) == (["flow"], 2, 2)
    square = opened(ramp(y=64, x=48), modes=["y", "x"], windows={"size": {"y": 8, "x": 8}, "stride": {"y": 4, "x": 4}})
    blocks = sides.held_out(square)
    assert (blocks["along"], blocks["kind"], blocks["count"]) == (["y", "x"], "blocks", len(blocks["first"]))
    ends = [[part.partition(" ")[2].split(" .. ") for part in text.split(", ")] for text in blocks["first"]]
    for y, x in zip(square.starts["y"][square.is_test], square.starts["x"][square.is_test], strict=True):
        within = [
            all(
                int(first) <= start and start + 7 <= int(last) for start, (first, last) in zip((y, x), box, strict=True)
            )
            for box in ends
        ]
        assert sum(within) == 1


def test_cautions() -> None:
    few = opened(daily(), **SERIES, split={"by": "block", "test": 0.2})
    assert [caution.startswith("Only ") for caution in sides.cautions(few)] == [True]
    data = ramp(run=30, t=120, x=1)
    options: dict[str, Any] = {"modes": ["t", "x"], "sample_dim": "run", "windows": {"size": {"t": 4}}}
    (dependent,) = sides.cautions(opened(data, **options))
    assert "90 test samples make 3 groups" in dependent
    assert not sides.cautions(opened(ramp(run=600, x=2), modes=["x"], sample_dim="run"))
    (share,) = sides.cautions(
        opened(
            ramp(t=3000, x=1), modes=["t", "x"], windows={"size": {"t": 5}}, split={"by": "block", "block": {"t": 1000}}
        )
    )
    assert share == "33% of the samples are test samples, and data.split.test asks for 10%."


def test_coordinates_without_numbers_have_no_distance(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        named = ramp(t=60, x=2).assign_coords(t=np.array([f"p{i}" for i in range(60)], dtype=object))
        samples = opened(named, modes=["t", "x"], windows={"size": {"t": 5}})
    assert sides.gaps(samples) == {"t": {"points": 0, "distance": None, "unit": None}}
    metres = ramp(t=60, x=2).assign_coords(t=("t", np.arange(60) * 20.0, {"units": "m"}))
    samples = opened(metres, modes=["t", "x"], windows={"size": {"t": 5}})
    assert sides.gaps(samples) == {"t": {"points": 0, "distance": 20.0, "unit": "m"}}
    assert not caplog.records
