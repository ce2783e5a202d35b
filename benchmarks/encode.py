"""The kernels against other libraries and against what the machine can do: `python -m benchmarks.encode`.

Each case is measured in the same run for every library, in float32 and float64, on one thread and on all. The bound is
the time that the algorithm's own operations need at the speed of a large matrix product, or its bytes at the speed of
memory, whichever is longer; both speeds are measured first.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import tensorly
import tensorly.decomposition
import threadpoolctl
import torch
from matplotlib.figure import Figure
from pyttb.hosvd import hosvd
from pyttb.tensor import tensor

from benchmarks.common import arguments, best_seconds, machine_line, markdown, save, slope
from benchmarks.kernels import decode_operations, field, operations
from diffats import tucker
from diffats.patches import to_patches
from diffats.primitives import Layout, decode
from diffats.procrustes import align_to_anchor
from diffats.spectrum import mode_dot, mode_order
from diffats.tucker import sthosvd

Array = np.ndarray[Any, Any]
Ranks = tuple[int | None, ...]
DTYPES = {"float32": np.float32, "float64": np.float64}
BATCH_NUMBERS = 2**24  # ours takes samples in batches of about so many numbers, as the pipeline's shards do
CUBES = (24, 32, 48, 64, 96, 128, 160)


@dataclass(frozen=True)
class Case:
    """One shape and its ranks; ``patch`` cuts an image into a matrix of patches by pixels."""

    shape: tuple[int, ...]
    ranks: Ranks
    patch: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """For tables."""
        sizes, ranks = "x".join(map(str, self.shape)), ",".join("-" if r is None else str(r) for r in self.ranks)
        return f"image {sizes}, patch {self.patch[0]}, rank {self.ranks[-1]}" if self.patch else f"{sizes} at {ranks}"

    @property
    def working(self) -> tuple[int, ...]:
        """Shape of what is decomposed."""
        if self.patch is None:
            return self.shape
        pixels = math.prod(self.patch)
        return (math.prod(self.shape) // pixels, pixels)

    def samples(self, dtype: Any, count: int) -> Array:
        """Seeded samples ``(count, *working)``."""
        x = np.stack([field(self.shape, seed) for seed in range(min(count, 2))])
        x = x if self.patch is None else to_patches(x, self.patch)
        return np.ascontiguousarray(np.resize(x, (count, *self.working)).astype(dtype))


CASES = (
    Case((200, 128, 128), (20, 32, 32)),
    Case((200, 128, 128), (5, 20, 20)),
    Case((200, 128, 128), (10, None, 30)),
    Case((32, 64, 64), (4, 12, 12)),
    Case((20, 64, 64), (15, 64, 20)),
    Case((16, 16, 200), (6, 6, 8)),
    Case((24, 32, 32, 32), (6, 8, 8, 8)),
    Case((1024, 1024), (None, 32), patch=(32, 32)),
)
QUICK = (Case((16, 12, 10), (4, 5, 3)), Case((32, 32), (None, 4), patch=(8, 8)))


# --- what the machine can do ----------------------------------------------------------------------------------------


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Every library on so many threads."""
    before = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def machine_speed(n: int, repeats: int) -> dict[str, Any]:
    """Flops a second of a large product (the faster of NumPy and torch) and bytes a second of reading memory."""
    out: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        a = np.random.default_rng(0).random((n, n)).astype(dtype)
        t = torch.from_numpy(a)
        product = min(
            best_seconds(partial(np.matmul, a, a), repeats), best_seconds(partial(torch.matmul, t, t), repeats)
        )
        out[name] = 2 * n**3 / product
    memory = torch.ones(max(2**16, 16 * n**2))
    out["bytes"] = memory.nbytes / best_seconds(memory.sum, repeats)
    return out


# --- the libraries ---------------------------------------------------------------------------------------------------


