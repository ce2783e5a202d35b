"""The accelerated samplers against closed forms: their order, what they reach, and their interface."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from tiny_primitives import LAYOUT, GaussianDenoiser
from torch import Tensor

from diffats import config, samplers
from diffats.diffusion import SAMPLERS, Diffusion, random_source
from diffats.errors import InputError
from diffats.generation import generate
from diffats.samplers import AcceleratedDDIMScheduler, AcceleratedDDPMScheduler, extrapolation_weight

ACCELERATED = ("ddim-accelerated", "ddpm-accelerated")


# --- order, on Gaussian data: a sample is kept as its coefficients on the independent noises that it is made of ------

GRIDS: dict[str, Callable[[int], np.ndarray]] = {  # abar of T + 1 levels, none of them 1 or the end of the sampling
    "polynomial": lambda T: np.exp(-np.polyval([9.95, 0.1, 0], np.linspace(0.02, 1, T + 1))),
    "log-SNR": lambda T: 1 / (1 + np.exp(-2 * np.linspace(7, -7, T + 1))),
}


class Undivided(AcceleratedDDPMScheduler):
    """The error of a public code: the noise after the network's call is not divided by sqrt(alpha)."""

    def _variances(self, index: int) -> tuple[float, float]:
        before, after = super()._variances(index)
        return before, after * self._abar(index) / self._abar(index + 1)


published = partial(AcceleratedDDPMScheduler, variance_type="published")
undivided = partial(Undivided, variance_type="published")
ddim = partial(DDIMScheduler, clip_sample=False)
ddpm = partial(DDPMScheduler, clip_sample=False)


def basis(index: int, size: int) -> Tensor:
    """A basis vector, as a batch of one."""
    return (torch.arange(size) == index).double()[None]


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let each noise be the next basis vector; the list's one number counts them."""
    drawn = [0]

    def draw(shape: tuple[int, ...], **_: object) -> Tensor:
        drawn[0] += 1
        return basis(drawn[0], shape[1])

    monkeypatch.setattr(samplers, "randn_tensor", draw)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", draw)
    return drawn


def reached(kind: Callable[..., Any], abar: np.ndarray, data: float, noises: list[int], shift: bool = False) -> float:
    """The variance at the last of the levels, exact at the first, for data of variance ``data``.

    ``shift``: call the network at the level of its noisier input.
    """
    levels = len(abar)
    betas = 1 - abar / np.append(1, abar[:-1])
    scheduler = kind(num_train_timesteps=levels, trained_betas=betas.tolist())
    scheduler.alphas_cumprod = torch.from_numpy(abar)  # float64
    if kind is ddim:
        scheduler.set_timesteps(levels)
    else:
        scheduler.set_timesteps(timesteps=list(range(levels - 1, -1, -1)))
    variance = abar * data + 1 - abar
    noises[0] = 0
    first = math.sqrt(variance[-1] + scheduler.init_noise_sigma**2 - 1)
    x = first * basis(0, levels + 1)
    for index, t in enumerate(scheduler.timesteps[:-1]):
        seen = variance[t] + (scheduler._variances(index)[0] if shift else 0)
        x = scheduler.step(math.sqrt(1 - abar[t]) / seen * x, t, x).prev_sample
    return float(x.square().sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("kind", "shift", "lowest", "highest"),
    [
        (ddim, False, 0.9, 1.1),
        (AcceleratedDDIMScheduler, False, 1.9, 2.2),
        (ddpm, False, 0.9, 1.05),
        (AcceleratedDDPMScheduler, False, 1.95, 2.05),
        (published, False, 1.95, 2.05),
        (undivided, False, 0.8, 1.1),
        (AcceleratedDDPMScheduler, True, 0.9, 1.2),  # the network is called at the level before the added noise
    ],
    ids=["ddim", "ddim-accelerated", "ddpm", "ddpm-accelerated", "published", "undivided noise", "shifted level"],
)
def test_order(
    kind: Callable[..., Any], shift: bool, lowest: float, highest: float, grid: str, noises: list[int]
) -> None:
    steps, data = (160, 1280), 0.25
    abar = [GRIDS[grid](T) for T in steps]
    errors = [abs(reached(kind, a, data, noises, shift) - (a[0] * data + 1 - a[0])) for a in abar]
    slope = math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0])
    assert lowest <= slope <= highest


