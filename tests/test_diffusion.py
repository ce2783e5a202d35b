from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_primitives import GaussianDenoiser

from diffats import config
from diffats.diffusion import SAMPLERS, Diffusion, Draw, element_weights, random_source
from diffats.errors import InputError
from diffats.schedule import MAX_BETA

TARGETS = ("eps", "x0", "v")
MEAN, STD = torch.tensor([0.0, 1.0, -2.0, 0.5]), torch.tensor([1.0, 0.3, 3.0, 0.1])


@pytest.mark.parametrize(("schedule", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_schedules_are_those_of_diffusers(schedule: str, theirs: str) -> None:
    ours = Diffusion(config.Diffusion(schedule=schedule))  # type: ignore[arg-type]
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    assert torch.equal(ours.betas, reference.betas)
    assert torch.equal(ours.abar, reference.alphas_cumprod)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("noise_steps", [2, 10, 100, 1000, 4000])
def test_noising_ends_in_noise(schedule: str, noise_steps: int) -> None:
    diffusion = Diffusion(config.Diffusion(schedule=schedule, noise_steps=noise_steps))  # type: ignore[arg-type]
    assert (diffusion.abar.diff() < 0).all()
    assert diffusion.abar[-1] < 1e-3


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("noise_steps", [10, 1000, 4000])
@pytest.mark.parametrize("shift", [-2.0, -0.5, 1.0, 2.0])
def test_a_shift_moves_every_level_alike(schedule: str, noise_steps: int, shift: float) -> None:
    settings = {"schedule": schedule, "noise_steps": noise_steps}
    plain, shifted = (
        Diffusion(config.Diffusion.model_validate({**settings, "log_snr_shift": by})) for by in (0.0, shift)
    )
    moved = shifted.log_snr() - plain.log_snr()
    inner = plain.betas < MAX_BETA
    np.testing.assert_allclose(moved[inner], shift, atol=0.05)  # float32 resolves no more of the least noise
    assert np.isfinite(shifted.log_snr()).all()
    assert (shifted.abar.diff() < 0).all()
    assert shifted.abar[0] < 1


def test_noise_is_added_as_in_diffusers() -> None:
    diffusion = Diffusion(config.Diffusion(schedule="linear"))
    z, eps, t = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 500, 999])
    reference = DDPMScheduler()
    torch.testing.assert_close(diffusion.add_noise(z, eps, t), reference.add_noise(z, eps, t))
    velocity = Diffusion(config.Diffusion(schedule="linear", target="v")).target(z, eps, t)
    torch.testing.assert_close(velocity, reference.get_velocity(z, eps, t))


@pytest.mark.parametrize("target", TARGETS)
def test_targets_mean_the_same_sample_and_noise(target: str) -> None:
    diffusion = Diffusion(config.Diffusion(target=target))  # type: ignore[arg-type]
    z, eps, t = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([1, 100, 500, 800, 950])
    z_t = diffusion.add_noise(z, eps, t)
    prediction = diffusion.target(z, eps, t)
    torch.testing.assert_close(diffusion.to_x0(prediction, z_t, t), z, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(diffusion.to_eps(prediction, z_t, t), eps, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_exact_denoiser_has_the_least_loss(target: str) -> None:
    diffusion = Diffusion(config.Diffusion(target=target))  # type: ignore[arg-type]
    generator = random_source(1)
    z = MEAN + STD * torch.randn(4000, 4, generator=generator)
    draw = diffusion.draw(4000, 4, generator=generator)
    weights = element_weights({"all": 4})
    exact = GaussianDenoiser(diffusion, MEAN, STD)
    least = diffusion.loss(exact, z, {}, weights, draw)
    alpha, sigma = diffusion.coefficients(draw.t)
    variance = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of z given z_t
    factor = {"x0": 1.0, "eps": (alpha / sigma) ** 2, "v": 1 / sigma**2}[target]
    expected = (variance * factor).mean()
    torch.testing.assert_close(least, expected, rtol=0.05, atol=0)
    for other in (GaussianDenoiser(diffusion, MEAN + 0.2, STD), GaussianDenoiser(diffusion, MEAN, 1.3 * STD)):
        assert diffusion.loss(other, z, {}, weights, draw) > least


def test_loss_is_a_mean_over_streams_of_means() -> None:
    diffusion = Diffusion(config.Diffusion())
    z = torch.randn(3, 6)
    draw = diffusion.draw(3, 6, generator=random_source(0))
    error = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0, 2.0])

    def network(z_t: torch.Tensor, t: torch.Tensor, cond: object, drop: object) -> torch.Tensor:
        return z + error

    sizes = {"core": 2, "factor_x": 4}
    assert diffusion.loss(network, z, {}, element_weights(sizes), draw).item() == pytest.approx((1 + 4) / 2)
    weights = torch.tensor([0.375, 0.375, 0.0625, 0.0625, 0.0625, 0.0625])
    assert diffusion.loss(network, z, {}, weights, draw).item() == pytest.approx((3 * 1 + 4) / 4)


