"""The exact medoid of factors streamed through the store's shards: time, memory and bound against their number.

``python -m benchmarks.medoid [--quick | --full] [--folder PATH]``
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kmedoids
import numpy as np
import numpy.typing as npt
import psutil
import xarray as xr

from benchmarks.common import arguments, best_seconds, in_process, in_this_process, markdown, peak_bytes, save, slope
from diffats.compute import open_cluster
from diffats.config import Recipe, parse_recipe
from diffats.medoid import first_best
from diffats.primitives import Layout
from diffats.stages import Workspace, select_anchor
from diffats.stages.workspace import Hooks, open_group
from diffats.store import Store, Version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
MODE = "x"
FINGERPRINT = "synthetic"
WORKERS = 2
_EVERY_TEST = 16  # each 16th sample belongs to the test part, and cannot be the medoid
_SPREAD = 0.5


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    n, r
        Points and rank of the mode.
    shard
        Samples in a shard.
    samples
        Numbers of samples that are streamed; the first one is compared with brute force.
    pairwise
        Numbers of samples for which all distances are computed.
    repeats
        Of each timing; the least counts.
    apart
        Each in a process of its own, as memory is measured; starting one takes seconds.
    """

    n: int
    r: int
    shard: int
    samples: tuple[int, ...]
    pairwise: tuple[int, ...]
    repeats: int
    apart: bool = True


DEFAULT = Size(128, 20, 1024, (1000, 10_000, 30_000, 100_000), (500, 1000, 2000, 4000), 2)
FULL = Size(128, 20, 1024, (1000, 10_000, 100_000, 1_000_000), (500, 1000, 2000, 4000, 8000, 16_000), 1)
QUICK = Size(24, 4, 64, (200, 800), (100, 200), 1, apart=False)


# --- the data ----------------------------------------------------------------------------------------------------


def factors(start: int, stop: int, *, n: int, r: int) -> dict[str, Array]:
    """Orthonormal factors ``(samples, n, r)`` around one subspace, some nearer than others; the seed is ``start``."""
    rng, size = np.random.default_rng(start), stop - start
    center = np.linalg.qr(np.random.default_rng(0).normal(size=(n, r)))[0].astype(np.float32)
    spread = (_SPREAD * rng.uniform(0.5, 1.5, (size, 1, 1)) / np.sqrt(n)).astype(np.float32)
    U = center + spread * rng.standard_normal((size, n, r), np.float32)
    U = U @ np.linalg.inv(np.linalg.cholesky(np.swapaxes(U, 1, 2) @ U)).swapaxes(1, 2)
    return {f"factor_{MODE}": U.astype(np.float32), "status": np.ones(size, np.int8)}


def template(count: int, size: Size) -> xr.Dataset:
    """A group ``tucker`` of one factor, as the stage ``decompose`` lays it out."""
    shape = (count, size.n, size.r)
    lazy = np.broadcast_to(np.zeros((), np.float32), shape)
    sample = np.arange(count)
    split = np.where(sample % _EVERY_TEST == _EVERY_TEST - 1, "test", "train").astype(object)
    return xr.Dataset(
        {f"factor_{MODE}": (("sample", MODE, f"component_{MODE}"), lazy), "status": ("sample", np.zeros(count, "i1"))},
        coords={"sample": sample, "split": ("sample", split)},
    )


def make(recipe: Recipe, count: int, size: Size) -> float:
    """Write ``count`` factors to the recipe's store; seconds."""
    started = time.perf_counter()
    with open_cluster(recipe.compute) as cluster:
        version = Workspace(recipe).store.begin(
            "tucker", template(count, size), fingerprint=FINGERPRINT, shard=size.shard
        )
        version.fill(partial(factors, n=size.n, r=size.r), cluster)
        version.finish()
    return time.perf_counter() - started


