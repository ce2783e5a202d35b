"""The model to beat: Gaussians fitted to the primitives."""

from __future__ import annotations

import numpy as np

from diffats.errors import InputError
from diffats.evaluation.row import Array


def gaussian_pca(z_train: Array, count: int, *, seed: int = 0, components: int | None = None) -> Array:
    """Draw from a Gaussian fitted to the primitives by principal components: the model to beat.

    With all components (the default) the covariance is the empirical one, and no decomposition is needed: for centred
    rows Z and standard normal e, ``e^T Z / sqrt(n - 1)`` has the covariance ``Z^T Z / (n - 1)`` exactly.

    Parameters
    ----------
    z_train
        ``(n, D)`` normalised primitives of the training samples.
    count
        How many samples to draw.
    seed
        Of the draw.
    components
        Keep only this many leading components.

    Returns
    -------
    array
        ``(count, D)`` of ``z_train``'s dtype.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=(500, 2)) * [3.0, 1.0]
    >>> gaussian_pca(z, 4000).std(axis=0).round().tolist()
    [3.0, 1.0]
    """
    if z_train.ndim != 2 or len(z_train) < 2:
        raise InputError(f"a Gaussian needs at least 2 training primitives (n, D), got {z_train.shape}.")
    rng = np.random.default_rng(seed)
    mean = z_train.mean(axis=0, dtype=np.float64)
    if components is None or components >= min(len(z_train) - 1, z_train.shape[1]):
        weights = rng.standard_normal((count, len(z_train)))
        deviations = weights @ z_train - weights.sum(axis=1, keepdims=True) * mean
        return np.asarray(mean + deviations / np.sqrt(len(z_train) - 1), dtype=z_train.dtype)
    from sklearn.decomposition import PCA

    fit = PCA(components, random_state=seed).fit(z_train)
    scores = rng.standard_normal((count, components)) * np.sqrt(fit.explained_variance_)
    return np.asarray(mean + scores @ fit.components_, dtype=z_train.dtype)


def gaussian_within(z_train: Array, strata: Array, wanted: Array, *, seed: int = 0) -> Array:
    """Draw from Gaussians with a mean for each condition and one covariance, that of the deviations from these means.

    Parameters
    ----------
    z_train
        ``(n, D)`` normalised primitives of the training samples.
    strata
        ``(n,)``: the number of each one's condition.
    wanted
        ``(k,)``: the conditions of the samples to be drawn. One that no training sample has gets the mean of all.
    seed
        Of the draw.

    Returns
    -------
    array
        ``(k, D)``.

    Examples
    --------
    >>> import numpy as np
    >>> strata = np.repeat([0, 1], 500)
    >>> z = np.random.default_rng(0).normal(size=(1000, 2)) + 9 * strata[:, None]
    >>> gaussian_within(z, strata, np.array([1] * 500)).mean(axis=0).round().tolist()
    [9.0, 9.0]
    """
    everywhere = z_train.mean(axis=0, dtype=np.float64)
    means = {stratum: z_train[strata == stratum].mean(axis=0, dtype=np.float64) for stratum in np.unique(strata)}
    deviations = (z_train - np.stack([means[stratum] for stratum in strata])).astype(z_train.dtype)
    own = np.stack([means.get(stratum, everywhere) for stratum in wanted])
    return np.asarray(own + gaussian_pca(deviations, len(wanted), seed=seed), dtype=z_train.dtype)
