"""Muon, its iteration batched over equal shapes and run in the type in which the device multiplies fastest.

``torch.optim.Muon`` casts to bfloat16, one matrix after the other. A processor without that type emulates it, two
orders of magnitude slower than float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from diffats.pace import Precision

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, K. Jordan et al. 2024
ITERATIONS = 4  # Jordan's five from the Frobenius norm: the tighter norm is worth the one left out
_LEAST = 1e-7  # of a norm: nothing has no direction


class Muon(torch.optim.Muon):
    """Muon for matrices, with steps of the size of AdamW's, so that both share a rate.

    References
    ----------
    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); J. Liu et al., "Muon is scalable
    for LLM training", arXiv 2502.16982 (the size of a step).

    Parameters
    ----------
    params
        Matrices.
    lr, weight_decay
        As AdamW's.
    """

    products: Precision = "float32"  # of the iteration, see `orthogonalise`

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            directions = orthogonalise([self._momentum(p, group["momentum"]) for p in matrices], self.products)
            for p, direction in zip(matrices, directions, strict=True):
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-0.2 * math.sqrt(max(p.shape)) * group["lr"])
        return loss

    def _momentum(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient after Nesterov's momentum."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer: Tensor = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def orthogonalise(matrices: list[Tensor], products: Precision = "float32") -> list[Tensor]:
    """Each matrix with its singular values moved to about 1, in its own shape.

    In bfloat16 by the quintic itself. In float32 by the same quintic in the Gram matrix, which has the shorter side
    only (`by_gram`): about half of the operations.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(i)
    done: list[Tensor] = [*matrices]
    for members in by_shape.values():
        batch = torch.stack([matrices[i] for i in members])
        for i, direction in zip(members, _orthogonalise_batch(batch, products), strict=True):
            done[i] = direction
    return done


def _orthogonalise_batch(x: Tensor, products: Precision) -> Tensor:
    if products == "bfloat16":
        return by_quintic(x.bfloat16()).to(x.dtype)
    return by_quintic(x) if x.shape[-2] == x.shape[-1] else by_gram(x)


def by_quintic(x: Tensor) -> Tensor:
    """Newton-Schulz: ``X <- a X + (b G + c G^2) X`` with ``G = X X^T``, for ``(k, m, n)``, from ``||G|| = 1``.

    Each iteration takes ``4 m^2 n + 2 m^3`` operations, where ``m`` is the shorter side. The Frobenius norm of G bounds
    its largest eigenvalue, and is nearer to it than the square of that of X: by up to ``m^(1/2)``.
    """
    if x.shape[-2] > x.shape[-1]:
        return by_quintic(x.mT).mT
    a, b, c = COEFFICIENTS
    gram = x @ x.mT
    norm = _norm_of(gram)
    x, gram = x / norm, gram / norm / norm
    for k in range(ITERATIONS):
        gram = x @ x.mT if k else gram
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x


def by_gram(x: Tensor) -> Tensor:
    """The same result from the Gram matrix alone: ``Q <- P Q`` and ``G <- P G P`` with ``P = a + b G + c G^2``.

    All factors are polynomials in the first Gram matrix, and commute. ``4 m^2 n`` operations in all and at most
    ``8 m^3`` an iteration: fewer where ``n > m``. Small singular values lose digits in G, where they count for nothing
    beside ``a``; in bfloat16 they would lose all.

    >>> x = torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(by_gram(x), by_quintic(x)))
    True
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    gram = x.mT @ x if tall else x @ x.mT
    norm = _norm_of(gram)
    gram = gram / norm / norm
    product = None
    for k in range(ITERATIONS):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        product = p if product is None else p @ product
        if k < ITERATIONS - 1:
            gram = p @ (gram @ p)
    assert product is not None
    return x @ (product / norm) if tall else (product / norm) @ x


def _norm_of(gram: Tensor) -> Tensor:
    """At least the largest singular value of each of ``(k, m, n)`` matrices, from their Gram matrices."""
    norm: Tensor = torch.linalg.matrix_norm(gram, keepdim=True)
    return norm.sqrt().clamp(min=_LEAST)
