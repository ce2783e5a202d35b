"""Noise schedules in NumPy: what a recipe's noise levels are can be told without a network, or torch.

``abar`` is the product of ``1 - beta``: the share of a sample's variance that is left at a level.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import config

MAX_BETA = 0.999  # as diffusers

# From a noise prediction the sample is (z_t - sqrt(1 - abar) eps) / sqrt(abar): at the last levels of the cosine
# schedule (abar 2e-9) the network's error would grow 20000-fold. Noise prediction starts at the level where the usual
# linear schedule ends (4e-5), which is noise to any data.
LOWEST_ABAR_FOR_EPS = 4e-5


def linear_ends(noise_steps: int) -> tuple[float, float]:
    """The first and last variance of the linear schedule: 1e-4 and 0.02 over 1000 steps (Ho et al. 2020).

    Scaled with other step counts, so that the end is noise all the same.

    >>> linear_ends(1000)
    (0.0001, 0.02)
    """
    return 0.1 / noise_steps, 20 / noise_steps


def betas(schedule: str, noise_steps: int, log_snr_shift: float = 0.0) -> npt.NDArray[Any]:
    """Variances ``(noise_steps,)`` of the noising steps, float64.

    ``"linear"``: evenly spaced between ``linear_ends``; ``"cosine"``: Nichol, Dhariwal 2021. A shift multiplies the
    deviation of the signal over that of the noise, at every level, by ``exp(log_snr_shift)`` (T. Hang et al. 2023, E.
    Hoogeboom et al. 2023, for images of other sizes).

    >>> betas("cosine", 3).round(3).tolist()
    [0.257, 0.668, 0.999]
    >>> abar = np.cumprod(1 - betas("cosine", 3)), np.cumprod(1 - betas("cosine", 3, 1.0))
    >>> [np.sqrt(a / (1 - a)).round(3).tolist() for a in abar]
    [[1.7, 0.572, 0.016], [4.621, 1.555, 0.043]]
    """
    if log_snr_shift:
        abar = np.cumprod(1.0 - betas(schedule, noise_steps))
        shifted = abar / (abar + (1.0 - abar) * math.exp(-2 * log_snr_shift))
        return np.asarray((1.0 - shifted / np.concatenate([[1.0], shifted[:-1]])).clip(max=MAX_BETA))
    if schedule == "linear":
        return np.linspace(*linear_ends(noise_steps), noise_steps).clip(max=MAX_BETA)

    def left(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(noise_steps)
    return np.array([min(1 - left((i + 1) / noise_steps) / left(i / noise_steps), MAX_BETA) for i in steps])


def usable_levels(diffusion: config.Diffusion) -> int:
    """How many of the noise levels the samplers use: all, or for ``eps`` those that are not too noisy.

    >>> usable_levels(config.Diffusion(target="eps", schedule="cosine"))
    995
    """
    if diffusion.target != "eps":
        return diffusion.noise_steps
    abar = np.cumprod(1.0 - betas(diffusion.schedule, diffusion.noise_steps, diffusion.log_snr_shift))
    return max(1, int((abar >= LOWEST_ABAR_FOR_EPS).sum()))
