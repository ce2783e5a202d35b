"""Measures of how far one set of samples is from another: pure functions, NumPy in, numbers out.

Sets are ``(samples, features)`` arrays. Distances between sets that depend on the number of samples want the same on
both sides, so that columns of a table can be compared; the energy distance leaves self pairs out (a U-statistic), so
that two sets from one distribution score zero on average, whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from diffats.errors import InputError

Array = npt.NDArray[Any]
_FEATURES_PER_BLOCK = 65536  # bounds the float64 copies of large fields
_SAMPLES_PER_BLOCK = 32
_LEADING_SCORES = 20  # that a classifier sees one by one
LEAST_SPECTRUM = 8  #: a mode of fewer points has no spectrum worth comparing


def _check_pair(a: Array, b: Array, *, equal: bool = True) -> None:
    """Two sets of at least two samples and the same features, and of equal count where that matters."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[equal ^ 1 :] != b.shape[equal ^ 1 :]:
        raise InputError(
            f"sets of samples must both be (samples, features){' with equal counts' if equal else ''}, got {a.shape} "
            f"and {b.shape}. Flatten the samples{' and cut both sets to the smaller count' if equal else ''}."
        )
    if min(len(a), len(b)) < 2:
        raise InputError(f"a distance between sets needs at least 2 samples in each, got {min(len(a), len(b))}.")


# --- distances between sets ---------------------------------------------------------------------------------------


def embed(*sets: Array) -> list[Array]:
    """Rotate sets of long vectors into the few dimensions that they span together; distances are kept.

    Sets of ``n_1 + n_2 + ..`` = n samples span at most n dimensions, usually far fewer than they have features. The
    rotation comes from the Gram matrix in float64, after removing the common mean: distances hold to about 1e-7 of the
    largest.

    Parameters
    ----------
    *sets
        ``(n_i, features)`` each, NaN free.

    Returns
    -------
    list of arrays
        ``(n_i, m)`` float64 each, m at most n and at most the number of features.

    Examples
    --------
    >>> import numpy as np
    >>> a, b = np.eye(3, 1000), np.zeros((2, 1000))
    >>> x, y = embed(a, b)
    >>> x.shape[1], round(float(np.linalg.norm(x[0] - y[1])), 6)
    (3, 1.0)
    """
    widths = {s.shape[1:] for s in sets}
    if len(widths) != 1 or any(s.ndim != 2 for s in sets):
        raise InputError(f"sets to embed must be (samples, features) alike, got {[s.shape for s in sets]}.")
    n, features = sum(len(s) for s in sets), sets[0].shape[1]
    gram = np.zeros((n, n))
    for start in range(0, features, _FEATURES_PER_BLOCK):
        block = np.concatenate([s[:, start : start + _FEATURES_PER_BLOCK] for s in sets]).astype(np.float64)
        block -= block.mean(axis=0)
        gram += block @ block.T
    energies, vectors = np.linalg.eigh(gram)
    keep = energies > max(energies[-1], 0.0) * 1e-15
    scores = (vectors[:, keep] * np.sqrt(energies[keep]))[:, ::-1]
    if not keep.any():  # all samples equal
        scores = np.zeros((n, 1))
    return np.split(scores, np.cumsum([len(s) for s in sets])[:-1])


def energy_distance(a: Array, b: Array, *, unbiased: bool = True) -> float:
    """Squared energy distance ``2 E|X-Y| - E|X-X'| - E|Y-Y'|`` of Székely and Rizzo (2013).

    Parameters
    ----------
    a, b
        ``(k, features)`` and ``(m, features)``.
    unbiased
        Leave self pairs out (U-statistic): zero on average where both sets have one distribution, and then negative
        about half of the time. Otherwise the V-statistic, which is never negative and shrinks with k.

    Returns
    -------
    float
        In the units of the features.

    Examples
    --------
    >>> import numpy as np
    >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[3.0], [4.0]]))
    4.0
    """
    _check_pair(a, b, equal=False)
    within = sum(cdist(x, x).sum() / (len(x) * (len(x) - unbiased)) for x in (a, b))
    return float(2.0 * cdist(a, b).mean() - within)


