"""The chain of noise and denoising that `benchmarks.chain` runs: steady for a right model, and not for a wrong one."""

import pytest
import torch
from tiny_primitives import LAYOUT, GaussianDenoiser

from benchmarks.chain import CALLS, denoised, levels_from
from diffats import config
from diffats.diffusion import Diffusion

MEAN, STD = torch.zeros(LAYOUT.numbers), torch.ones(LAYOUT.numbers)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("eta", [0.2, 0.5, 1.0, 2.0])
def test_spread_is_kept_by_the_right_model_alone(target, eta):
    diffusion = Diffusion(config.Diffusion.model_validate({"target": target}))
    levels = levels_from(diffusion, eta)
    alpha, sigma = (float(x) for x in diffusion.coefficients(torch.tensor(levels[:1])))
    assert len(levels) <= CALLS
    assert sigma / alpha == pytest.approx(eta, rel=0.02)
    source = torch.Generator().manual_seed(0)
    start = torch.randn(400, LAYOUT.numbers, generator=source)
    for std, low, high in ((STD, 0.97, 1.03), (1.5 * STD, 1.05, 2.0)):
        z = start
        for _ in range(10):
            z = denoised(GaussianDenoiser(diffusion, MEAN, std), diffusion, z, eta, {}, source)
        if std is STD or eta >= 0.5:
            assert low <= float(z.std()) <= high
