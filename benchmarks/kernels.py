"""What kernels are measured on and against: random fields, and the operations that the algorithms need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffats import spectrum

Array = np.ndarray[Any, Any]


def field(shape: Sequence[int], seed: int, decay: float = 1.5, noise: float = 1e-3) -> Array:
    """A random field whose spectrum falls as ``k^-decay`` in amplitude per mode, with white noise, of unit variance."""
    rng = np.random.default_rng(seed)
    k = np.sqrt(sum(f**2 for f in np.meshgrid(*[np.fft.fftfreq(n) * n for n in shape], indexing="ij", sparse=True)))
    x = np.fft.ifftn(np.fft.fftn(rng.normal(size=shape)) * (1 + k) ** (-decay - (len(shape) - 1) / 2)).real
    return np.asarray(x / x.std() + noise * rng.normal(size=shape))


def operations(
    shape: Sequence[int], ranks: Sequence[int | None], order: Sequence[int], *, symmetric: bool = True
) -> tuple[float, float]:
    """Flops of an ST-HOSVD of one sample, and the numbers that it must read or write.

    A Gram matrix counts half of a product where ``symmetric``, as much as must be computed, else a whole one; an
    eigenproblem counts 9 n^3 (Golub and Van Loan), or the products of the subspace iteration that takes its place.
    """
    current, flops, numbers = list(shape), 0.0, 0.0
    for mode in order:
        rank, size = ranks[mode] or 1, math.prod(current)
        n = min(current[mode], size // current[mode])
        width, steps = spectrum._width(rank), spectrum._ITERATIONS + 2
        few = n >= spectrum._FEW_OF and 3 * width <= n
        flops += (1 if symmetric else 2) * n * size + 2 * rank * size
        flops += steps * (2 * n**2 * width + 4 * n * width**2) + 2 * 9 * width**3 if few else 9 * n**3
        current[mode] = rank
        numbers += 2 * size + math.prod(current)
    return flops, numbers


def decode_operations(shape: Sequence[int], ranks: Sequence[int], modes: Sequence[int]) -> float:
    """Flops of decoding one sample."""
    sizes = tuple(shape[mode] if mode in modes else None for mode in range(len(shape)))
    current, flops = list(ranks), 0.0
    for mode in spectrum.product_order(tuple(ranks), sizes):
        flops += 2 * math.prod(current) * shape[mode]
        current[mode] = shape[mode]
    return flops