def energy_contributions(test: Array, x: Array) -> tuple[Array, Array]:
    """What each sample of either set adds to their energy distance, to first order, ``(k,)`` and ``(m,)``.

    The sum of both means is twice the distance; resampled, it moves as the distance does.
    """
    _check_pair(test, x, equal=False)
    between = cdist(test, x)
    of_test = 2 * between.mean(axis=1) - 2 * cdist(test, test).sum(axis=1) / (len(test) - 1)
    return of_test, 2 * between.mean(axis=0) - 2 * cdist(x, x).sum(axis=1) / (len(x) - 1)


def energy_distance_within(
    test: Array, x: Array, test_strata: Array, x_strata: Array
) -> tuple[float, Array, Array, dict[int, float]]:
    """Energy distance within strata, a mean weighted by their share of the test samples.

    Parameters
    ----------
    test, x
        ``(k, features)`` and ``(m, features)``.
    test_strata, x_strata
        ``(k,)`` and ``(m,)``: numbers of strata, each of which has at least two samples in both sets.

    Returns
    -------
    distance
        In the units of the features.
    of_test, of_x
        ``(k,)`` and ``(m,)``: what each sample adds to it, as `energy_contributions` has it.
    parts
        The distance in each stratum.

    Examples
    --------
    >>> import numpy as np
    >>> x, strata = np.array([[0.0], [1.0], [9.0], [9.0]]), np.array([0, 0, 1, 1])
    >>> energy_distance_within(x, x + 3, strata, strata)[0], energy_distance_within(x, x[::-1], strata, strata[::-1])[0]
    (5.0, -0.5)
    """
    distance, of_test, of_x, parts = 0.0, np.zeros(len(test)), np.zeros(len(x)), {}
    for stratum in np.unique(test_strata):
        mine, theirs = test_strata == stratum, x_strata == stratum
        share = float(mine.mean())
        of_test[mine], added = energy_contributions(test[mine], x[theirs])
        of_x[theirs] = added * share * len(x) / theirs.sum()
        parts[int(stratum)] = float(of_test[mine].mean() + added.mean()) / 2
        distance += share * parts[int(stratum)]
    return distance, of_test, of_x, parts


def fold_numbers(groups: Array, folds: int) -> Array:
    """Numbers ``(k,)`` of folds of about equal size that leave groups whole, for the delete-a-group jackknife.

    >>> fold_numbers(np.array([7, 7, 3, 3, 5]), 2).tolist()
    [1, 1, 0, 0, 0]
    """
    labels = np.unique(groups, return_inverse=True)[1]
    filled, fold_of = np.zeros(folds), np.zeros(labels.max() + 1, dtype=int)
    counts = np.bincount(labels)
    for label in np.argsort(-counts, kind="stable"):
        fold_of[label] = int(filled.argmin())
        filled[fold_of[label]] += counts[label]
    return np.asarray(fold_of[labels])


def jackknife_interval(replicates: Array, *, level: float = 0.9) -> tuple[float, float]:
    """Central interval of a statistic around zero, from its values ``(folds,)`` with each fold left out.

    Standard error of the delete-a-group jackknife (Kott 2001), with Student's quantiles.

    >>> [round(bound, 2) for bound in jackknife_interval(np.array([1.0, 2.0, 3.0]))]
    [-3.37, 3.37]
    """
    from scipy.stats import t

    folds = len(replicates)
    error = math.sqrt((folds - 1) / folds * float(((replicates - replicates.mean()) ** 2).sum()))
    bound = float(t.ppf((1 + level) / 2, folds - 1)) * error
    return -bound, bound