def recipe_of(root: Path) -> Recipe:
    """A recipe whose store is filled with synthetic factors: its source is never opened."""
    data = {"source": "none.zarr", "modes": ["y", MODE], "sample_dim": "sample"}
    tree = {"name": "medoid", "root": str(root), "data": data, "compute": {"workers": WORKERS}}
    return parse_recipe({**tree, "decompose": {"ranks": {"y": 2, MODE: 2}}})


def stored(recipe: Recipe) -> Version:
    """The synthetic factors."""
    version = Store.open(Workspace(recipe).store_location).version("tucker", FINGERPRINT)
    assert version is not None
    return version


# --- the medoid, and what it is compared with --------------------------------------------------------------------


def stream(root: Path, size: Size) -> dict[str, Any]:
    """The medoid as the stage ``select_anchor`` finds it: index, scores, seconds, memory of this process."""
    recipe = recipe_of(root)
    layout = Layout("tgp", ("y", MODE), {"y": size.r, MODE: size.n}, {"y": size.r, MODE: size.r}, (MODE,))
    with open_cluster(recipe.compute) as cluster:
        cluster.start()
        version, before, seconds = stored(recipe), peak_bytes(), []
        for _ in range(size.repeats):
            open_group.cache_clear()  # a run opens the group once
            started = time.perf_counter()
            _, scores = select_anchor.medoid_sums(Workspace(recipe), version, layout, cluster, Hooks())
            index = first_best(scores[MODE][:, 0])
            seconds.append(time.perf_counter() - started)
    peak = peak_bytes()
    few = scores[MODE][:1000, 0].tolist() if len(scores[MODE]) <= 1000 else []
    return {"index": index, "scores": few, "seconds": min(seconds), "peak_bytes": peak, "work_bytes": peak - before}


def training_factors(recipe: Recipe, count: int) -> tuple[Array, Array]:
    """The first ``count`` training factors in float64, and their indices."""
    dataset = stored(recipe).dataset().isel(sample=slice(0, 2 * count))
    chosen = np.flatnonzero(dataset["split"].values == "train")[:count]
    return dataset[f"factor_{MODE}"].values[chosen].astype(np.float64), chosen


def brute_force(recipe: Recipe, scores: Array, size: Size) -> dict[str, Any]:
    """The medoid from all pairs of distances, and how far the streamed scores are from it."""
    U, indices = training_factors(recipe, len(scores))
    total = np.array([sum(size.r - np.sum((one.T @ U) ** 2, axis=(1, 2))) for one in U])
    expected = len(U) * size.r - total
    return {
        "samples": len(U),
        "index": int(indices[np.argmin(total)]),
        "largest_relative_difference": float(np.max(np.abs(scores[indices] - expected) / expected)),
    }


