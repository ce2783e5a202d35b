"""Sampling: flat normalised primitives from noise. Sample i depends on (seed, i), whatever it is drawn with."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffats import config
from diffats.diffusion import Diffusion, Network, random_source
from diffats.errors import InputError, IntegrityError, StoreNotFoundError, TimeLimitError
from diffats.models import Denoiser, resolve_device
from diffats.primitives import ConditionLayout, Layout, Normalisation

_SAMPLES = 2  # keeps the random numbers of samples apart from those of training with the same seed


def load_denoiser(
    weights: str | Path,
    layout: Layout,
    conditions: ConditionLayout,
    model: config.Model,
    normalisation: Normalisation | None,
    *,
    device: str = "auto",
) -> Denoiser:
    """The trained network of a safetensors file, ready to sample.

    Raises
    ------
    StoreNotFoundError
        Where there is no such file.
    IntegrityError
        Where the file is damaged, or holds the weights of another network.
    """
    path = Path(weights)
    if not path.is_file():
        raise StoreNotFoundError(f"no weights at {path}. Run the train stage first.")
    target = resolve_device(device)
    try:
        _check_shapes(path, layout, conditions, model)
        denoiser = Denoiser(layout, conditions, model, normalisation)
        denoiser.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, ValueError, OverflowError) as error:
        reason = str(error).strip().splitlines()
        raise IntegrityError(
            f"weights {path} do not fit this recipe's network: {' '.join(reason[:2])}. "
            "Use the recipe that they were trained with, or train again."
        ) from error
    return denoiser.to(target).eval().requires_grad_(False)


def _check_shapes(path: Path, layout: Layout, conditions: ConditionLayout, model: config.Model) -> None:
    """Compare a file's header with the network, before memory is taken for what a layout claims; else ValueError."""
    with safe_open(path, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if model.depth > len(stored):
        raise ValueError(f"{model.depth} blocks, the file has {len(stored)} arrays")
    with torch.device("meta"):
        wanted = {name: tuple(x.shape) for name, x in Denoiser(layout, conditions, model).state_dict().items()}
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            raise ValueError(f"{name} has shape {stored.get(name)}, expected {wanted.get(name)}")


def generate(
    model: Network,
    layout: Layout,
    diffusion: Diffusion,
    indices: Sequence[int],
    seed: int,
    *,
    cond: Mapping[str, np.ndarray | Tensor] | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    guidance: float = 1.0,
    batch: int = 64,
    device: str = "auto",
    deadline: float | None = None,
) -> np.ndarray:
    """Draw samples ``(k, D)``, float32: flat normalised primitives for ``layout.unflatten``.

    Initial noise and the noise of stochastic samplers are functions of ``(seed, i)`` for each number ``i`` in
    ``indices``: not of ``batch``, of the other numbers, or of the device.

    Parameters
    ----------
    model
        ``model(z_t, t, cond, drop) -> (B, D)``: a ``Denoiser`` on ``device``.
    layout
        The primitive's streams.
    diffusion
        What the model predicts, and at which noise levels.
    indices
        Numbers of the samples to draw.
    seed
        Seed of the whole generation.
    cond
        Normalised conditions ``(k, ...)``, in the order of ``indices``; none: every condition is dropped.
    steps, sampler
        Network calls for each sample, and a name of ``diffats.diffusion.SAMPLERS``.
    guidance
        Scale of classifier-free guidance: 1 is none, 0 ignores the conditions. Other values double the work.
    batch
        Samples in one network call.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    deadline
        When to give up, by ``time.monotonic``; it is looked at before each network call.

    Raises
    ------
    InputError
        Where the sampler, the steps, the seed or the conditions cannot be used.
    TimeLimitError
        Where the deadline passes.
    """
    target = resolve_device(device)
    chosen = np.asarray(indices, dtype=np.int64)
    if seed < 0 or (chosen < 0).any():
        raise InputError(f"seed {seed} and the numbers of samples must not be negative.")
    given = _check_conditions(cond, len(chosen))
    diffusion.scheduler(sampler, steps)  # refuse bad settings, though there may be nothing to draw
    z = np.empty((len(chosen), layout.numbers), dtype=np.float32)
    size = max(1, batch)
    for start in range(0, len(chosen), size):
        part = slice(start, start + size)
        predict = _predictor(model, {name: x[part].to(target) for name, x in given.items()}, guidance)
        predict = _until(predict, deadline, f"{start} of {len(chosen)} samples were done")
        sources = [random_source(seed, _SAMPLES, int(i)) for i in chosen[part]]
        z[part] = _sample(predict, diffusion, sources, layout.numbers, steps, sampler, target).cpu().numpy()
    return z


def _check_conditions(cond: Mapping[str, np.ndarray | Tensor] | None, count: int) -> dict[str, Tensor]:
    given = {name: torch.as_tensor(values) for name, values in (cond or {}).items()}
    for name, values in given.items():
        if len(values) != count:
            raise InputError(f'condition "{name}" has {len(values)} rows for {count} samples. Give one for each.')
    return given


def _predictor(model: Network, cond: Mapping[str, Tensor], guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
    if not cond or guidance == 1.0:
        return lambda z, t: model(z, t, cond, None)
    if guidance == 0.0:
        return lambda z, t: model(z, t, {}, None)
    twice = {name: torch.cat([x, x]) for name, x in cond.items()}

    def predict(z: Tensor, t: Tensor) -> Tensor:
        drop = torch.arange(2 * len(z), device=z.device) >= len(z)
        with_cond, without = model(torch.cat([z, z]), torch.cat([t, t]), twice, drop).chunk(2)
        return without + guidance * (with_cond - without)

    return predict


def _until(
    predict: Callable[[Tensor, Tensor], Tensor], deadline: float | None, done: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that gives up at a deadline."""
    if deadline is None:
        return predict

    def in_time(z: Tensor, t: Tensor) -> Tensor:
        if time.monotonic() > deadline:
            raise TimeLimitError(f"the time limit has passed when {done}. Ask for fewer samples or steps.")
        return predict(z, t)

    return in_time


@torch.no_grad()
def _sample(
    predict: Callable[[Tensor, Tensor], Tensor],
    diffusion: Diffusion,
    sources: list[torch.Generator],
    numbers: int,
    steps: int,
    sampler: str,
    device: torch.device,
) -> Tensor:
    scheduler = diffusion.scheduler(sampler, steps)
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    noise = {"generator": sources} if takes_noise else {}
    z = torch.stack([torch.randn(numbers, generator=source) for source in sources]).to(device)
    z = z.mul(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        prediction = predict(z, t.to(device).expand(len(z)))
        z = scheduler.step(prediction, t, z, **noise).prev_sample
    return z
