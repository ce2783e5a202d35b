"""Simulated data: solvers against exact solutions, splits without leaks, and a simulation that can be stopped."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

from diffats.cli import app
from diffats.config import Problem, Recipe, Simulate, load_recipe, parse_recipe, portable
from diffats.errors import RecipeError, SimulationError, SourceError, StoreError
from diffats.primitives import Layout
from diffats.simulate import burgers_1d, digits, drawing, image_patches, moving_digits, simulate, writing
from diffats.simulate import lattice_boltzmann as lattice
from diffats.sources import open_samples
from diffats.stages import Workspace

Array = npt.NDArray[Any]
ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "deployments" / "recipes").glob("[sp]*/*.toml"))
TINY = """
name = "tiny-digits"
root = "{root}"
[simulate]
problem = "moving_digits"
sizes = {{ time = 4, y = 16, x = 16 }}
count = 150
[data]
source = "{source}"
variables = ["brightness"]
modes = ["time", "y", "x"]
sample_dim = "sample"
split = {{ by = "coordinate", coordinate = "held_out", values = [1] }}
[decompose]
ranks = {{ time = 3, x = 4 }}
[compute]
workers = 1
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    text = TINY.format(root=(tmp_path / "root").as_posix(), source=(tmp_path / "digits.zarr").as_posix())
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


def source_of(recipe: Recipe) -> Path:
    return Path(recipe.data.source)


