"""The denoiser: a diffusion transformer whose tokens are built from a primitive's layout.

A core that keeps physical axes gives tokens over those axes; a core with all modes aligned gives one token per slice
along its largest rank. A factor, which alignment has made nearly the same in all samples, gives few tokens, of several
rank columns each. A field that is a condition is added to the core's tokens at its place, or has tokens of its own
where it has no place; the other conditions have a token each. No shape is a constant of the model: the layout is data.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffats import config
from diffats.errors import InputError
from diffats.primitives import PATCH, ConditionLayout, Coordinates, Layout, Normalisation, Stream, Turn

logger = logging.getLogger(__name__)

MANY_TOKENS = 2048  # attention costs grow with the square: warn from here on
CONDITION_TOKENS = 16  # at most this many tokens for one field that is a condition
CONDITION_NUMBERS = 8  # and at least this many numbers in each of them
# Octaves from half a cycle per four standard deviations on. More of them tell values apart that were never seen, and a
# value between those of training then gets what none of its neighbours would.
SCALAR_FREQUENCIES = 1
SHORT_AXIS = 4  # a core's axis of at most this length, such as components or colours, stays within a token
TIME_FEATURES = 256

Conditions = Mapping[str, Tensor]


def resolve_device(device: str = "auto") -> torch.device:
    """The torch device of a name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    InputError
        Where the named device is not there.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, found in there.items() if found)
    kind = device.partition(":")[0]
    if not there.get(kind, False):
        found = ", ".join(name for name, yes in there.items() if yes)
        raise InputError(f'device "{device}" is not available here (found: {found}). Set compute.device = "auto".')
    return torch.device(device)


@dataclass(frozen=True)
class StreamTokens:
    """How one stream becomes tokens and back: ``(B, numbers) <-> (B, count, features)``.

    ``order`` lists the stream's axes, those that number the tokens first (``n_token_axes`` of them), then those inside
    a token; ``group`` neighbours along the last token axis share a token.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    n_token_axes: int
    group: int = 1

    @classmethod
    def of(cls, stream: Stream, core_patch: int = 1, factor_tokens: int = 4) -> StreamTokens:
        """The tokens of a stream, found from its dims alone; the options are those of ``config.Model``."""
        axes = range(len(stream.dims))
        if stream.name == "core":
            kept = tuple(axis for axis in axes if not stream.dims[axis].startswith("rank_"))
            long = tuple(axis for axis in kept[:-1] if stream.shape[axis] > SHORT_AXIS)
            token_axes = (*long, *kept[-1:]) or (max(axes, key=lambda axis: stream.shape[axis]),)
        else:  # (batch..., physical, rank): some columns each
            token_axes = tuple(axis for axis in axes if axis != len(stream.dims) - 2)
        inside = tuple(axis for axis in axes if axis not in token_axes)
        last = stream.shape[token_axes[-1]]
        group = min(core_patch, last) if stream.name == "core" else math.ceil(last / factor_tokens)
        return cls(stream.name, tuple(stream.shape), token_axes + inside, len(token_axes), group)

    @property
    def numbers(self) -> int:
        """Numbers in the stream."""
        return math.prod(self.shape)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Positions along all token axes but the last, along the last, and numbers at each."""
        ordered = [self.shape[axis] for axis in self.order]
        *lead, last = ordered[: self.n_token_axes]
        return math.prod(lead), last, math.prod(ordered[self.n_token_axes :])

    @property
    def count(self) -> int:
        """Tokens of the stream."""
        lead, last, _ = self.grid
        return lead * math.ceil(last / self.group)

    @property
    def features(self) -> int:
        """Numbers in one token, padding included."""
        return self.group * self.grid[2]

    def split(self, x: Tensor) -> Tensor:
        """Numbers ``(B, numbers)`` to tokens ``(B, count, features)``."""
        lead, last, inside = self.grid
        x = x.reshape(-1, *self.shape).permute(0, *(axis + 1 for axis in self.order))
        x = x.reshape(-1, lead, last, inside)
        if missing := -last % self.group:
            x = F.pad(x, (0, 0, 0, missing))
        return x.reshape(-1, self.count, self.features)

    def join(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, count, features)`` to numbers ``(B, numbers)``; the inverse of ``split``."""
        lead, last, inside = self.grid
        x = tokens.reshape(tokens.shape[0], lead, -1, inside)[:, :, :last]
        x = x.reshape(-1, *(self.shape[axis] for axis in self.order))
        back = [self.order.index(axis) + 1 for axis in range(len(self.shape))]
        return x.permute(0, *back).reshape(-1, self.numbers)


def patch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The patch by which a condition of ``shape`` is cut into at most 16 tokens of at least 8 numbers.

    >>> patch_shape((128, 128)), patch_shape((128,)), patch_shape((2, 3))
    ((32, 32), (8,), (2, 3))
    """
    patch = [1] * len(shape)

    def counts() -> list[int]:
        return [math.ceil(n / p) for n, p in zip(shape, patch, strict=True)]

    while math.prod(counts()) > CONDITION_TOKENS or (math.prod(patch) < CONDITION_NUMBERS and math.prod(counts()) > 1):
        axis = max(range(len(shape)), key=lambda a: counts()[a])
        patch[axis] = min(2 * patch[axis], shape[axis])
    return tuple(patch)


