"""Samples to primitives and back: decompose, align, encode, decode, and what to measure on the way."""

from __future__ import annotations

from typing import cast

import numpy as np
from array_api_compat import array_namespace, device, to_device

from diffats import spectrum
from diffats.config import Recipe
from diffats.errors import InputError
from diffats.primitives.layout import Layout, Streams, pick
from diffats.primitives.normalisation import FieldScaling, NumpyArray
from diffats.procrustes import align_to_anchor
from diffats.spectrum import Array, as_numpy, like, mode_dot, transpose, unwarned, widen
from diffats.tucker import TuckerTensor, hooi, multi_mode_dot, ratio, sthosvd


def decomposed_modes(recipe: Recipe) -> tuple[str, ...]:
    """The modes that a tensor primitive's recipe decomposes: those with a rank; with a tolerance, the aligned ones."""
    named = recipe.decompose.ranks or recipe.aligned_modes
    return tuple(mode for mode in recipe.tensor_modes if mode in named)


def decompose(x: Array, layout: Layout, method: str = "sthosvd") -> tuple[dict[str, Array], TuckerTensor]:
    """Decompose samples, before any alignment.

    Parameters
    ----------
    x
        ``(k, *sizes)``, finite.
    method
        ``"sthosvd"`` or ``"hooi"``.

    Returns
    -------
    streams
        By name of ``layout.tucker_streams``: ``(k, *shape)``.
    tucker
        The same with spectra and errors; its batch axes are ``(k, *labelled)``.

    Raises
    ------
    InputError
        NaN or infinite values, or other sizes than the layout's.
    """
    if method not in ("sthosvd", "hooi"):
        raise InputError(f'"{method}" is no decomposition. Use "sthosvd" or "hooi".')
    tensors = layout.arrange(x)
    t = (hooi if method == "hooi" else sthosvd)(tensors, layout.working_ranks)
    factors = {f"factor_{m}": U for m, U in zip(layout.working_modes, t.factors, strict=True) if U is not None}
    return {"core": t.core, **factors}, t


def align(tucker: Streams, anchors: Streams, layout: Layout) -> tuple[dict[str, Array], dict[str, Array]]:
    """Remove the gauge: rotate aligned factors to their anchors, and merge the other factors into the core.

    Parameters
    ----------
    tucker
        Streams of ``decompose``.
    anchors
        By aligned mode, of ``layout.anchor_shapes``.

    Returns
    -------
    streams
        By name of ``layout.streams``: ``(k, *shape)``.
    overlaps
        By aligned mode: ``(k, *labelled, rank)`` descending cosines of the angles to the anchor.

    Raises
    ------
    InputError
        Where a stream or an anchor is missing or has another shape.
    """
    G = pick(tucker, layout.tucker_streams[0])
    n_modes, streams, overlaps = len(layout.working_modes), {}, {}
    for stream in layout.tucker_streams[1:]:
        U, mode = pick(tucker, stream), cast(str, stream.mode)
        matrix = U  # merged: G <- G x_j U_j
        if mode in layout.aligned:
            Q, overlaps[mode] = align_to_anchor(U, _anchor(anchors, mode, stream.shape))
            streams[stream.name] = U @ Q
            matrix = transpose(Q)
        G = mode_dot(G, matrix, layout.working_modes.index(mode), n_modes)
    return {"core": G, **streams}, overlaps