def content(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def wave(x: Array) -> Array:
    return np.asarray(np.sin(2 * math.pi * x) + 0.5 * np.cos(4 * math.pi * x))


def cole_hopf(viscosity: float, t: float, n: int = 4096) -> Array:
    """The exact solution of Burgers' equation from ``wave`` at the points ``i / n``."""
    number = 2 * math.pi * np.arange(n // 2 + 1)
    state = np.fft.rfft(wave(np.arange(n) / n))
    integral = np.fft.irfft(np.where(number > 0, state / np.where(number > 0, 1j * number, 1), 0), n)
    heat = np.fft.rfft(np.exp((integral.min() - integral) / (2 * viscosity))) * np.exp(-viscosity * number**2 * t)
    return np.asarray(-2 * viscosity * np.fft.irfft(1j * number * heat, n) / np.fft.irfft(heat, n))


def cell_averages(values: Array, n: int) -> Array:
    """Of values at ``i / len(values)``, by shifting them half a point with their Fourier series."""
    points = len(values)
    shift = np.exp(1j * math.pi * np.arange(points // 2 + 1) / points)
    return np.asarray(np.fft.irfft(np.fft.rfft(values) * shift, points).reshape(n, -1).mean(axis=1))


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# --- solvers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [1e-1, 10**-1.5])
def test_burgers_converges_to_cole_hopf_at_second_order(nu: float) -> None:
    exact, errors = cole_hopf(nu / math.pi, 0.4), []
    for n in (64, 128, 256):
        start = cell_averages(wave(np.arange(4096) / 4096), n)
        made = burgers_1d.integrate(start[None], np.array([nu / math.pi]), frames=2, interval=0.4)
        errors.append(relative(made[0, 1], cell_averages(exact, n)))
    assert errors[-1] < 2e-3
    assert math.log2(errors[1] / errors[2]) > 1.6


def test_burgers_adds_no_variation_no_mass_and_no_extremes() -> None:
    streams = [np.random.default_rng(i) for i in range(9)]
    start = np.stack([drawing.random_waves(stream, 128, averaged=True) for stream in streams])
    u = burgers_1d.integrate(start, burgers_1d.VISCOSITIES / math.pi, frames=9, interval=0.1)
    variation = np.abs(np.diff(u, axis=-1, append=u[..., :1])).sum(axis=-1)
    assert np.diff(variation, axis=1).max() < 1e-12 * variation.max()
    assert np.abs(u.mean(axis=-1) - start.mean(axis=-1)[:, None]).max() < 1e-14
    assert (np.abs(u).max(axis=-1) <= np.abs(start).max(axis=-1)[:, None] + 1e-12).all()


def test_a_shock_of_the_least_viscosity_is_where_it_must_be() -> None:
    n = 256
    start = cell_averages(np.sin(2 * math.pi * np.arange(4096) / 4096) + 0.25, n)
    made = burgers_1d.integrate(start[None], burgers_1d.VISCOSITIES[:1] / math.pi, frames=2, interval=1.0)[0, 1]
    # the steepest fall moves with the mean, 0.25, from 0.5; it is as wide as two cells
    assert (np.argmin(np.diff(made)) + 1) / n == pytest.approx(0.75, abs=1.5 / n)
    assert np.sort(np.diff(made))[:3].sum() < 0.95 * -np.ptp(made)


def needs_exponax() -> Any:
    return pytest.importorskip("exponax", reason="the extra `simulate` is not installed", exc_type=ImportError)


def test_reaction_diffusion_agrees_with_an_ordinary_solver() -> None:
    needs_exponax()
    from diffats.simulate import reaction_diffusion_1d as problem

    n, nu, rho = 64, 0.01, 2.0
    start = np.stack([problem.initial(np.random.default_rng(0), n), np.full(n, 0.2)])
    made = problem.integrate(start, np.full(2, nu), np.full(2, rho), frames=3, interval=0.5)
    symbol = -nu * (2 * math.pi * np.arange(n // 2 + 1)) ** 2

    def change(t: float, u: Array) -> Array:
        return np.asarray(np.fft.irfft(np.fft.rfft(u) * symbol, n) + rho * u * (1 - u))

    wanted = solve_ivp(change, (0, 1), start[0], t_eval=[0, 0.5, 1], rtol=1e-8, atol=1e-10).y.T
    assert np.abs(made[0] - wanted).max() < 1e-4  # products of the shortest waves are dropped in one, not the other
    logistic = 0.2 / (0.2 + 0.8 * np.exp(-rho * np.array([0, 0.5, 1])))
    assert np.abs(made[1] - logistic[:, None]).max() < 1e-8


def test_two_dimensional_burgers_contains_the_one_dimensional_one() -> None:
    needs_exponax()
    from diffats.simulate import burgers_2d as problem

    n, gamma, delta = 64, 8.0, 1.0
    along = np.broadcast_to(wave(np.arange(n) / n) / 1.5, (n, n))
    starts = np.stack([np.stack([along, 0 * along]), np.stack([0 * along, along.T])])
    made = problem.integrate(starts, np.full(2, gamma), np.full(2, delta), frames=2, steps=40)[:, 1]
    # with w = b u, and time in steps, it is w_t + w w_x = nu w_xx; cole_hopf starts from 1.5 times ours
    factor = delta / (2 * n) / 1.5
    exact = cole_hopf(gamma / (4 * n**2) / factor, 40 * factor)[:: 4096 // n] / 1.5
    assert relative(made[0, 0], np.broadcast_to(exact, (n, n))) < 5e-4
    assert np.abs(made[0, 1]).max() < 1e-12
    assert np.abs(made[1, 1] - made[0, 0].T).max() < 1e-12  # v moves along y as u does along x


def test_both_kinds_of_initial_states_fill_the_range() -> None:
    needs_exponax()
    from diffats.simulate import burgers_2d as problem

    states = problem.initial(np.arange(4), np.array([False, True, False, True]), n=16, seed=0)
    assert states.shape == (4, 2, 16, 16)
    assert np.abs(states).max(axis=(2, 3)) == pytest.approx(np.ones((4, 2)))
    assert not np.allclose(states[0], states[2])


def vortices(n: int, viscosity: float, speed: float, t: float) -> Array:
    """Taylor and Green's decaying vortices: an exact solution."""
    k = 2 * math.pi / n
    y, x = np.mgrid[:n, :n] * k
    decay = speed * math.exp(-2 * viscosity * k**2 * t)
    return np.asarray(decay * np.stack([-np.cos(x) * np.sin(y), np.sin(x) * np.cos(y)]))


def test_lattice_boltzmann_converges_to_decaying_vortices_at_second_order() -> None:
    errors = []
    for n in (16, 32):
        # diffusive scaling: twice the points, half the speed and four times the steps are the same flow
        speed, viscosity, steps = 0.64 / n, 0.02, n * n // 4
        start, wanted = (vortices(n, viscosity, speed, t) for t in (0, steps))
        twice = np.cos(4 * math.pi * np.arange(n) / n)
        density = 1 - 0.75 * speed**2 * (twice[:, None] + twice)  # one, and three times the pressure
        f, matrix = lattice.equilibrium(density, *start), lattice.collision(viscosity)
        for _ in range(steps):
            ux, uy = lattice.velocity(f)
            f = np.tensordot(matrix, np.concatenate([f, [ux * ux, uy * uy, ux * uy]]), axes=1)
            moved = zip(f, lattice.VELOCITIES, strict=True)
            f = np.stack([np.roll(part, (cy, cx), (0, 1)) for part, (cx, cy) in moved])
        errors.append(relative(lattice.velocity(f), wanted))
    assert errors[1] < 7e-3
    assert math.log2(errors[0] / errors[1]) > 1.9


@pytest.mark.parametrize("wall", [-0.5, 2.2, 2.5, 2.9])
def test_walls_are_where_they_are_given(wall: float) -> None:
    """A shear flow between a wall that holds it and a side that does not decays at the rate of an exact solution."""
    height, length, viscosity, steps = 20, 260, 0.05, 140
    # a cylinder so large that it is a plane; or none, and the flow slips at both sides
    circle = lattice.Circle(wall - 1e7, length / 2, 1e7) if wall > 0 else lattice.Circle(-1e3, 0, 1)
    tunnel = lattice.Tunnel(height, length, viscosity, 0.0, circle)
    room, y = height - 0.5 - wall, np.arange(height)[:, None] * np.ones(length) - wall
    rate = math.pi / 2 / room if wall > 0 else math.pi / room
    profile = 0.01 * (np.sin(rate * y) if wall > 0 else np.cos(rate * y))
    tunnel.set_velocity(profile, 0 * profile)
    tunnel.run(steps)
    middle = tunnel.velocity[0, :, length // 2]
    wanted = np.where(y[:, 0] > 0, profile[:, 0], 0) * math.exp(-viscosity * rate**2 * steps)
    assert relative(middle, wanted) < 3e-3


@pytest.mark.slow
def test_vortices_are_shed_at_the_known_frequency() -> None:
    re, diameter, speed = 90, 8, 0.12
    circle = lattice.Circle(10 * diameter + 0.3, 10 * diameter + 0.2, diameter / 2)
    tunnel = lattice.Tunnel(20 * diameter, 30 * diameter, speed * diameter / re, speed, circle)
    tunnel.run(round(60 * diameter / speed))
    every = round(0.2 * diameter / speed)
    beside = np.array([u[1, 10 * diameter, 13 * diameter] for u in tunnel.frames(200, every)])
    spectrum = np.abs(np.fft.rfft((beside - beside.mean()) * np.hanning(200), 8192))
    strouhal = spectrum.argmax() / 8192 / (every * speed / diameter)
    williamson = -3.3265 / re + 0.1816 + 1.6e-4 * re  # Annu. Rev. Fluid Mech. 28 (1996) 477
    assert strouhal == pytest.approx(williamson, rel=0.03)


def test_a_vortex_street_is_finite_and_starts_anywhere() -> None:
    settings = Simulate(problem="karman", sizes={"time": 3, "y": 64, "x": 64}, count=4, clips=2)
    whole = writing.find_problem(settings).describe(settings)
    karman = importlib.import_module("diffats.simulate.karman")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(karman, "_SPIN_UP", 1.0)
        made = karman.solve(settings, whole.isel(sample=slice(0, 2)))["vorticity"]
    assert made.shape == (2, 3, 64, 64)
    assert np.isfinite(made).all()
    assert np.abs(made).max() > 1


# --- splits -----------------------------------------------------------------------------------------------------


def run_problem(settings: Simulate) -> dict[str, Array]:
    problem = writing.find_problem(settings)
    whole = problem.describe(settings)
    return problem.solve(settings, whole.assign_coords(sample=np.arange(whole.sizes["sample"])))


def described(settings: Simulate) -> xr.Dataset:
    return writing.find_problem(settings).describe(settings)


def test_held_out_parameters_are_in_no_training_sample() -> None:
    settings = Simulate(
        problem="burgers_1d", sizes={"time": 2, "x": 8}, count=90, held_out={"nu": (1e-3, 1e-3)}, test=0.2
    )
    data = described(settings)
    assert set(data.nu.values[data.held_out == 2]) == {burgers_1d.VISCOSITIES[4]}
    assert burgers_1d.VISCOSITIES[4] not in data.nu.values[data.held_out < 2]
    assert int((data.held_out == 1).sum()) == 16
    assert data.held_out.attrs["flag_meanings"].split() == ["training", "new_trajectory", "new_parameters"]


def test_all_clips_of_a_flow_are_on_one_side() -> None:
    settings = Simulate(problem="karman", sizes={"time": 2, "y": 64, "x": 64}, count=20, clips=3)
    data = described(settings)
    assert (data.held_out.values.reshape(20, 3) == data.held_out.values[::3, None]).all()
    assert (data.re.values.reshape(20, 3) == data.re.values[::3, None]).all()


def test_digits_of_test_samples_are_in_no_training_sample() -> None:
    settings = Simulate(problem="moving_digits", sizes={"time": 2, "y": 16, "x": 16}, count=500)
    data = described(settings)
    images = np.stack([data.image_first, data.image_second])
    assert not set(images[:, data.held_out == 1].ravel()) & set(images[:, data.held_out == 0].ravel())
    assert int((data.held_out == 1).sum()) == 50


def test_digits_are_the_ones_that_ship_and_larger_ones_of_the_same_ink() -> None:
    pictures, classes = moving_digits.original_digits()
    settings = Simulate(problem="digits", sizes={"y": 8, "x": 8}, count=1797, test=0.2)
    made, data = run_problem(settings)["ink"], described(settings)
    np.testing.assert_allclose(made, pictures, atol=1e-6)
    np.testing.assert_array_equal(data["digit"], classes)
    assert int(data["held_out"].sum()) == 359
    larger = digits.solve(settings.model_copy(update={"sizes": {"y": 24, "x": 24}}), data.isel(sample=slice(0, 50)))[
        "ink"
    ]
    assert larger.shape == (50, 24, 24)
    assert 0 <= larger.min() < larger.max() <= 1
    blocks = larger.reshape(50, 8, 3, 8, 3).mean(axis=(2, 4))
    assert float(np.abs(blocks - pictures[:50]).mean()) < 0.05


def test_patches_of_the_test_region_share_no_pixel_with_training_patches(tmp_path: Path) -> None:
    recipe = load_recipe(
        ROOT / "deployments" / "recipes" / "small" / "image_patches.toml",
        [f"data.source={tmp_path / 'photographs.zarr'}", "compute.workers=1", "data.windows.stride={y=64,x=16}"],
    )
    made = simulate(recipe)
    assert (made.total, made.test, made.train) == (2, 240, 400)
    samples = open_samples(recipe.data)
    pixels = samples.starts["x"][:, None] + np.arange(64)
    held = (pixels >= 133) & (pixels < 213) | (pixels >= 346) & (pixels < 426) | (pixels >= 560)
    assert held[samples.is_test].all()
    assert not held[~samples.is_test].any()
    assert set(samples.starts["x"][samples.is_test] // 213) == {0, 1, 2}
    assert samples.read([0]).max() <= 1


def test_one_strip_of_a_photograph_is_its_last_columns() -> None:
    settings = Simulate(problem="image_patches", test=0.25)
    held = described(settings)["held_out"].values
    assert held[:480].sum() == 0
    assert held[480:].all()
    with pytest.raises(RecipeError, match="strips is for"):
        described(Simulate(problem="burgers_1d", sizes={"time": 2, "x": 8}, strips=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem": "burgers_1d", "sizes": {"x": 8}}, "has time, x"),
        ({"problem": "burgers_1d", "sizes": {"time": 2, "x": 8}, "clips": 2}, "simulate.clips is for"),
        ({"problem": "burgers_1d", "sizes": {"time": 2, "x": 8}, "held_out": {"mu": (0, 1)}}, "does not vary"),
        ({"problem": "burgers_1d", "sizes": {"time": 2, "x": 8}, "held_out": {"nu": (2, 3)}}, "leaves 1000 of 1000"),
        ({"problem": "burgers_1d", "sizes": {"time": 2, "x": 8}, "held_out": {"nu": (0, 3)}}, "leaves 0 of 1000"),
        ({"problem": "karman", "sizes": {"time": 2, "y": 32, "x": 32}}, "at least 64"),
        ({"problem": "burgers_2d", "sizes": {"time": 2, "y": 32, "x": 16}}, "on a square"),
        ({"problem": "moving_digits", "sizes": {"time": 2, "y": 8, "x": 8}}, "at least 16"),
        ({"problem": "image_patches", "sizes": {"y": 8}}, "takes neither"),
        ({"problem": "digits", "sizes": {"y": 16, "x": 8}}, "square pictures of at least 8 pixels"),
        ({"problem": "digits", "sizes": {"y": 8, "x": 8}, "count": 1798}, "has 1797 pictures"),
        ({"problem": "digits", "sizes": {"y": 8, "x": 8}, "held_out": {"digit": (7, 7)}}, "takes no held_out"),
        ({"problem": "image_patches", "test": 0.25, "strips": 161}, "Use fewer strips"),
    ],
)
def test_what_cannot_be_made_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        described(Simulate.model_validate(settings))


# --- writing ----------------------------------------------------------------------------------------------------


def break_from(patch: pytest.MonkeyPatch, first: int) -> None:
    """Let the chunks from this sample on fail."""
    real = moving_digits.solve

    def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
        if int(part["sample"][0]) >= first:
            raise OSError("disk full")
        return real(settings, part)

    patch.setattr(moving_digits, "solve", solve)


def test_a_stopped_simulation_goes_on_and_gives_the_same_bits(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = source_of(recipe)
    with monkeypatch.context() as patch:
        break_from(patch, 128)
        with pytest.raises(OSError, match="disk full"):
            simulate(recipe)
    assert not place.exists()
    seen: list[tuple[int, int, int]] = []
    made = simulate(recipe, progress=lambda *counts: seen.append(counts))
    assert (made.done, made.total, made.skipped) == (22, 150, False)
    assert seen == [(150, 150, 0)]
    again = simulate(recipe)
    assert (again.done, again.skipped) == (0, True)
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(tmp_path / "b.zarr")})})
    simulate(other)
    assert content(place) == content(tmp_path / "b.zarr")
    assert not list(tmp_path.glob("*.partial"))


def test_other_settings_are_refused_and_restart_makes_them(recipe_file: Path) -> None:
    first = simulate(load_recipe(recipe_file))
    changed = load_recipe(recipe_file, ["simulate.seed=1"])
    with pytest.raises(StoreError, match="other settings"):
        simulate(changed)
    made = simulate(changed, restart=True)
    assert made.fingerprint != first.fingerprint
    assert made.done == 150


def test_a_begun_simulation_of_other_settings_is_refused(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_from(patch, 64)
        with pytest.raises(OSError, match="disk full"):
            simulate(load_recipe(recipe_file))
    changed = load_recipe(recipe_file, ["simulate.seed=1"])
    with pytest.raises(StoreError, match="not finished"):
        simulate(changed)
    assert simulate(changed, restart=True).done == 150


@pytest.mark.parametrize("restart", [False, True])
def test_what_it_has_not_made_is_left_alone(recipe: Recipe, restart: bool) -> None:
    source_of(recipe).mkdir()
    (source_of(recipe) / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not made by diffats simulate"):
        simulate(recipe, restart=restart)
    assert (source_of(recipe) / "thesis.txt").read_text() == "years of work"


def test_a_solver_that_diverges_is_told(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def nonsense(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
        return {"brightness": np.full((part.sizes["sample"], 4, 16, 16), np.nan, dtype=np.float32)}

    monkeypatch.setattr(moving_digits, "solve", nonsense)
    with pytest.raises(SimulationError, match=r"64 samples is not finite, first with .*digit_first = "):
        simulate(recipe)


def test_the_store_says_what_it_is(recipe: Recipe) -> None:
    simulate(recipe)
    data = xr.open_dataset(recipe.data.source, engine="zarr", consolidated=False)
    assert data.brightness.dims == ("sample", "time", "y", "x")
    assert data.brightness.attrs["units"] == "1"
    assert {"digit_first", "digit_second", "held_out"} <= set(data.coords)
    assert {"title", "references", "license", "source"} <= set(data.attrs)
    assert json.loads(data.attrs["simulation"])["count"] == 150
    assert float(data.brightness.min()) == 0
    assert 0.9 < float(data.brightness.max()) <= 1
    assert str(ROOT) not in json.dumps(data.attrs)


# --- recipes and commands ---------------------------------------------------------------------------------------

# Numbers of a primitive at the paper's scale; compression, and what share of it the small scale has.
PAPER = {
    "burgers_1d": (30_720, 6.667, 1.0),
    "reaction_diffusion_1d": (15_360, 13.333, 1.0),
    "burgers_2d": (None, 200.0, 0.25),
    "karman": (44_240, 74.07, 0.25),
    "moving_digits": (20_780, 3.942, 1.0),
    "image_patches": (None, 16.0, 1.0),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_compress_as_the_paper_does(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.simulate is not None
    assert recipe.simulate.problem == path.stem
    data = described(recipe.simulate)
    sizes = {mode: recipe.data.windows.size.get(mode, data.sizes[mode]) for mode in recipe.data.modes}
    component = {"component": len(recipe.data.variables)} if len(recipe.data.variables) > 1 else {}
    layout = Layout.from_recipe(recipe, component | sizes)
    numbers, compression, share = PAPER[path.stem]
    if path.parent.name == "paper":
        assert layout.compression == pytest.approx(compression, rel=0.03)
        assert numbers is None or layout.numbers == numbers
    else:
        assert layout.compression == pytest.approx(share * compression, rel=0.05)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_name_what_is_made(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.simulate is not None
    data = described(recipe.simulate)
    assert list(data.data_vars) == recipe.data.variables
    assert set(data[recipe.data.variables[0]].dims) == {"sample", *recipe.data.modes}
    assert set(recipe.data.condition.scalars) <= set(data.coords)
    sides = set(np.unique(data.held_out))
    assert sides == {0, *map(int, recipe.data.split.values)}
    assert float((data.held_out > 0).mean()) < 0.4


def test_there_are_two_recipes_for_each_problem() -> None:
    problems = set(get_args(Problem)) - {"digits"}  # whose recipe stands beside the demo's
    assert len(RECIPES) == 2 * len(problems)
    assert {path.stem for path in RECIPES} == problems == set(PAPER)


def test_plan_says_what_to_run_first(recipe_file: Path) -> None:
    done = CliRunner().invoke(app, ["plan", str(recipe_file)])
    assert done.exit_code == 2
    assert "Run `diffats simulate RECIPE.toml` first" in done.stderr
    made = CliRunner().invoke(app, ["simulate", str(recipe_file), "--json"])
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["total"] == 150
    done = CliRunner().invoke(app, ["plan", str(recipe_file), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["test"] == 15
    again = CliRunner().invoke(app, ["simulate", str(recipe_file)])
    assert "already there" in again.stdout


def test_samples_that_are_still_to_be_made_are_a_source_error(recipe: Recipe) -> None:
    with pytest.raises(SourceError, match='problem "moving_digits"'):
        _ = Workspace(recipe).samples


def test_a_recipe_without_the_section_is_told(recipe_file: Path) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    start, end = text.index("[simulate]"), text.index("[data]")
    recipe_file.write_text(text[:start] + text[end:], encoding="utf-8")
    done = CliRunner().invoke(app, ["simulate", str(recipe_file)])
    assert done.exit_code == 2
    assert "no section [simulate]" in done.stderr


def test_simulated_data_go_to_a_local_path(recipe_file: Path) -> None:
    for source in ("builtin:indian-pines", "s3://bucket/a.zarr", "runs/*.zarr"):
        with pytest.raises(RecipeError, match="must be a local path"):
            load_recipe(recipe_file, [f"data.source={source}"])


def test_recipes_without_the_section_are_stored_as_before(recipe: Recipe) -> None:
    assert "simulate" in portable(recipe)
    assert parse_recipe(portable(recipe)).simulate == recipe.simulate
    assert "simulate" not in portable(recipe.model_copy(update={"simulate": None}))


def test_no_other_command_loads_jax() -> None:
    code = (
        "import sys, diffats.cli, diffats.stages, diffats.simulate.burgers_2d, diffats.simulate.reaction_diffusion_1d;"
        "print(*[name for name in ('jax', 'exponax', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_photographs_are_the_ones_that_ship() -> None:
    settings = Simulate(problem="image_patches", test=0.25)
    made = run_problem(settings)["photograph"]
    assert made.shape == (2, 3, 427, 640)
    assert len(image_patches.NAMES) == 2