@given(batch=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_levels_cover_the_range_evenly(batch: int, seed: int) -> None:
    draw = Draw.of(batch, 1, noise_steps=1000, dropout=0.0, generator=random_source(seed))
    assert (draw.t >= 0).all()
    assert (draw.t < 1000).all()
    counts = np.histogram(draw.t.numpy(), bins=batch, range=(0, 1000))[0]
    assert counts.max() <= 2 + 1  # one in each stratum, up to where the strata start
    assert not draw.drop.any()


def test_randomness_depends_on_the_key_alone() -> None:
    first = Diffusion(config.Diffusion()).draw(4, 3, dropout=0.5, generator=random_source(7, 1, 2))
    torch.randn(100)
    again = Diffusion(config.Diffusion()).draw(4, 3, dropout=0.5, generator=random_source(7, 1, 2))
    other = Diffusion(config.Diffusion()).draw(4, 3, dropout=0.5, generator=random_source(7, 1, 3))
    assert torch.equal(first.eps, again.eps)
    assert torch.equal(first.drop, again.drop)
    assert not torch.equal(first.eps, other.eps)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_schedulers_know_the_target_and_the_levels(name: str, target: str) -> None:
    diffusion = Diffusion(config.Diffusion(target=target))  # type: ignore[arg-type]
    scheduler = diffusion.scheduler(name, 7)
    assert scheduler.config.prediction_type == {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[target]
    assert scheduler.timesteps.tolist() == diffusion.timesteps(7)
    levels = diffusion.sampling_levels()
    assert torch.equal(scheduler.alphas_cumprod, diffusion.abar[:levels])
    assert (levels == 1000) is (target != "eps")  # the cosine schedule's last levels magnify errors of the noise


def test_ddim_is_that_of_diffusers() -> None:
    diffusion = Diffusion(config.Diffusion(target="v"))
    exact = GaussianDenoiser(diffusion, MEAN, STD)
    ours = diffusion.scheduler("ddim")
    theirs = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(20)
    diffusion._set_timesteps(ours, theirs.timesteps.tolist())
    z = torch.randn(5, 4, generator=random_source(3))
    ends = []
    for scheduler in (ours, theirs):
        x = z
        for t in scheduler.timesteps:
            x = scheduler.step(exact(x, t.expand(5), {}, None), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-4)


@given(
    steps=st.integers(1, 1000),
    schedule=st.sampled_from(["linear", "cosine"]),
    target=st.sampled_from(TARGETS),
    noise_steps=st.sampled_from([2, 50, 1000]),
)
@settings(max_examples=50, deadline=None)
def test_timesteps_descend_from_noise(steps: int, schedule: str, target: str, noise_steps: int) -> None:
    settings_ = {"schedule": schedule, "target": target, "noise_steps": noise_steps}
    diffusion = Diffusion(config.Diffusion.model_validate(settings_))
    levels = diffusion.sampling_levels()
    steps = min(steps, levels)
    timesteps = diffusion.timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == levels - 1
    assert timesteps[-1] >= 0
    assert all(a > b for a, b in pairwise(timesteps))


def test_bad_sampling_settings() -> None:
    diffusion = Diffusion(config.Diffusion(noise_steps=50))
    with pytest.raises(InputError, match=r"generate\.steps 60 is outside 1\.\.50"):
        diffusion.scheduler("ddim", 60)
    with pytest.raises(InputError, match='unknown sampler "euler"'):
        diffusion.scheduler("euler")
