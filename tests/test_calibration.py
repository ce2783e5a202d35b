"""Calibrated output: bounded least squares, never worse than a number's own linear filter, resumed bit for bit."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.optimize import lsq_linear
from tiny_primitives import LAYOUT, GaussianDenoiser, tiny_recipe, tiny_set

from diffats import calibration, config
from diffats.calibration import BATCHES, MOST_GUESS, Calibrated, bounded_least_squares, fit, levels_of, load_calibrated
from diffats.diffusion import Diffusion
from diffats.errors import IntegrityError
from diffats.generation import generate
from diffats.training import train

MEAN, STD = torch.linspace(-1, 1, LAYOUT.numbers), torch.logspace(-3, 0, LAYOUT.numbers)


def batches(count=BATCHES, size=64, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [((MEAN + STD * torch.randn(size, LAYOUT.numbers, generator=source)).numpy(), {}) for _ in range(count)]


def fitted(network, diffusion, directory, **options):
    known = {"seed": 0, "dropped": False, "file": directory / "calibration.safetensors", "identity": "a", **options}
    return fit(network, diffusion, batches(), **known)


def denoising_error(network, diffusion, level):
    """Root mean square error of the clean number, by number, of samples that nothing was fitted to."""
    z = torch.cat([torch.from_numpy(part) for part, _ in batches(16, 256, seed=1)])
    t = torch.full((len(z),), level)
    noisy = diffusion.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(2)), t)
    guess = diffusion.to_x0(network(noisy, t, {}, None), noisy, t)
    return (guess - z).square().mean(dim=0).sqrt()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), st.floats(0.1, 3), st.floats(0.1, 3), st.sampled_from([0.0, 1e-7, 0.3]))
def test_bounded_least_squares_is_scipys(seed, most_guess, most_noisy, alike):
    rng = np.random.default_rng(seed)
    g, x = rng.normal(size=(2, 20))
    z = g + alike * rng.normal(size=20) if alike else rng.normal(size=20)
    sums = np.array([g @ g, g @ z, z @ z, g @ x, z @ x])[:, None]
    a, b = (float(w[0]) for w in bounded_least_squares(sums, most_guess=most_guess, most_noisy=most_noisy))
    expected = lsq_linear(np.stack([g, z], axis=1), x, ([0, 0], [most_guess, most_noisy]), method="bvls")
    assert 0 <= a <= most_guess
    assert 0 <= b <= most_noisy
    assert np.sum((a * g + b * z - x) ** 2) / 2 <= expected.cost * (1 + 1e-6) + 1e-9


def test_numbers_that_say_nothing_count_for_nothing():
    sums = np.zeros((5, 3))
    assert [w.tolist() for w in bounded_least_squares(sums, most_guess=1.0, most_noisy=1.0)] == [[0.0] * 3] * 2


@pytest.mark.parametrize("target", ["x0", "v", "eps"])
def test_the_best_network_stays_as_it_is_and_a_bad_guess_is_mended(target, tmp_path):
    diffusion = Diffusion(config.Diffusion.model_validate({"target": target}))
    exact = GaussianDenoiser(diffusion, MEAN, STD)

    def bad(z, t, cond, drop):
        """Off by many deviations of the numbers that vary little, as networks are."""
        x0 = diffusion.to_x0(exact(z, t, cond, drop), z, t)
        return diffusion.from_x0(x0 + 0.3 * torch.sin(7 * z.sum(dim=1, keepdim=True)), z, t)

    good = Calibrated(exact, diffusion, fitted(exact, diffusion, tmp_path, identity="good"))
    mended = Calibrated(bad, diffusion, fitted(bad, diffusion, tmp_path, identity="bad"))
    for level in levels_of(diffusion)[4::7]:
        alpha, sigma = (float(x) for x in diffusion.coefficients(torch.tensor([level])))
        z = torch.cat([torch.from_numpy(part) for part, _ in batches()])
        second = z.square().mean(dim=0)  # a filter without a mean, as `a = 0` is
        filtered = (sigma**2 * second / (alpha**2 * second + sigma**2)).sqrt()
        best = denoising_error(exact, diffusion, level)
        assert (denoising_error(good, diffusion, level) <= 1.05 * best + 1e-4).all()
        worst = denoising_error(mended, diffusion, level) / filtered
        assert worst.max() <= 1.05
        assert (denoising_error(bad, diffusion, level) / filtered).max() > 1.5


def test_between_levels_weights_lie_between(tmp_path):
    diffusion = Diffusion(config.Diffusion())
    table = fitted(GaussianDenoiser(diffusion, MEAN, STD), diffusion, tmp_path)
    levels = levels_of(diffusion)
    assert table.levels.tolist() == levels == sorted(levels)
    called = Calibrated(lambda z, t, cond, drop: z, diffusion, table)
    for weights in (table.guess["given"], table.noisy["given"]):
        rows = called._at(weights, torch.arange(diffusion.noise_steps))
        for i, (low, high) in enumerate(itertools.pairwise(levels)):
            ends = weights[i : i + 2]
            assert torch.equal(rows[[low, high]], ends)
            between = rows[low : high + 1]
            assert (between >= ends.amin(dim=0) - 1e-6).all()
            assert (between <= ends.amax(dim=0) + 1e-6).all()


def test_weights_are_bounded(tmp_path):
    diffusion = Diffusion(config.Diffusion())
    table = fitted(lambda z, t, cond, drop: 0.2 * z, diffusion, tmp_path)
    most = 1 / diffusion.abar[table.levels].double().sqrt()
    assert (table.guess["given"] <= MOST_GUESS + 1e-6).all()
    assert (table.noisy["given"].double() <= most[:, None] * (1 + 1e-6)).all()


class Killed(Exception):
    """Stands for anything that ends a process."""


def test_what_was_interrupted_goes_on_and_ends_with_the_same_bits(tmp_path):
    diffusion = Diffusion(config.Diffusion())
    network = GaussianDenoiser(diffusion, MEAN, STD)
    (tmp_path / "whole").mkdir()
    whole = fitted(network, diffusion, tmp_path / "whole")

    def stop(done, levels):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        fitted(network, diffusion, tmp_path, progress=stop)
    seen = []
    resumed = fitted(network, diffusion, tmp_path, progress=lambda done, levels: seen.append(done))
    assert seen[0] == 6
    assert all(torch.equal(x, resumed.to_tensors()[name]) for name, x in whole.to_tensors().items())
    seen.clear()
    fitted(network, diffusion, tmp_path, progress=lambda done, levels: seen.append(done))
    assert seen == []
    fitted(network, diffusion, tmp_path, identity="other weights", progress=lambda done, levels: seen.append(done))
    assert seen[0] == 1
    fitted(network, diffusion, tmp_path)
    file = tmp_path / "calibration.safetensors"
    flipped = bytearray(file.read_bytes())
    flipped[-2] ^= 1
    for damaged in (b"damaged", bytes(flipped), file.read_bytes()[:-3]):
        file.write_bytes(damaged)
        again = fitted(network, diffusion, tmp_path)
        assert all(torch.equal(x, again.to_tensors()[name]) for name, x in whole.to_tensors().items())


def test_parts_of_a_batch_give_the_same(tmp_path):
    diffusion = Diffusion(config.Diffusion())
    whole = fitted(GaussianDenoiser(diffusion, MEAN, STD), diffusion, tmp_path).to_tensors()
    parts = fitted(GaussianDenoiser(diffusion, MEAN, STD), diffusion, tmp_path, identity="b", at_once=24).to_tensors()
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=1e-5)


def trained(directory: Path, *, labels=True, **more):
    recipe = tiny_recipe(train={"calibrate": True, **more}, data={"condition": {"labels": "label", "dropout": 0.2}})
    return recipe, train(tiny_set(24, labels=labels), recipe, directory, device="cpu", threads=1)


def test_training_calibrates_with_conditions_and_without(tmp_path):
    _, made = trained(tmp_path)
    tensors = load_file(made.calibration)
    assert set(tensors) == {"levels", "guess.given", "guess.dropped", "noisy.given", "noisy.dropped"}
    assert tensors["guess.given"].shape == (calibration.LEVELS, LAYOUT.numbers)
    assert not torch.equal(tensors["guess.given"], tensors["guess.dropped"])
    before = made.calibration.read_bytes(), made.weights.read_bytes()
    _, again = trained(tmp_path)  # nothing to do
    assert (again.calibration.read_bytes(), again.weights.read_bytes()) == before
    _, elsewhere = trained(tmp_path / "elsewhere")
    assert (elsewhere.calibration.read_bytes(), elsewhere.weights.read_bytes()) == before
    plain = tiny_recipe(data={"condition": {"labels": "label", "dropout": 0.2}})
    assert train(tiny_set(24, labels=True), plain, tmp_path, device="cpu").calibration is None


def test_every_kind_of_call_uses_weights_of_its_own(tmp_path):
    diffusion = Diffusion(config.Diffusion())
    shape = (calibration.LEVELS, LAYOUT.numbers)
    tables = {"given": torch.zeros(shape), "dropped": torch.ones(shape)}
    nothing = {kind: torch.zeros(shape) for kind in tables}
    table = calibration.Calibration(torch.tensor(levels_of(diffusion)), tables, nothing)
    called = Calibrated(lambda z, t, cond, drop: torch.ones_like(z), diffusion, table)
    z, t, cond = torch.zeros(2, LAYOUT.numbers), torch.tensor([10, 900]), {"label": torch.tensor([0, 1])}
    assert (called(z, t, cond, None) == 0).all()
    assert (called(z, t, {}, None) == 1).all()
    assert called(z, t, cond, torch.tensor([False, True]))[:, 0].tolist() == [0, 1]
    guided = generate(called, LAYOUT, diffusion, [0, 1], 0, cond=cond, steps=3, guidance=2.0, device="cpu")
    np.testing.assert_allclose(guided, -1, atol=1e-5)  # 1 + 2 (0 - 1)


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    recipe, made = trained(tmp_path)
    network = GaussianDenoiser(Diffusion(recipe.diffusion), MEAN, STD)
    load_calibrated(made.calibration, network, LAYOUT, recipe, device="cpu")
    tensors = load_file(made.calibration)
    for changed in (
        {**tensors, "levels": tensors["levels"][:-1]},
        {**tensors, "guess.given": tensors["guess.given"][:, :-1].contiguous()},
        {**tensors, "noisy.given": tensors["noisy.given"] * torch.nan},
        {name: x for name, x in tensors.items() if name != "noisy.dropped"},
        {name: x for name, x in tensors.items() if name == "levels" or name.endswith(".dropped")},
        {name: x for name, x in tensors.items() if name == "levels"},
        {name: x.double() for name, x in tensors.items()},
        {**tensors, "levels": tensors["levels"].float()},
        {**tensors, "levels": tensors["levels"][0].clone()},
        {**tensors, "guess.given": tensors["guess.given"] + 1e3},
        {**tensors, "noisy.dropped": tensors["noisy.dropped"] - 1e3},
        {"guess.given": tensors["guess.given"]},
    ):
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(IntegrityError, match="train again"):
            load_calibrated(tmp_path / "changed.safetensors", network, LAYOUT, recipe, device="cpu")
