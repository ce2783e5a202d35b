"""Ranks from an error: the smallest Tucker form whose anomaly error, on a few samples, stays below a target.

The error is that of the centred and scaled samples, relative to their deviation from the training mean, as a root mean
square over samples. ``decompose.tolerance`` and the rows of the pilot both mean it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffats.config import Recipe
from diffats.errors import InputError
from diffats.primitives.layout import Layout
from diffats.primitives.normalisation import NumpyArray
from diffats.spectrum import flops, leading, transpose
from diffats.tucker import multi_mode_dot

# What the decompositions of a pilot may cost, in the cost model's flops: a few seconds.
_FLOPS = 2e10
_NUMBERS = 2**24  # decomposed at a time
_CANDIDATES = 2**20
_STACKED = 2**16  # candidates, where each sample's errors are kept


@dataclass(frozen=True)
class RankErrors:
    """Errors for every combination of candidate ranks.

    Attributes
    ----------
    layout
        Of the samples; its ranks do not matter.
    modes
        The working modes that are given ranks; the core keeps the others whole.
    candidates
        By mode: ascending ranks, which end at the mode's size.
    lost
        ``(c_1, .., c_M)``: mean over samples of the squared error, relative to the squared anomaly.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(5, 8, 2)) @ rng.normal(size=(5, 2, 9))
    >>> layout = Layout("tgp", ("y", "x"), {"y": 8, "x": 9}, {"y": 8, "x": 8}, ("y", "x"))
    >>> RankErrors.measure(x, x, layout).smallest(0.001)
    {'y': 2, 'x': 2}
    """

    layout: Layout
    modes: tuple[str, ...]
    candidates: tuple[NumpyArray, ...]
    lost: NumpyArray

    @classmethod
    def measure(
        cls,
        fields: NumpyArray,
        anomalies: NumpyArray,
        layout: Layout,
        modes: Sequence[str] | None = None,
        *,
        share: float = 1.0,
    ) -> RankErrors:
        """One full HOSVD of each sample gives the errors of all ranks.

        With all singular vectors of every mode, ``S = X x_k U_k^T`` has the norm of ``X``, and cutting it to ranks
        ``r_k`` loses exactly the energy outside ``S[:r_1, .., :r_M]``: one cumulative sum.

        Parameters
        ----------
        fields, anomalies
            ``(k, *sizes)``: what is decomposed, and what its error is relative to.
        layout
            Of the samples.
        modes
            Working modes that get ranks; the layout's aligned ones where left out.
        share
            Of the samples, those with the smallest errors, that counts.
        """
        chosen = tuple(layout.aligned if modes is None else modes)
        axes = [axis for axis, mode in enumerate(layout.working_modes) if mode in chosen]
        ordered = tuple(layout.working_modes[axis] for axis in axes)
        sizes = [layout.working_sizes[mode] for mode in ordered]
        candidates = _candidates(sizes, _CANDIDATES if share == 1 else _STACKED)
        norms = (anomalies.reshape(len(anomalies), -1).astype(np.float64) ** 2).sum(axis=1)
        used = np.flatnonzero(norms > 0)
        step = max(1, _NUMBERS // layout.raw_numbers) if share == 1 else 1
        parts = (
            _lost_energy(layout.arrange(fields[part]), len(layout.working_modes), axes, norms[part], candidates)
            for part in (used[start : start + step] for start in range(0, len(used), step))
        )
        if share == 1:
            lost = sum(parts, np.zeros(tuple(map(len, candidates)))) / max(1, len(used))
        else:
            lost = np.sort(np.stack([*parts]), axis=0)[: math.ceil(share * len(used))].mean(axis=0)
        return cls(layout, ordered, tuple(candidates), lost)

    def smallest(self, target: float, aligned: Sequence[str] | None = None) -> dict[str, int] | None:
        """Ranks of the fewest numbers whose root-mean-square error is at most ``target``; None where none is known.

        ``aligned`` are the modes that get ranks, all of ``modes`` where left out; the core keeps the others whole.
        """
        chosen = [axis for axis, mode in enumerate(self.modes) if aligned is None or mode in aligned]
        lost = self.lost[tuple(slice(None) if axis in chosen else -1 for axis in range(len(self.modes)))]
        candidates = [self.candidates[axis] for axis in chosen]
        sizes = [self.layout.working_sizes[self.modes[axis]] for axis in chosen]
        ranks = np.meshgrid(*candidates, indexing="ij", sparse=True)
        core = math.prod(ranks) * (math.prod(self.layout.working_sizes.values()) // math.prod(sizes))
        numbers = core + sum(n * rank for n, rank in zip(sizes, ranks, strict=True))
        possible = lost <= target**2
        for rank in ranks:
            possible = possible & (rank * rank <= core)  # a rank is at most the product of the others
        if not possible.any():
            return None
        place = np.unravel_index(int(np.where(possible, numbers, np.inf).argmin()), possible.shape)
        found = (int(c[i]) for c, i in zip(candidates, place, strict=True))
        return dict(zip((self.modes[axis] for axis in chosen), found, strict=True))


def affordable(n: int, layout: Layout, modes: Sequence[str] | None = None) -> NumpyArray:
    """Which of ``n`` samples a few seconds suffice for, when these modes (the aligned ones) get all their vectors."""
    sizes = layout.working_sizes
    chosen = layout.aligned if modes is None else modes
    whole = [sizes[mode] if mode in chosen else None for mode in layout.working_modes]
    cost = math.prod(layout.sizes[mode] for mode in layout.labelled) * flops(tuple(sizes.values()), whole)
    count = min(n, max(2, int(_FLOPS / cost)))
    return np.linspace(0, n - 1, count).round().astype(int)


def find_ranks(fields: NumpyArray, anomalies: NumpyArray, recipe: Recipe) -> dict[str, int]:
    """The smallest ranks by mode that keep a recipe's tolerance on pilot samples.

    Parameters
    ----------
    fields, anomalies
        ``(samples, *sizes)``, finite: centred and scaled as for the decomposition; and their deviation from the
        training mean, to which the error is relative. As many samples are used as a few seconds suffice for.
    recipe
        With ``decompose.tolerance``.

    Raises
    ------
    InputError
        Where the recipe has no tolerance.
    """
    tolerance, modes = recipe.decompose.tolerance, recipe.tensor_modes
    if tolerance is None:
        raise InputError("the recipe gives ranks, none are to be found. Set decompose.tolerance instead of ranks.")
    sizes = dict(zip(modes, fields.shape[1:], strict=True))
    layout = Layout("tgp", modes, sizes, dict.fromkeys(recipe.aligned_modes, 1), recipe.aligned_modes)
    few = affordable(len(fields), layout)
    errors = RankErrors.measure(fields[few], anomalies[few], layout, share=recipe.decompose.rank_quantile)
    found = errors.smallest(tolerance)
    if found is None:
        raise InputError(
            f"no ranks of {', '.join(layout.aligned)} keep decompose.tolerance {tolerance:g}. Raise it, or set "
            "decompose.ranks; `diffats plan --pilot` shows errors."
        )
    return found


def _candidates(sizes: Sequence[int], most: int) -> list[NumpyArray]:
    """Ranks of each mode, so that there are about ``most`` combinations: all, or few that are dense where small."""
    per_mode = max(4, int(most ** (1 / len(sizes))))
    if per_mode >= max(sizes):
        return [np.arange(1, n + 1) for n in sizes]
    # equal ranks of two modes must be among them: one may not exceed the other
    return [
        np.unique([*np.geomspace(1, n, min(n, per_mode)).round().astype(int), *(m for m in sizes if m <= n)])
        for n in sizes
    ]


def _lost_energy(
    tensors: NumpyArray, n_modes: int, axes: Sequence[int], norms: NumpyArray, candidates: Sequence[NumpyArray]
) -> NumpyArray:
    """Squared error relative to each sample's squared anomaly, summed over samples, for all candidate ranks."""
    energy = _core_energy(tensors, n_modes, axes, norms)
    total = float(energy.sum())
    for axis, ranks in enumerate(candidates):
        energy = _cumulative(energy, ranks, axis)
    return np.maximum(total - energy, 0)


