"""Patches: the modes of a sample as a matrix of patches by pixels, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from array_api_compat import array_namespace

from diffats.errors import InputError
from diffats.spectrum import Array


def to_patches(x: Array, patch: Sequence[int]) -> Array:
    """Cut the last axes into patches.

    Parameters
    ----------
    x
        ``(..., n_1, ..., n_d)``.
    patch
        Length of a patch along each of the last ``d`` axes; divides its size.

    Returns
    -------
    ``(..., patches, pixels)``, both in row-major order.

    Raises
    ------
    InputError
        Where a patch does not divide its size.

    >>> import numpy as np
    >>> to_patches(np.arange(8).reshape(2, 4), (2, 2)).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    xp, d = array_namespace(x), len(patch)
    batch, sizes = x.shape[: x.ndim - d], x.shape[x.ndim - d :]
    counts = patch_counts(sizes, patch)
    split = [length for pair in zip(counts, patch, strict=True) for length in pair]  # (c1, p1, c2, p2, ..)
    y = xp.reshape(x, (*batch, *split))
    lead = len(batch)
    axes = (*range(lead), *range(lead, y.ndim, 2), *range(lead + 1, y.ndim, 2))
    return xp.reshape(xp.permute_dims(y, axes), (*batch, math.prod(counts), math.prod(patch)))


def from_patches(matrix: Array, sizes: Sequence[int], patch: Sequence[int]) -> Array:
    """Put patches together again: the inverse of ``to_patches``.

    Parameters
    ----------
    matrix
        ``(..., patches, pixels)``.
    sizes, patch
        Of the ``d`` axes that were cut.

    Returns
    -------
    ``(..., n_1, ..., n_d)``

    >>> import numpy as np
    >>> x = np.arange(24).reshape(4, 6)
    >>> bool((from_patches(to_patches(x, (2, 3)), (4, 6), (2, 3)) == x).all())
    True
    """
    xp, d = array_namespace(matrix), len(patch)
    batch = matrix.shape[:-2]
    lead = len(batch)
    y = xp.reshape(matrix, (*batch, *patch_counts(sizes, patch), *patch))
    axes = (*range(lead), *(lead + k for pair in zip(range(d), range(d, 2 * d), strict=True) for k in pair))
    return xp.reshape(xp.permute_dims(y, axes), (*batch, *sizes))


def patch_counts(sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis.

    Raises
    ------
    InputError
        Where a patch does not divide its size.

    >>> patch_counts((8, 6), (4, 3))
    (2, 2)
    """
    for axis, (size, length) in enumerate(zip(sizes, patch, strict=True)):
        if length < 1 or size % length:
            raise InputError(f"patch {length} does not divide the size {size} of axis {axis}. Use a divisor of {size}.")
    return tuple(size // length for size, length in zip(sizes, patch, strict=True))
