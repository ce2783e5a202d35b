"""The accelerated training-free samplers, as schedulers with the interface of those of diffusers.

Li, Huang, Efimov, Wei, Chi, Chen, "Accelerating Convergence of Score-Based Diffusion Models, Provably", ICML 2024:
one network call a step, as DDIM and DDPM, with an error of the next higher order. ``abar`` and ``abar'`` are those of
a step's level and of the one it leads to, ``alpha = abar / abar'``, ``sigma^2 = (1 - abar) / abar``.

Import this module where a sampler is made: diffusers takes seconds to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffats.errors import InputError

PredictionType = Literal["epsilon", "sample", "v_prediction"]
VarianceType = Literal["any_step", "published"]


class _Accelerated(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # Any, to mypy
    """What both samplers share: noise levels, time steps, and what a prediction means."""

    order = 1  # network calls a step, in diffusers' words

    def _set_levels(self, num_train_timesteps: int, trained_betas: Sequence[float], prediction_type: str) -> None:
        if len(trained_betas) != num_train_timesteps:
            raise InputError(
                f"{len(trained_betas)} trained_betas for {num_train_timesteps} num_train_timesteps. Give one for each."
            )
        if prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise InputError(f'prediction_type "{prediction_type}" is none of epsilon, sample and v_prediction.')
        self.betas = torch.tensor(trained_betas, dtype=torch.float32)
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        if not (self.betas > 0).all() or not 0 < self.alphas_cumprod.min() <= self.alphas_cumprod[0] < 1:
            raise InputError("trained_betas must lie between 0 and 1, and be large enough to differ from 0 in float32.")
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of what sampling starts from."""
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The network's input ``(B, ...)`` for a sample: the sample."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Set the levels of the sampling steps: evenly spaced from the noisiest, or those given, descending.

        Raises
        ------
        InputError
            Where both or none are given, or the levels are not distinct ones that there are, descending.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("give either num_inference_steps or timesteps.")
        levels = len(self.alphas_cumprod)
        if timesteps is None:
            steps = num_inference_steps or 0
            if not 1 <= steps <= levels:
                raise InputError(f"num_inference_steps {steps} is outside 1..{levels}, the noise levels.")
            timesteps = [math.ceil(levels * (steps - i) / steps) - 1 for i in range(steps)]
        chosen = [int(t) for t in timesteps]
        if not chosen or chosen[0] >= levels or chosen[-1] < 0:
            raise InputError(f"timesteps {chosen[:1]}..{chosen[-1:]} are not within the levels {levels - 1}..0.")
        for t, following in pairwise(chosen):
            if following >= t or self.alphas_cumprod[following] <= self.alphas_cumprod[t]:
                raise InputError(f"noise does not fall from timestep {t} to {following}. Give descending levels.")
        self.timesteps = torch.tensor(chosen, device=device)

    def _index(self, timestep: int | Tensor) -> int:
        """Which of the sampling steps starts at a level."""
        found = (self.timesteps == int(timestep)).nonzero().flatten()
        if len(found) != 1:
            raise InputError(f"level {int(timestep)} is none of the sampling steps; see set_timesteps.")
        return int(found[0])

    def _abar(self, index: int) -> float:
        """``abar`` where a sampling step starts, 1 after the last one and so past it; float64."""
        return float(self.alphas_cumprod[int(self.timesteps[index])]) if index < len(self.timesteps) else 1.0

    def _x0(self, prediction: Tensor, sample: Tensor, abar: float) -> Tensor:
        """The clean sample that a prediction means, ``(B, ...)``."""
        if self.config["prediction_type"] == "sample":
            return prediction
        if self.config["prediction_type"] == "epsilon":
            return (sample - math.sqrt(1 - abar) * prediction) / math.sqrt(abar)
        return math.sqrt(abar) * sample - math.sqrt(1 - abar) * prediction

    def _eps(self, prediction: Tensor, sample: Tensor, abar: float) -> Tensor:
        """The noise that a prediction means, ``(B, ...)``."""
        if self.config["prediction_type"] == "epsilon":
            return prediction
        if self.config["prediction_type"] == "sample":
            return (sample - math.sqrt(abar) * prediction) / math.sqrt(1 - abar)
        return math.sqrt(1 - abar) * sample + math.sqrt(abar) * prediction


def extrapolation_weight(before: float, here: float, there: float) -> float:
    """The weight of ``eps_before - eps_here`` in the step from ``abar`` ``here`` to ``there``, after DDIM's own.

    With ``eps`` linear in ``abar`` through the last two predictions, the exact integral of the probability flow (Li et
    al. 2024, the accelerated deterministic sampler). Noise falls from ``before`` over ``here`` to ``there``.

    >>> round(extrapolation_weight(0.2, 0.3, 0.4), 4)
    0.0901
    """

    def integral(a: float) -> float:
        return here * math.sqrt((1 - a) / a) + math.asin(math.sqrt(a))

    return math.sqrt(there) / (here - before) * (integral(there) - integral(here))