def bootstrap_interval(
    parts: Sequence[tuple[Array, Array | None]], *, level: float = 0.9, replicates: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Central interval of a sum of means, by the bootstrap (Efron 1979), around zero: add what was estimated.

    Parameters
    ----------
    parts
        Values ``(k,)`` of independent samples, each with their groups ``(k,)``: samples of one group are drawn
        together, since they depend on each other. None: each is a group.
    level
        Share of the replicates within.

    Returns
    -------
    tuple
        Low and high, of the sum of means less its mean.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = bootstrap_interval([(np.random.default_rng(0).normal(size=400), None)])
    >>> round(low, 2), round(high, 2)
    (-0.08, 0.08)
    """
    rng = np.random.default_rng(seed)
    moved = np.zeros(replicates)
    for values, groups in parts:
        labels = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
        sums, counts = np.bincount(labels, weights=values), np.bincount(labels).astype(float)
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=replicates)
        moved += drawn @ sums / (drawn @ counts) - values.mean()
    low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sliced_wasserstein(a: Array, b: Array, *, seed: int, projections: int = 2048, features: int | None = None) -> float:
    """Sliced 2-Wasserstein distance (POT): the optimal transport cost averaged over random directions.

    It is biased upwards for finite k, equally for all sets of the same count: compare it with a reference of the same
    count, never with zero.

    Parameters
    ----------
    a, b
        ``(k, features)`` each, equal counts.
    seed
        Of the directions: use one seed for all columns of a table.
    projections
        Number of directions.
    features
        The number of features before `embed`: the result is then the distance in that space, where a random direction
        keeps ``m / features`` of a squared length within the m embedded dimensions.

    Returns
    -------
    float
        In the units of the features.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([[0.0], [1.0], [2.0]])
    >>> round(sliced_wasserstein(a, a + 3.0, seed=0), 6)
    3.0
    """
    import ot

    _check_pair(a, b)
    distance = ot.sliced_wasserstein_distance(
        a.astype(np.float64), b.astype(np.float64), n_projections=projections, p=2, seed=seed
    )
    return float(distance) * float(np.sqrt(a.shape[1] / (features or a.shape[1])))


def two_sample_accuracy(a: Array, b: Array, *, seed: int = 0, folds: int = 5) -> float:
    """Share of held-out samples of which a classifier knows the set: 0.5 is indistinguishable, 1 always told apart.

    Cross-validated; Lopez-Paz and Oquab (2017), arXiv:1610.06545. Chance moves it by about ``0.35 / sqrt(k)``.

    The classifier is gradient boosting (scikit-learn) on the leading principal scores of both sets together, and on the
    logarithm of the energy in blocks of 20, 20, 40, 80, .. scores, which shows what is too smooth or too noisy. On 150
    Burgers fields and image patches it saw more than nearest neighbours, logistic regression or support vectors (0.90
    for Gaussian draws of Burgers fields, against 0.71 to 0.82; 0.5 for equal distributions), and as much as 100
    extremely randomised trees in a quarter of their time.

    Parameters
    ----------
    a, b
        ``(k, features)`` each, equal counts.
    seed
        Of the folds.
    folds
        Parts that are held out in turn; k where that is less.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.arange(10.0)[:, None]
    >>> two_sample_accuracy(a, a + 100)
    1.0
    """
    return two_sample_hits(a, b, seed=seed, folds=folds)[0]


def two_sample_hits(a: Array, b: Array, *, seed: int = 0, folds: int = 5) -> tuple[float, Array, Array]:
    """``two_sample_accuracy``, and of which samples of ``a`` and ``b`` the classifier knew the set: ``(k,)`` each."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    _check_pair(a, b)
    labels = np.repeat([0, 1], len(a))
    trees = HistGradientBoostingClassifier(
        max_iter=30, learning_rate=0.2, max_leaf_nodes=8, min_samples_leaf=8, early_stopping=False, random_state=seed
    )
    parts = StratifiedKFold(min(folds, len(a)), shuffle=True, random_state=seed)
    features = _scores_and_energies(*embed(a, b))
    with threadpool_limits(1):  # sets are small: threads wait for each other longer than they work
        known = cross_val_predict(trees, features, labels, cv=parts) == labels
    accuracy = np.mean([known[held].mean() for _, held in parts.split(features, labels)])
    return float(accuracy), known[: len(a)], known[len(a) :]


def _scores_and_energies(*sets: Array) -> Array:
    """Leading principal scores, and the logarithm of the energy in ever longer blocks of them."""
    scores = np.concatenate(sets)
    edges = [0, _LEADING_SCORES]
    while edges[-1] < scores.shape[1]:
        edges.append(2 * edges[-1])
    energies = np.stack([(scores[:, i:j] ** 2).sum(axis=1) for i, j in pairwise(edges)], axis=1)
    least = 1e-12 * float(energies.sum(axis=1).mean()) or 1.0  # of samples at the mean of all
    return np.concatenate([scores[:, :_LEADING_SCORES], np.log(energies + least)], axis=1)


def precision_recall(real: Array, generated: Array, *, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage of generated samples among the neighbourhoods of real ones.

    A neighbourhood reaches to the k-th nearest sample of its own set. Precision is the share of generated samples in
    any neighbourhood of a real one, density how many of these each is in, over k; recall is the share of real samples
    in any neighbourhood of a generated one, coverage that of the real neighbourhoods with a generated sample.
    Kynkäänniemi et al. (2019), arXiv:1904.06991; Naeem et al. (2020), arXiv:2002.09797.

    Parameters
    ----------
    real, generated
        ``(n, features)`` each, equal counts, more than k.
    k
        Neighbours.

    Returns
    -------
    dict
        ``precision``, ``recall`` and ``coverage`` in 0 to 1, and ``density``, which may be above 1. Equal
        distributions have a density of 1 and a coverage of about ``1 - 2**-k`` on average.

    Examples
    --------
    >>> import numpy as np
    >>> real = np.arange(4.0)[:, None]
    >>> precision_recall(real, np.full((4, 1), -0.5), k=1)
    {'precision': 1.0, 'recall': 0.0, 'density': 1.0, 'coverage': 0.25}
    """
    _check_pair(real, generated)
    if len(real) <= k:
        raise InputError(f"neighbourhoods of {k} samples need more than {k} samples in each set, got {len(real)}.")
    distances = cdist(real, generated)
    real_reach, generated_reach = (np.partition(cdist(x, x), k, axis=1)[:, k] for x in (real, generated))
    near_real = distances < real_reach[:, None]
    return {
        "precision": float(near_real.any(axis=0).mean()),
        "recall": float((distances < generated_reach).any(axis=1).mean()),
        "density": float(near_real.sum(axis=0).mean() / k),
        "coverage": float(near_real.any(axis=1).mean()),
    }


def nearest_distances(points: Array, training: Array, *, leave_one_out: bool = False) -> Array:
    """Distance of each point to the nearest training sample.

    Parameters
    ----------
    points
        ``(k, features)``.
    training
        ``(n, features)``.
    leave_one_out
        The points are the first k training samples: each skips itself.

    Returns
    -------
    array
        ``(k,)`` float64.

    Examples
    --------
    >>> import numpy as np
    >>> training = np.arange(3.0)[:, None]
    >>> nearest_distances(training + 0.25, training).tolist()
    [0.25, 0.25, 0.25]
    >>> nearest_distances(training, training, leave_one_out=True).tolist()
    [1.0, 1.0, 1.0]
    """
    distances = np.empty(len(points))
    # Blocks of points bound the distance matrix where there are many training samples.
    for start in range(0, len(points), 256):
        block = cdist(points[start : start + 256], training)
        if leave_one_out:
            rows = np.arange(len(block))
            block[rows, start + rows] = np.inf
        distances[start : start + len(block)] = block.min(axis=1)
    return distances


def nearest_rows(points: Array, training: Array) -> Array:
    """Which training sample is the nearest to each point: ``(k,)``.

    >>> import numpy as np
    >>> nearest_rows(np.array([[0.9], [4.0]]), np.arange(3.0)[:, None]).tolist()
    [1, 2]
    """
    return np.concatenate(
        [cdist(points[start : start + 256], training).argmin(axis=1) for start in range(0, len(points), 256)]
    )


# --- spectra and profiles -----------------------------------------------------------------------------------------


def power_spectrum(x: Array, axis: int) -> tuple[Array, Array]:
    """Mean one-sided power spectrum along one axis: that of ``sample_spectra``, over samples.

    Returns
    -------
    frequency
        ``(n // 2,)`` in cycles per grid step, without zero.
    power
        ``(n // 2,)`` float64, averaged over samples and all other axes.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.sin(2 * np.pi * np.arange(64) / 8)[None]
    >>> frequency, power = power_spectrum(wave, 1)
    >>> float(frequency[power.argmax()])
    0.125
    """
    frequency, power = sample_spectra(x, axis)
    return frequency, power.mean(axis=0)


def sample_spectra(x: Array, axis: int) -> tuple[Array, Array]:
    """One-sided power spectra along one axis (`scipy.signal.periodogram`, Hann window, line means removed).

    Parameters
    ----------
    x
        ``(k, n_1, .., n_N)``, NaN free.
    axis
        Which one, not the first.

    Returns
    -------
    frequency
        ``(n // 2,)`` in cycles per grid step, without zero.
    power
        ``(k, n // 2)`` float64, averaged over all other axes.
    """
    from scipy.signal import periodogram  # with it come scipy.stats and scipy.optimize: half a second of CPU

    axis = axis % x.ndim
    if axis == 0:
        raise InputError("a power spectrum along the samples has no meaning: give the axis of a mode.")
    n = x.shape[axis]
    powers, frequency = np.zeros((len(x), n // 2 + 1)), np.zeros(n // 2 + 1)
    for start in range(0, len(x), _SAMPLES_PER_BLOCK):
        block = np.moveaxis(x[start : start + _SAMPLES_PER_BLOCK], axis, -1).astype(np.float64)
        frequency, power = periodogram(block, window="hann", detrend="constant", scaling="spectrum", axis=-1)
        powers[start : start + len(block)] = power.reshape(len(block), -1, power.shape[-1]).mean(axis=1)
    return frequency[1:], powers[:, 1:]


def spectrum_error(power: Array, reference: Array, *, floor: float = 1e-10) -> float:
    """Log-spectral distance: the root mean square of ``10 log10(power / reference)``, in dB.

    3 dB is a factor of two. Frequencies where both have less than `floor` of the reference's largest power are rounding
    noise and left out; one that is below alone counts as the floor.

    Parameters
    ----------
    power, reference
        ``(frequencies,)`` each.

    Examples
    --------
    >>> import numpy as np
    >>> round(spectrum_error(np.full(4, 10.0), np.ones(4)), 6)
    10.0
    """
    least = floor * float(np.max(reference))
    if least <= 0.0:
        return 0.0 if float(np.max(power)) <= 0.0 else float("nan")
    seen = (power > least) | (reference > least)
    ratio = np.maximum(power[seen], least) / np.maximum(reference[seen], least)
    return float(np.sqrt(np.mean((10.0 * np.log10(ratio)) ** 2)))


def band_statistics(
    x: Array, axis: int, quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95), *, values: int = 65536
) -> tuple[Array, Array]:
    """Mean and quantiles at each index of one axis, over samples and all other axes; NaN are skipped.

    Parameters
    ----------
    x
        ``(k, n_1, .., n_N)``.
    axis
        Whose indices (bands, levels, times) stay apart.
    quantiles
        Levels in [0, 1].
    values
        Quantiles use at most this many values of each index, drawn with a fixed seed.

    Returns
    -------
    mean
        ``(n,)`` float64.
    quantiles
        ``(levels, n)`` float64.

    Examples
    --------
    >>> import numpy as np
    >>> mean, quantile = band_statistics(np.arange(6.0).reshape(3, 2), 1, (0.5,))
    >>> mean.tolist(), quantile.tolist()
    ([2.0, 3.0], [[2.0, 3.0]])
    """
    lines = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    lines = lines[~np.isnan(lines).all(axis=1)]
    full = ~np.isnan(lines).all(axis=0)
    bands = lines.shape[1]
    mean, level = np.full(bands, np.nan), np.full((len(quantiles), bands), np.nan)
    mean[full] = np.nanmean(lines[:, full], axis=0, dtype=np.float64)
    if len(lines) > values:
        lines = lines[np.sort(np.random.default_rng(0).choice(len(lines), values, replace=False))]
    level[:, full] = np.nanquantile(lines[:, full].astype(np.float64), quantiles, axis=0)
    return mean, level


# --- forecasts ----------------------------------------------------------------------------------------------------


def relative_l2(x: Array, truth: Array, reference: Array | None = None) -> Array:
    """``|x - truth| / |truth - reference|`` of each sample, Euclidean norms in float64; NaN points are left out.

    Parameters
    ----------
    x, truth
        ``(k, n_1, .., n_N)`` each.
    reference
        Broadcastable to a sample; zero where left out. With the training mean this is the anomaly error.

    Returns
    -------
    array
        ``(k,)``; NaN for a sample that equals its reference.

    Examples
    --------
    >>> import numpy as np
    >>> relative_l2(np.array([[3.0, 5.0]]), np.array([[3.0, 4.0]])).tolist()
    [0.2]
    """
    errors = np.empty(len(truth))
    for i in range(len(truth)):
        target = truth[i].astype(np.float64)
        scale = target - (0.0 if reference is None else np.asarray(reference, dtype=np.float64))
        size = float(np.sqrt(np.nansum(scale**2)))
        errors[i] = np.sqrt(np.nansum((x[i] - target) ** 2)) / size if size > 0.0 else np.nan
    return errors


def pooled_relative_l2(x: Array, truth: Array) -> float:
    """``sqrt(sum |x - truth|^2 / sum |truth|^2)`` over all samples together; NaN points are left out.

    Unlike the mean of `relative_l2`, it is not ruled by samples that are close to zero.

    Parameters
    ----------
    x, truth
        ``(k, n_1, .., n_N)`` each.

    Returns
    -------
    float
        NaN where all samples are zero.

    Examples
    --------
    >>> import numpy as np
    >>> round(pooled_relative_l2(np.array([[3.0], [4.0]]), np.array([[4.0], [3.0]])), 6)
    0.282843
    """
    error = sum(float(np.nansum((x[i] - truth[i].astype(np.float64)) ** 2)) for i in range(len(truth)))
    size = sum(float(np.nansum(truth[i].astype(np.float64) ** 2)) for i in range(len(truth)))
    return float(np.sqrt(error / size)) if size > 0.0 else float("nan")


def _cases(ensemble: Array, truth: Array, scale: Array | float = 1.0) -> Iterator[tuple[Array, Array]]:
    """Members ``(members, points)`` and truth ``(points,)`` of each case, without missing points, in float64.

    Case by case: an ensemble takes much more memory than a set of samples.
    """
    if ensemble.ndim != truth.ndim + 1 or ensemble.shape[:1] + ensemble.shape[2:] != truth.shape:
        raise InputError(
            f"an ensemble is (cases, members, *truth's modes), got {ensemble.shape} for a truth of {truth.shape}."
        )
    units = np.broadcast_to(scale, truth.shape[1:]).ravel()
    for members, target in zip(ensemble, truth, strict=True):
        seen = ~np.isnan(target).ravel()
        forecast = members.reshape(len(members), -1)[:, seen].astype(np.float64)
        yield forecast / units[seen], target.ravel()[seen].astype(np.float64) / units[seen]


def crps(ensemble: Array, truth: Array, *, scale: Array | float = 1.0) -> Array:
    """Fair continuous ranked probability score of each case, averaged over its points.

    ``mean |x_i - y| - sum_{i < j} |x_i - x_j| / (M (M - 1))``. The estimate does not depend on the number of members on
    average (Ferro 2014), so that an ensemble can be compared with one deterministic forecast, whose score is its mean
    absolute error.

    Parameters
    ----------
    ensemble
        ``(cases, members, n_1, .., n_N)``.
    truth
        ``(cases, n_1, .., n_N)``; NaN points are left out.
    scale
        Units of the score, broadcastable to a sample.

    Returns
    -------
    array
        ``(cases,)`` in units of the scale.

    Examples
    --------
    >>> import numpy as np
    >>> crps(np.array([[[1.0], [3.0]]]), np.array([[2.0]])).tolist()
    [0.0]
    """
    scores = []
    for forecast, target in _cases(ensemble, truth, scale):
        members = len(forecast)
        # in order, the i-th member is the larger one of i - 1 pairs, and the smaller one of M - i
        pairs = (2 * np.arange(members) - members + 1) @ np.sort(forecast, axis=0)
        error = np.abs(forecast - target).mean()
        scores.append(error - pairs.mean() / max(members * (members - 1), 1))
    return np.array(scores)


def spread_skill(ensemble: Array, truth: Array, *, scale: Array | float = 1.0) -> float:
    """Spread of the ensembles over the error of their means: 1 is calibrated, less is too sure.

    ``sqrt((M + 1) / M * mean variance of the members / mean squared error of the ensemble mean)``, means over points
    and cases, the variance with M - 1. The factor is that of a mean of M members, so that the ratio of a calibrated
    ensemble does not depend on M: Fortin et al., J. Hydrometeorol. 15 (2014) 1708.

    Parameters
    ----------
    ensemble
        ``(cases, members, n_1, .., n_N)``, at least 2 members.
    truth
        ``(cases, n_1, .., n_N)``; NaN points are left out.
    scale
        What weighs points against each other, broadcastable to a sample.

    Returns
    -------
    float
        NaN where every mean is the truth.

    Examples
    --------
    >>> import numpy as np
    >>> round(spread_skill(np.array([[[1.0], [3.0]]]), np.array([[2.0 + 3**0.5]])), 6)
    1.0
    """
    _check_members(ensemble)
    variance = error = 0.0
    for forecast, target in _cases(ensemble, truth, scale):
        variance += float(forecast.var(axis=0, ddof=1).sum()) * (1 + 1 / len(forecast))
        error += float(((forecast.mean(axis=0) - target) ** 2).sum())
    return float(np.sqrt(variance / error)) if error > 0.0 else float("nan")


def interval_coverage(ensemble: Array, truth: Array, *, level: float = 0.9) -> Array:
    """Share of each case's points within the central interval of the ensemble; a calibrated one has ``level``.

    The truth of a calibrated ensemble of M is as likely to rank in any of M + 1 places, so the interval from the j-th
    smallest to the j-th largest member covers ``1 - 2 j / (M + 1)``. Where the level asks for j between two whole
    numbers, both intervals count, weighted such that the expected share is the level exactly, for any M and any
    distribution. Ties count for each of the places that they may take.

    With fewer than ``(1 + level) / (1 - level)`` members (19 for 90 %) even the range of all members covers too little.
    The wider interval is then the whole line, and no ensemble covers less than its weight: 0.55 for 8 members.

    Parameters
    ----------
    ensemble
        ``(cases, members, n_1, .., n_N)``, at least 2 members.
    truth
        ``(cases, n_1, .., n_N)``; NaN points are left out.
    level
        From 0.5 to 1.

    Returns
    -------
    array
        ``(cases,)``.

    Examples
    --------
    >>> import numpy as np
    >>> members = np.arange(1.0, 20.0)[None, :, None]  # 19: the 90 % interval is their range
    >>> interval_coverage(members, np.array([[19.5]])).tolist(), interval_coverage(members, np.array([[7.5]])).tolist()
    ([0.0], [1.0])
    """
    _check_members(ensemble)
    members = ensemble.shape[1]
    place = (members + 1) * (1 - level) / 2
    outer = int(place + 1e-9)
    places = np.arange(members + 1)
    inside = [(places >= j) & (places <= members - j) for j in (outer, outer + 1)]
    weight = np.average(inside, axis=0, weights=[outer + 1 - place, place - outer])
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    shares = []
    for forecast, target in _cases(ensemble, truth):
        lowest, highest = (forecast < target).sum(axis=0), (forecast <= target).sum(axis=0)
        shares.append(np.mean((cumulative[highest + 1] - cumulative[lowest]) / (highest + 1 - lowest)))
    return np.array(shares)


def _check_members(ensemble: Array) -> None:
    if ensemble.ndim < 2 or ensemble.shape[1] < 2:
        raise InputError(f"an ensemble has at least 2 members, got (cases, members, ..) = {ensemble.shape}.")
