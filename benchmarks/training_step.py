"""A training step in parts, as ``diffats.training`` does it, of recipes with random primitives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import synthetic
from diffats.config import Recipe
from diffats.diffusion import Diffusion, Draw, Network, element_weights, random_source
from diffats.loader import PrimitiveSet
from diffats.models import Denoiser
from diffats.training import average_decay, make_optimizers

BESIDE = ("batch", "noise")  # what the training does beside the step before
AFTER = ("forward", "backward", "clip", "adamw", "muon", "average")
PARTS = (*BESIDE, *AFTER)
_LATE = 10**6  # averaged weights at the end of a training

Batch = tuple[Tensor, dict[str, Tensor], Draw]
Callee = Callable[..., Tensor]
Prepare = Callable[["Call", tuple[Tensor, ...]], Callee]


@dataclass(frozen=True)
class Problem:
    """A recipe with random primitives of its shapes."""

    recipe: Recipe
    data: PrimitiveSet

    @classmethod
    def named(
        cls, name: str, overrides: Sequence[str], samples: int, *, shard: int = 64, folder: Path | None = None
    ) -> Problem:
        """One of ``synthetic.NETWORKS`` with other settings."""
        recipe = synthetic.network_recipe(name, overrides)
        return cls(recipe, synthetic.primitives(recipe, samples, shard=shard, folder=folder))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the conditions."""
        return self.data.condition_names

    def denoiser(self) -> Denoiser:
        """The network, its weights not those of the start, with which it predicts nothing."""
        network = Denoiser(self.data.layout, self.data.conditions, self.recipe.model, self.data.normalisation)
        with torch.no_grad():
            for i, p in enumerate(network.parameters()):
                p.copy_(torch.randn(p.shape, generator=random_source(0, i)) / max(p.shape[-1], 16) ** 0.5)
        return network

    def read(self, size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Arrays of the first training step."""
        return self.data.read_step(0, 0, size)

    def draw(self, size: int) -> Draw:
        """Randomness of the first training step."""
        dropout = self.recipe.data.condition.dropout
        return Diffusion(self.recipe.diffusion).draw(
            size, self.data.numbers, dropout=dropout, generator=random_source(0, 1)
        )

    def samples(self, size: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples and their conditions on a device, brought there as the training does it."""
        z, cond = self.read(size)
        return torch.from_numpy(z).to(device), {name: torch.from_numpy(x).to(device) for name, x in cond.items()}

    def batch(self, size: int, device: torch.device) -> Batch:
        """A training batch on a device."""
        return *self.samples(size, device), self.draw(size).to(device)


class Call(nn.Module):
    """A network in one precision that takes tensors only, as compilers and CUDA graphs want it."""

    def __init__(self, network: Denoiser, names: Sequence[str], precision: str) -> None:
        super().__init__()
        self.network, self.names, self.precision = network, tuple(names), precision

    def forward(self, z: Tensor, t: Tensor, drop: Tensor | None, *given: Tensor) -> Tensor:
        """The prediction ``(B, D)``."""
        wanted = self.precision == "bfloat16"
        with torch.autocast(z.device.type, torch.bfloat16, enabled=wanted, cache_enabled=False):
            prediction: Tensor = self.network(z, t, dict(zip(self.names, given, strict=True)), drop)
        return prediction


def as_network(call: Callee, names: Sequence[str]) -> Network:
    """What ``Diffusion`` and ``generate`` call."""
    return lambda z, t, cond, drop: call(z, t, drop, *(cond[name] for name in names))


class Step:
    """A training step in parts, as ``diffats.training`` does it; ``prepare`` compiles or captures the network."""

    def __init__(self, problem: Problem, device: torch.device, precision: str, prepare: Prepare) -> None:
        self.problem, self.device = problem, device
        self.train, self.diffusion = problem.recipe.train, Diffusion(problem.recipe.diffusion)
        self.denoiser = problem.denoiser().to(device)
        decay = average_decay(_LATE, self.train.ema)
        averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.denoiser, multi_avg_fn=averaging)
        self.optimizers = make_optimizers(self.denoiser, self.train)
        self.weights = element_weights(problem.data.sizes).to(device)
        self.batch()
        self.noise()
        (z, cond), draw = self.given, self.draw
        inputs = (z, draw.t, draw.drop, *(cond[name] for name in problem.names))
        self.call = as_network(prepare(Call(self.denoiser, problem.names, precision), inputs), problem.names)

    def batch(self) -> None:
        """Read samples and bring them to the device: the training does it beside the step before."""
        self.given = self.problem.samples(self.train.batch, self.device)

    def noise(self) -> None:
        """Draw noise and its levels, also beside the step before."""
        self.draw = self.problem.draw(self.train.batch).to(self.device)

    def forward(self) -> None:
        """The loss."""
        self.loss = self.diffusion.loss(self.call, *self.given, self.weights, self.draw)

    def backward(self) -> None:
        """Its gradient."""
        self.loss.backward()  # type: ignore[no-untyped-call]

    def clip(self) -> None:
        """The gradient at most ``train.clip`` long."""
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.train.clip)

    def adamw(self) -> None:
        """New weights, but those that Muon is for."""
        self._update(self.optimizers[:1])

    def muon(self) -> None:
        """New matrices of the blocks."""
        self._update(self.optimizers[1:])

    def optimiser(self) -> None:
        """New weights."""
        self._update(self.optimizers)

    @staticmethod
    def _update(optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def average(self) -> None:
        """New averaged weights."""
        self.averaged.update_parameters(self.denoiser)

    def whole(self) -> None:
        """All that comes after the batch and the noise."""
        for part in AFTER:
            getattr(self, part)()


def eager(call: Call, _inputs: tuple[Tensor, ...]) -> Callee:
    """As it is."""
    return call


def compiled(call: Call, _inputs: tuple[Tensor, ...]) -> Callee:
    """By ``torch.compile``, at its first call."""
    return torch.compile(call)
