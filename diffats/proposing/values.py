"""What some samples show: missing points, a mean that stands for much, fields that wrap around."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats.errors import SourceError
from diffats.proposing.dims import is_full_circle, is_latitude, meaning_of
from diffats.sources.gaps import differing_points, ways_out
from diffats.stages import decompose
from diffats.store import STATUS

Array = npt.NDArray[np.generic]

_SAME_MASK = 0.8  # share of the readable samples that must lack the same points
_MEAN_SHARE = 0.3  # of the variance about one number, from which on subtracting the mean of each point pays
_ALIKE = 0.05  # share of the variance that lies in differences of the mean along a dim that is the same everywhere
_CHANCE = 3.0  # over the number of samples: the same of few samples
_EVEN_SPREAD = 0.5  # smallest variance along such a dim, relative to its mean
_SMOOTH = 0.7  # step from point to point, relative to one between points far apart
_MEETS = 1.3  # step from the last to the first point, relative to the others
_SHORTEST_CIRCLE = 16  # points: the ends of fewer may seem to meet by chance
_TOO_MANY_BAD = 0.5


@dataclass(frozen=True)
class Seen:
    """What was seen in some training samples.

    Attributes
    ----------
    x
        ``(k, *sizes)``: the samples that are usable.
    usable
        ``(n,)``: which of the samples that were read these are.
    mask
        Points that are missing in all of them, or None.
    bad
        Share of the samples that are not usable.
    center
        For ``data.center``.
    shift
        For ``train.shift``.
    notes
        By key: why.
    """

    x: npt.NDArray[np.floating]
    usable: npt.NDArray[np.bool_]
    mask: npt.NDArray[np.bool_] | None
    bad: float
    center: str
    shift: tuple[str, ...]
    notes: dict[str, str] = field(default_factory=dict)


def look_at(
    x: npt.NDArray[np.floating],
    sizes: Mapping[str, int],
    dataset: xr.Dataset,
    *,
    windowed: Sequence[str],
    fixed: Sequence[str] = (),
    names: Sequence[str] = ("",),
) -> Seen:
    """Tell mask, centre and periodic dims from samples.

    Parameters
    ----------
    x
        ``(k, *sizes)``, NaN where missing.
    sizes
        Of a sample, by mode.
    dataset
        The source, for its coordinates.
    windowed, fixed
        Modes that are cut into windows, and others along which nothing wraps around.
    names
        Of the variables, along the mode ``component`` where there are several.

    Raises
    ------
    SourceError
        Where most samples are not usable, or all are equal.
    """
    mask = common_mask(x)
    good = decompose.status_of(x, mask) == STATUS["ok"]
    bad = 1 - float(good.mean())
    if bad > _TOO_MANY_BAD or good.sum() < 2:
        raise _unusable(x, bad, sizes, names, [d for d in windowed if meaning_of(dataset, d) != "time"])
    usable = x[good]
    if np.array_equal(usable, np.broadcast_to(usable[:1], usable.shape), equal_nan=True):
        raise SourceError("all samples that were read are equal, so there is nothing to learn. Check the source.")
    notes: dict[str, str] = {}
    if mask is not None:
        notes["missing"] = (
            f"{mask.mean():.0%} of the points are missing, the same in every sample: filled, and missing again"
        )
        notes["center"] = "the mean of each point is subtracted, as there is a mask"
        return Seen(usable, good, mask, bad, "point", (), notes)
    z = _standardised(usable, sizes)
    mean, variance = z.mean(axis=0), z.var(axis=0)
    around: list[str] = []
    for axis, mode in enumerate(sizes):
        circle = is_full_circle(dataset, mode)
        if mode in windowed or mode in fixed or meaning_of(dataset, mode) not in ("space", "longitude"):
            continue
        if is_latitude(dataset, mode):  # whose ends are far apart, whatever they hold
            continue
        alike = is_alike(mean, variance, axis, chance=_CHANCE / len(z))
        if alike and (circle or wraps(z, axis + 1)):
            around.append(mode)
        elif circle:
            notes["shift"] = f"{mode} is a full circle, but points along it differ in mean or spread: no shifts"
    if around:
        names = " and ".join(around)
        notes["shift"] = f"the ends meet along {names}, and all points are alike: trained on random shifts"
    center, notes["center"] = _center(float(mean.var()), bool(around), set(windowed), dataset)
    return Seen(usable, good, None, bad, center, tuple(around), notes)


def common_mask(x: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_] | None:
    """The points that most samples lack, where these are the same; None where they lack none, or others each.

    >>> x = np.ones((5, 3)); x[:, 0] = np.nan
    >>> common_mask(x).tolist(), common_mask(np.ones((5, 3)))
    ([True, False, False], None)
    """
    missing = np.isnan(x)
    readable = [pattern for pattern in missing if not pattern.all()]
    if not readable:
        return None
    counts = Counter(np.packbits(pattern).tobytes() for pattern in readable)
    (common, count) = counts.most_common(1)[0]
    mask: npt.NDArray[np.bool_] = next(pattern for pattern in readable if np.packbits(pattern).tobytes() == common)
    return mask if mask.any() and count >= _SAME_MASK * len(readable) else None


def _unusable(
    x: npt.NDArray[np.floating], bad: float, sizes: Mapping[str, int], names: Sequence[str], windowed: Sequence[str]
) -> SourceError:
    gone, what = np.isnan(x), "they are zero throughout or infinite"
    fix = "Check the source, or choose other variables."
    if gone.any():
        points = differing_points(gone, sizes, names) or "everything in some"
        what, fix = (
            f"{gone.mean():.1%} of the values are missing, at other points in different samples: {points}",
            ways_out(windowed),
        )
    return SourceError(f"{bad:.0%} of the {len(x)} samples that were read cannot be used: {what}. {fix}")


def _standardised(x: npt.NDArray[np.floating], sizes: Mapping[str, int]) -> npt.NDArray[np.float64]:
    """Samples of mean 0 and variance 1, each variable by itself."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1 or "component" not in sizes)
    wide = x.astype(np.float64)
    spread = wide.std(axis=axes, keepdims=True)
    return np.asarray((wide - wide.mean(axis=axes, keepdims=True)) / np.where(spread > 0, spread, 1.0))