def all_pairs(root: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """``pairwise`` of growing numbers of samples in this process: each holds more than those before it."""
    return [pairwise(root, count) for count in counts]


def pairwise(root: Path, count: int) -> dict[str, Any]:
    """FasterPAM on the matrix of squared projection distances; seconds, memory of this process."""
    U, indices = training_factors(recipe_of(root), count)
    U = U.astype(np.float32)
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    D = squared_distances(U)
    built = time.perf_counter()
    found = kmedoids.fasterpam(D, 1, random_state=0)
    done = time.perf_counter()
    return {
        "samples": count,
        "index": int(indices[found.medoids[0]]),
        "matrix_s": built - started,
        "fasterpam_s": done - built,
        "seconds": done - started,
        "work_bytes": peak_bytes() - before,
        "matrix_bytes": D.nbytes,
    }


def squared_distances(U: Array) -> Array:
    """``r - |U_i^T U_j|_F^2`` for all pairs of ``(samples, n, r)``, as one product of projectors' upper triangles."""
    rows, columns = np.triu_indices(U.shape[1])
    weights = np.where(rows == columns, 1, np.sqrt(2)).astype(U.dtype)
    P = np.stack([(u @ u.T)[rows, columns] * weights for u in U])
    D: Array = P @ P.T
    np.subtract(U.shape[-1], D, out=D)
    return D


# --- bounds ------------------------------------------------------------------------------------------------------


def machine_limits() -> dict[str, float]:
    """Float64 matrix-product peak of all cores, and bytes read and written a second by a copy in memory."""
    A = np.random.default_rng(0).normal(size=(1536, 1536))
    big = np.zeros(2**25)
    out = np.empty_like(big)
    return {
        "flops": 2 * len(A) ** 3 / best_seconds(lambda: A @ A, 5),
        "memory_bytes_per_second": 2 * big.nbytes / best_seconds(lambda: np.copyto(out, big), 5),
    }


def read_bandwidth(root: Path) -> float:
    """Bytes a second of reading a store's largest files, at most 1 GiB of them, on one thread from the page cache."""
    files = sorted(
        ((path.stat().st_size, path) for path in (root / "store").rglob("*") if path.is_file()), reverse=True
    )
    total = np.cumsum([size for size, _ in files])
    chosen = [path for (_, path), before in zip(files, total - total[0], strict=True) if before < 2**30]
    return float(total[len(chosen) - 1] / best_seconds(lambda: [path.read_bytes() for path in chosen], 3))


def bound(count: int, size: Size, limits: dict[str, float], read: float) -> dict[str, Any]:
    """The least time of two passes: their float64 operations at the peak, or their bytes as fast as files are read."""
    flops = 2 * 2 * count * size.n**2 * size.r  # P += U U^T, then P U; the trace is small beside them
    moved = 2 * 4 * count * size.n * size.r
    parts = {"flops_s": flops / limits["flops"], "read_s": moved / read}
    return {**parts, "bound_s": max(parts.values()), "read_bytes_per_second": read}


# --- all of it ---------------------------------------------------------------------------------------------------


@contextmanager
def root_of(folder: Path, count: int, size: Size) -> Iterator[tuple[Path, float]]:
    """A root with ``count`` factors, and the seconds that writing them took; deleted at the end."""
    needed, free = 4 * count * size.n * size.r, shutil.disk_usage(folder).free
    if free < 1.2 * needed:
        raise SystemExit(f"{count} factors take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free. Set TMPDIR.")
    root = folder / str(count)
    try:
        yield root, make(recipe_of(root), count, size)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def measure(size: Size, folder: Path) -> dict[str, Any]:
    """Everything, in one run."""
    rows: list[dict[str, Any]] = []
    exact: dict[str, Any] = {}
    limits, call = machine_limits(), in_process if size.apart else in_this_process
    for count in size.samples:
        with root_of(folder, count, size) as (root, written):
            found = call(stream, root, size)
            least = bound(count, size, limits, read_bandwidth(root))
            scores = np.asarray(found.pop("scores"))
            if not rows:
                exact = brute_force(recipe_of(root), scores, size)
                exact["equal"] = exact["index"] == found["index"]
        row = {"samples": count, "bytes": 4 * count * size.n * size.r, "write_s": written, **found}
        rows.append({**row, **least, "fraction": least["bound_s"] / row["seconds"]})
        print(f"{count} samples: {row['seconds']:.2f} s", flush=True)
    with root_of(folder, 2 * max(size.pairwise), size) as (root, _):
        pairs = call(all_pairs, root, size.pairwise)
    return {
        "size": asdict(size),
        "workers": WORKERS,
        "limits": limits,
        "exact": exact,
        "streamed": rows,
        "slope": slope([row["samples"] for row in rows], [row["seconds"] for row in rows]),
        "last_slope": slope([row["samples"] for row in rows[-2:]], [row["seconds"] for row in rows[-2:]]),
        "growth_of_memory": rows[-1]["peak_bytes"] / rows[1]["peak_bytes"],  # the first may not keep all workers busy
        "pairwise": pairs,
        "pairwise_slope": slope([row["samples"] for row in pairs], [row["seconds"] for row in pairs]),
    }


def tables(found: dict[str, Any]) -> str:
    """What was found, to be read."""
    size, exact, limits = found["size"], found["exact"], found["limits"]
    streamed = [
        [
            row["samples"],
            row["bytes"] / 1e9,
            row["seconds"],
            1e6 * row["seconds"] / row["samples"],
            *(f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "work_bytes")),
            row["flops_s"],
            row["read_s"],
            row["fraction"],
        ]
        for row in found["streamed"]
    ]
    pairs = [
        [
            row["samples"],
            row["matrix_s"],
            row["fasterpam_s"],
            row["seconds"],
            1e6 * row["seconds"] / row["samples"],
            f"{row['work_bytes'] / 2**20:.0f}",
        ]
        for row in found["pairwise"]
    ]
    peak, copy = limits["flops"] / 1e9, limits["memory_bytes_per_second"] / 1e9
    read = found["streamed"][-1]["read_bytes_per_second"] / 1e9
    verdict = "the same sample" if exact["equal"] else "ANOTHER SAMPLE"
    return f"""# The exact medoid, streamed

Factors ({size["n"]} x {size["r"]}, float32) in shards of {size["shard"]}, read twice from the store as `select_anchor`
does, {found["workers"]} threads with one BLAS thread each. Brute force over {exact["samples"]} samples finds {verdict};
scores differ by at most {exact["largest_relative_difference"]:.1e}.

{
        markdown(
            ["samples", "GB", "s", "us a sample", "peak MiB", "of it work", "flops s", "read s", "bound/time"],
            streamed,
        )
    }

Time grows as samples^{found["slope"]:.2f} (^{found["last_slope"]:.2f} between the last two); the peak memory of the
process changes by a factor {
        found["growth_of_memory"]:.2f} from the second to the last. Bound: the float64 operations of
both passes at the measured
{peak:.0f} GFLOP/s of all cores, or reading the bytes twice at {read:.1f} GB/s (files in the page cache, one thread),
whichever takes longer. A copy in memory moves {copy:.0f} GB/s.

## All pairs: matrix of distances (float32, all cores), then `kmedoids.fasterpam`

{markdown(["samples", "matrix s", "fasterpam s", "s", "us a sample", "work MiB"], pairs)}

Time grows as samples^{found["pairwise_slope"]:.2f}. The factors are in memory before the clock starts.
"""


