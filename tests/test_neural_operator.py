"""The neural operator learns a flow from its initial state and a scalar, repeats, and refuses what does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("neuralop", reason="the extra quality brings it")

from benchmarks import neural_operator
from benchmarks.neural_operator import Settings, choose_settings, train
from diffats.errors import InputError

TINY = Settings(n_modes=(4, 8), width=8, strides=(1, 2), coarse=0.5, batch=4, coarse_batch=4, rate=1e-2)
WAVE, BOX = ("time", "x"), ("component", "time", "y", "x")
CUBE = Settings(n_modes=(4, 4, 4), width=4, strides=(1, 2, 2), coarse=0.5, batch=2, coarse_batch=2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Bits are compared, and tiny grids are slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def advected(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waves on 8 frames of 16 points, carried at a speed which is the only scalar; far from 0."""
    random = np.random.default_rng(seed)
    speed = random.uniform(0.2, 1.0, (count, 1, 1))
    phase = random.uniform(0, 2 * np.pi, (count, 1, 1))
    time, x = np.linspace(0, 1, 8)[:, None], 2 * np.pi * np.arange(16) / 16
    fields = 300 + 5 * np.sin(x - phase - 3 * speed * time)
    return fields, fields[:, 0], speed[:, :, 0]


def two_components(count: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    fields = random.standard_normal((count, 2, 6, 8, 8))
    return fields, fields[:, :, 0], np.empty((count, 0))


def distance(found: np.ndarray, fields: np.ndarray) -> float:
    return float(np.linalg.norm(found - fields))


def test_learns_advection_at_unseen_speeds() -> None:
    operator = train(*advected(64, 0), modes=WAVE, time_axis=0, seed=0, settings=TINY, steps=80)
    fields, initial, scalars = advected(16, 1)
    found = operator.predict(initial, scalars)
    assert found.shape == fields.shape
    assert found.dtype == np.float32
    assert operator.steps == 80
    assert distance(found, fields) < 0.25 * distance(np.broadcast_to(initial[:, None], fields.shape), fields)


def test_equal_seeds_repeat_and_others_differ() -> None:
    fields, initial, scalars = two_components()
    made = [
        train(fields, initial, scalars, modes=BOX, time_axis=1, seed=seed, settings=CUBE, steps=3).predict(
            initial, scalars
        )
        for seed in (0, 0, 1)
    ]
    assert made[0].shape == fields.shape
    np.testing.assert_array_equal(made[0], made[1])
    assert distance(made[0], made[2]) > 0


def test_samples_are_predicted_one_by_one() -> None:
    fields, initial, scalars = advected(8, 0)
    operator = train(fields, initial, scalars, modes=WAVE, time_axis=0, seed=0, settings=TINY, steps=2)
    np.testing.assert_array_equal(operator.predict(initial, scalars)[5:6], operator.predict(initial[5:6], scalars[5:6]))


def test_a_budget_of_seconds_follows_the_clock() -> None:
    ticks = itertools.count(step=1.0)
    operator = train(
        *advected(8, 0), modes=WAVE, time_axis=0, seed=0, settings=TINY, seconds=10.0, clock=lambda: float(next(ticks))
    )
    assert operator.steps == 9  # the clock shows 0 before, and 1 to 9 before a step


def test_learning_rate_rises_and_falls_to_nothing() -> None:
    rates = [neural_operator._schedule(share) for share in np.linspace(0, 1, 101)]
    assert 0 < rates[0] < 0.2
    assert max(rates) > 0.95
    assert rates[-1] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[5:]))


@pytest.mark.parametrize("sizes", [(100, 512), (50, 64, 64), (20, 9), (7, 6, 5)])
def test_settings_fit_their_sizes(sizes: tuple[int, ...]) -> None:
    found = choose_settings(sizes, time_axis=0)
    assert found == choose_settings((2, *sizes), time_axis=1)
    neural_operator._check_modes(found, sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"initial": np.zeros((8, 15))}, r"initial states of shape \(8, 15\), expected \(8, 16\)"),
        ({"scalars": np.zeros((7, 1))}, r"scalars of shape \(7, 1\), expected \(8, 1\)"),
        ({"fields": np.zeros((9, 8, 16))}, "9 fields and 8 initial states"),
        ({"time_axis": 2}, "time_axis 2. Move the axes first"),
        ({"modes": ("component", "x")}, "nowhere else"),
        ({"modes": ("time", "y", "x")}, "a name for each axis"),
        ({"seconds": 1.0}, "Give one of them"),
        ({"steps": None}, "Give one of them"),
        ({"steps": 0}, "above 0"),
        ({"steps": -1}, "above 0"),
        ({"settings": Settings((4, 10), 8, (1, 2))}, r"can hold \(8, 8\) modes"),
        ({"settings": Settings((3, 8), 8, (1, 2))}, "an even number of modes"),
        ({"settings": CUBE}, r"n_modes \(4, 4, 4\) and strides \(1, 2, 2\) on a grid of \(8, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    fields, initial, scalars = advected(8, 0)
    call: dict[str, Any] = {"fields": fields, "initial": initial, "scalars": scalars, "steps": 1}
    with pytest.raises(InputError, match=message):
        train(**{**call, "modes": WAVE, "time_axis": 0, "seed": 0, "settings": TINY, **change})


def test_prediction_refuses_other_sizes() -> None:
    fields, initial, scalars = advected(8, 0)
    operator = train(fields, initial, scalars, modes=WAVE, time_axis=0, seed=0, settings=TINY, steps=1)
    with pytest.raises(InputError, match=r"expected \(8, 16\)"):
        operator.predict(initial[:, :8], scalars)
    with pytest.raises(InputError, match=r"expected \(8, 1\)"):
        operator.predict(initial, np.zeros((8, 2)))