class FieldCondition(nn.Module):
    """Tokens of a field that is given: one per patch of the normalised array ``(B, *shape)``."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.shape, self.patch = shape, patch_shape(shape)
        self.counts = [math.ceil(n / p) for n, p in zip(shape, self.patch, strict=True)]
        self.count = math.prod(self.counts)
        self.embed = nn.Linear(math.prod(self.patch), width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, count, width)``."""
        ends = [c * p - n for n, p, c in zip(self.shape, self.patch, self.counts, strict=True)]
        x = F.pad(x, [pad for end in reversed(ends) for pad in (0, end)])
        x = x.reshape(-1, *(n for pair in zip(self.counts, self.patch, strict=True) for n in pair))
        axes = range(1, x.ndim)
        x = x.permute(0, *axes[::2], *axes[1::2]).reshape(x.shape[0], self.count, -1)
        tokens: Tensor = self.embed(x)
        return tokens


class PlacedCondition(nn.Module):
    """A field that is given, added to the core's tokens: each gets the part of ``(B, *shape)`` at its own place.

    The place of a token is its index along the core's last token axis: along a mode that the core keeps, or in the
    grid of patches of a matrix primitive. Where the field lacks a mode of that grid, as an initial state lacks time,
    all places along it get the same; where its own grid is finer, a place is several of its points. Where it is dropped
    or not given, all tokens get the same learned vector.
    """

    def __init__(
        self, places: Mapping[str, int], tokens: StreamTokens, dims: Sequence[str], shape: Sequence[int], width: int
    ) -> None:
        super().__init__()
        self.places, self.tokens, self.dims = dict(places), tokens, tuple(dims)
        self.shape = dict(zip(dims, shape, strict=True))
        lead, _, _ = tokens.grid
        numbers = math.prod(n // self.places.get(dim, 1) for dim, n in self.shape.items())
        self.embed = nn.Linear(tokens.group * numbers, lead * width)
        self.null = nn.Parameter(torch.empty(width))

    def _at_places(self, x: Tensor) -> Tensor:
        """``(B, *shape)`` to ``(B, places, numbers)``."""
        shared = [mode for mode in self.places if mode in self.dims]
        others = [dim for dim in self.dims if dim not in shared]
        x = x.permute(0, *(1 + self.dims.index(dim) for dim in (*shared, *others)))
        lengths = [part for mode in shared for part in (self.places[mode], self.shape[mode] // self.places[mode])]
        x = x.reshape(x.shape[0], *lengths, -1)
        cut = range(1, 2 * len(shared) + 1)
        x = x.permute(0, *cut[::2], *cut[1::2], len(cut) + 1).flatten(len(shared) + 1)
        for axis, mode in enumerate(self.places, start=1):
            x = x if mode in shared else x.unsqueeze(axis)
        return x.expand(-1, *self.places.values(), -1).flatten(1, -2)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the core's tokens, ``(B, count, width)``."""
        lead, last, _ = self.tokens.grid
        x = F.pad(self._at_places(x), (0, 0, 0, -last % self.tokens.group))
        embedded: Tensor = self.embed(x.reshape(x.shape[0], self.tokens.count // lead, -1))
        return embedded.reshape(x.shape[0], -1, lead, embedded.shape[2] // lead).transpose(1, 2).flatten(1, 2)


def core_places(layout: Layout, tokens: StreamTokens) -> dict[str, int]:
    """The modes along which the places of the core's tokens lie, and how many there are; none along a rank."""
    axis = layout.streams[0].dims[tokens.order[tokens.n_token_axes - 1]]
    if axis == PATCH:
        return {mode: layout.sizes[mode] // length for mode, length in layout.patch.items()}
    return {axis: layout.sizes[axis]} if axis in layout.sizes else {}


class ScalarCondition(nn.Module):
    """One token of a standardised number ``(B,)``, by Fourier features from coarse to fine."""

    count = 1
    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = 2.0 ** torch.arange(SCALAR_FREQUENCIES) * math.pi / 4
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embed = nn.Sequential(nn.Linear(1 + 2 * SCALAR_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1, width)``."""
        angles = x[:, None] * self.frequencies
        tokens: Tensor = self.embed(torch.cat([x[:, None], angles.sin(), angles.cos()], dim=1))
        return tokens[:, None]


class PhaseCondition(nn.Module):
    """One token of a number that comes back, as sine and cosine ``(B, 2)``."""

    count = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1, width)``."""
        tokens: Tensor = self.embed(x)
        return tokens[:, None]


class LabelCondition(nn.Module):
    """One token of a class ``(B,)``."""

    count = 1

    def __init__(self, n_labels: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_labels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, 1, width)``."""
        tokens: Tensor = self.embed(x)
        return tokens[:, None]


def _condition_modules(conditions: ConditionLayout, placed: Container[str], width: int) -> dict[str, nn.Module]:
    fields = {} if conditions.initial is None else {"initial": conditions.initial}
    fields |= {f"field_{name}": shape for name, shape in conditions.fields.items()}
    modules: dict[str, nn.Module] = {n: FieldCondition(tuple(s), width) for n, s in fields.items() if n not in placed}
    for name in conditions.scalars:
        modules[f"scalar_{name}"] = PhaseCondition(width) if name in conditions.cycles else ScalarCondition(width)
    if conditions.n_labels:
        modules["label"] = LabelCondition(conditions.n_labels, width)
    return modules


def _placed_modules(
    layout: Layout, core: StreamTokens, conditions: ConditionLayout, width: int
) -> dict[str, PlacedCondition]:
    """The fields that are given whose dims, where they are known, include one along which the core has places."""
    given = {f"field_{name}": (conditions.field_dims.get(name, ()), shape) for name, shape in conditions.fields.items()}
    if conditions.initial is not None:
        given["initial"] = (conditions.initial_dims, conditions.initial)
    places, modules = core_places(layout, core), {}
    for name, (dims, shape) in given.items():
        shared = [n % places[dim] == 0 for dim, n in zip(dims, shape, strict=False) if dim in places]
        if shared and all(shared):
            modules[name] = PlacedCondition(places, core, dims, shape, width)
    return modules


class ConditionTokens(nn.Module):
    """Tokens ``(B, count, width)`` of the conditions that have no place in the core.

    A learned null token stands for one that is dropped or not given.
    """

    def __init__(self, conditions: ConditionLayout, placed: Container[str], width: int) -> None:
        super().__init__()
        modules = _condition_modules(conditions, placed, width)
        self.names = tuple(modules)
        # a list, not a dict: a condition may be called like an attribute of torch's modules, or have a dot in its name
        self.embed = nn.ModuleList(modules.values())
        self.counts = [int(module.count) for module in modules.values()]  # type: ignore[arg-type]
        self.null = nn.ParameterList(torch.empty(width) for _ in modules)

    @property
    def count(self) -> int:
        """Tokens of these conditions together."""
        return sum(self.counts)

    def forward(self, batch: int, cond: Conditions, drop: Tensor | None) -> list[Tensor]:
        """One ``(B, count, width)`` for each condition."""
        tokens = []
        for name, embed, null, count in zip(self.names, self.embed, self.null, self.counts, strict=True):
            empty = null.expand(batch, count, -1)
            if name not in cond:
                tokens.append(empty)
            elif drop is None:
                tokens.append(embed(cond[name]))
            else:
                tokens.append(torch.where(drop[:, None, None], empty, embed(cond[name])))
        return tokens


class TimeEmbedding(nn.Module):
    """Noise level ``(B,)`` to ``(B, width)``: sinusoids, then a small network."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = TIME_FEATURES // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(half) / half), persistent=False)
        self.embed = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embedding ``(B, width)``."""
        angles = t[:, None].to(self.frequencies.dtype) * self.frequencies
        embedding: Tensor = self.embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedding


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


class Block(nn.Module):
    """A transformer block with adaLN-Zero (Peebles, Xie, "Scalable Diffusion Models with Transformers", ICCV 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, T, w) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        attended: Tensor = self.out(mixed)
        return attended

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens ``(B, T, width)`` and the activated embedding ``c`` ``(B, width)`` to tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self._attend(_modulate(self.norm(x), shift1, scale1)))
        return torch.addcmul(x, gate2, self.mlp(_modulate(self.norm(x), shift2, scale2)))


class PointView(nn.Module):
    """A core in coordinates as the network sees it: at its points, with the deviations that they have there.

    Conditions keep their places and neighbours stay neighbours, whatever axes the noise is white on. The map is in
    float32 also where the network is not.
    """

    divisor: Tensor

    def __init__(self, coordinates: Coordinates) -> None:
        super().__init__()
        self.axes = tuple(coordinates.turns)
        self.register_buffer("divisor", torch.tensor(coordinates.divisor, dtype=torch.float32), persistent=False)
        for axis, turn in coordinates.turns.items():
            for i, matrix in enumerate(turn.matrices):
                self.register_buffer(f"turn{axis}_{i}", torch.tensor(matrix, dtype=torch.float32), persistent=False)

    def _turn(self, axis: int) -> Turn:
        prefix = f"turn{axis}_"
        return Turn(tuple(buffer for name, buffer in self.named_buffers() if name.startswith(prefix)))

    def to_points(self, z: Tensor) -> Tensor:
        """Numbers ``(B, numbers)`` of the core as the network gets them."""
        with torch.autocast(z.device.type, enabled=False):
            y = z.float().reshape(-1, *self.divisor.shape) * self.divisor
            for axis in self.axes:
                y = self._turn(axis).back(y, axis, self.divisor.ndim)
            return y.flatten(1)

    def from_points(self, y: Tensor) -> Tensor:
        """What the network answers ``(B, numbers)`` in the core's coordinates; the inverse of ``to_points``."""
        with torch.autocast(y.device.type, enabled=False):
            z = y.float().reshape(-1, *self.divisor.shape)
            for axis in self.axes:
                z = self._turn(axis).forward(z, axis, self.divisor.ndim)
            return (z / self.divisor).flatten(1)


class Denoiser(nn.Module):
    """DiT over the streams of a primitive.

    The output is the network's prediction (noise, sample or velocity: ``Diffusion`` decides) in the shape of its
    input. Each token's prediction is a projection of its last hidden state plus its input times a gate that depends on
    the noise level: a linear filter is then exact from the start, and a token longer than ``width`` still passes.

    Parameters
    ----------
    layout
        The primitive's streams; ``z`` is ``layout.flatten`` of the normalised streams.
    conditions
        What samples are generated from.
    model
        Width, depth, heads, ``core_patch`` and ``factor_tokens``.
    normalisation
        Of the streams; only the core's coordinates are used, where it has any. A factor's tokens are made of columns,
        for which it makes no difference on which axes their numbers are.
    """

    def __init__(
        self,
        layout: Layout,
        conditions: ConditionLayout,
        model: config.Model,
        normalisation: Normalisation | None = None,
    ) -> None:
        super().__init__()
        coordinates = None if normalisation is None else normalisation.coordinates.get("core")
        self.view = None if coordinates is None else PointView(coordinates)
        self.streams = [StreamTokens.of(stream, model.core_patch, model.factor_tokens) for stream in layout.streams]
        self.sizes = [stream.numbers for stream in self.streams]
        self.counts = [stream.count for stream in self.streams]
        self.n_tokens = sum(self.counts)
        width = model.width
        placed = _placed_modules(layout, self.streams[0], conditions, width)
        self.condition = ConditionTokens(conditions, placed, width)
        self.placed_names = tuple(placed)
        self.placed = nn.ModuleList(placed.values())
        self.embed = nn.ModuleList(nn.Linear(stream.features, width) for stream in self.streams)
        self.position = nn.Parameter(torch.empty(self.n_tokens + self.condition.count, width))
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, model.heads) for _ in range(model.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width + self.n_tokens)
        self.head = nn.ModuleList(nn.Linear(width, stream.features) for stream in self.streams)
        self._initialise()
        if self.n_tokens > MANY_TOKENS and not self.position.is_meta:
            core = next(stream for stream in self.streams if stream.name == "core")
            logger.warning(
                "the denoiser has %d tokens (%d of the core): training will be slow. Set model.core_patch above %d.",
                self.n_tokens, core.count, core.group,
            )  # fmt: skip

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)
        for null in (*self.condition.null, *(module.null for module in self.placed)):
            nn.init.normal_(null, std=0.02)
        zeros = [self.modulation, *self.head, *(block.modulation for block in self.blocks)]
        for module in zeros:  # adaLN-Zero: every block starts as the identity, the whole as zero
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)

    def _with_placed(self, core: Tensor, cond: Conditions, drop: Tensor | None) -> Tensor:
        """The core's tokens with the fields that are given added at their places."""
        for name, module in zip(self.placed_names, self.placed, strict=True):
            assert isinstance(module, PlacedCondition)
            if name not in cond:
                core = core + module.null
            elif drop is None:
                core = core + module(cond[name])
            else:
                core = core + torch.where(drop[:, None, None], module.null, module(cond[name]))
        return core

    def forward(self, z: Tensor, t: Tensor, cond: Conditions | None = None, drop: Tensor | None = None) -> Tensor:
        """Predict from noised primitives.

        Parameters
        ----------
        z
            Noised flat primitives ``(B, D)``.
        t
            Noise levels ``(B,)``.
        cond
            Normalised conditions by name, each ``(B, ...)``; those left out count as dropped.
        drop
            ``(B,)`` boolean; true: this sample sees no condition.

        Returns
        -------
        The prediction ``(B, D)``.
        """
        numbers = list(torch.split(z, self.sizes, dim=1))
        if self.view is not None:
            numbers[0] = self.view.to_points(numbers[0])
        tokens = [s.split(part) for s, part in zip(self.streams, numbers, strict=True)]
        embedded = [embed(part) for embed, part in zip(self.embed, tokens, strict=True)]
        embedded[0] = self._with_placed(embedded[0], cond or {}, drop)
        x = torch.cat(embedded + self.condition(z.shape[0], cond or {}, drop), dim=1)
        x = x + self.position
        c = F.silu(self.time(t))
        for block in self.blocks:
            x = block(x, c)
        width = x.shape[-1]
        shift, scale, gate = torch.split(self.modulation(c)[:, None], [width, width, self.n_tokens], dim=-1)
        x = _modulate(self.norm(x[:, : self.n_tokens]), shift, scale)
        hidden = torch.split(x, self.counts, dim=1)
        gates = torch.split(gate.transpose(1, 2), self.counts, dim=1)  # (B, count, 1) each
        parts = [
            stream.join(torch.addcmul(head(h), g, part))
            for stream, head, h, g, part in zip(self.streams, self.head, hidden, gates, tokens, strict=True)
        ]
        if self.view is not None:
            parts[0] = self.view.from_points(parts[0])
        return torch.cat(parts, dim=1)
