"""Residuals of the equations: near zero for what the solvers made, and for nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from diffats.config import Problem, Simulate, load_recipe
from diffats.errors import InputError
from diffats.simulate import burgers_1d, burgers_2d, reaction_diffusion_1d, simulate
from diffats.simulate.residuals import EQUATIONS, _windows, residual
from diffats.stages import Workspace, evaluate

Array = npt.NDArray[Any]
Case = tuple[Problem, Array, dict[str, Array]]


def burgers(frames: int = 50, n: int = 256, count: int = 9) -> Case:
    settings = Simulate(problem="burgers_1d", sizes={"time": frames, "x": n}, count=count)
    described = burgers_1d.describe(settings)
    return "burgers_1d", burgers_1d.solve(settings, described)["u"], {"nu": described["nu"].values}


def reaction_diffusion(frames: int = 50, n: int = 128, count: int = 9) -> Case:
    settings = Simulate(problem="reaction_diffusion_1d", sizes={"time": frames, "x": n}, count=count)
    described = reaction_diffusion_1d.describe(settings)
    parameters = {name: described[name].values for name in ("nu", "rho")}
    return "reaction_diffusion_1d", reaction_diffusion_1d.solve(settings, described)["u"], parameters


def burgers_in_two_dimensions(frames: int = 50, n: int = 32) -> Case:
    """Solved on the stored grid, enough for viscous flows; the parameters are those of a solver's 128 points."""
    gamma, delta = np.array([6.0, 9.0, 7.0]), np.array([0.3, 0.2, 0.4])
    finer = 128 // n
    states = burgers_2d.initial(np.arange(3), np.zeros(3, bool), n=n, seed=0)
    uv = burgers_2d.integrate(states, gamma / finer**2, delta / finer, frames=frames, steps=200 // frames)
    return "burgers_2d", np.moveaxis(uv, 2, 1).astype(np.float32), {"gamma": gamma, "delta": delta}


@pytest.fixture(scope="module", params=[burgers, reaction_diffusion, burgers_in_two_dimensions])
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = request.param()
    return made


def test_what_solves_the_equation_leaves_next_to_nothing(case: Case) -> None:
    problem, fields, parameters = case
    floor = residual(problem, fields, parameters)
    assert floor.shape == fields.shape[:1]
    assert np.median(floor) < (0.04 if problem == "burgers_1d" else 0.002)  # shocks lie between points
    assert floor.max() < (0.2 if problem == "burgers_1d" else 0.005)


def test_what_does_not_solve_it_leaves_much(case: Case) -> None:
    problem, fields, parameters = case
    rng = np.random.default_rng(0)
    floor = residual(problem, fields, parameters)
    time = 1 + EQUATIONS[problem].dims.index("time")
    shuffled = fields.take(rng.permutation(fields.shape[time]), axis=time)
    noisy = fields + 0.1 * fields.std() * rng.standard_normal(fields.shape)
    mean = (fields + np.roll(fields, 1, axis=0)) / 2  # what a forecast that is unsure tends to
    assert (residual(problem, shuffled, parameters) > 0.7).all()
    assert np.median(residual(problem, noisy, parameters)) > 2 * np.median(floor)
    assert np.median(residual(problem, mean, parameters)) > 5 * np.median(floor)
    assert (residual(problem, np.flip(fields, time), parameters) > 0.2).all()  # diffusion has a direction


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (burgers, "nu"),
        (reaction_diffusion, "rho"),
        (reaction_diffusion, "nu"),
        (burgers_in_two_dimensions, "gamma"),
        (burgers_in_two_dimensions, "delta"),
    ],
)
def test_other_parameters_are_another_equation(make: Any, name: str) -> None:
    problem, fields, parameters = make()
    right = residual(problem, fields, parameters)
    wrong = residual(problem, fields, parameters | {name: 3 * parameters[name]})
    assert wrong.max() > 0.1
    assert np.median(wrong) > 2 * np.median(right)  # of the least viscosities, shocks hide a factor of three


def test_the_floor_falls_with_the_resolution() -> None:
    coarse, fine = (residual(*burgers(frames, n, 4)) for frames, n in ((25, 64), (100, 256)))
    assert np.median(fine) < 0.6 * np.median(coarse)
    coarse, fine = (residual(*reaction_diffusion(frames, n)) for frames, n in ((20, 32), (80, 128)))
    assert np.median(fine) < 0.2 * np.median(coarse)


