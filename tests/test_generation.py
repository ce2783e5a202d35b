from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_primitives import LABELS, LAYOUT, GaussianDenoiser

from diffats import config
from diffats.diffusion import SAMPLERS, Diffusion, random_source
from diffats.errors import InputError, IntegrityError, StoreNotFoundError
from diffats.generation import _SAMPLES, generate, load_denoiser
from diffats.models import Denoiser
from diffats.primitives import ConditionLayout

SMALL = config.Model(width=16, depth=1, heads=2)
MEAN = torch.linspace(-2, 2, LAYOUT.numbers)
STD = torch.logspace(-1.3, 1, LAYOUT.numbers)  # as unlike as the elements of a core


def gaussian(**settings: object) -> GaussianDenoiser:
    return GaussianDenoiser(Diffusion(config.Diffusion.model_validate(settings)), MEAN, STD)


def small_denoiser(conditions: ConditionLayout) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(LAYOUT, conditions, SMALL)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return denoiser.eval()


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("sampler", "steps", "error"),
    [("ddim", 20, 0.14), ("ddim", 200, 0.045), ("dpm++", 20, 0.03), ("unipc", 20, 0.03), ("unipc", 61, 0.02)],
)
def test_deterministic_samplers_reach_the_gaussian(
    target: str, schedule: str, sampler: str, steps: int, error: float
) -> None:
    exact = gaussian(target=target, schedule=schedule)
    z = generate(exact, LAYOUT, exact.diffusion, range(50), 0, steps=steps, sampler=sampler, device="cpu")
    noise = np.stack([torch.randn(LAYOUT.numbers, generator=random_source(0, _SAMPLES, i)) for i in range(50)])
    spread = z.std(0) / noise.std(0)  # the exact flow takes noise to mean + std * noise
    mean = z.mean(0) - spread * noise.mean(0)
    np.testing.assert_allclose(spread, STD, rtol=error)
    np.testing.assert_allclose((mean - MEAN.numpy()) / STD.numpy(), 0, atol=error)


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_ddpm_reaches_the_gaussian(target: str) -> None:
    exact = gaussian(target=target)
    z = generate(exact, LAYOUT, exact.diffusion, range(600), 1, steps=100, sampler="ddpm", device="cpu", batch=600)
    score = (z - MEAN.numpy()) / STD.numpy()
    assert np.abs(score.mean(0)).max() < 0.17
    assert score.std(0).min() > 0.85
    assert score.std(0).max() < 1.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_depends_on_seed_and_number_alone(sampler: str) -> None:
    denoiser = small_denoiser(LABELS)
    diffusion = Diffusion(config.Diffusion())
    labels = np.arange(9) % 3

    def draw(indices: list[int], batch: int, seed: int = 5, guidance: float = 1.0) -> np.ndarray:
        return generate(
            denoiser, LAYOUT, diffusion, indices, seed,
            cond={"label": labels[indices]}, steps=6, sampler=sampler, guidance=guidance, batch=batch, device="cpu",
        )  # fmt: skip

    whole = draw(list(range(9)), 9)
    np.testing.assert_array_equal(draw(list(range(9)), 9), whole)  # the same batch: the same bits
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(draw(list(range(9)), 4), whole, **close)
    np.testing.assert_allclose(draw([7, 2], 64), whole[[7, 2]], **close)
    np.testing.assert_allclose(draw([3], 1), whole[[3]], **close)
    assert not np.allclose(draw([3], 1, seed=6), whole[[3]], atol=1e-2)
    assert not np.allclose(whole[0], whole[3], atol=1e-2)
    guided = draw(list(range(9)), 9, guidance=2.0)
    np.testing.assert_allclose(draw([7, 2], 1, guidance=2.0), guided[[7, 2]], **close)


def test_conditions_and_guidance_move_the_samples() -> None:
    exact = GaussianDenoiser(Diffusion(config.Diffusion()), torch.zeros(LAYOUT.numbers), torch.ones(LAYOUT.numbers))
    labels = np.repeat([0, 2], 100)
    means = {}
    for guidance in (0.0, 1.0, 2.0):
        z = generate(
            exact, LAYOUT, exact.diffusion, range(200), 0, cond={"label": labels}, guidance=guidance,
            sampler="dpm++", device="cpu",
        )  # fmt: skip
        means[guidance] = z[labels == 2].mean() - z[labels == 0].mean()
    assert means[0.0] == pytest.approx(0, abs=0.1)
    assert means[1.0] == pytest.approx(2, abs=0.1)
    assert means[2.0] > means[1.0] + 0.5


def test_none_at_all_and_bad_input() -> None:
    exact = gaussian()
    assert generate(exact, LAYOUT, exact.diffusion, [], 0, device="cpu").shape == (0, LAYOUT.numbers)
    with pytest.raises(InputError, match="has 2 rows for 3 samples"):
        generate(exact, LAYOUT, exact.diffusion, [0, 1, 2], 0, cond={"label": np.zeros(2)}, device="cpu")
    with pytest.raises(InputError, match="must not be negative"):
        generate(exact, LAYOUT, exact.diffusion, [-1], 0, device="cpu")
    with pytest.raises(InputError, match="unknown sampler"):
        generate(exact, LAYOUT, exact.diffusion, [], 0, sampler="heun", device="cpu")


def test_weights_come_back(tmp_path: Path) -> None:
    denoiser = small_denoiser(LABELS)
    path = tmp_path / "weights.safetensors"
    save_file(denoiser.state_dict(), path)
    loaded = load_denoiser(path, LAYOUT, LABELS, SMALL, None, device="cpu")
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, denoiser.state_dict()[name])


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(StoreNotFoundError, match="Run the train stage first"):
        load_denoiser(path, LAYOUT, LABELS, SMALL, None, device="cpu")
    save_file(small_denoiser(LABELS).state_dict(), path)
    with pytest.raises(IntegrityError, match="do not fit this recipe's network"):
        load_denoiser(path, LAYOUT, LABELS, config.Model(width=32, depth=1, heads=2), None, device="cpu")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(IntegrityError, match="do not fit"):
        load_denoiser(path, LAYOUT, LABELS, SMALL, None, device="cpu")
