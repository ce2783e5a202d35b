"""Parts of ``benchmarks.gpu_check``: the device, the kernels on it against the CPU, and how fast they are."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import kernels
from benchmarks.gpu_run import NOT_RUN, Case, Row, Run, judged
from diffats.diffusion import random_source
from diffats.medoid import medoid
from diffats.primitives import decode, encode
from diffats.procrustes import align_to_anchor
from diffats.spectrum import as_numpy, mode_dot, mode_order
from diffats.tucker import TuckerTensor, hooi, sthosvd

Array = np.ndarray[Any, Any]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
#: Largest differences from float64 on the CPU that are taken for rounding, relative to the norm: well above what
#: float32 on the CPU shows, and below what TF32 would give.
BOUNDS = {"float64": 1e-10, "float32": 2e-5}
_SAMPLES = 6  # compared of each case
_NOISE = 1e-2

# --- the device ------------------------------------------------------------------------------------------------------


def device(run: Run) -> Iterator[Row]:
    """What the device is, and what it can do at most."""
    yield {"what": "facts", **_facts(run)}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        yield {"what": name, "flops_per_s": _product(run, dtype)}
    if run.cuda:
        torch.set_float32_matmul_precision("high")
        yield {"what": "TF32", "flops_per_s": _product(run, torch.float32)}
        torch.set_float32_matmul_precision("highest")
    else:
        yield {"what": "TF32", "not_run": NOT_RUN}
    yield from _bandwidths(run)
    one = torch.zeros(1, device=run.device)
    yield {"what": "one small operation", "seconds": run.best(partial(one.add_, 1))}


def _facts(run: Run) -> Row:
    facts: Row = {"device": run.device.type, "torch": torch.__version__}
    if run.cuda:
        there = torch.cuda.get_device_properties(run.device)
        facts |= {"name": there.name, "capability": f"{there.major}.{there.minor}", "driver": _driver()}
        facts |= {"memory_gib": round(there.total_memory / 2**30, 1), "multiprocessors": there.multi_processor_count}
        facts |= {"cuda": torch.version.cuda, "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False)}
    return facts


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else "unknown"


def _product(run: Run, dtype: torch.dtype) -> float:
    n = run.size.product // 2 if dtype == torch.float64 else run.size.product  # few GPUs are fast in float64
    a = torch.randn(n, n, device=run.device).to(dtype)
    return float(2 * n**3 / run.best(lambda: a @ a))


def _bandwidths(run: Run) -> Iterator[Row]:
    there = torch.ones(run.size.moved // 4, device=run.device)
    out = torch.empty_like(there)
    yield {"what": "copy", "bytes_per_s": 2 * there.nbytes / run.best(partial(out.copy_, there))}
    directions = ("host to device", "host to device, pinned", "device to host, pinned")
    if not run.cuda:
        yield from ({"what": name, "not_run": NOT_RUN} for name in directions)
        return
    plain = torch.ones(run.size.moved // 4)
    pinned = plain.pin_memory()
    pairs = ((out, plain), (out, pinned), (pinned, there))
    for name, (target, source) in zip(directions, pairs, strict=True):
        yield {"what": name, "bytes_per_s": plain.nbytes / run.best(partial(target.copy_, source, non_blocking=True))}


# --- kernels against float64 on the CPU ------------------------------------------------------------------------------


def equality(run: Run) -> Iterator[Row]:
    """Decompositions, alignment and decoding on the device against those of float64 on the CPU."""
    for case in run.size.compared:
        for dtype in DTYPES:
            given = torch.from_numpy(planted(case, _SAMPLES)).to(DTYPES[dtype])
            x, exact = given.to(run.device), given.double().numpy()  # both from what the dtype holds
            here = partial(judged, case=case.name, dtype=dtype, bound=BOUNDS[dtype])
            yield from _decompositions(case, x, exact, here)
            yield from _alignment(case, x, exact, here)
            yield from _primitives(case, x, exact, here)


def planted(case: Case, count: int) -> Array:
    """Samples ``(count, *shape)`` of the case's ranks and a little noise, their subspaces near to each other.

    The spectra have a gap after the ranks: only then are subspaces determined to more digits than the noise is small.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *(n if r is None else r for n, r in zip(case.shape, case.ranks, strict=True))))
    for mode in case.modes:
        center = np.linalg.qr(rng.normal(size=(case.shape[mode], case.ranks[mode] or 1)))[0]
        noise = rng.normal(size=(count, *center.shape)) / math.sqrt(len(center))
        x = mode_dot(x, np.linalg.qr(center + 0.3 * noise)[0], mode, len(case.shape))
    return np.asarray(x + _NOISE * rng.normal(size=x.shape))


def difference(found: Any, expected: Array) -> float:
    """Largest relative difference of a sample in float64; samples come first."""
    a = found.detach().double().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found, np.float64)
    axes = tuple(range(1, expected.ndim))
    distance, norm = np.sqrt(np.sum((a - expected) ** 2, axis=axes)), np.sqrt(np.sum(expected**2, axis=axes))
    return float(np.max(distance / np.where(norm > 0, norm, 1.0)))