def is_alike(
    mean: npt.NDArray[np.floating], variance: npt.NDArray[np.floating], axis: int, *, chance: float = 0.0
) -> bool:
    """Whether mean and variance of the points are the same all along an axis.

    ``chance`` is the share of the variance by which the means of few samples differ anyhow.

    >>> is_alike(np.zeros((4, 8)), np.ones((4, 8)), 1), is_alike(np.arange(8.0) * np.ones((4, 8)), np.ones((4, 8)), 1)
    (True, False)
    """
    others = tuple(a for a in range(mean.ndim) if a != axis)
    means, variances = mean.mean(axis=others), variance.mean(axis=others)
    total = float(variance.mean()) + float(mean.var())
    return bool(means.var() <= max(_ALIKE, chance) * total and variances.min() >= _EVEN_SPREAD * variances.mean())


def wraps(x: npt.NDArray[np.floating], axis: int) -> bool:
    """Whether fields go on at the other end of an axis: the step there is like all others, and these are small.

    >>> angle = 2 * np.pi * (np.arange(32) / 32 + np.arange(5)[:, None] / 5)
    >>> wraps(np.sin(angle), 1), wraps(np.sin(angle / 3), 1), wraps(np.random.default_rng(0).normal(size=(50, 32)), 1)
    (True, False, False)
    """
    n = x.shape[axis]
    if n < _SHORTEST_CIRCLE:
        return False
    values = np.moveaxis(x, axis, -1)
    inside = math.sqrt(float(np.mean(np.diff(values, axis=-1) ** 2, dtype=np.float64)))
    across = math.sqrt(float(np.mean((values[..., 0] - values[..., -1]) ** 2, dtype=np.float64)))
    far = math.sqrt(2) * float(values.std(dtype=np.float64))
    return inside < _SMOOTH * far and across <= _MEETS * inside and across >= inside / _MEETS**2


def _center(share: float, shifted: bool, windowed: set[str], dataset: xr.Dataset) -> tuple[str, str]:
    """Whether the mean of each point is subtracted or one number for each variable, by the former's share."""
    if shifted:
        return "variable", "one mean for each variable, as fields are shifted"
    if any(meaning_of(dataset, dim) != "time" for dim in windowed):
        return "variable", "one mean for each variable, as windows lie at different places"
    if share > _MEAN_SHARE:
        return "point", f"the mean of each point is subtracted: it makes up {share:.0%} of the variance"
    return "variable", f"one mean for each variable: that of each point makes up only {share:.0%} of the variance"