class AcceleratedDDIMScheduler(_Accelerated):
    """The deterministic sampler: DDIM with the noise prediction extrapolated from the last two, second order.

    Parameters
    ----------
    num_train_timesteps, trained_betas
        The noise levels, and the variance of each noising step.
    prediction_type
        What the network predicts.
    lower_order_final
        Let the last step, which takes all noise away, be DDIM's, as the first one is.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int,
        trained_betas: Sequence[float],
        prediction_type: PredictionType = "epsilon",
        lower_order_final: bool = True,
    ) -> None:
        self._set_levels(num_train_timesteps, trained_betas, prediction_type)
        self._last: tuple[int, Tensor] | None = None  # the last step's index and noise prediction

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """From a sample ``(B, ...)`` at a level, and the network's answer to it, to the next level.

        The steps of one sampling follow each other; a step that does not follow the last one is DDIM's.
        """
        index = self._index(timestep)
        here, there = self._abar(index), self._abar(index + 1)
        eps = self._eps(model_output, sample, here)
        x = math.sqrt(there) * self._x0(model_output, sample, here) + math.sqrt(1 - there) * eps
        last_plain = self.config["lower_order_final"] and there == 1.0
        if self._last and self._last[0] == index - 1 and not last_plain:
            x = x + extrapolation_weight(self._abar(index - 1), here, there) * (self._last[1] - eps)
        self._last = index, eps
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)


class AcceleratedDDPMScheduler(_Accelerated):
    """The stochastic sampler: half of a step's noise is added before the network is called, half after.

    ``Y+ = Y + sqrt(before) Z`` and ``Y' = (Y+ + (1 - alpha) s(Y+)) / sqrt(alpha) + sqrt(after) Z'``, ``s`` the score at
    the step's own level. Y+ is noisier than that level, but it is this mismatch that makes the order: with the score
    at the level of Y+ the sampler is a first-order one. Samples are carried from step to step as Y+: ``step`` adds the
    next step's first noise too, and sampling starts from noise of deviation ``init_noise_sigma``.

    Parameters
    ----------
    num_train_timesteps, trained_betas
        The noise levels, and the variance of each noising step.
    prediction_type
        What the network predicts.
    lower_order_final
        Let the last step, which takes all noise away, be DDPM's, which adds none.
    variance_type
        ``"published"``: ``before = (1 - alpha) / 2``, ``after = (1 - alpha) / (2 alpha)``, for steps that are small:
        it adds more noise than there is where ``alpha`` is far below 1. ``"any_step"``: ``before = (1 - abar) w``,
        ``after = (1 - abar') w`` with ``w = (sigma^2 - sigma'^2) / (sigma^2 + sigma'^2)``, the same to second order in
        the step, and exact with steps of any size where data are much narrower or much wider than the noise.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int,
        trained_betas: Sequence[float],
        prediction_type: PredictionType = "epsilon",
        lower_order_final: bool = True,
        variance_type: VarianceType = "any_step",
    ) -> None:
        if variance_type not in ("any_step", "published"):
            raise InputError(f'variance_type "{variance_type}" is none of any_step and published.')
        self._set_levels(num_train_timesteps, trained_betas, prediction_type)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of what sampling starts from: the first level's noise, and that before its step."""
        return math.sqrt(1.0 + self._variances(0)[0])

    def _variances(self, index: int) -> tuple[float, float]:
        """The variances of the noise before and after the network's call of a step; 0 past the last one."""
        here, there = self._abar(index), self._abar(index + 1)
        if here == 1.0 or (there == 1.0 and self.config["lower_order_final"]):
            return 0.0, 0.0
        if self.config["variance_type"] == "published":
            return (1 - here / there) / 2, (there / here - 1) / 2
        w = (there - here) / (here + there - 2 * here * there)
        return (1 - here) * w, (1 - there) * w

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """From a sample ``(B, ...)`` at a level, and the network's answer to it, to the next level.

        Noise comes from ``generator``: one for the batch, or a list with one for each sample.
        """
        index = self._index(timestep)
        here, there = self._abar(index), self._abar(index + 1)
        kept = math.sqrt(here / there) * (1 - there) / (1 - here)
        filled = math.sqrt(there) * (1 - here / there) / (1 - here)
        x = kept * sample + filled * self._x0(model_output, sample, here)
        if variance := self._variances(index)[1] + self._variances(index + 1)[0]:
            noise = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x + math.sqrt(variance) * noise
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)
