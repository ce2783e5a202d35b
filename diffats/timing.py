"""How long training and generation will take: a few steps of the real network, timed."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import nn

from diffats import calibration, config
from diffats.diffusion import Diffusion
from diffats.generation import generate
from diffats.loader import Arrays, PrimitiveSet
from diffats.models import resolve_device
from diffats.primitives import ConditionLayout, Coordinates, Layout, Normalisation, Shifts, turned_axes
from diffats.training import rehearse

REPEATS = 9
SECONDS = 5.0  # nothing is repeated after these, in training and in generation
SAMPLING_STEPS = 10  # timed at most


@dataclass(frozen=True)
class Times:
    """What was measured: the device, and seconds of a training step, of a generated sample and of the calibration."""

    device: str
    step: float
    sample: float
    calibration: float


def measure(data: PrimitiveSet, recipe: config.Recipe) -> Times:
    """Time a recipe's training and generation, by their own code, in about ten seconds.

    At least one training step is done, however long it takes. Nothing is written, and the random states of torch stay
    as they are.

    Parameters
    ----------
    data
        What is trained on; for its time, ``random_primitives`` do.
    recipe
        Its ``model``, ``diffusion``, ``train``, ``generate`` and ``compute`` are used.

    Raises
    ------
    InputError
        Where the device is not there.
    """
    device, threads = recipe.compute.device, recipe.compute.threads
    target = resolve_device(device)
    network: list[nn.Module] = []

    def steps() -> Generator[None, None, None]:
        with contextlib.closing(rehearse(data, recipe, device=device, threads=threads)) as done:
            network[:] = [next(done)]
            yield  # ready: what comes before is no step
            for _ in done:
                yield

    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if target.type == "cuda" else ()):
        timed = steps()
        next(timed)
        step = _median_seconds(timed)
        sample = _sample_seconds(network[0], data, recipe, step, device)
        return Times(str(target), step, sample, _calibration_calls(data, recipe) * sample / _calls(recipe))


def _calls(recipe: config.Recipe) -> int:
    """Of the network, for a generated sample."""
    return recipe.generate.steps * (1 if recipe.generate.guidance in (0, 1) else 2)


def _calibration_calls(data: PrimitiveSet, recipe: config.Recipe) -> int:
    """Of the network, for the samples that the calibration is fitted to."""
    if not recipe.train.calibrate:
        return 0
    kinds = 2 if data.condition_names and recipe.data.condition.dropout else 1
    return kinds * calibration.LEVELS * calibration.BATCHES * recipe.train.batch


def _sample_seconds(network: nn.Module, data: PrimitiveSet, recipe: config.Recipe, step: float, device: str) -> float:
    """Seconds of one sample, from fewer sampling steps than the recipe's where these would take long."""
    settings, diffusion = recipe.generate, Diffusion(recipe.diffusion)
    count = min(settings.count, settings.batch)
    _, cond = data.read(data.train[np.arange(count) % len(data.train)])
    timed = min(settings.steps, SAMPLING_STEPS, max(1, int(SECONDS / step)))

    def batches() -> Generator[np.ndarray, None, None]:
        while True:
            yield generate(
                network,
                data.layout,
                diffusion,
                range(count),
                recipe.seed,
                cond=cond,
                steps=timed,
                sampler=settings.sampler,
                guidance=settings.guidance,
                batch=count,
                device=device,
            )

    return _median_seconds(batches()) / timed * settings.steps / count


def _median_seconds(repeats: Generator[object, None, None]) -> float:
    """The median time of a repeat; the first one, which sets things up, counts only where it is alone."""
    times: list[float] = []
    last = time.perf_counter()
    with contextlib.closing(repeats):
        for _ in itertools.islice(repeats, 1 + REPEATS):
            now = time.perf_counter()
            times.append(now - last)
            last = now
            if sum(times) > SECONDS:
                break
    return statistics.median(times[1:] or times)


def random_primitives(
    layout: Layout, conditions: ConditionLayout, recipe: config.Recipe, condition_dims: Mapping[str, Sequence[str]]
) -> PrimitiveSet:
    """Random numbers in the shape of a recipe's primitives and conditions, as many samples as a training batch has.

    Parameters
    ----------
    layout, conditions
        Shapes of the primitives, and of what they are generated from.
    recipe
        Its ``train`` is used.
    condition_dims
        Dims of the conditions that are fields, without that of samples, by name.
    """
    n, rng = max(2, recipe.train.batch), np.random.default_rng(0)
    shapes = {stream.name: stream.shape for stream in layout.streams}
    shapes |= {} if conditions.initial is None else {"initial": conditions.initial}
    shapes |= {f"field_{name}": shape for name, shape in conditions.fields.items()}
    shapes |= {f"scalar_{name}": () for name in conditions.scalars}
    arrays: Arrays = {name: rng.standard_normal((n, *shape), dtype=np.float32) for name, shape in shapes.items()}
    if conditions.n_labels:
        arrays["label"] = rng.integers(conditions.n_labels, size=n)
    variables = {
        name: (("sample", *(f"{name}_{axis}" for axis in range(1, values.ndim))), values)
        for name, values in arrays.items()
    }
    dataset = xr.Dataset(variables, coords={"split": ("sample", np.full(n, "train"))})
    means = {stream.name: np.zeros(stream.shape) for stream in layout.streams}
    turned = [s for s in layout.streams if turned_axes(s)] if recipe.normalise.coordinates == "spectral" else []
    coordinates = {s.name: Coordinates.random(s, recipe.normalise.beta, rng) for s in turned}
    normalisation = Normalisation(means, dict.fromkeys(means, 1.0), coordinates)
    shifts = None
    if recipe.train.shift:
        anchors = {mode: np.linalg.qr(rng.normal(size=shape))[0] for mode, shape in layout.anchor_shapes.items()}
        shifts = Shifts(layout, tuple(recipe.train.shift), anchors, condition_dims)
    return PrimitiveSet(dataset, layout, normalisation, conditions, shifts=shifts)
