"""Why a representation is learnt well or badly: how far it tears neighbours apart, and what overlaps tell of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from benchmarks.quality_methods import Representation
from diffats.primitives import Layout, encode

Array = npt.NDArray[Any]
PAIRS = 512


def near_pair_stretch(x: Array, z: Array, pairs: int = PAIRS, seed: int = 0) -> tuple[float, float]:
    """How much farther apart nearest neighbours are as numbers than as fields.

    Both distances are relative to the root mean square of those between all pairs, so that 1 keeps neighbours as near
    as they were; the largest of these ratios is a lower bound of the encoding's Lipschitz constant.

    Parameters
    ----------
    x, z
        Fields ``(n, ...)`` and the normalised numbers ``(n, D)`` that stand for them.
    pairs
        At most as many samples are compared, drawn by ``seed``.

    Returns
    -------
    The median and the 95 % quantile over the samples drawn.
    """
    drawn = np.random.default_rng(seed).permutation(len(x))[:pairs]
    of_fields, of_numbers = (_relative_distances(np.asarray(a)[drawn].reshape(len(drawn), -1)) for a in (x, z))
    np.fill_diagonal(of_fields, np.inf)
    nearest = (np.arange(len(drawn)), of_fields.argmin(axis=1))
    ratio = of_numbers[nearest] / np.maximum(of_fields[nearest], np.finfo(np.float64).tiny)
    median, high = np.quantile(ratio, [0.5, 0.95])
    return float(median), float(high)


def _relative_distances(a: Array) -> Array:
    distances = cdist(a.astype(np.float64), a.astype(np.float64))
    pairs = len(a) * (len(a) - 1)
    relative: Array = distances / np.sqrt((distances**2).sum() / pairs)
    return relative


def smallest_overlaps(x: Array, layout: Layout, anchors: Mapping[str, Array], method: str) -> Array:
    """The smallest cosine between each sample's factors ``(k,)`` and their anchors, over all aligned modes."""
    overlaps = encode(x, anchors, layout, method)[1].values()
    smallest: Array = np.stack([np.asarray(each).reshape(len(x), -1).min(axis=1) for each in overlaps]).min(axis=0)
    return smallest


def relative_errors(found: Array, truth: Array) -> Array:
    """Of each sample, ``(k,)``."""
    axes = tuple(range(1, truth.ndim))
    error: Array = np.sqrt(((found - truth) ** 2).sum(axes) / (truth**2).sum(axes))
    return error


def facts(made: Representation, x: Array, z: Array, train: Array, method: str) -> dict[str, float]:
    """What is told of a representation from the training samples: how it stretches near pairs, and overlaps.

    Parameters
    ----------
    x, z
        All samples as centred and scaled fields and as normalised numbers.
    train
        Which of them are training samples.
    method
        Of the decomposition.
    """
    median, high = near_pair_stretch(x[train], z[train])
    told = {"stretch": median, "stretch_95": high}
    if made.anchors is not None:
        told["overlap"] = float(np.median(smallest_overlaps(x[train], made.layout, made.anchors, method)))
    return told


def errors_and_overlaps(made: Representation, truth: Array, generated: Array, method: str) -> dict[str, float]:
    """Spearman's correlation of the errors of samples drawn under the truth's conditions with the truth's overlaps.

    Parameters
    ----------
    truth, generated
        ``(k, *sizes)``, centred and scaled.
    """
    if made.anchors is None:
        return {}
    overlaps = smallest_overlaps(truth, made.layout, made.anchors, method)
    return {"overlap_error": float(spearmanr(overlaps, relative_errors(generated, truth)).statistic)}
