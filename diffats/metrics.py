"""Measures of how far one set of samples is from another: pure functions, NumPy in, numbers out.

Sets are ``(samples, features)`` arrays. Every distance between sets wants the same number of samples on both sides, so
that columns of a table can be compared; the energy distance leaves self pairs out (a U-statistic), so that two sets
from one distribution score zero on average, whatever their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import periodogram
from scipy.spatial.distance import cdist

from diffats.errors import InputError

Array = npt.NDArray[Any]
_FEATURES_PER_BLOCK = 65536  # bounds the float64 copies of large fields
_SAMPLES_PER_BLOCK = 32
LEAST_SPECTRUM = 8  #: a mode of fewer points has no spectrum worth comparing


def _check_pair(a: Array, b: Array) -> None:
    """Two sets of equal count, at least two samples, the same features."""
    if a.ndim != 2 or b.ndim != 2 or a.shape != b.shape:
        raise InputError(
            f"sets of samples must both be (samples, features) with equal counts, got {a.shape} and {b.shape}. "
            "Flatten the samples and cut both sets to the smaller count."
        )
    if len(a) < 2:
        raise InputError(f"a distance between sets needs at least 2 samples in each, got {len(a)}.")


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
        ``(k, features)`` each, equal counts.
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
    _check_pair(a, b)
    k = len(a)
    pairs = k * (k - 1) if unbiased else k * k
    within = (cdist(a, a).sum() + cdist(b, b).sum()) / pairs
    return float(2.0 * cdist(a, b).mean() - within)


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


def two_sample_accuracy(a: Array, b: Array) -> float:
    """Leave-one-out accuracy of a nearest-neighbour classifier that tells the two sets apart (scikit-learn).

    0.5: indistinguishable; 1: always told apart; below 0.5: samples of one set sit next to samples of the other, as
    copies would. Lopez-Paz and Oquab (2017).

    Parameters
    ----------
    a, b
        ``(k, features)`` each, equal counts.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.arange(10.0)[:, None]
    >>> two_sample_accuracy(a, a + 100)
    1.0
    """
    from sklearn.neighbors import NearestNeighbors

    _check_pair(a, b)
    points = np.concatenate([a, b])
    labels = np.repeat([0, 1], [len(a), len(b)])
    # without an argument, each point's own neighbours exclude the point itself
    nearest = NearestNeighbors(n_neighbors=1).fit(points).kneighbors(return_distance=False)[:, 0]
    return float(np.mean(labels[nearest] == labels))


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


# --- spectra and profiles -----------------------------------------------------------------------------------------


def power_spectrum(x: Array, axis: int) -> tuple[Array, Array]:
    """Mean one-sided power spectrum along one axis (`scipy.signal.periodogram`, Hann window, line means removed).

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
        ``(n // 2,)`` float64, averaged over samples and all other axes.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.sin(2 * np.pi * np.arange(64) / 8)[None]
    >>> frequency, power = power_spectrum(wave, 1)
    >>> float(frequency[power.argmax()])
    0.125
    """
    axis = axis % x.ndim
    if axis == 0:
        raise InputError("a power spectrum along the samples has no meaning: give the axis of a mode.")
    n = x.shape[axis]
    total, frequency = np.zeros(n // 2 + 1), np.zeros(n // 2 + 1)
    for start in range(0, len(x), _SAMPLES_PER_BLOCK):
        block = np.moveaxis(x[start : start + _SAMPLES_PER_BLOCK], axis, -1).astype(np.float64)
        frequency, power = periodogram(block, window="hann", detrend="constant", scaling="spectrum", axis=-1)
        total += power.reshape(-1, power.shape[-1]).sum(axis=0)
    lines = x.size // n
    return frequency[1:], total[1:] / lines


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


def crps(ensemble: Array, truth: Array) -> Array:
    """Fair continuous ranked probability score of each case, averaged over its points (properscoring).

    The estimate does not depend on the number of members on average (Ferro 2014), so that an ensemble can be compared
    with one deterministic forecast, whose score is its mean absolute error.

    Parameters
    ----------
    ensemble
        ``(cases, members, n_1, .., n_N)``.
    truth
        ``(cases, n_1, .., n_N)``; NaN points are left out.

    Returns
    -------
    array
        ``(cases,)`` in the units of the data.

    Examples
    --------
    >>> import numpy as np
    >>> crps(np.array([[[1.0], [3.0]]]), np.array([[2.0]])).tolist()
    [0.0]
    """
    import properscoring

    if ensemble.ndim != truth.ndim + 1 or ensemble.shape[:1] + ensemble.shape[2:] != truth.shape:
        raise InputError(
            f"an ensemble is (cases, members, *truth's modes), got {ensemble.shape} for a truth of {truth.shape}."
        )
    members = ensemble.shape[1]
    scores = np.empty(len(truth))
    for i in range(len(truth)):
        target = truth[i].astype(np.float64).ravel()
        seen = ~np.isnan(target)
        forecast = ensemble[i].reshape(members, -1)[:, seen].astype(np.float64)
        error = np.abs(forecast - target[seen]).mean()
        if members == 1:
            scores[i] = error
            continue
        finite = properscoring.crps_ensemble(target[seen], forecast, axis=0).mean()
        # the library divides the members' spread by M^2, the fair score by M (M - 1)
        scores[i] = error - (error - finite) * members / (members - 1)
    return scores