def _core_energy(tensors: NumpyArray, n_modes: int, axes: Sequence[int], norms: NumpyArray) -> NumpyArray:
    """Squared entries of the full cores, divided by each sample's norm and summed; only the given modes stay."""
    k, shape = len(tensors), tensors.shape[tensors.ndim - n_modes :]
    flat = tensors.reshape(-1, *shape).astype(np.float64)
    matrices = [transpose(leading(flat, mode)[0]) if mode in axes else None for mode in range(n_modes)]
    core = multi_mode_dot(flat, matrices)
    energy = core.reshape(k, -1, *core.shape[1:]) ** 2  # (k, labelled, *working)
    other = (1, *(2 + mode for mode in range(n_modes) if mode not in axes))
    return np.asarray(np.tensordot(1 / norms, energy.sum(axis=other), axes=1))


def _cumulative(energy: NumpyArray, ranks: NumpyArray, axis: int) -> NumpyArray:
    """Energy in the first ``rank`` entries along an axis, for each of ``ranks``, which increase and end at its size.

    >>> _cumulative(np.array([4.0, 2.0, 1.0]), np.array([1, 3]), 0).tolist()
    [4.0, 7.0]
    """
    summed = energy.cumsum(axis=axis)
    return np.asarray(summed.take(np.minimum(ranks, energy.shape[axis]) - 1, axis=axis))