def ours(x: Array, case: Case, count: int) -> Callable[[], Any]:
    """``sthosvd`` of a batch; on several threads as the pipeline's workers do it, a part of the batch on each."""
    if count == 1:
        return lambda: sthosvd(x, case.ranks)
    parts = np.array_split(x, min(count, len(x)))

    def run() -> list[Any]:
        with threads(1), ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(lambda part: sthosvd(part, case.ranks), parts))

    return run


def _tensorly(x: Any, case: Case, **options: Any) -> Any:
    modes = [mode for mode, rank in enumerate(case.ranks) if rank is not None]
    ranks = [rank for rank in case.ranks if rank is not None]
    if len(modes) == len(case.ranks):
        return tensorly.decomposition.tucker(x, ranks, random_state=0, **options)
    (core, factors), _ = tensorly.decomposition.partial_tucker(x, ranks, modes=modes, random_state=0, **options)
    return core, factors, modes


def _with_backend(backend: str, **options: Any) -> Callable[[Array, Case], Any]:
    def run(x: Array, case: Case) -> Any:
        with tensorly.backend_context(backend):
            return _tensorly(torch.from_numpy(x) if backend == "pytorch" else x, case, **options)

    return run


def _pyttb(x: Array, case: Case) -> Any:
    ranks = [n if rank is None else rank for n, rank in zip(case.working, case.ranks, strict=True)]
    found = hosvd(tensor(x.copy(order="F")), tol=1.0, ranks=ranks, verbosity=0)
    return found.core.data, found.factor_matrices


def _numpy_svd(x: Array, case: Case) -> Any:
    """The textbook HOSVD: a thin SVD of every unfolding of the whole tensor."""
    factors = []
    for mode, rank in enumerate(case.ranks):
        if rank is not None:
            unfolded = np.moveaxis(x, mode, 0).reshape(x.shape[mode], -1)
            factors.append(np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank])
    modes = [mode for mode, rank in enumerate(case.ranks) if rank is not None]
    core = x
    for mode, factor in zip(modes, factors, strict=True):
        core = np.moveaxis(np.tensordot(factor.T, core, (1, mode)), 0, mode)
    return core, factors, modes


PEERS: dict[str, Callable[[Array, Case], Any]] = {
    "tensorly": _with_backend("numpy"),
    "tensorly randomized_svd": _with_backend("numpy", svd="randomized_svd"),
    "tensorly (torch)": _with_backend("pytorch"),
    "tensorly randomized_svd (torch)": _with_backend("pytorch", svd="randomized_svd"),
    "pyttb.hosvd": _pyttb,
    "numpy.linalg.svd": _numpy_svd,
}


def error_of(x: Array, core: Any, factors: Any, modes: Sequence[int] | None = None) -> float:
    """Relative error of a Tucker form, in float64."""
    y = np.asarray(core, np.float64)
    for mode, factor in zip(range(x.ndim) if modes is None else modes, factors, strict=True):
        y = np.moveaxis(np.tensordot(np.asarray(factor, np.float64), y, (1, mode)), 0, mode)
    wide = x.astype(np.float64)
    return float(np.linalg.norm(wide - y) / np.linalg.norm(wide))


# --- measurements ----------------------------------------------------------------------------------------------------


