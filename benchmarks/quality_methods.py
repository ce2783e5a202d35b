"""What is compared by `benchmarks.quality`: ways to write a field as numbers that a denoiser generates.

Every method is a `Representation` fitted to the same centred and scaled training samples. All are then normalised,
conditioned, trained and sampled by the same code; only the numbers differ.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch.nn import functional as F

from diffats.config import Recipe
from diffats.loader import PrimitiveSet
from diffats.medoid import mean_anchor, medoid, projection_sum
from diffats.primitives import PATCH, ConditionLayout, Layout, Normalisation, Shifts, Stream, align, decode, decompose
from diffats.primitives.shifts import rolled

Array = npt.NDArray[Any]
Streams = Mapping[str, Array]
BLOCK = 64  # samples encoded or decoded at a time
TOKENS = 64  # of an array that is cut into patches, at most


@dataclass(frozen=True)
class TokenLayout(Layout):
    """One stream: an array cut into patches, each of them a token; for what has no factors."""

    @classmethod
    def of(cls, modes: tuple[str, ...], shape: tuple[int, ...]) -> TokenLayout:
        """The layout of arrays of ``shape`` in at most 64 patches; sizes are rounded up to whole patches."""
        counts = _counts(shape)
        patch = {mode: math.ceil(n / c) for mode, n, c in zip(modes, shape, counts, strict=True)}
        return cls("mgp", modes, {m: c * p for (m, p), c in zip(patch.items(), counts, strict=True)}, {}, (), patch)

    def __hash__(self) -> int:
        return super().__hash__()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The patches."""
        return (Stream("core", (PATCH, "rank_pixel"), tuple(self.working_sizes.values())),)


