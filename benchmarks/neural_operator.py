"""A Fourier neural operator in space and time: the deterministic baseline of the conditional tasks.

From the initial state and the scalars it gives all frames at once, as an informed user would have it: the frames are
extended beyond the last one and cut off again, because time is not periodic; the loss is the relative L2 error of the
physical field; the learning rate falls along a cosine over the budget, whatever the machine's speed; and most of the
budget is spent on a coarser grid, as the network takes any.

Reference: Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations" (ICLR 2021),
https://arxiv.org/abs/2010.08895, as implemented by the package ``neuraloperator``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorly
import torch
from neuralop.losses import LpLoss
from neuralop.models import FNO
from numpy.typing import NDArray
from torch import Tensor, nn

from diffats.errors import InputError

tensorly.set_backend("numpy")  # importing neuralop sets PyTorch's for the whole process
_BACKEND = tensorly.backend_context("pytorch", local_threadsafe=True)  # which its layers need as they run
Array = NDArray[Any]
_LOGGER = logging.getLogger(__name__)
_WARM_UP = 0.03  # share of the budget over which the learning rate rises


@dataclass(frozen=True)
class Settings:
    """What is chosen before training.

    Attributes
    ----------
    n_modes
        Fourier modes that are kept along time and each axis of space; even, both signs counted.
    width
        Channels of the hidden layers.
    strides
        Of the coarser grid, along time and each axis of space.
    coarse
        Share of the budget that is spent on the coarser grid.
    extension
        Frames added after the last, as a share of the frames; cut off from the prediction.
    batch
        Samples in a step at full resolution; a coarse step takes ``coarse_batch``.
    coarse_batch
        Samples in a coarse step.
    rate
        Highest learning rate.
    """

    n_modes: tuple[int, ...]
    width: int
    strides: tuple[int, ...]
    coarse: float = 0.85
    extension: float = 0.2
    batch: int = 2
    coarse_batch: int = 4
    rate: float = 6e-3


# Chosen on a part of the training samples of `burgers_1d` and `burgers_2d`, after 60 s on one thread, before any test
# sample was predicted. Mean relative errors there, in 1-D: 0.57 without a coarser grid, 0.37 with strides (2, 4), 0.35
# with (4, 4), 0.39 with those and no extension, 0.27 with (4, 8) and fewer modes; then 0.25 at rates of 4e-3 and 8e-3.
# In 2-D: 0.32 with strides of 2, 0.27 with (2, 4, 4); then 0.20 at a rate of 4e-3 and 0.17 at 8e-3.
_LINE = Settings(n_modes=(24, 64), width=32, strides=(4, 8))
_PLANE = Settings(n_modes=(16, 16, 16), width=20, strides=(2, 4, 4), batch=1)


@dataclass(frozen=True)
class _Scale:
    """Mean and standard deviation, shaped to broadcast."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, values: Tensor, axes: tuple[int, ...]) -> _Scale:
        mean = values.mean(dim=axes, keepdim=True)
        # Not Tensor.std, which warns where there are no scalars.
        std = (values - mean).square().mean(dim=axes, keepdim=True).sqrt()
        return cls(mean, torch.where(std > 0, std, 1.0))

    def encode(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.std

    def decode(self, values: Tensor) -> Tensor:
        return values * self.std + self.mean


@dataclass(frozen=True)
class Operator:
    """A trained operator.

    Attributes
    ----------
    network
        The Fourier neural operator, on the extended frames.
    sizes, time_axis
        Of a sample, as in training.
    settings
        As in training.
    steps
        Optimiser steps taken.
    field_scale, scalar_scale
        The normalisation: of each component, of each scalar.
    """

    network: nn.Module
    sizes: tuple[int, ...]
    time_axis: int
    settings: Settings
    steps: int
    field_scale: _Scale
    scalar_scale: _Scale

    @_BACKEND  # type: ignore[untyped-decorator]
    def predict(self, initial: Array, scalars: Array) -> Array:
        """All frames.

        Parameters
        ----------
        initial
            Initial states, ``(k, *sizes without time)``.
        scalars
            As in training, ``(k, s)``.

        Returns
        -------
        Array
            ``(k, *sizes)``, float32, in the unit of the field.

        Raises
        ------
        InputError
            Where shapes are not those of training.
        """
        _check_inputs(initial, scalars, self.sizes, self.time_axis, self.scalar_scale.mean.shape[1])
        states = self.field_scale.encode(_tensor(initial, 1 - self.time_axis).unsqueeze(2))
        values = self.scalar_scale.encode(_tensor(scalars))
        frames = self.sizes[self.time_axis]
        with torch.no_grad():
            found = [
                self.field_scale.decode(_forward(self.network, state[None], value[None], frames, self.settings))
                for state, value in zip(states, values, strict=True)
            ]
        return torch.cat(found).reshape(len(found), *self.sizes).numpy()


def choose_settings(sizes: Sequence[int], *, time_axis: int) -> Settings:
    """Settings from a sample's sizes alone, the same for every task of as many axes.

    Parameters
    ----------
    sizes
        Of a sample: ``(time, *space)``, or ``(component, time, *space)``.
    time_axis
        Which of them is time: 0 or 1.

    Raises
    ------
    InputError
        Where the sizes are not of this form.

    Examples
    --------
    >>> choose_settings((2, 50, 64, 64), time_axis=1).n_modes
    (16, 16, 16)
    """
    _check_axis(sizes, time_axis)
    grid = tuple(sizes)[time_axis:]
    chosen = _LINE if len(grid) == 2 else _PLANE
    limits = _mode_limits(grid, chosen.strides)
    return replace(chosen, n_modes=tuple(min(pair) for pair in zip(chosen.n_modes, limits, strict=True)))


@_BACKEND  # type: ignore[untyped-decorator]
def train(
    fields: Array,
    initial: Array,
    scalars: Array,
    *,
    modes: Sequence[str],
    time_axis: int,
    seed: int,
    settings: Settings | None = None,
    seconds: float | None = None,
    steps: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    log: Callable[[str], None] = _LOGGER.info,
) -> Operator:
    """Train an operator within a budget of either seconds or steps.

    With ``steps``, equal arguments give equal bits on one machine and thread count; with ``seconds`` the count of steps
    depends on the machine, and so do the numbers.

    Parameters
    ----------
    fields
        Training samples in physical units, ``(n, time, *space)`` or ``(n, component, time, *space)``.
    initial
        Their initial states, ``(n, *sizes without time)``.
    scalars
        Their parameters, ``(n, s)``, logarithms already taken; standardised here. ``s`` may be 0.
    modes
        Names of a sample's axes; ``"component"`` is no axis of the grid.
    time_axis
        Of a sample: 0, or 1 after ``"component"``.
    seed
        Of the weights and the order of the samples.
    settings
        By default ``choose_settings``.
    seconds, steps
        The budget; one of them.
    clock
        What ``seconds`` are measured by; ``time.process_time`` where others use the machine too.
    log
        Called with lines of progress.

    Raises
    ------
    InputError
        Where shapes do not fit each other, or the budget is not one of the two.
    """
    sizes = fields.shape[1:]
    _check_axis(sizes, time_axis)
    _check_names(modes, sizes, time_axis)
    _check_inputs(initial, scalars, sizes, time_axis, scalars.shape[-1])
    _check_training(fields, initial, seconds, steps)
    chosen = settings or choose_settings(sizes, time_axis=time_axis)
    _check_modes(chosen, sizes[time_axis:])
    used = _used(steps, seconds, clock)
    targets = _tensor(fields, 1 - time_axis)  # (n, component, time, *space)
    field_scale = _Scale.of(targets, (0, *range(2, targets.ndim)))
    states = field_scale.encode(_tensor(initial, 1 - time_axis).unsqueeze(2))  # (n, component, 1, *space)
    scalar_scale = _Scale.of(_tensor(scalars), (0,))
    values = scalar_scale.encode(_tensor(scalars))
    network = _network(chosen, targets.shape[1], values.shape[1], seed)
    step = _fit(network, (targets, states, values), field_scale, chosen, seed=seed, used=used, log=log)
    return Operator(network, tuple(sizes), time_axis, chosen, step, field_scale, scalar_scale)


def _used(steps: int | None, seconds: float | None, clock: Callable[[], float]) -> Callable[[int], float]:
    """The share of the budget that is used, from the steps taken; seconds count from here."""
    if steps is not None:
        return lambda step: step / steps
    begin, budget = clock(), seconds or 0.0
    return lambda _: (clock() - begin) / budget


def _fit(
    network: nn.Module,
    samples: tuple[Tensor, Tensor, Tensor],
    scale: _Scale,
    settings: Settings,
    *,
    seed: int,
    used: Callable[[int], float],
    log: Callable[[str], None],
) -> int:
    """Train on fields, normalised states and normalised scalars; how many steps were taken."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.rate, weight_decay=1e-4)
    loss = LpLoss(d=samples[0].ndim - 1, reduction="mean")
    order = _Order(len(samples[0]), seed)
    step, reported = 0, 0.0
    while (share := used(step)) < 1:
        coarse = share < settings.coarse
        part = order.take(settings.coarse_batch if coarse else settings.batch)
        strides = settings.strides if coarse else (1,) * len(settings.strides)
        fields, states = (_thin(values[part], strides) for values in samples[:2])
        optimizer.param_groups[0]["lr"] = settings.rate * _schedule(share)
        found = scale.decode(_forward(network, states, samples[2][part], fields.shape[2], settings))
        error = loss(found, fields)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        step += 1
        if share >= reported:
            log(f"neural operator: {share:.0%} of the budget, step {step}, error {float(error.detach()):.3f}")
            reported = share + 0.1
    return step


class _Order:
    """Samples in random order, each once before any twice."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.random, self.left = count, np.random.default_rng(seed), np.empty(0, dtype=np.int64)

    def take(self, batch: int) -> Tensor:
        batch = min(batch, self.count)
        if len(self.left) < batch:
            self.left = self.random.permutation(self.count)
        part, self.left = self.left[:batch], self.left[batch:]
        return torch.from_numpy(part)


def _network(settings: Settings, components: int, scalars: int, seed: int) -> nn.Module:
    inputs = components + scalars
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = FNO(settings.n_modes, inputs, components, settings.width)
    return network


def _forward(network: nn.Module, states: Tensor, scalars: Tensor, frames: int, settings: Settings) -> Tensor:
    """``(b, component, frames, *space)`` from ``(b, component, 1, *space)`` and ``(b, s)``, both normalised."""
    count = _extended(frames, settings.extension)
    batch, _, _, *space = states.shape
    constant = scalars.reshape(batch, -1, *[1] * (len(space) + 1)).expand(-1, -1, count, *space)
    repeated = states.expand(-1, -1, count, *space)
    found: Tensor = network(torch.cat([repeated, constant], dim=1))
    return found[:, :, :frames]


def _extended(frames: int, extension: float) -> int:
    """Frames with the extension; even, as the package shifts the modes of an odd axis by one (2.0.0)."""
    return 2 * math.ceil(frames * (1 + extension) / 2)


def _thin(values: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Every so many points of each axis after the first two; a single point stays."""
    return values[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))]


def _schedule(share: float) -> float:
    """The learning rate, relative to the highest: a short rise, and a cosine's fall to 0."""
    return min(1.0, share / _WARM_UP + 0.1) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _tensor(values: Array, new_axes: int = 0) -> Tensor:
    """As float32, with an axis of one component after the first where there is none."""
    found = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return found.unsqueeze(1) if new_axes else found


def _check_axis(sizes: Sequence[int], time_axis: int) -> None:
    if time_axis not in (0, 1) or len(sizes) - time_axis not in (2, 3):
        raise InputError(
            f"neural operator: a sample is (time, *space) with time_axis 0 or (component, time, *space) with time_axis "
            f"1, of one or two axes of space; got sizes {tuple(sizes)} and time_axis {time_axis}. Move the axes first."
        )


def _check_names(modes: Sequence[str], sizes: Sequence[int], time_axis: int) -> None:
    if len(modes) != len(sizes) or [mode == "component" for mode in modes] != [
        n < time_axis for n in range(len(sizes))
    ]:
        raise InputError(
            f"neural operator: modes {tuple(modes)}, of sizes {tuple(sizes)}, with time_axis {time_axis}. "
            'Give a name for each axis of a sample, with "component" before time where there is one, and nowhere else.'
        )


def _check_inputs(initial: Array, scalars: Array, sizes: Sequence[int], time_axis: int, count: int) -> None:
    expected = (len(initial), *sizes[:time_axis], *sizes[time_axis + 1 :])
    if initial.shape != expected:
        raise InputError(
            f"neural operator: initial states of shape {initial.shape}, expected {expected}, the sizes without time."
        )
    if scalars.shape != (len(initial), count):
        raise InputError(
            f"neural operator: scalars of shape {scalars.shape}, expected {(len(initial), count)}, a row a sample."
        )


def _check_training(fields: Array, initial: Array, seconds: float | None, steps: int | None) -> None:
    if len(fields) != len(initial) or not len(fields):
        raise InputError(f"neural operator: {len(fields)} fields and {len(initial)} initial states. Give one for each.")
    budgets = [budget for budget in (seconds, steps) if budget is not None]
    if len(budgets) != 1 or budgets[0] <= 0:
        raise InputError(f"neural operator: seconds = {seconds} and steps = {steps}. Give one of them, above 0.")


def _mode_limits(grid: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Modes that the coarser grid can hold, without the extension."""
    return tuple(math.ceil(size / stride) // 2 * 2 for size, stride in zip(grid, strides, strict=True))


def _check_modes(settings: Settings, grid: Sequence[int]) -> None:
    fits = len(settings.n_modes) == len(settings.strides) == len(grid)
    limits = _mode_limits(grid, settings.strides) if fits else ()
    if not fits or any(not 0 < mode <= limit or mode % 2 for mode, limit in zip(settings.n_modes, limits, strict=True)):
        raise InputError(
            f"neural operator: n_modes {settings.n_modes} and strides {settings.strides} on a grid of "
            f"{tuple(grid)}. Give an even number of modes and a stride for each axis; the coarser "
            f"grid can hold {limits} modes."
        )