def factor(form: TuckerTensor, mode: int) -> Any:
    """Of a mode that is decomposed."""
    U = form.factors[mode]
    assert U is not None
    return U


def _decompositions(case: Case, x: Tensor, exact: Array, here: Callable[..., Row]) -> Iterator[Row]:
    for name, method in (("sthosvd", sthosvd), ("hooi", hooi)):
        found, expected = method(x, case.ranks), method(exact, case.ranks)
        yield here(f"{name}: approximation", difference=difference(found.to_tensor(), expected.to_tensor()))
        error = np.abs(as_numpy(found.error()).astype(np.float64) - expected.error())
        yield here(f"{name}: error", difference=float(np.max(error)))
        subspaces, orthonormality = [], []
        for mode in case.modes:
            U, V = factor(found, mode), factor(expected, mode)
            identity = np.broadcast_to(np.eye(V.shape[-1]), (len(V), *[V.shape[-1]] * 2))
            subspaces.append(difference(U @ U.mT, V @ V.mT))
            orthonormality.append(difference(U.mT @ U, identity))
        yield here(f"{name}: subspaces", difference=max(subspaces))
        yield here(f"{name}: orthonormality", difference=max(orthonormality))


def _alignment(case: Case, x: Tensor, exact: Array, here: Callable[..., Row]) -> Iterator[Row]:
    mode = case.modes[0]
    V = factor(sthosvd(exact, case.ranks), mode)
    best = medoid(V)
    Q, overlap = align_to_anchor(V, V[best])
    U, A = torch.from_numpy(V).to(x), torch.from_numpy(V[best]).to(x)
    yield here("medoid: index", difference=float(medoid(U) != best))
    turn = torch.linalg.qr(torch.randn(len(U), *[U.shape[-1]] * 2, generator=random_source(1), dtype=torch.float64))[0]
    for name, turned in (("align", U), ("align: another gauge", U @ turn.to(x))):
        rotation, cosines = align_to_anchor(turned, A)
        yield here(f"{name}: factor", difference=difference(turned @ rotation, V @ Q))
        yield here(f"{name}: overlap", difference=difference(cosines, overlap))


def _primitives(case: Case, x: Tensor, exact: Array, here: Callable[..., Row]) -> Iterator[Row]:
    start = sthosvd(exact, case.ranks)
    anchors = {f"m{mode}": factor(start, mode)[0] for mode in case.modes}
    there = {mode: torch.from_numpy(A).to(x) for mode, A in anchors.items()}
    (streams, _), (expected, _) = encode(x, there, case.layout), encode(exact, anchors, case.layout)
    yield here("encode", difference=max(difference(streams[name], expected[name]) for name in expected))
    decoded = decode(streams, case.layout)
    yield here("decode", difference=difference(decoded, decode(expected, case.layout)))
    yield here("decode(encode): the projection", difference=difference(decoded, start.to_tensor()))


# --- their speed -----------------------------------------------------------------------------------------------------


def encoding(run: Run) -> Iterator[Row]:
    """Seconds a sample of what the pipeline does with it, beside its operations and bytes; samples on the device."""
    for case in run.size.timed:
        some = np.stack([kernels.field(case.shape, seed) for seed in range(2)])
        for dtype in ("float32", "float64"):
            count = max(1, run.size.numbers // math.prod(case.shape) // 2)
            x = torch.from_numpy(np.resize(some, (count, *case.shape))).to(run.device, DTYPES[dtype])
            for row in _timed(run, case, x):
                yield {"case": case.name, "dtype": dtype, "batch": count, "product": dtype, **row}


def _timed(run: Run, case: Case, x: Tensor) -> Iterator[Row]:
    form = sthosvd(x, case.ranks)
    streams = {"core": form.core, **{f"factor_m{mode}": factor(form, mode) for mode in case.modes}}
    mode = max(case.modes, key=lambda mode: case.shape[mode])
    n, r, core = case.shape[mode], case.ranks[mode] or 1, math.prod(form.ranks)
    U = factor(form, mode)
    flops, numbers = kernels.operations(case.shape, case.ranks, mode_order(case.shape, case.ranks))
    decoding = kernels.decode_operations(case.shape, form.ranks, case.modes)
    for what, f, operations, moved in (
        ("sthosvd", lambda: sthosvd(x, case.ranks), flops, numbers),
        ("align", lambda: U @ align_to_anchor(U, U[0])[0], 4 * n * r**2 + 23 * r**3, 2 * n * r),
        ("decode", lambda: decode(streams, case.layout), decoding, math.prod(case.shape) + core),
    ):
        seconds = run.best(f) / len(x)
        yield {"what": what, "seconds": seconds, "flops": operations, "bytes": moved * x.element_size()}