def measure(case: Case, dtype: str, count: int, speed: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Ours and every peer on one case: milliseconds a sample, error, and the share of the bound that ours reaches."""
    batch = max(count, BATCH_NUMBERS // math.prod(case.shape) // 4)
    x = case.samples(DTYPES[dtype], batch)
    order = mode_order(case.working, case.ranks)
    flops, numbers = operations(case.working, case.ranks, order)
    whole, _ = operations(case.working, case.ranks, order, symmetric=False)
    bound, loose = (max(each / speed[dtype], numbers * x.itemsize / speed["bytes"]) for each in (flops, whole))
    with threads(count):
        seconds = best_seconds(ours(x, case, count), repeats) / batch
        alone = best_seconds(lambda: sthosvd(x[:1], case.ranks), repeats)
        form = sthosvd(x[0], case.ranks)
        rows = {"diffats": {"ms": 1e3 * seconds, "error": float(form.relative_error(x[0].astype(np.float64)))}}
        for name, peer in PEERS.items():
            found = peer(x[0], case)
            took = best_seconds(partial(peer, x[0], case), max(1, repeats // 3), warmup=0)
            rows[name] = {"ms": 1e3 * took, "error": error_of(x[0], *found)}
    fastest = min(row["ms"] for name, row in rows.items() if name != "diffats")
    best = min(row["error"] for name, row in rows.items() if name.startswith("tensorly"))
    return {
        "case": case.name,
        "dtype": dtype,
        "threads": count,
        "batch": batch,
        "libraries": rows,
        "one_sample_ms": 1e3 * alone,
        "gflop": flops / 1e9,
        "bound_ms": 1e3 * bound,
        "fraction_of_bound": bound / seconds,
        "fraction_with_whole_products": loose / seconds,
        "times_faster_than_fastest_peer": fastest / (1e3 * seconds),
        "error_over_best_tensorly": rows["diffats"]["error"] / best,
    }


def orders(case: Case, dtype: str, repeats: int) -> dict[str, Any]:
    """The cost model against measurement: the order it chooses against the fastest of all."""
    x = case.samples(DTYPES[dtype], max(1, BATCH_NUMBERS // math.prod(case.shape) // 8))
    modes = [mode for mode, rank in enumerate(case.ranks) if rank is not None]
    found = {}
    with threads(1):
        for order in itertools.permutations(modes):
            with mock.patch.object(tucker, "mode_order", lambda shape, ranks, order=order: order):
                found[order] = best_seconds(lambda: sthosvd(x, case.ranks), repeats) / len(x)
    chosen, fastest = mode_order(case.working, case.ranks), min(found, key=lambda order: found[order])
    return {
        "case": case.name,
        "dtype": dtype,
        "chosen": list(chosen),
        "fastest": list(fastest),
        "chosen_over_fastest": found[chosen] / found[fastest],
        "slowest_over_fastest": max(found.values()) / found[fastest],
    }


def parts(case: Case, dtype: str, speed: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Procrustes, merging one mode into the core, and decoding, against their own bounds, on one thread."""
    count = max(1, BATCH_NUMBERS // math.prod(case.shape) // 4)
    x = case.samples(DTYPES[dtype], count)
    names = tuple(f"m{axis}" for axis in range(len(case.working)))
    with threads(1):
        t = sthosvd(x, case.ranks)
        modes = [mode for mode, rank in enumerate(case.ranks) if rank is not None]
        U = np.asarray(t.factors[modes[-1]])
        A = U[0]
        n, r = A.shape
        aligned = [names[mode] for mode in modes]
        sizes = dict(zip(names, case.working, strict=True))
        layout = Layout("tgp", names, sizes, {names[m]: case.ranks[m] or 1 for m in modes}, tuple(aligned))
        streams = {"core": t.core, **{f"factor_{names[m]}": t.factors[m] for m in modes}}

        def rotated() -> Any:
            return U @ align_to_anchor(U, A)[0]

        rows = [
            ("Procrustes", best_seconds(rotated, repeats), 4 * n * r**2 + 23 * r**3, 2 * n * r),
            (
                "merging a mode",
                best_seconds(lambda: mode_dot(t.core, U, modes[-1], len(names)), repeats),
                2 * n * math.prod(t.ranks),
                math.prod(t.ranks) * (1 + n / r),
            ),
            (
                "decoding",
                best_seconds(lambda: decode(streams, layout), repeats),
                decode_operations(case.working, t.ranks, modes),
                math.prod(case.working) + math.prod(t.ranks),
            ),
        ]
    return [
        {
            "case": case.name,
            "dtype": dtype,
            "part": name,
            "us": 1e6 * seconds / count,
            "bound_us": 1e6 * (bound := max(flops / speed[dtype], numbers * x.itemsize / speed["bytes"])),
            "fraction_of_bound": bound * count / seconds,
        }
        for name, seconds, flops, numbers in rows
    ]


def sizes(cubes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Milliseconds against size: cubes of n^3 numbers at rank n / 4, float32, one thread."""
    out: dict[str, Any] = {"n": list(cubes), "diffats": []}
    peers = ("tensorly", "tensorly randomized_svd", "pyttb.hosvd")
    out |= {name: [] for name in peers}
    with threads(1):
        for n in cubes:
            case = Case((n, n, n), (n // 4,) * 3)
            batch = max(1, BATCH_NUMBERS // n**3 // 16)
            x = case.samples(np.float32, batch)
            out["diffats"].append(1e3 * best_seconds(partial(sthosvd, x, case.ranks), repeats) / batch)
            for name in peers:
                took = best_seconds(partial(PEERS[name], x[0], case), 1)
                out[name].append(1e3 * took)
    numbers = [n**3 for n in cubes]
    out["slope"] = {name: slope(numbers[-4:], out[name][-4:]) for name in ("diffats", *peers)}
    return out


# --- results ---------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """All results for people."""
    rows = []
    for row in results["cases"]:
        best = min((r["ms"], name) for name, r in row["libraries"].items() if name != "diffats")
        row_ours = row["libraries"]["diffats"]
        cells = [row["case"], row["dtype"], row["threads"], row_ours["ms"], row["one_sample_ms"]]
        cells += [f"{best[0]:.3g} ({best[1]})", row["times_faster_than_fastest_peer"]]
        cells += [row_ours["error"], f"{row['error_over_best_tensorly']:.5f}"]
        rows.append(
            [*cells, row["bound_ms"], f"{row['fraction_of_bound']:.0%}", f"{row['fraction_with_whole_products']:.0%}"]
        )
    head = ["case", "dtype", "threads", "ms a sample", "ms, one alone", "fastest peer, ms", "times faster"]
    head += ["error", "over best tensorly", "bound, ms", "of the bound", "with whole products"]
    peers = [[row["case"], row["dtype"], row["threads"], *_peer_cells(row)] for row in results["cases"]]
    parts_rows = [[r["part"], r["case"], r["dtype"], r["us"], r["bound_us"], f"{r['fraction_of_bound']:.0%}"]
                  for r in results["parts"]]  # fmt: skip
    order_rows = [
        [
            r["case"],
            r["dtype"],
            str(r["chosen"]),
            str(r["fastest"]),
            r["chosen_over_fastest"],
            r["slowest_over_fastest"],
        ]
        for r in results["orders"]
    ]
    lines = [
        "# Encoding: the kernels",
        "",
        "Times are the least of several, in one run; ours for a batch (and for one sample alone), the others for one",
        "sample. The bound is the algorithm's own operations at the speed of a large matrix product, or its bytes at",
        f"the speed of memory: {_speeds(results['speed'])}.",
        "A Gram matrix counts as half a product, since it is symmetric, and an eigenproblem as 9 n^3 flops; the last",
        "column counts Gram matrices as whole products, as a library without symmetric ones would compute them.",
        "",
        markdown(head, rows),
        "",
        "Every library: ms a sample, and its error over the least error of tensorly.",
        "",
        markdown(["case", "dtype", "threads", *PEERS], peers),
        "",
        "The other parts, one thread, microseconds a sample:",
        "",
        markdown(["part", "case", "dtype", "us", "bound, us", "of the bound"], parts_rows),
        "",
        "The cost model: the order of modes it chooses against the fastest and the slowest, as measured.",
        "",
        markdown(["case", "dtype", "chosen", "fastest", "chosen / fastest", "slowest / fastest"], order_rows),
        "",
        "Time against the numbers in a sample (cubes at a quarter of each size, float32, one thread); exponents over",
        "the four largest: " + ", ".join(f"{n} {value:.2f}" for n, value in results["sizes"]["slope"].items()) + ".",
    ]  # fmt: skip
    return "\n".join(lines)


def _speeds(speed: dict[str, Any]) -> str:
    return "; ".join(
        f"{count} threads: {s['float32'] / 1e9:.0f} (float32) and {s['float64'] / 1e9:.0f} (float64) Gflop/s, "
        f"{s['bytes'] / 1e9:.0f} GB/s"
        for count, s in speed.items()
    )


def _peer_cells(row: dict[str, Any]) -> list[str]:
    best = min(r["error"] for name, r in row["libraries"].items() if name.startswith("tensorly"))
    return [f"{row['libraries'][name]['ms']:.3g} ({row['libraries'][name]['error'] / best:.4f})" for name in PEERS]


def picture(results: dict[str, Any]) -> Figure:
    """Ratio to the fastest peer, fraction of the bound, and time against size."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    ratio, fraction, size = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    cases = list(dict.fromkeys(row["case"] for row in results["cases"]))
    one = [row for row in results["cases"] if row["threads"] == 1]
    for k, dtype in enumerate(DTYPES):
        rows = {row["case"]: row for row in one if row["dtype"] == dtype}
        y = np.arange(len(cases)) + 0.38 * (k - 0.5)
        ratio.barh(y, [rows[c]["times_faster_than_fastest_peer"] for c in cases], 0.36, label=dtype)
        fraction.barh(y, [100 * rows[c]["fraction_of_bound"] for c in cases], 0.36, label=dtype)
    for ax, title in ((ratio, "times faster than the fastest peer"), (fraction, "percent of the bound")):
        ax.set_yticks(range(len(cases)), cases if ax is ratio else [""] * len(cases))
        ax.invert_yaxis()
        ax.set_xlabel(f"{title}, one thread")
        ax.legend()
    ratio.set_xscale("log")
    fraction.set_xlim(0, 100)
    for name, values in results["sizes"].items():
        if name not in ("n", "slope"):
            size.loglog([n**3 for n in results["sizes"]["n"]], values, "o-", label=name)
    size.set_xlabel("numbers in a sample")
    size.set_ylabel("ms a sample")
    size.legend(loc="upper left")
    return figure


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write the results."""
    options = arguments(__doc__ or "", argv)
    quick = options.mode == "quick"
    cases, repeats = (QUICK, 1) if quick else (CASES, 7)
    counts = sorted({1, len(os.sched_getaffinity(0))})
    results: dict[str, Any] = {"speed": {}, "cases": [], "parts": [], "orders": []}
    for count in counts:
        with threads(count):
            results["speed"][str(count)] = machine_speed(128 if quick else 2048, repeats)
    for case, dtype, count in itertools.product(cases, DTYPES, counts):
        row = measure(case, dtype, count, results["speed"][str(count)], repeats)
        print(
            f"{case.name}, {dtype}, {count} threads: {row['libraries']['diffats']['ms']:.3g} ms, "
            f"{row['times_faster_than_fastest_peer']:.1f} times the fastest peer, {row['fraction_of_bound']:.0%} of "
            f"the bound, error {row['error_over_best_tensorly']:.5f} of tensorly's",
            flush=True,
        )
        results["cases"].append(row)
    for case, dtype in itertools.product(cases, DTYPES):
        results["parts"] += parts(case, dtype, results["speed"]["1"], repeats)
        if case.patch is None:
            results["orders"].append(orders(case, dtype, max(1, repeats // 2)))
    results["sizes"] = sizes((8, 10, 12, 16) if quick else CUBES, max(1, repeats // 2))
    text = tables(results)
    if options.folder is not None:
        save("encode", results, text, picture(results), options.folder)
    print(text, machine_line(), sep="\n\n")
    return results


if __name__ == "__main__":
    main()
