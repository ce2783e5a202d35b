"""Noising, targets, the loss, and the samplers of diffusers configured for them.

Notation: ``z`` the clean variable ``(B, D)``, ``abar`` the product of ``1 - beta``, ``z_t = sqrt(abar) z +
sqrt(1 - abar) eps``, ``v = sqrt(abar) eps - sqrt(1 - abar) z`` (Salimans, Ho, "Progressive Distillation", ICLR 2022).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffats import config
from diffats.errors import InputError
from diffats.messages import MESSAGES
from diffats.schedule import MAX_BETA, betas, linear_ends, usable_levels

PREDICTION_TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}

LOG_SNR_RANGE = 5.0  # log(sqrt(abar) / sqrt(1 - abar)) of the sampling steps: deviations from 0.007 to 150

Network = Callable[[Tensor, Tensor, Mapping[str, Tensor], Tensor | None], Tensor]


def random_source(*key: int) -> torch.Generator:
    """A CPU generator that depends on the integers of ``key`` alone, in any process and at any time.

    >>> bool(torch.equal(torch.randn(3, generator=random_source(0, 7)), torch.randn(3, generator=random_source(0, 7))))
    True
    """
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))


def make_betas(schedule: str, noise_steps: int, log_snr_shift: float = 0.0) -> Tensor:
    """Variances ``(noise_steps,)`` of the noising steps, float32.

    ``"linear"``: 1e-4 to 0.02 over 1000 steps (Ho et al. 2020), scaled with other step counts so that the end is noise
    all the same; ``"cosine"``: Nichol, Dhariwal 2021. With 1000 steps, those of diffusers.

    >>> make_betas("linear", 1000)[[0, -1]]
    tensor([1.0000e-04, 2.0000e-02])
    """
    if schedule == "linear" and not log_snr_shift:  # torch's rounding, which is that of diffusers
        first, last = linear_ends(noise_steps)
        return torch.linspace(first, last, noise_steps, dtype=torch.float32).clamp(max=MAX_BETA)
    return torch.tensor(betas(schedule, noise_steps, log_snr_shift), dtype=torch.float32)


def _strictly_decreasing(levels: np.ndarray, top: int) -> list[int]:
    """Whole numbers below ``top``, each level moved as little as it takes to be below the one before."""
    distinct = np.minimum(levels, top - 1 - np.arange(len(levels))).tolist()
    for i in range(len(distinct) - 2, -1, -1):
        distinct[i] = max(distinct[i], distinct[i + 1] + 1)
    return [int(level) for level in distinct]


@dataclass(frozen=True)
class Draw:
    """The randomness of one training step: levels ``t`` ``(B,)``, noise ``eps`` ``(B, D)``, ``drop`` ``(B,)``."""

    t: Tensor
    eps: Tensor
    drop: Tensor

    @classmethod
    def of(cls, batch: int, numbers: int, *, noise_steps: int, dropout: float, generator: torch.Generator) -> Draw:
        """Draw on the CPU. Levels are stratified over the batch: uniform each, evenly spread together."""
        u = (torch.rand((), generator=generator) + torch.arange(batch) / batch) % 1.0
        t = (u * noise_steps).long().clamp(max=noise_steps - 1)
        eps = torch.randn(batch, numbers, generator=generator)
        return cls(t, eps, torch.rand(batch, generator=generator) < dropout)

    def to(self, device: torch.device) -> Draw:
        """The same on a device."""
        return Draw(*(x.to(device, non_blocking=True) for x in (self.t, self.eps, self.drop)))

    def part(self, index: slice) -> Draw:
        """The same for a part of the batch."""
        return Draw(self.t[index], self.eps[index], self.drop[index])


def element_weights(sizes: Mapping[str, int]) -> Tensor:
    """Weights ``(D,)`` of the numbers of a primitive in the loss: a mean over each stream, then over streams.

    Parameters
    ----------
    sizes
        Numbers in each stream, in order.

    Examples
    --------
    >>> element_weights({"core": 2, "factor_x": 4})
    tensor([0.2500, 0.2500, 0.1250, 0.1250, 0.1250, 0.1250])
    """
    return torch.cat([torch.full((n,), 1 / len(sizes) / n) for n in sizes.values()])


class Diffusion:
    """The noising process of a recipe, what its network predicts, and its samplers."""

    def __init__(self, diffusion: config.Diffusion) -> None:
        self.config = diffusion
        self.betas = make_betas(diffusion.schedule, diffusion.noise_steps, diffusion.log_snr_shift)
        self.abar = torch.cumprod(1.0 - self.betas, dim=0)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def noise_steps(self) -> int:
        """Discrete noise levels."""
        return self.config.noise_steps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``sqrt(abar)`` and ``sqrt(1 - abar)`` at the levels ``t`` ``(B,)``, each ``(B, 1)``."""
        if t.device not in self._tables:
            self._tables[t.device] = self.abar.sqrt().to(t.device), (1.0 - self.abar).sqrt().to(t.device)
        alpha, sigma = self._tables[t.device]
        return alpha[t][:, None], sigma[t][:, None]

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noised ``z_t`` ``(B, D)``."""
        alpha, sigma = self.coefficients(t)
        return alpha * z + sigma * eps

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer for ``z_t``, ``(B, D)``."""
        if self.config.target == "x0":
            return z
        if self.config.target == "eps":
            return eps
        alpha, sigma = self.coefficients(t)
        return alpha * eps - sigma * z

    def to_x0(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The clean sample that a prediction means, ``(B, D)``."""
        if self.config.target == "x0":
            return prediction
        alpha, sigma = self.coefficients(t)
        if self.config.target == "eps":
            return (z_t - sigma * prediction) / alpha
        return alpha * z_t - sigma * prediction

    def from_x0(self, x0: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The prediction that means a clean sample, ``(B, D)``; the inverse of ``to_x0``."""
        if self.config.target == "x0":
            return x0
        alpha, sigma = self.coefficients(t)
        if self.config.target == "eps":
            return (z_t - alpha * x0) / sigma
        return (alpha * z_t - x0) / sigma

    def to_eps(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction means, ``(B, D)``."""
        if self.config.target == "eps":
            return prediction
        alpha, sigma = self.coefficients(t)
        if self.config.target == "x0":
            return (z_t - alpha * prediction) / sigma
        return sigma * z_t + alpha * prediction

    def draw(self, batch: int, numbers: int, *, dropout: float = 0.0, generator: torch.Generator) -> Draw:
        """The randomness of a training step on ``batch`` samples of ``numbers`` numbers."""
        return Draw.of(batch, numbers, noise_steps=self.noise_steps, dropout=dropout, generator=generator)

    def loss(self, model: Network, z: Tensor, cond: Mapping[str, Tensor], weights: Tensor, draw: Draw) -> Tensor:
        """The training loss, a scalar: the squared error of the target, weighted number by number.

        Parameters
        ----------
        model
            ``model(z_t, t, cond, drop) -> (B, D)``.
        z
            Clean flat primitives ``(B, D)``.
        cond
            Normalised conditions; empty where there are none.
        weights
            ``(D,)``.
        draw
            Levels, noise and condition dropout.
        """
        prediction = model(self.add_noise(z, draw.eps, draw.t), draw.t, cond, draw.drop if cond else None)
        error = prediction.float() - self.target(z, draw.eps, draw.t)
        return (error.square() @ weights).mean()

    def sampling_levels(self) -> int:
        """How many of the noise levels the samplers use: all, or for ``eps`` those that are not too noisy."""
        return usable_levels(self.config)

    def log_snr(self) -> np.ndarray:
        """``log(sqrt(abar) / sqrt(1 - abar))`` of all levels ``(T,)``, descending, float64."""
        abar = self.abar.double().numpy()
        return np.asarray(0.5 * np.log(abar / (1 - abar)))

    def timesteps(self, steps: int) -> list[int]:
        """The levels of ``steps`` sampling steps, descending from the noisiest, evenly spaced in log-SNR.

        The deviations of a stream's elements span orders of magnitude, in coordinates of their own still some, and each
        is decided at the levels where the noise is as large as itself. Levels evenly spaced in time leave few steps to
        the small and the large ones: with 20 steps of DPM-Solver++, an element of deviation 0.05 keeps 48 % of it, here
        all.

        Raises
        ------
        InputError
            Where there are fewer levels than steps.
        """
        levels = self.sampling_levels()
        if not 1 <= steps <= levels:
            raise InputError(
                f"generate.steps {steps} is outside 1..{levels}, the usable noise levels "
                f"(diffusion.noise_steps = {self.noise_steps}). Use at most {levels}."
            )
        log_snr = self.log_snr()[:levels]
        wanted = np.linspace(max(log_snr[-1], -LOG_SNR_RANGE), min(log_snr[0], LOG_SNR_RANGE), steps)
        chosen = np.interp(-wanted, -log_snr, np.arange(levels)).round().astype(int)
        chosen[0] = levels - 1  # what sampling starts from is pure noise
        return _strictly_decreasing(chosen, levels)

    def scheduler(self, name: str, steps: int | None = None, *, levels: list[int] | None = None) -> Any:
        """A scheduler of diffusers for a sampler's name, its time steps set where ``steps`` or ``levels`` are given.

        ``"ddim"`` is DPM-Solver++ of first order, which is DDIM (Lu et al., "DPM-Solver++", 2022, section 4.1) and,
        unlike diffusers' ``DDIMScheduler``, takes levels that are not evenly spaced.

        Raises
        ------
        InputError
            Where the sampler is unknown, or has not that many steps.
        """
        if name not in SAMPLERS:
            raise InputError(f'unknown sampler "{name}". Use one of {", ".join(SAMPLERS)}.')
        usable = self.sampling_levels()
        scheduler = SAMPLERS[name](
            num_train_timesteps=usable,
            trained_betas=self.betas[:usable].tolist(),
            prediction_type=PREDICTION_TYPES[self.config.target],
        )
        chosen = levels if steps is None else self.timesteps(steps)
        if chosen is not None:
            self._set_timesteps(scheduler, chosen)
        return scheduler

    @staticmethod
    def _set_timesteps(scheduler: Any, timesteps: list[int]) -> None:
        """Set levels of our own, also where the scheduler would choose them itself."""
        with warnings.catch_warnings():  # diffusers turns tensors into arrays by np.array
            warnings.filterwarnings("ignore", MESSAGES["arrays of tensors"].pattern, DeprecationWarning)
            if "timesteps" in inspect.signature(scheduler.set_timesteps).parameters:
                scheduler.set_timesteps(timesteps=timesteps)
                return
            scheduler.set_timesteps(len(timesteps))  # replaced below
        sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
        scheduler.timesteps = torch.tensor(timesteps)
        scheduler.sigmas = torch.cat([sigmas[timesteps], torch.zeros(1)])


# --- samplers: from the schedule and the target (diffusers' words) to a scheduler, which takes seconds to import -----


def _ddpm(**common: Any) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(clip_sample=False, variance_type="fixed_small", **common)


def _solver(order: int, **common: Any) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(solver_order=order, algorithm_type="dpmsolver++", **common)


def _unipc(**common: Any) -> Any:
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler(solver_order=2, **common)


def _accelerated_ddim(**common: Any) -> Any:
    from diffats.samplers import AcceleratedDDIMScheduler

    return AcceleratedDDIMScheduler(**common)


def _accelerated_ddpm(**common: Any) -> Any:
    from diffats.samplers import AcceleratedDDPMScheduler

    return AcceleratedDDPMScheduler(**common)


#: Samplers by the names of ``config.SAMPLERS``. A new one is a line here and a name there.
SAMPLERS: dict[str, Callable[..., Any]] = {
    "ddpm": _ddpm,
    "ddim": partial(_solver, 1),
    "dpm++": partial(_solver, 2),
    "unipc": _unipc,
    "ddim-accelerated": _accelerated_ddim,
    "ddpm-accelerated": _accelerated_ddpm,
}