def test_a_known_solution_of_the_heat_equation() -> None:
    """Burgers' equation of a faint wave is the heat equation; other decay leaves a residual that can be said."""
    time, x, nu = 2.0 / 100 * np.arange(100)[:, None], np.arange(64) / 64, 0.1
    rate = nu / math.pi * (2 * math.pi) ** 2
    for factor, expected in ((1.0, 0.0), (3.0, 2 / math.sqrt(10)), (0.0, 1.0)):
        wave = 1e-5 * np.exp(-factor * rate * time) * np.sin(2 * math.pi * x)
        assert residual("burgers_1d", wave[None], {"nu": np.array([nu])})[0] == pytest.approx(expected, abs=2e-3)


def test_states_of_rest_solve_it() -> None:
    still = np.stack([np.full((20, 16), 0.7), np.zeros((20, 16))])
    assert residual("burgers_1d", still, {"nu": np.array([0.1, 0.1])}) == pytest.approx(0.0, abs=1e-4)
    carried = residual("reaction_diffusion_1d", 0 * still + 1, {"nu": np.ones(2), "rho": np.ones(2)})
    assert carried == pytest.approx(0.0, abs=1e-4)


def test_windows_are_exact_for_lines() -> None:
    window, slope = _windows(40, 0.05)
    t = 0.05 * np.arange(40)
    np.testing.assert_allclose(window.sum(axis=1), 1.0)
    np.testing.assert_allclose(-slope @ (3 * t + 7), 3.0)
    np.testing.assert_allclose(-slope @ np.sin(t), window @ np.cos(t), atol=1e-4)


def test_each_field_stands_for_itself(case: Case) -> None:
    problem, fields, parameters = case
    order = np.random.default_rng(0).permutation(len(fields))
    turned = residual(problem, fields[order], {name: value[order] for name, value in parameters.items()})
    np.testing.assert_array_equal(turned, residual(problem, fields, parameters)[order])
    fields = fields.copy()
    fields[0].flat[5] = np.nan
    assert np.isnan(residual(problem, fields, parameters)).tolist() == [True] + [False] * (len(fields) - 1)


RECIPE = """
name = "tiny-burgers"
root = "{root}"
[simulate]
problem = "burgers_1d"
sizes = {{ time = 20, x = 64 }}
count = 40
[data]
source = "{source}"
variables = ["u"]
modes = ["{modes[0]}", "{modes[1]}"]
sample_dim = "sample"
split = {{ by = "coordinate", coordinate = "held_out", values = [1] }}
[data.condition]
initial = {{ dim = "time", index = 0 }}
scalars = ["nu"]
[decompose]
ranks = {{ time = 3, x = 3 }}
[compute]
workers = 1
"""


def test_an_evaluation_takes_the_equation_from_the_recipe(tmp_path: Path) -> None:
    places = {"root": (tmp_path / "root").as_posix(), "source": (tmp_path / "burgers.zarr").as_posix()}
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE.format(modes=("time", "x"), **places), encoding="utf-8")
    recipe = load_recipe(file)
    simulate(recipe)
    work = Workspace(recipe)
    chosen = np.array([3, 30])
    nu = burgers_1d.VISCOSITIES[chosen % len(burgers_1d.VISCOSITIES)]
    raw = work.samples.conditions(chosen, work.samples.read(chosen))
    found = evaluate.equation(work, raw)["residual"](work.samples.read(chosen))
    np.testing.assert_allclose(found, residual("burgers_1d", work.samples.read(chosen), {"nu": nu}), rtol=1e-5)
    assert found.max() < 0.3
    assert evaluate.equation(work, {"initial": raw["initial"]}) == {}
    file.write_text(RECIPE.format(modes=("x", "time"), **places), encoding="utf-8")
    assert evaluate.equation(Workspace(load_recipe(file)), raw) == {}


@pytest.mark.parametrize(
    ("problem", "shape", "parameters", "message"),
    [
        ("karman", (2, 8, 8, 8), {"re": np.ones(2)}, "burgers_1d, reaction_diffusion_1d, burgers_2d"),
        ("reaction_diffusion_1d", (2, 8, 8), {"nu": np.ones(2)}, '"rho"'),
        ("burgers_1d", (2, 8, 8), {"nu": np.ones(3)}, r"\(3,\)"),
        ("burgers_1d", (2, 8, 8, 8), {"nu": np.ones(2)}, r"\(sample, time, x\)"),
        ("burgers_1d", (2, 4, 8), {"nu": np.ones(2)}, "needs 5 frames, got 4"),
    ],
)
def test_what_cannot_be_held_against_an_equation_is_refused(
    problem: Any, shape: tuple[int, ...], parameters: dict[str, Array], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        residual(problem, np.zeros(shape), parameters)