def encode(
    x: Array, anchors: Streams, layout: Layout, method: str = "sthosvd"
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Samples ``(k, *sizes)`` as primitives: ``decompose``, then ``align``; returns what ``align`` does.

    >>> import numpy as np
    >>> layout = Layout("tgp", ("y", "x"), {"y": 4, "x": 6}, {"y": 2, "x": 2}, ("y", "x"))
    >>> x = np.random.default_rng(0).normal(size=(5, 4, 6))
    >>> streams, overlaps = encode(x, {"y": np.eye(4)[:, :2], "x": np.eye(6)[:, :2]}, layout)
    >>> decode(streams, layout).shape, overlaps["y"].shape
    ((5, 4, 6), (5, 2))
    """
    return align(decompose(x, layout, method)[0], anchors, layout)


def decode(streams: Streams, layout: Layout) -> Array:
    """Primitives as samples: ``X^ = G x_k U_k`` over the aligned modes, ``(k, *sizes)``."""
    return layout.restore(multi_mode_dot(pick(streams, layout.streams[0]), _factors(streams, layout)))


def field_sensitivity(streams: Streams, layout: Layout) -> dict[str, NumpyArray]:
    """How much of the field each number of a primitive is, to first order: ``E |dX|^2 / dp^2`` by stream.

    A change of the core changes the field as much; one of a factor's entry as much as that column's part of the core.

    Parameters
    ----------
    streams
        Of samples over which is averaged, ``{name: (k, *shape)}``, with factors that are orthonormal.

    Returns
    -------
    By stream: its shape, float64.

    >>> import numpy as np
    >>> layout = Layout("tgp", ("y", "x"), {"y": 4, "x": 6}, {"y": 2, "x": 2}, ("y", "x"))
    >>> core = np.array([[[3.0, 0.0], [0.0, 1.0]]])
    >>> streams = {"core": core, "factor_y": np.eye(4, 2)[None], "factor_x": np.eye(6, 2)[None]}
    >>> found = field_sensitivity(streams, layout)
    >>> found["factor_x"][0].tolist(), found["core"][0].tolist()
    ([9.0, 1.0], [1.0, 1.0])
    """
    core = layout.streams[0]
    energy = np.mean(as_numpy(pick(streams, core)).astype(np.float64) ** 2, axis=0)
    found = {core.name: np.ones(core.shape)}
    for stream in layout.streams[1:]:
        kept = {*range(len(layout.labelled)), core.dims.index(f"rank_{stream.mode}")}
        columns = energy.sum(axis=tuple(axis for axis in range(energy.ndim) if axis not in kept))  # (*labelled, rank)
        found[stream.name] = np.broadcast_to(columns[..., None, :], stream.shape).copy()
    return found


def orthonormality_defect(streams: Streams, layout: Layout) -> dict[str, Array]:
    """``|U^T U - I|_F`` of every factor, by stream name: ``(k,)`` float64; the largest over labelled axes."""
    defects = {}
    for stream in layout.streams[1:]:
        U = widen(pick(streams, stream))
        xp = array_namespace(U)
        excess = transpose(U) @ U - xp.eye(U.shape[-1], dtype=U.dtype, device=device(U))
        squares = xp.sum(excess**2, axis=(-2, -1))
        defects[stream.name] = xp.max(xp.reshape(xp.sqrt(squares), (U.shape[0], -1)), axis=1)
    return defects


@unwarned
def reconstruction_errors(
    x: Array,
    residual: Array,
    norm2: Array,
    scaling: FieldScaling,
    training_mean: Array,
    decoded: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Three errors of each sample, from one residual; what the residual holds is lost.

    Parameters
    ----------
    x
        ``(k, *sizes)``, in physical units, NaN where masked.
    residual
        Of the centred and scaled samples, 0 for a perfect reconstruction.
    norm2
        ``(k,)`` squared norms of the centred and scaled samples.
    scaling, training_mean
        What was subtracted and divided by, and what the anomaly is relative to.
    decoded
        ``(k, *sizes)`` in physical units, of transformed fields only, whose residual says nothing of physical units.

    Returns
    -------
    ``(k,)`` float64 each: the error relative to the field, and to its difference from the training mean (both in
    physical units, where it is not masked), and that of the centred and scaled samples. A difference below the
    field's own rounding counts as that, and so does an error below the rounding of the centred and scaled field.
    """
    xp, n_modes = array_namespace(x), x.ndim - 1
    known = None if scaling.mask is None else to_device(xp.asarray(~scaling.mask), device(x))

    def total(part: Array) -> Array:
        return spectrum.norm2(part if known is None else xp.where(known, part, 0.0), n_modes)

    lost = spectrum.norm2(residual, n_modes)
    truncation = ratio(lost, norm2)
    # A residual of 0 does not mean that nothing was lost: centring and scaling have rounded every number already.
    rounded = (spectrum.rounding_unit(x) / 4) ** 2 * float(scaling.scale.max()) ** 2 * norm2
    size = total(x)
    if decoded is not None:
        lost, rounded = total(x - decoded), (spectrum.rounding_unit(x) / 4) ** 2 * size
    elif known is None and scaling.scale.size == 1:
        lost = lost * float(scaling.scale.reshape(())) ** 2
    else:
        residual *= like(scaling.scale, residual)
        lost = total(residual)
    lost = xp.maximum(lost, rounded)
    xp.subtract(x, like(training_mean, x), out=residual)  # the memory is there already
    # A sample that differs from the mean by its own rounding only has no anomaly that an error could be relative to.
    anomaly = xp.maximum(total(residual), spectrum.rounding_unit(x) ** 2 * size)
    return ratio(lost, size), ratio(lost, anomaly), truncation


def relative_error(x: Array, xhat: Array, reference: Array | None = None) -> Array:
    """Relative error per sample, in float64: ``|X - X^| / |X - reference|``.

    Parameters
    ----------
    x, xhat
        ``(k, ...)``. Points where ``x`` is NaN (masked) do not count.
    reference
        Broadcastable to ``x``, such as the training mean for the anomaly error; 0 where left out.

    Returns
    -------
    ``(k,)``; 0 where both norms are zero.

    >>> import numpy as np
    >>> relative_error(np.array([[3.0, 4.0]]), np.array([[3.0, 3.0]])).tolist()
    [0.2]
    """
    xp, wide = array_namespace(x), widen(x)
    known = ~xp.isnan(wide)
    zero = xp.zeros_like(wide)
    origin = 0.0 if reference is None else like(reference, wide)
    lost = xp.where(known, wide - like(xhat, wide), zero)
    signal = xp.where(known, wide - origin, zero)
    axes = tuple(range(1, x.ndim))
    residual, total = xp.sqrt(xp.sum(lost**2, axis=axes)), xp.sqrt(xp.sum(signal**2, axis=axes))
    ratio = residual / xp.where(total == 0, xp.ones_like(total), total)
    return xp.where((total == 0) & (residual > 0), xp.full_like(ratio, xp.inf), ratio)


def _factors(streams: Streams, layout: Layout) -> list[Array | None]:
    by_mode = {stream.mode: pick(streams, stream) for stream in layout.streams[1:]}
    return [by_mode.get(mode) for mode in layout.working_modes]


def _anchor(anchors: Streams, mode: str, shape: tuple[int, ...]) -> Array:
    if mode not in anchors:
        raise InputError(f'mode "{mode}" has no anchor. Run the anchor stage, or take the mode from align.modes.')
    anchor = anchors[mode]
    if tuple(anchor.shape) != shape:
        raise InputError(
            f'anchor of mode "{mode}" has shape {tuple(anchor.shape)}, expected {shape}. Choose anchors again.'
        )
    return anchor