def picture(found: dict[str, Any]) -> Figure:
    """Time and memory against the number of samples, of both ways."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    streamed, pairs = found["streamed"], found["pairwise"]
    counts = [row["samples"] for row in streamed]
    left.loglog(counts, [row["seconds"] for row in streamed], "o-", label=f"streamed: {found['slope']:.2f}")
    left.loglog(counts, [row["bound_s"] for row in streamed], "k:", label="its bound")
    some = [row["samples"] for row in pairs]
    left.loglog(some, [row["seconds"] for row in pairs], "s-", label=f"all pairs: {found['pairwise_slope']:.2f}")
    left.set(xlabel="samples", ylabel="seconds", title="time, exponent")
    right.loglog(counts, [max(row["work_bytes"], 1) / 2**20 for row in streamed], "o-", label="streamed")
    right.loglog(some, [max(row["work_bytes"], 1) / 2**20 for row in pairs], "s-", label="all pairs")
    right.set(xlabel="samples", ylabel="MiB above the start", title="memory")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = arguments("The exact medoid at any size.", argv)
    size = {"quick": QUICK, "default": DEFAULT, "full": FULL}[options.mode]
    with tempfile.TemporaryDirectory(prefix="diffats-bench-") as folder:
        found = measure(size, Path(folder))
    table = tables(found)
    print(table)
    if options.folder is not None:
        save("medoid", {"mode": options.mode, **found}, table, picture(found), options.folder)


if __name__ == "__main__":
    main()