@pytest.mark.parametrize(("data", "error"), [(0.0, 1e-9), (1e12, 1e-2)])
def test_stochastic_steps_of_any_size_are_exact_for_narrow_and_wide_data(
    data: float, error: float, noises: list[int]
) -> None:
    abar = np.array([0.999, 0.9, 0.2, 1e-4])
    exact = abar[0] * data + 1 - abar[0]
    assert reached(AcceleratedDDPMScheduler, abar, data, noises) == pytest.approx(exact, abs=error, rel=0)


def test_the_published_variances_are_for_small_steps(noises: list[int]) -> None:
    abar = np.array([0.999, 0.9, 0.2, 1e-4])
    assert reached(published, abar, 0.0, noises) > 10 * (1 - abar[0])


@pytest.mark.parametrize("kind", [AcceleratedDDPMScheduler, published])
def test_the_stochastic_step_is_that_of_the_paper(kind: Callable[..., Any], noises: list[int]) -> None:
    abar, score = GRIDS["polynomial"](2000), -0.7
    scheduler = kind(len(abar), (1 - abar / np.append(1, abar[:-1])).tolist())
    t, before = 1000, scheduler.timesteps.tolist().index(1000)
    alpha = abar[t] / abar[t - 1]
    x = scheduler.step(torch.tensor([[-math.sqrt(1 - abar[t]) * score, 0]]), t, torch.tensor([[0.3, 0]])).prev_sample
    added = (1 - alpha) / 2 / alpha + (1 - abar[t - 1] / abar[t - 2]) / 2  # and that before the next call
    assert x[0, 0].item() == pytest.approx((0.3 + (1 - alpha) * score) / math.sqrt(alpha), rel=1e-5)
    assert x[0, 1].item() == pytest.approx(math.sqrt(added), rel=0.01)
    assert scheduler._variances(before)[0] == pytest.approx((1 - alpha) / 2, rel=0.01)


