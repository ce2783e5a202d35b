"""Timing a few steps: what is timed is the real code, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_primitives import LABELS, LAYOUT, tiny_recipe
from tiny_runs import calls

from diffats import calibration, timing
from diffats.config import Recipe
from diffats.primitives import ConditionLayout, Layout
from diffats.training import _Training

PLACED = ConditionLayout(
    initial=(5,),
    initial_dims=("x",),
    fields={"land": (6, 5)},
    field_dims={"land": ("y", "x")},
    scalars=("nu",),
    scalar_log=(False,),
)
DIMS = {"initial": ["x"], "field_land": ["y", "x"]}
CASES = {
    "without conditions": (LAYOUT, ConditionLayout(), {}),
    "one step": (LAYOUT, ConditionLayout(), {"train": {"steps": 1}}),
    "guided by labels": (LAYOUT, LABELS, {"generate": {"guidance": 2.0, "sampler": "ddpm", "steps": 12}}),
    "shifted with its conditions": (LAYOUT, PLACED, {"train": {"shift": ["x"], "batch": 1}}),
    "in patches": (
        Layout("mgp", ("y", "x"), {"y": 6, "x": 6}, {"pixel": 2}, ("pixel",), {"y": 3, "x": 3}),
        ConditionLayout(),
        {"train": {"shift": ["y"]}},
    ),
}


def numpy_state() -> str:  # not that of `random`, from which other libraries' threads draw meanwhile
    return str(np.random.get_state())  # noqa: NPY002  (the global state is what is asked for)


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_recipe_is_timed_and_nothing_stays(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layout, conditions, sections = CASES[case]
    recipe = tiny_recipe(**sections)
    before = torch.random.get_rng_state(), numpy_state()
    data = timing.random_primitives(layout, conditions, recipe, DIMS if conditions is PLACED else {})
    with calls(_Training, "_update", monkeypatch) as updates:
        times = timing.measure(data, recipe)
    assert times.device == "cpu"
    assert times.step > 0
    assert times.sample > 0
    assert len(updates) == min(recipe.train.steps, 1 + timing.REPEATS)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert numpy_state() == before[1]
    assert list(tmp_path.iterdir()) == []


def test_calibration_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_sample_seconds", lambda *given: 10.0)
    calls = calibration.LEVELS * calibration.BATCHES * 8
    for conditions, dropout, guidance, expected in (
        (ConditionLayout(), 0.1, 1.0, calls * 10 / 5),
        (LABELS, 0.1, 1.0, 2 * calls * 10 / 5),
        (LABELS, 0.1, 2.0, 2 * calls * 10 / 10),
        (LABELS, 0.0, 1.0, calls * 10 / 5),
    ):
        given = {"labels": "label"} if conditions is LABELS else {}
        recipe = tiny_recipe(
            train={"calibrate": True},
            generate={"steps": 5, "guidance": guidance},
            data={"condition": {"dropout": dropout, **given}},
        )
        data = timing.random_primitives(LAYOUT, conditions, recipe, {})
        assert timing.measure(data, recipe).calibration == pytest.approx(expected)
    assert timing.measure(data, tiny_recipe()).calibration == 0


def generated(recipe: Recipe, step: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, list[int]]:
    """Seconds of a sample, and the batches that the network saw, where the median of all batches is 6 seconds."""
    data = timing.random_primitives(LAYOUT, LABELS, recipe, {})
    seen: list[int] = []
    monkeypatch.setattr(timing, "_median_seconds", lambda repeats: (next(repeats), 6.0)[1])

    class Network(torch.nn.Module):
        def forward(self, z: torch.Tensor, *conditions: object) -> torch.Tensor:
            seen.append(len(z))
            return z

    return timing._sample_seconds(Network(), data, recipe, step, "cpu"), seen


@pytest.mark.parametrize(
    ("step", "steps", "guidance", "sample", "batches"),
    [
        pytest.param(1e-3, 4, 1.0, 6.0 / 3, [3] * 4, id="all steps"),
        pytest.param(1e-3, 4, 2.0, 6.0 / 3, [6] * 4, id="guidance doubles the batch"),
        pytest.param(1e-3, 50, 1.0, 5 * 6.0 / 3, [3] * 10, id="some of many"),
        pytest.param(100.0, 50, 1.0, 50 * 6.0 / 3, [3], id="one of slow ones"),
    ],
)
def test_seconds_of_a_sample_are_those_of_all_its_steps(
    step: float, steps: int, guidance: float, sample: float, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"count": 7, "batch": 3, "steps": steps, "guidance": guidance}
    condition = {"condition": {"labels": "kind", "dropout": 0.1}}
    recipe = tiny_recipe(generate=settings, data=condition)
    assert generated(recipe, step, monkeypatch) == (pytest.approx(sample), batches)


@pytest.mark.parametrize(
    ("lengths", "median", "done"),
    [
        pytest.param([50.0], 50.0, 1, id="one long one counts"),
        pytest.param([1.0, 0.1, 0.3, 0.2], 0.2, 4, id="the first of some does not"),
        pytest.param([1.0, 2.0, 3.0, 4.0], 2.5, 3, id="no more after five seconds"),
        pytest.param([0.0, *np.arange(1, 100) / 100], 0.05, 10, id="few of many"),
    ],
)
def test_the_median_of_few(lengths: list[float], median: float, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def repeats() -> Generator[None, None, None]:
        for length in lengths:
            now[0] += length
            made.append(length)
            yield

    assert timing._median_seconds(repeats()) == pytest.approx(median)
    assert len(made) == done
