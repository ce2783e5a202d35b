"""The layout of a primitive: names and shapes of its streams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from array_api_compat import array_namespace

from diffats.config import Recipe
from diffats.errors import InputError
from diffats.patches import from_patches, to_patches
from diffats.spectrum import Array
from diffats.tucker import check_ranks

Streams = Mapping[str, Array]

PATCH, PIXEL = "patch", "pixel"  # the two modes of a matrix primitive


@dataclass(frozen=True)
class Stream:
    """One named part of a primitive.

    Attributes
    ----------
    name
        ``"core"`` or ``"factor_<mode>"``.
    dims, shape
        Without the sample axis.
    mode
        The mode of a factor, None for the core.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    mode: str | None = None

    @property
    def size(self) -> int:
        """Numbers in one sample of this stream."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the streams of a primitive.

    Attributes
    ----------
    kind
        ``"tgp"`` (tensor) or ``"mgp"`` (matrix of patches by pixels).
    modes, sizes
        The modes of a sample in tensor order, and their sizes.
    ranks
        By decomposed mode; of a matrix primitive, of ``"pixel"``.
    aligned
        The aligned modes, in tensor order; the other decomposed modes are merged into the core.
    patch
        Of a matrix primitive: patch length by mode; the other modes are labelled and keep factors of their own.

    >>> layout = Layout("tgp", ("y", "x", "band"), {"y": 16, "x": 16, "band": 200}, {"y": 6, "band": 8}, ("y", "band"))
    >>> [(stream.name, stream.dims, stream.shape) for stream in layout.streams]
    [('core', ('rank_y', 'x', 'rank_band'), (6, 16, 8)), ('factor_y', ('y', 'rank_y'), (16, 6)), \
('factor_band', ('band', 'rank_band'), (200, 8))]
    >>> layout.numbers, layout.raw_numbers
    (2464, 51200)
    """

    kind: Literal["tgp", "mgp"]
    modes: tuple[str, ...]
    sizes: Mapping[str, int]
    ranks: Mapping[str, int]
    aligned: tuple[str, ...]
    patch: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.sizes) != set(self.modes):
            raise InputError(f"sizes name {tuple(self.sizes)}, modes are {self.modes}. Give one size per mode.")
        if self.kind == "mgp":
            self._check_patches()
        fix = "set decompose.tolerance" if self.kind == "tgp" else "use larger or more patches"
        check_ranks(self.ranks, self.working_sizes, fix)
        for mode in self.aligned:
            if mode not in self.ranks:
                raise InputError(f'mode "{mode}" is aligned but has no rank. Add it to decompose.ranks.')

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def _check_patches(self) -> None:
        for mode in (PATCH, PIXEL):
            if mode in self.modes:
                raise InputError(f'a mode named "{mode}" clashes with the patches of kind "mgp". Rename this dim.')
        for mode, length in self.patch.items():
            size = self.sizes.get(mode)
            if size is None:
                raise InputError(f'primitive.patch names "{mode}", which is no mode ({", ".join(self.modes)}).')
            if size % length:
                near = max(n for n in range(1, min(length, size) + 1) if size % n == 0)
                raise InputError(
                    f'patch {length} does not divide the size {size} of mode "{mode}" (sample: {_sizes(self.sizes)}). '
                    f"Use a divisor of {size}, such as {near}, in primitive.patch."
                )

    @classmethod
    def from_recipe(cls, recipe: Recipe, sizes: Mapping[str, int], ranks: Mapping[str, int] | None = None) -> Layout:
        """The layout that a recipe asks for.

        Parameters
        ----------
        recipe
            The recipe.
        sizes
            By tensor mode.
        ranks
            By mode, where the recipe has a tolerance: what ``find_ranks`` found.

        Raises
        ------
        RankError
            Ranks that no decomposition of these sizes can have.
        InputError
            Sizes or patches that do not fit.
        """
        modes = recipe.tensor_modes
        if set(sizes) != set(modes):
            raise InputError(f"a sample has modes {tuple(sizes)}, the recipe names {modes}. Correct data.modes.")
        ordered = {mode: int(sizes[mode]) for mode in modes}
        if recipe.primitive.kind == "mgp":
            rank = cast(int, recipe.primitive.rank)
            patch = {mode: recipe.primitive.patch[mode] for mode in modes if mode in recipe.primitive.patch}
            return cls("mgp", modes, ordered, {PIXEL: rank}, (PIXEL,), patch)
        given = recipe.decompose.ranks if ranks is None else ranks
        if not given:
            raise InputError("decompose.tolerance: ranks are found from samples. Pass the ranks that find_ranks gave.")
        chosen = {mode: int(given[mode]) for mode in modes if mode in given}
        check_ranks(given, ordered)  # the given names too, of which some may be no mode
        return cls("tgp", modes, ordered, chosen, recipe.aligned_modes)

    @property
    def labelled(self) -> tuple[str, ...]:
        """Modes of a matrix primitive that are not cut: each of their indices has matrices and an anchor of its own."""
        return tuple(mode for mode in self.modes if self.kind == "mgp" and mode not in self.patch)

    @property
    def working_modes(self) -> tuple[str, ...]:
        """Modes of the tensors that are decomposed: the sample's, or ``("patch", "pixel")``."""
        return self.modes if self.kind == "tgp" else (PATCH, PIXEL)

    @property
    def working_sizes(self) -> dict[str, int]:
        """Sizes of the working modes."""
        if self.kind == "tgp":
            return {mode: self.sizes[mode] for mode in self.modes}
        pixels = math.prod(self.patch.values())
        return {PATCH: math.prod(self.sizes[mode] for mode in self.patch) // pixels, PIXEL: pixels}

    @property
    def working_ranks(self) -> tuple[int | None, ...]:
        """Rank by working mode, None where not decomposed."""
        return tuple(self.ranks.get(mode) for mode in self.working_modes)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams of a primitive: the core first, then the aligned factors in tensor order."""
        return self._streams_with(self.aligned)

    @property
    def tucker_streams(self) -> tuple[Stream, ...]:
        """The streams before alignment: the core, and a factor for every decomposed mode."""
        return self._streams_with(tuple(mode for mode in self.working_modes if mode in self.ranks))

    def _streams_with(self, factored: tuple[str, ...]) -> tuple[Stream, ...]:
        sizes = self.working_sizes
        batch = tuple(self.sizes[mode] for mode in self.labelled)
        core_dims = tuple(f"rank_{mode}" if mode in factored else mode for mode in self.working_modes)
        core_shape = tuple(self.ranks[mode] if mode in factored else sizes[mode] for mode in self.working_modes)
        core = Stream("core", self.labelled + core_dims, batch + core_shape)
        return core, *(
            Stream(f"factor_{m}", (*self.labelled, m, f"rank_{m}"), (*batch, sizes[m], self.ranks[m]), m)
            for m in self.working_modes
            if m in factored
        )

    @property
    def anchor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the anchor by aligned mode: that of its factor."""
        return {stream.mode: stream.shape for stream in self.streams if stream.mode is not None}

    @property
    def numbers(self) -> int:
        """Numbers in one primitive."""
        return sum(stream.size for stream in self.streams)

    @property
    def raw_numbers(self) -> int:
        """Numbers in one raw sample."""
        return math.prod(self.sizes.values())

    @property
    def compression(self) -> float:
        """Numbers in a raw sample per number in its primitive."""
        return self.raw_numbers / self.numbers

    def arrange(self, x: Array) -> Array:
        """Samples ``(k, *sizes)`` as tensors of the working modes, ``(k, *labelled, *working)``.

        Raises
        ------
        InputError
            Where the samples have other sizes.
        """
        expected = tuple(self.sizes[mode] for mode in self.modes)
        if tuple(x.shape[1:]) != expected:
            raise InputError(
                f"samples of shape {tuple(x.shape)} do not have the layout's sizes ({_sizes(self.sizes)}). "
                "Give (samples, ...) with the modes in this order."
            )
        if self.kind == "tgp":
            return x
        axes = self._patched_last
        return to_patches(array_namespace(x).permute_dims(x, axes), tuple(self.patch.values()))

    def restore(self, y: Array) -> Array:
        """The inverse of ``arrange``."""
        if self.kind == "tgp":
            return y
        x = from_patches(y, tuple(self.sizes[mode] for mode in self.patch), tuple(self.patch.values()))
        return array_namespace(x).permute_dims(x, tuple(int(axis) for axis in np.argsort(self._patched_last)))

    @property
    def _patched_last(self) -> tuple[int, ...]:
        order = (*self.labelled, *self.patch)
        return (0, *(self.modes.index(mode) + 1 for mode in order))

    def flatten(self, streams: Streams) -> Array:
        """Streams ``{name: (k, *shape)}`` as one array ``(k, numbers)``.

        Raises
        ------
        InputError
            Where a stream is missing or has another shape.
        """
        parts = [pick(streams, stream) for stream in self.streams]
        xp = array_namespace(*parts)
        flat = [xp.reshape(part, (part.shape[0], s.size)) for s, part in zip(self.streams, parts, strict=True)]
        return xp.concat(flat, axis=1)

    def unflatten(self, z: Array) -> dict[str, Array]:
        """The inverse of ``flatten``.

        >>> layout = Layout("tgp", ("y", "x"), {"y": 4, "x": 6}, {"y": 2, "x": 2}, ("y", "x"))
        >>> {name: part.shape for name, part in layout.unflatten(np.zeros((3, 24))).items()}
        {'core': (3, 2, 2), 'factor_y': (3, 4, 2), 'factor_x': (3, 6, 2)}
        """
        if z.ndim != 2 or z.shape[1] != self.numbers:
            raise InputError(f"an array of shape {tuple(z.shape)} is not (samples, {self.numbers}) of this layout.")
        xp, streams, start = array_namespace(z), {}, 0
        for stream in self.streams:
            part = z[:, start : start + stream.size]
            streams[stream.name] = xp.reshape(part, (z.shape[0], *stream.shape))
            start += stream.size
        return streams

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON data."""
        return {
            "kind": self.kind,
            "modes": list(self.modes),
            "sizes": dict(self.sizes),
            "ranks": dict(self.ranks),
            "aligned": list(self.aligned),
            "patch": dict(self.patch),
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Layout:
        """The layout that ``to_dict`` described."""
        return cls(
            tree["kind"],
            tuple(tree["modes"]),
            dict(tree["sizes"]),
            dict(tree["ranks"]),
            tuple(tree["aligned"]),
            dict(tree["patch"]),
        )


def pick(streams: Streams, stream: Stream) -> Array:
    """The array of one stream, its shape checked."""
    if stream.name not in streams:
        raise InputError(f'stream "{stream.name}" is missing; there are {", ".join(streams) or "none"}.')
    part = streams[stream.name]
    if tuple(part.shape[1:]) != stream.shape:
        raise InputError(
            f'stream "{stream.name}" has shape {tuple(part.shape)}, expected (samples, '
            f"{', '.join(map(str, stream.shape))}) for dims {stream.dims}. It was made with another layout."
        )
    return part


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{mode}={size}" for mode, size in sizes.items())