@given(ends=st.lists(st.floats(1e-5, 1 - 1e-5), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_the_weight_is_the_integral_of_the_extrapolation(ends: list[float]) -> None:
    before, here, there = sorted(ends)
    if min(here - before, there - here) < 1e-4:
        return
    flow = quad(lambda a: (a - here) / (2 * a * math.sqrt(a * (1 - a))), here, there)[0]  # of d sigma
    expected = math.sqrt(there) * flow / (here - before)
    assert extrapolation_weight(before, here, there) == pytest.approx(expected, rel=1e-5)


# --- a mixture in the plane ------------------------------------------------------------------------------------------


class MixtureDenoiser:
    """The exact prediction for a mixture of isotropic Gaussians in ``D`` dims: ``weights`` (K,), ``std`` (K,)."""

    def __init__(self, diffusion: Diffusion, weights: list[float], means: list[list[float]], std: list[float]) -> None:
        self.diffusion = diffusion
        self.weights, self.means, self.std = torch.tensor(weights), torch.tensor(means), torch.tensor(std)

    def x0(self, z: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        variance = (alpha * self.std) ** 2 + sigma**2  # (K,)
        off = z[:, None] - alpha * self.means  # (B, K, D)
        log = self.weights.log() - off.square().sum(2) / (2 * variance) - z.shape[1] / 2 * variance.log()
        centre = self.means + (alpha * self.std**2 / variance)[:, None] * off
        return (log.softmax(1)[..., None] * centre).sum(1)

    def __call__(self, z: Tensor, t: Tensor, cond: Mapping[str, Tensor], drop: Tensor | None) -> Tensor:
        alpha, sigma = (float(c[0, 0]) for c in self.diffusion.coefficients(t[:1]))
        x0 = self.x0(z, alpha, sigma)
        eps = (z - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0}[self.diffusion.config.target]


PLANE = ([0.5, 0.3, 0.2], [[1.2, 0.6], [-1.0, 0.8], [0.1, -1.4]], [0.3, 0.2, 0.4])
LINE = ([0.6, 0.4], [[-0.8], [0.9]], [0.25, 0.4])


def mixture(parts: tuple[list[float], list[list[float]], list[float]], noise_steps: int = 1000) -> MixtureDenoiser:
    return MixtureDenoiser(Diffusion(config.Diffusion(target="eps", noise_steps=noise_steps)), *parts)


def sample(exact: MixtureDenoiser | GaussianDenoiser, scheduler: Any, noise: Tensor, **source: object) -> Tensor:
    z = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        z = scheduler.step(exact(z, t.expand(len(z)), {}, None), t, z, **source).prev_sample
    return z


def flow_end(exact: MixtureDenoiser, noise: Tensor, steps: int = 400) -> Tensor:
    """Where the probability flow ends, by Runge-Kutta of fourth order in log-SNR."""
    first = float(exact.diffusion.abar[exact.diffusion.sampling_levels() - 1])
    start = 0.5 * math.log(first / (1 - first))
    h = (9.0 - start) / steps

    def slope(y: Tensor, log_snr: float) -> Tensor:  # y = z / alpha
        alpha = (1 + math.exp(-2 * log_snr)) ** -0.5
        return exact.x0(alpha * y, alpha, alpha * math.exp(-log_snr)) - y

    y = noise.double() / math.sqrt(first)
    for i in range(steps):
        s = start + i * h
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        k4 = slope(y + h * k3, s + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def test_more_order_in_the_plane() -> None:
    """The deterministic samplers should reach the end of the exact flow from the same noise."""
    exact = mixture(PLANE, noise_steps=10000)  # levels so dense that the steps are evenly spaced in log-SNR
    noise = torch.randn(500, 2, generator=random_source(0))
    end = flow_end(exact, noise)

    def error(name: str, steps: int) -> float:
        reached = sample(exact, exact.diffusion.scheduler(name, steps), noise)
        return float((reached - end).square().sum(1).mean().sqrt())

    few = {(name, steps): error(name, steps) for name in ("ddim", "dpm++", "ddim-accelerated") for steps in (10, 20)}
    for steps in (10, 20):
        assert few["ddim-accelerated", steps] <= 0.6 * few["ddim", steps]
    assert few["ddim-accelerated", 10] <= few["dpm++", 10]
    assert few["ddim-accelerated", 20] <= 2 * few["dpm++", 20]
    slope = math.log(error("ddim-accelerated", 80) / error("ddim-accelerated", 320)) / math.log(4)
    assert slope >= 1.8


@pytest.mark.parametrize("steps", [20, 50])
def test_the_stochastic_one_is_nearer_to_a_mixture_than_ddpm(steps: int) -> None:
    exact = mixture(LINE)
    noise = torch.randn(50_000, 1, generator=random_source(1))
    edges = np.linspace(-2.5, 2.5, 41)
    weights, means, std = (np.array(part, dtype=float) for part in LINE)
    mass = np.diff(norm.cdf(edges[:, None], means[:, 0], std) @ weights)

    def total_variation(name: str) -> float:
        z = sample(exact, exact.diffusion.scheduler(name, steps), noise, generator=random_source(2))
        return 0.5 * float(np.abs(np.histogram(z[:, 0].numpy(), edges)[0] / len(z) - mass).sum())

    assert total_variation("ddpm-accelerated") < total_variation("ddpm") / 1.6


# --- as schedulers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACCELERATED)
def test_what_the_network_predicts_does_not_matter(name: str) -> None:
    timesteps = Diffusion(config.Diffusion(target="eps")).timesteps(12)  # levels that all targets have
    noise = torch.randn(20, 2, generator=random_source(0)).double()
    source = {"generator": random_source(4)} if name == "ddpm-accelerated" else {}
    ends = []
    for target in ("eps", "x0", "v"):
        exact = MixtureDenoiser(Diffusion(config.Diffusion.model_validate({"target": target})), *PLANE)
        scheduler = exact.diffusion.scheduler(name)
        scheduler.set_timesteps(timesteps=timesteps)
        if source:
            source["generator"] = random_source(4)
        ends.append(sample(exact, scheduler, noise, **source))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_network_call_a_step(name: str) -> None:
    exact = GaussianDenoiser(Diffusion(config.Diffusion()), torch.zeros(LAYOUT.numbers), torch.ones(LAYOUT.numbers))
    levels: list[int] = []

    def counted(z: Tensor, t: Tensor, cond: Mapping[str, Tensor], drop: Tensor | None) -> Tensor:
        levels.append(int(t[0]))
        return exact(z, t, cond, drop)

    generate(counted, LAYOUT, exact.diffusion, range(3), 0, steps=7, sampler=name, device="cpu")
    assert levels == exact.diffusion.timesteps(7)


@pytest.mark.parametrize("lower", [True, False])
def test_the_last_step(lower: bool) -> None:
    exact = mixture(PLANE)
    betas = exact.diffusion.betas[: exact.diffusion.sampling_levels()].tolist()
    noise = torch.randn(4, 2, generator=random_source(0)).double()
    for kind in (AcceleratedDDIMScheduler, AcceleratedDDPMScheduler):
        scheduler = kind(len(betas), betas, lower_order_final=lower)
        scheduler.set_timesteps(3)
        z = noise
        source = {"generator": random_source(1)} if kind is AcceleratedDDPMScheduler else {}
        for t in scheduler.timesteps:
            eps, before = exact(z, t.expand(4), {}, None), z
            z = scheduler.step(eps, t, z, **source).prev_sample
        x0 = exact.diffusion.to_x0(eps, before, t.expand(4))
        assert torch.allclose(z, x0) is (lower or kind is AcceleratedDDPMScheduler)
    scheduler.set_timesteps(1)  # only a last step
    assert (scheduler.init_noise_sigma == 1) is lower


def test_noise_comes_from_a_generator_for_each_sample() -> None:
    scheduler = mixture(PLANE).diffusion.scheduler("ddpm-accelerated", 5)
    t, eps, z = scheduler.timesteps[1], torch.randn(3, 2), torch.randn(3, 2)
    sources = [random_source(i) for i in range(3)]
    together = scheduler.step(eps, t, z, generator=sources).prev_sample
    for i in range(3):
        row = slice(i, i + 1)
        alone = scheduler.step(eps[row], t, z[row], generator=random_source(i)).prev_sample
        torch.testing.assert_close(alone, together[row])


def test_a_scheduler_starts_over() -> None:
    exact = mixture(PLANE)
    scheduler = exact.diffusion.scheduler("ddim-accelerated", 6)
    first = sample(exact, scheduler, torch.ones(2, 2))
    sample(exact, scheduler, torch.ones(3, 2) * 2)
    assert torch.equal(sample(exact, scheduler, torch.ones(2, 2)), first)


@pytest.mark.parametrize("name", ACCELERATED)
def test_the_interface_is_that_of_diffusers(name: str, tmp_path: Path) -> None:
    scheduler = Diffusion(config.Diffusion(target="v")).scheduler(name)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    z = torch.ones(2, 3)
    source = {"generator": random_source(0)} if name == "ddpm-accelerated" else {}
    (x,) = scheduler.step(z, scheduler.timesteps[0], scheduler.scale_model_input(z), return_dict=False, **source)
    assert (x.shape, x.dtype) == (z.shape, z.dtype)
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    assert again.config["lower_order_final"] is scheduler.config["lower_order_final"] is True
    assert again.config["prediction_type"] == "v_prediction"
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"num_train_timesteps": 3}, "2 trained_betas for 3 num_train_timesteps"),
        ({"trained_betas": [0.1, 0.0]}, "between 0 and 1"),
        ({"trained_betas": [0.1, 1.0]}, "between 0 and 1"),
        ({"trained_betas": [1e-9, 0.5]}, "between 0 and 1"),
        ({"prediction_type": "flow"}, 'prediction_type "flow" is none of'),
        ({"variance_type": "learned"}, 'variance_type "learned" is none of'),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    good: dict[str, Any] = {"num_train_timesteps": 2, "trained_betas": [0.1, 0.5]}
    with pytest.raises(InputError, match=message):
        AcceleratedDDPMScheduler(**(good | settings_))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({}, "either num_inference_steps or timesteps"),
        ({"num_inference_steps": 2, "timesteps": [1, 0]}, "either num_inference_steps or timesteps"),
        ({"num_inference_steps": 4}, r"num_inference_steps 4 is outside 1\.\.3"),
        ({"timesteps": []}, "not within the levels"),
        ({"timesteps": [3, 0]}, "not within the levels"),
        ({"timesteps": [1, -1]}, "not within the levels"),
        ({"timesteps": [1, 2, 0]}, "noise does not fall from timestep 1 to 2"),
        ({"timesteps": [2, 2]}, "noise does not fall from timestep 2 to 2"),
        ({"timesteps": [1, 0]}, "noise does not fall from timestep 1 to 0"),  # equal in float32
    ],
)
def test_bad_steps(steps: dict[str, Any], message: str) -> None:
    scheduler = AcceleratedDDIMScheduler(3, [0.1, 1e-9, 0.5])
    with pytest.raises(InputError, match=message):
        scheduler.set_timesteps(**steps)


def test_a_level_that_is_no_step() -> None:
    scheduler = AcceleratedDDIMScheduler(3, [0.1, 0.2, 0.5])
    scheduler.set_timesteps(timesteps=[2, 0])
    with pytest.raises(InputError, match="level 1 is none of the sampling steps"):
        scheduler.step(torch.ones(1, 2), 1, torch.ones(1, 2))