def _counts(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many patches there are along each axis: powers of two, at most 64 in all, as nearly cubes as can be."""
    counts = [1] * len(shape)
    while math.prod(counts) < TOKENS:
        axis = max(range(len(shape)), key=lambda a: shape[a] / counts[a])
        if counts[axis] * 2 > shape[axis]:
            break
        counts[axis] *= 2
    return tuple(counts)


@dataclass(frozen=True)
class Representation:
    """Numbers instead of a field.

    Attributes
    ----------
    layout
        Of the streams; a denoiser's tokens follow from it.
    encode, decode
        Centred and scaled fields ``(k, *sizes)`` to streams ``{name: (k, *shape)}`` and back.
    numbers
        How many numbers a sample has; a layout may pad them.
    augment
        Draws another, equally right encoding of the same samples at every reading; None where there is one only.
    initial
        An initial state ``(k, ...)`` as the network gets it, where its points are not those of the tokens.
    anchors
        What factors are aligned to, by mode.
    """

    layout: Layout
    encode: Callable[[Array], dict[str, Array]]
    decode: Callable[[Streams], Array]
    numbers: int
    augment: Callable[[Streams, np.random.Generator], dict[str, Array]] | None = None
    initial: Callable[[Array], Array] | None = None
    anchors: Streams | None = None


Fit = Callable[[Array, Recipe, Layout, int], Representation]


def in_blocks(f: Callable[[Any], Any], x: Any) -> Any:
    """``f`` over blocks of samples of an array, or of each array of a mapping; its results joined."""
    n = len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
    parts = []
    for start in range(0, n, BLOCK):
        part = slice(start, start + BLOCK)
        parts.append(f({k: v[part] for k, v in x.items()} if isinstance(x, Mapping) else x[part]))
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return np.concatenate(parts)


# --- primitives, with and without alignment -----------------------------------------------------------------------


def _tucker(x: Array, recipe: Recipe, layout: Layout) -> dict[str, Array]:
    found: dict[str, Array] = in_blocks(lambda part: decompose(part, layout, recipe.decompose.method)[0], x)
    return found


def _aligned(recipe: Recipe, layout: Layout, anchors: Streams) -> Representation:
    def encode(x: Array) -> dict[str, Array]:
        found: dict[str, Array] = in_blocks(
            lambda part: align(decompose(part, layout, recipe.decompose.method)[0], anchors, layout)[0], x
        )
        return found

    return Representation(
        layout, encode, lambda streams: np.asarray(decode(streams, layout)), layout.numbers, anchors=anchors
    )


def aligned(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """Ours: factors aligned to the training samples' medoid, or their mean where ``anchor.strategy`` says so."""
    tucker = _tucker(x, recipe, layout)
    anchors = {}
    for stream in layout.streams[1:]:
        U, labels = tucker[stream.name], stream.shape[:-2]
        anchors[str(stream.mode)] = np.stack(
            [_anchor(U[(slice(None), *label)], recipe.anchor.strategy) for label in np.ndindex(*labels)]
        ).reshape(stream.shape)
    return _aligned(recipe, layout, anchors)


def _anchor(U: Array, strategy: str) -> Array:
    """The medoid of factors ``(samples, n, r)``, or the subspace closest to all of them."""
    if strategy == "mean":
        return np.asarray(mean_anchor(projection_sum(U), U.shape[-1])).astype(U.dtype)
    return np.asarray(U[medoid(U)])


def random_anchor(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """Factors aligned to those of a training sample drawn at random."""
    chosen = int(np.random.default_rng(seed).integers(len(x)))
    tucker = decompose(x[chosen : chosen + 1], layout, recipe.decompose.method)[0]
    return _aligned(recipe, layout, {str(s.mode): tucker[s.name][0] for s in layout.streams[1:]})


def _unaligned_streams(x: Array, recipe: Recipe, layout: Layout) -> dict[str, Array]:
    """Aligned each to itself: the other factors are merged into the core, and no factor is turned."""

    def block(part: Array) -> dict[str, Array]:
        tucker = decompose(part, layout, recipe.decompose.method)[0]
        rows = []
        for i in range(len(part)):
            own = {name: values[i : i + 1] for name, values in tucker.items()}
            rows.append(align(own, {str(s.mode): own[s.name][0] for s in layout.streams[1:]}, layout)[0])
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    found: dict[str, Array] = in_blocks(block, x)
    return found


def no_alignment(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """The Tucker form as the decomposition returns it."""
    return Representation(
        layout,
        lambda x: _unaligned_streams(x, recipe, layout),
        lambda streams: np.asarray(decode(streams, layout)),
        layout.numbers,
    )


def random_rotations(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """The Tucker form, its gauge turned at random each time that a sample is read, before normalisation."""
    plain = no_alignment(x, recipe, layout, seed)

    def augment(streams: Streams, rng: np.random.Generator) -> dict[str, Array]:
        out = dict(streams)
        for stream in layout.streams[1:]:
            U = streams[stream.name]
            Q, R = np.linalg.qr(rng.standard_normal((*U.shape[:-2], U.shape[-1], U.shape[-1])))
            Q = (Q * np.sign(np.diagonal(R, axis1=-2, axis2=-1))[..., None, :]).astype(U.dtype)  # of Haar's measure
            out[stream.name] = U @ Q
            axis = layout.working_modes.index(str(stream.mode)) - len(layout.working_modes)
            G = np.moveaxis(out["core"], axis, -1)  # (k, *labelled, *other modes, rank)
            between = (1,) * (G.ndim - 1 - (U.ndim - 2))
            turned = (G[..., None, :] @ Q.reshape(*Q.shape[:-2], *between, *Q.shape[-2:]))[..., 0, :]
            out["core"] = np.moveaxis(turned, -1, axis)
        return out

    return Representation(layout, plain.encode, plain.decode, layout.numbers, augment)


# --- arrays of numbers cut into tokens ----------------------------------------------------------------------------


def _tokenised(
    recipe: Recipe,
    shape: tuple[int, ...],
    forward: Callable[[Array], Array],
    back: Callable[[Array], Array],
    initial: Callable[[Array], Array] | None = None,
) -> Representation:
    """Arrays of ``shape``, made from fields by ``forward``, in patches."""
    layout = TokenLayout.of(recipe.tensor_modes, shape)
    padding = [(0, n - m) for n, m in zip(layout.sizes.values(), shape, strict=True)]

    def encode(x: Array) -> dict[str, Array]:
        y = np.pad(forward(x), [(0, 0), *padding])
        return {"core": np.ascontiguousarray(layout.arrange(y), np.float32)}

    def restore(streams: Streams) -> Array:
        return back(layout.restore(streams["core"])[(slice(None), *(slice(n) for n in shape))])

    condition = recipe.data.condition.initial
    kept = [n for mode, n in layout.sizes.items() if condition is None or mode != condition.dim]

    def padded(x: Array) -> Array:
        assert initial is not None
        y = initial(x)
        return np.pad(y, [(0, 0), *((0, n - m) for n, m in zip(kept, y.shape[1:], strict=True))])

    return Representation(
        layout,
        lambda x: dict(in_blocks(encode, x)),
        lambda streams: np.asarray(in_blocks(restore, dict(streams))),
        math.prod(shape),
        initial=padded if initial else None,
    )


def raw_fields(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """The fields themselves."""
    return _tokenised(recipe, x.shape[1:], lambda x: x, lambda y: y)


def _pooled(x: Array, shape: tuple[int, ...], mode: str) -> Array:
    """Resample the last three (or fewer) axes; a component axis stays."""
    batch = x.shape[: x.ndim - len(shape)]
    flat = torch.from_numpy(np.ascontiguousarray(x, np.float32)).reshape(1, math.prod(batch), *x.shape[-len(shape) :])
    kwargs: dict[str, Any] = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(flat, size=shape, mode=mode, **kwargs).reshape(*batch, *shape).numpy()


def average_pooled(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """Fields averaged onto a coarser grid with as many numbers as ours; back by multilinear interpolation.

    Of all coarser grids with these counts, the one with the least error on (at most 16) training samples is taken.
    """
    kept = 1 if "component" in recipe.tensor_modes else 0
    if recipe.primitive.kind == "mgp" and layout.labelled:  # channels of a picture are no axis to average over
        kept = len(layout.labelled)
    fine = x.shape[1 + kept :]
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(fine)]
    budget = layout.numbers / math.prod(x.shape[1 : 1 + kept])
    some = x[np.linspace(0, len(x) - 1, min(len(x), 16)).astype(int)]
    best, least = (1,) * len(fine), math.inf
    for shape in _grids(fine, budget):
        error = float(np.sum((some - _pooled(_pooled(some, shape, "area"), fine, linear)) ** 2))
        if error < least:
            best, least = shape, error
    shape = (*x.shape[1 : 1 + kept], *best)
    condition = recipe.data.condition.initial
    spatial = [
        n for mode, n in zip(recipe.tensor_modes[kept:], best, strict=True) if condition and mode != condition.dim
    ]
    return _tokenised(
        recipe,
        shape,
        lambda x: _pooled(x, best, "area"),
        lambda y: _pooled(y, tuple(fine), linear),
        lambda x: _pooled(x, tuple(spatial), "area"),
    )


def _grids(fine: tuple[int, ...], budget: float) -> list[tuple[int, ...]]:
    """Coarse grids with at most ``budget`` points that no finer one of the same family dominates."""
    steps = [sorted({max(1, round(n / 2 ** (k / 2))) for k in range(20)}) for n in fine[:-1]]
    found = set()
    for lead in itertools.product(*steps):
        last = min(fine[-1], int(budget / math.prod(lead)))
        if last >= 1:
            found.add((*lead, last))
    return [
        g for g in sorted(found) if not any(h != g and all(a >= b for a, b in zip(h, g, strict=True)) for h in found)
    ]


def global_basis(x: Array, recipe: Recipe, layout: Layout, seed: int) -> Representation:
    """Cores in one orthonormal basis for all samples (HOSVD of the training set), with as many numbers as ours."""
    N = x.ndim - 1
    bases, energies = [], []
    for axis in range(1, N + 1):
        gram = np.zeros((x.shape[axis],) * 2)
        for start in range(0, len(x), BLOCK):
            unfolded = np.moveaxis(x[start : start + BLOCK], axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
            gram += unfolded @ unfolded.T
        values, vectors = np.linalg.eigh(gram)
        bases.append(vectors[:, ::-1])
        energies.append(np.clip(values[::-1], 0.0, None))
    ranks = _ranks_of_least_loss(energies, layout.numbers)
    kept = [basis[:, :rank].astype(np.float32) for basis, rank in zip(bases, ranks, strict=True)]

    def project(x: Array, matrices: list[Array]) -> Array:
        for axis, U in enumerate(matrices, start=1):
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ U, -1, axis)
        return x

    condition = recipe.data.condition.initial
    spatial = [U for mode, U in zip(recipe.tensor_modes, kept, strict=True) if condition and mode != condition.dim]
    return _tokenised(
        recipe,
        ranks,
        lambda x: project(x, kept),
        lambda y: project(y, [U.T for U in kept]),
        lambda x: project(x, spatial),
    )


def _ranks_of_least_loss(energies: list[Array], budget: int) -> tuple[int, ...]:
    """Ranks whose product is at most ``budget``, with the least sum of discarded energies."""
    lost = [np.concatenate([e[::-1].cumsum()[::-1], [0.0]]) for e in energies]  # lost[k][r]: of ranks from r on
    best, least = tuple(1 for _ in energies), math.inf
    for lead in itertools.product(*(range(1, len(e) + 1) for e in energies[:-1])):
        last = min(len(energies[-1]), budget // math.prod(lead))
        if last < 1:
            continue
        loss = sum(float(part[r]) for part, r in zip(lost, (*lead, last), strict=True))
        if loss < least:
            best, least = (*lead, last), loss
    return best


#: Those whose tokens are patches of an array.
PATCHED = ("global basis", "average-pooled", "raw fields")

#: What a denoiser is trained on, by name.
REPRESENTATIONS: dict[str, Fit] = {
    "ours": aligned,
    "no alignment": no_alignment,
    "random anchor": random_anchor,
    "random rotations": random_rotations,
    "global basis": global_basis,
    "average-pooled": average_pooled,
    "raw fields": raw_fields,
}


# --- without a network --------------------------------------------------------------------------------------------


def conditional_gaussian(
    states: Array, scalars: Array, z: Array, wanted: tuple[Array, Array], *, seed: int, components: int = 128
) -> Array:
    """Draw from a Gaussian given conditions: ridge regression on them, and the covariance of its errors.

    Parameters
    ----------
    states
        ``(n, c)`` normalised fields that are given with the training samples; at most `components` principal
        components of them are used.
    scalars
        ``(n, s)`` normalised numbers that are given; all are used.
    z
        ``(n, D)``: what is drawn.
    wanted
        ``(k, c)`` and ``(k, s)``: a draw for each.
    seed
        Of the draw.

    Returns
    -------
    array
        ``(k, D)``. Ridge's penalty is chosen by leave-one-out, its errors are those of 10-fold cross-validation.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import cross_val_predict

    n = len(z)
    fields, given = PCA(min(n - 1, 256, z.shape[1])).fit(z), PCA(min(components, n // 4, states.shape[1])).fit(states)
    first = math.sqrt(given.explained_variance_[0])

    def features(states: Array, scalars: Array) -> Array:
        return np.concatenate([given.transform(states) / first, scalars], axis=1)

    scores, known = fields.transform(z), features(states, scalars)
    penalty = RidgeCV(np.logspace(-5, 5, 21)).fit(known, scores).alpha_
    errors = scores - cross_val_predict(Ridge(penalty), known, scores, cv=min(10, n))
    mean = Ridge(penalty).fit(known, scores).predict(features(*wanted))
    weights = np.random.default_rng(seed).standard_normal((len(mean), n))
    return np.asarray(fields.inverse_transform(mean + weights @ (errors - errors.mean(0)) / math.sqrt(n - 1)), z.dtype)


# --- training sets that are never read twice alike ----------------------------------------------------------------

SetArguments = tuple[xr.Dataset, Layout, Normalisation, ConditionLayout]


class AugmentedSet(PrimitiveSet):
    """Primitives in another gauge at every step; the same ones where a step is repeated."""

    def __init__(
        self,
        arguments: SetArguments,
        augment: Callable[[Streams, np.random.Generator], dict[str, Array]],
        shifts: Shifts | None,
    ) -> None:
        super().__init__(*arguments, shard=BLOCK, shifts=shifts)
        self.augment = augment

    def read(self, indices: Array) -> tuple[Array, dict[str, Array]]:
        """As `PrimitiveSet.read`, each sample turned in a way that depends on the samples alone."""
        z, cond = super().read(indices)
        return self._turned(z, np.random.default_rng([len(indices), *map(int, indices)])), cond

    def read_step(self, seed: int, step: int, size: int, part: slice | None = None) -> tuple[Array, dict[str, Array]]:
        """As `PrimitiveSet.read_step`, each sample turned in a way that depends on the step."""
        z, cond = super().read_step(seed, step, size, part)
        return self._turned(z, np.random.default_rng((seed, step))), cond

    def _turned(self, z: Array, rng: np.random.Generator) -> Array:
        streams = self.augment(self.normalisation.undo(self.layout.unflatten(z)), rng)
        return np.asarray(self.layout.flatten(self.normalisation.apply(streams)), np.float32)


class ShiftedArrays(PrimitiveSet):
    """Fields that are shifted first and written as tokens then."""

    def __init__(
        self, arguments: SetArguments, made: Representation, shifts: Shifts, fields: Array, given: Mapping[str, Array]
    ) -> None:
        super().__init__(*arguments, shard=BLOCK)
        self.made, self.grid, self.fields, self.given = made, shifts, fields, given

    def read_step(self, seed: int, step: int, size: int, part: slice | None = None) -> tuple[Array, dict[str, Array]]:
        """As `PrimitiveSet.read_step`, of the shifted fields."""
        chosen = self.batch(seed, step, size)[part or slice(None)]
        by = self.grid.draw(size, np.random.default_rng((seed, step)))[part or slice(None)]
        x, given = self.fields[chosen], {name: values[chosen] for name, values in self.given.items()}
        for mode, shift in zip(self.grid.modes, by.T, strict=True):
            x = rolled(x, shift, 1 + self.grid.layout.modes.index(mode))
        given = self.grid.apply_to_conditions(given, by)
        if self.made.initial is not None and "initial" in given:
            given["initial"] = self.made.initial(given["initial"])
        z = self.layout.flatten(self.normalisation.apply(self.made.encode(x)))
        return np.asarray(z, np.float32), self.conditions.normalise(given) if given else {}
