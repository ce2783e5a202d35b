"""Raw Zarr and NetCDF to committed primitives: every cost alone, workers, memory, and overhead against size.

``python -m benchmarks.pipeline [--quick | --full] [--folder PATH]``
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import psutil
import threadpoolctl
import torch
import xarray as xr

from benchmarks import raw
from benchmarks.common import arguments, best_seconds, in_process, in_this_process, markdown, peak_bytes, save, slope
from diffats import sources, stages
from diffats.compute import Cluster, open_cluster
from diffats.config import Compute, Recipe, parse_recipe
from diffats.stages import Workspace, decompose
from diffats.stages.plan import plan
from diffats.stages.workspace import read_group, shard_bounds
from diffats.store import Store, Version
from diffats.store.repository import Repository
from diffats.store.shards import FillShard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENCODING = ("decompose", "select_anchor", "align", "fit_normalisation")
PARTS = ("read", "decode", "compute", "write", "commit", "read_back")
MAIN, NETCDF = "zarr, default (zstd)", "netcdf, none"
BINS = 16


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    samples, main
        Samples of the main runs, and names of their codecs: more data than the workers may hold.
    few, codecs
        Samples, and names of the codecs that are compared with them.
    sizes, ranks
        Of a sample.
    memory, shard
        ``compute.memory`` and ``compute.shard_samples`` of the main run.
    workers
        ``(processes, workers)`` of each run that is compared.
    tiny
        Shards of one tiny sample each, through all stages.
    shards
        Tiny shards, through the store and the scheduler alone.
    repeats
        Of each part; the least counts.
    apart
        Memory in processes of its own, as it is measured; starting them takes seconds.
    """

    samples: int
    main: tuple[str, ...]
    few: int
    codecs: tuple[str, ...]
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    memory: str
    shard: int | None
    workers: tuple[tuple[bool, int], ...]
    tiny: tuple[int, ...]
    shards: int
    repeats: int
    apart: bool = True


_ALL = tuple(raw.CODECS)
_WORKERS = ((False, 1), (False, 2), (True, 1), (True, 2))
_SHAPE = ((50, 64, 64), (10, 16, 16), "1GiB", None)
DEFAULT = Size(2816, (MAIN, NETCDF), 256, _ALL, *_SHAPE, _WORKERS, (100, 400), 10_000, 1)
LONG = 100_000
QUICK = Size(64, (MAIN,), 16, (NETCDF,), (6, 12, 12), (3, 4, 4), "1GiB", 8, _WORKERS[:1], (8,), 128, 1, apart=False)


# --- running the real stages, and watching them ------------------------------------------------------------------


@dataclass
class Call:
    """One ``Cluster.map``: what the workers were given, and what came between results."""

    function: Callable[..., Any]
    shared: dict[str, Any]
    group: str = ""  # filled by it
    bounds: list[tuple[int, int]] = field(default_factory=list)
    in_flight: int = 0  # the most items taken and not yet given back
    seconds: list[float] = field(default_factory=list)  # since the start, as each result came
    ours: list[float] = field(default_factory=list)  # spent with each result before asking for the next: commits


class Watch:
    """Records every call of a cluster's ``map`` while it does what it did."""

    def __init__(self, cluster: Cluster) -> None:
        self.calls: list[Call] = []
        self._map = cluster.map
        self._cluster = cluster

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """For a ``with`` block."""
        with mock.patch.object(self._cluster, "map", self.map):
            yield self

    def map(
        self, function: Callable[..., Any], items: Iterable[Any], **options: Any
    ) -> Generator[tuple[Any, Any], None, None]:
        """As ``Cluster.map``."""
        call = Call(
            function, {name: value for name, value in options.items() if name == "shared" and value is not None}
        )
        self.calls.append(call)
        taken = 0

        def counted() -> Iterator[Any]:
            nonlocal taken
            for item in items:
                taken += 1
                if isinstance(function, FillShard):
                    call.group = item.group
                    call.bounds.append((item.start, item.stop))
                else:
                    call.bounds.append(item)
                call.in_flight = max(call.in_flight, taken - len(call.ours))
                yield item

        started = time.perf_counter()
        for pair in self._map(function, counted(), **options):
            arrived = time.perf_counter()
            call.seconds.append(arrived - started)
            yield pair
            call.ours.append(time.perf_counter() - arrived)


class Alone:
    """A cluster of this one thread: its ``map`` times the calls of the function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any], **options: Any
    ) -> Generator[tuple[Any, Any], None, None]:
        """As ``Cluster.map``."""
        for item in items:
            started = time.perf_counter()
            result = function(item)
            self.seconds += time.perf_counter() - started
            yield item, result


def recipe_of(source: Path, root: Path, sizes: tuple[int, ...], ranks: tuple[int, ...], **compute: Any) -> Recipe:
    """The recipe that is run."""
    modes = raw.DIMS[-len(sizes) :]
    return parse_recipe(
        {
            "name": "bench",
            "root": str(root),
            "data": {"source": str(source), "modes": list(modes), "sample_dim": raw.DIMS[0]},
            "decompose": {"ranks": dict(zip(modes, ranks, strict=True))},
            "align": {"min_overlap": 0.0},  # says nothing of samples without structure
            "compute": compute,
        }
    )


def encode(recipe: Recipe) -> tuple[Recipe, dict[str, float]]:
    """Run the stages as the command line does, in a new root under the recipe's; that recipe, and seconds by stage."""
    Path(recipe.root).mkdir(exist_ok=True)
    fresh = recipe.model_copy(update={"root": tempfile.mkdtemp(dir=recipe.root)})
    return fresh, {stage: stages.run(stage, fresh).seconds for stage in ENCODING}


@contextmanager
def counting_reads() -> Iterator[list[int]]:
    """How many samples each read of the source takes, in this process."""
    counts: list[int] = []
    original = sources.Samples.read

    def counted(samples: sources.Samples, indices: Any) -> Any:
        counts.append(len(indices))
        return original(samples, indices)

    with mock.patch.object(sources.Samples, "read", counted):
        yield counts


def start(cluster: Cluster) -> float:
    """Start the workers and have them import what they need; seconds."""
    started = time.perf_counter()
    for _ in cluster.map(partial(decompose.lazy_zeros, dtype=float), [(1,)] * 4 * cluster.slots):
        pass
    return time.perf_counter() - started


# --- each part alone ---------------------------------------------------------------------------------------------


class InMemory:
    """Samples whose fields are in memory already."""

    def __init__(self, samples: sources.Samples, x: raw.Array) -> None:
        self._samples, self._x = samples, x
        self.seconds = 0.0  # of copying, which a reader of files does not do

    def read(self, indices: Any) -> raw.Array:
        """As ``Samples.read``."""
        started = time.perf_counter()
        out: raw.Array = self._x[indices]
        self.seconds += time.perf_counter() - started
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)


@contextmanager
def stored_in_memory() -> Iterator[None]:
    """Have all that is read from the store come from memory."""
    known: dict[tuple[str, ...], xr.Dataset] = {}
    arrays: dict[tuple[str, ...], Any] = {}
    original = Version.dataset

    def loaded(version: Version, **options: Any) -> xr.Dataset:
        key = (version.group, version.snapshot, *map(str, options.items()))
        if key not in known:
            known[key] = original(version, **options).load()
        return known[key]

    def read(version: Version, names: Iterable[str], start: int, stop: int) -> dict[str, Any]:
        found = {}
        for name in names:
            key = (version.group, version.snapshot, name)
            if key not in arrays:
                arrays[key] = version.raw(name)[...]
            found[name] = arrays[key][start:stop].copy()
        return found

    read_group.cache_clear()
    with mock.patch.object(Version, "dataset", loaded), mock.patch.object(Version, "read", read):
        yield
    read_group.cache_clear()


Outputs = dict[str, dict[int, dict[str, Any]]]  # by group and first sample


def compute_alone(work: Workspace, calls: list[Call], x: raw.Array) -> tuple[float, Outputs]:
    """Seconds of what the workers compute, everything in memory; what they computed."""
    samples = InMemory(work.samples, x)
    outputs: Outputs = {}
    with stored_in_memory(), mock.patch.object(sources, "open_samples", return_value=samples):
        for call in calls:  # loads what is stored
            _replay(call, call.bounds[0])
        samples.seconds, started = 0.0, time.perf_counter()
        for call in calls:
            for bounds in call.bounds:
                made = _replay(call, bounds)
                if call.group:
                    outputs.setdefault(call.group, {})[bounds[0]] = made
        seconds = time.perf_counter() - started - samples.seconds
    return seconds, outputs


def _replay(call: Call, bounds: tuple[int, int]) -> Any:
    if isinstance(call.function, FillShard):
        return call.function.function(*bounds)
    return call.function(bounds, **call.shared)


def write_alone(work: Workspace, outputs: Outputs) -> dict[str, float]:
    """Seconds of writing all shards through the store, and of beginning, merging, committing and finishing."""
    folder = Path(tempfile.mkdtemp(dir=work.root))
    store, written, total = Store.create_or_open(folder), Alone(), 0.0
    for version in finished(work):
        arrays, ready = outputs.get(version.group), version.dataset()
        options: dict[str, Any] = {"fingerprint": version.fingerprint, "attrs": version.attrs}
        if arrays is None:
            ready = ready.load()
        started = time.perf_counter()
        if arrays is None:
            store.put(version.group, ready, **options)
        else:
            begun = store.begin(version.group, ready, shard=version.record.shard, **options)
            begun.fill(lambda start, stop, known=arrays: dict(known[start]), written)  # type: ignore[misc]
            begun.finish()
        total += time.perf_counter() - started
    shutil.rmtree(folder)
    return {"write": written.seconds, "commit": total - written.seconds}


def finished(work: Workspace) -> list[Version]:
    """What the stages have made."""
    return [Version(work.store, e["group"], e["snapshot"]) for e in work.store.versions() if e["complete"]]


def read_back_alone(work: Workspace) -> None:
    """Read what the later stages read from the store: factors twice, then the Tucker forms, then the primitives."""
    versions = {version.group: version for version in finished(work)}
    layout = decompose.layout_of(versions["primitives"])
    factors = [f"factor_{mode}" for mode in layout.aligned]
    tucker = [stream.name for stream in layout.tucker_streams]
    streams = [stream.name for stream in layout.streams]
    for group, names in (("tucker", factors), ("tucker", factors), ("tucker", tucker), ("primitives", streams)):
        version = versions[group]
        for start, stop in shard_bounds(version.record.n, version.record.shard):
            version.read(["status", "split", *names], start, stop)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for products of matrices, as a worker has."""
    threads = torch.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def parts_alone(recipe: Recipe, calls: list[Call], x: raw.Array, codec: raw.Codec, size: Size) -> dict[str, float]:
    """Seconds of each part, on one thread with one BLAS thread, pages in the cache."""
    work, source = Workspace(recipe), Path(recipe.data.source)
    with one_thread():
        found = {"read": best_seconds(lambda: raw.read(source), size.repeats), "decode": 0.0}
        if codec.decode is not None:
            compressed = raw.chunks(source)
            found["decode"] = best_seconds(partial(raw.decode, compressed, codec.decode), size.repeats, warmup=0)
            del compressed
        found["compute"], outputs = min((compute_alone(work, calls, x) for _ in range(size.repeats)), key=_first)
        writes = [write_alone(work, outputs) for _ in range(size.repeats)]
        found |= {name: min(each[name] for each in writes) for name in ("write", "commit")}
        found["read_back"] = best_seconds(lambda: read_back_alone(work), size.repeats, warmup=0)
    return found


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def measure_codec(codec: raw.Codec, x: raw.Array, size: Size, folder: Path) -> dict[str, Any]:
    """The stages with one worker against the sum of their parts, for one format and codec."""
    source = raw.write(x, codec, folder, "raw")
    compute = {"workers": 1, "memory": size.memory, "shard_samples": size.shard}
    recipe = recipe_of(source, folder / "root", size.sizes, size.ranks, **compute)
    wall, cpu = dict[str, float](), 0.0
    with open_cluster(recipe.compute) as cluster, Watch(cluster).watching() as watch:
        cluster.start()
        for _ in range(size.repeats):
            watch.calls.clear()
            before = time.process_time()
            with counting_reads() as counts:
                done, seconds = encode(recipe)
            if not wall or sum(seconds.values()) < sum(wall.values()):
                wall, cpu = seconds, time.process_time() - before
    reads = sum(counts) / len(x)
    parts = parts_alone(done, watch.calls, x, codec, size)
    passes = math.ceil(reads - 0.01)
    parts |= {"read": passes * parts["read"], "decode": passes * parts["decode"]}
    shutil.rmtree(recipe.root)
    found = {
        "codec": codec.name,
        "samples": len(x),
        "raw_bytes": x.nbytes,
        "stored_bytes": raw.stored_bytes(source),
        "samples_read_per_sample": reads,
        "in_flight": max(call.in_flight for call in watch.calls),
        "alone_s": parts,
        "sum_s": sum(parts.values()),
        "stages_s": wall,
        "wall_s": sum(wall.values()),
        "cpu_s": cpu,
        "ratio": sum(wall.values()) / sum(parts.values()),
    }
    remove(source)
    say(f"{codec.name}: {found['wall_s']:.1f} s, {found['ratio']:.2f} of the sum of its parts")
    return found


# --- workers and memory ------------------------------------------------------------------------------------------


def measure_workers(source: Path, size: Size, folder: Path) -> list[dict[str, Any]]:
    """The same work on each kind and number of workers, which are up before the clock starts."""
    found: list[dict[str, Any]] = []
    for processes, workers in size.workers:
        compute = {"processes": processes, "workers": workers, "memory": size.memory, "shard_samples": size.shard}
        recipe = recipe_of(source, folder / "root", size.sizes, size.ranks, **compute)
        plan(Workspace(recipe))  # refuses what does not fit
        with open_cluster(recipe.compute) as cluster:
            starting = start(cluster)
            wall = min((encode(recipe)[1] for _ in range(size.repeats)), key=lambda seconds: sum(seconds.values()))
        shutil.rmtree(recipe.root)
        row = {"kind": "processes" if processes else "threads", "workers": workers, "start_s": starting}
        found.append({**row, "stages_s": wall, "wall_s": sum(wall.values())})
        say(f"{row['workers']} {row['kind']}: {found[-1]['wall_s']:.1f} s")
    return [{**row, "speedup": _one(found, row["kind"])["wall_s"] / row["wall_s"]} for row in found]


def _one(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next(row for row in rows if row["kind"] == kind and row["workers"] == 1)


def measure_memory(few: Path, many: Path, size: Size, folder: Path) -> dict[str, Any]:
    """Peaks of one worker process and of the process that drives it, before, after ``N`` and after ``16 N`` samples."""
    compute = {"processes": size.apart, "workers": 1, "memory": size.memory, "shard_samples": size.shard}
    peaks: list[dict[str, int]] = []
    with open_cluster(Compute(**compute)) as cluster:
        start(cluster)
        for source in (None, few, many):
            if source is not None:
                recipe = recipe_of(source, folder / "root", size.sizes, size.ranks, **compute)
                encode(recipe)
            peaks.append({"worker": next(iter(cluster.map(peak_bytes, [0])))[1], "driver": peak_bytes()})
    predicted = int(plan(Workspace(recipe))["peak_bytes_per_worker"])
    shutil.rmtree(recipe.root)
    before, at_few, at_many = (peak["worker"] for peak in peaks)
    return {
        "samples": [size.samples // 16, size.samples],
        "peaks": dict(zip(("before", "N", "16N"), peaks, strict=True)),
        "growth": at_many / at_few,
        "work_bytes": at_many - before,
        "predicted_bytes": predicted,
        "limit_bytes": Compute(**compute).memory_bytes,
    }


# --- overhead against size ---------------------------------------------------------------------------------------


def measure_tiny(n: int, folder: Path) -> dict[str, Any]:
    """Seconds for each shard of one tiny sample, by stage."""
    source = raw.write(raw.fields(n, (8, 8), rank=4), raw.CODECS["zarr, none"], folder, "tiny", chunk=1)
    recipe = recipe_of(source, folder / "root", (8, 8), (2, 2), workers=2, shard_samples=1)
    with open_cluster(recipe.compute) as cluster, Watch(cluster).watching() as watch:
        start(cluster)
        _, seconds = encode(recipe)
    remove(Path(recipe.root))
    remove(source)
    say(f"{n} tiny shards: {sum(seconds.values()):.1f} s")
    return {
        "shards": n,
        "seconds_per_shard": {stage: each / n for stage, each in seconds.items()},
        "in_flight": max(call.in_flight for call in watch.calls),
    }


def tiny_shard(start: int, stop: int) -> dict[str, Any]:
    """One number for each sample."""
    return {"u": np.arange(start, stop, dtype=np.float32), "status": np.ones(stop - start, np.int8)}


def measure_growth(n: int, folder: Path) -> dict[str, Any]:
    """Filling ``n`` shards that cost nothing: scheduler, store and commits against what is already done."""
    template = xr.Dataset({"u": ("sample", np.zeros(n, np.float32))})
    commits: list[tuple[int, float]] = []
    marks: list[dict[str, Any]] = []
    tasks = 0
    original, process = Repository.commit, psutil.Process()

    def commit(store: Repository, session: Any, message: str, metadata: dict[str, Any]) -> str:
        started = time.perf_counter()
        snapshot = original(store, session, message, metadata)
        commits.append((int(metadata["done"]), time.perf_counter() - started))
        return snapshot

    with open_cluster(Compute(workers=2)) as cluster, Watch(cluster).watching() as watch:
        start(cluster)
        watch.calls.clear()
        scheduler = cluster._client.cluster.scheduler

        def mark(done: int, failed: int) -> None:
            nonlocal tasks
            tasks = max(tasks, len(scheduler.tasks))
            if done * BINS // n > (done - 1) * BINS // n:
                marks.append({"done": done, "rss_bytes": process.memory_info().rss, "tasks": tasks})
                tasks = 0

        version = Store.create_or_open(folder / "growth").begin("tiny", template, fingerprint="a", shard=1)
        with mock.patch.object(Repository, "commit", commit):
            # Oftener than it would commit by itself, so that there are many commits to compare.
            version.fill(tiny_shard, cluster, commit_every=max(1, n // (4 * BINS)), progress=mark)
        started = time.perf_counter()
        version.finish()
        finish = time.perf_counter() - started
    remove(folder / "growth")
    say(f"{n} shards through the store alone: {watch.calls[0].seconds[-1]:.1f} s")
    return {**_growth(watch.calls[0], commits, n), "marks": marks, "finish_s": finish}


def _growth(call: Call, commits: list[tuple[int, float]], n: int) -> dict[str, Any]:
    """Means over equal stretches, and their exponents in the number of shards done: 0 does not grow."""
    edges = np.linspace(0, n, BINS + 1).astype(int)
    done = ((edges[1:] + edges[:-1]) / 2).tolist()
    each = np.diff(call.seconds, prepend=0.0)
    ours = np.asarray(call.ours)
    where = np.searchsorted(edges, [at for at, _ in commits], side="left") - 1
    taken = np.asarray([seconds for _, seconds in commits])
    bins: dict[str, list[float]] = {
        "done": done,
        "seconds_per_shard": [float(each[a:b].mean()) for a, b in itertools.pairwise(edges)],
        "bookkeeping_s_per_shard": [float(ours[a:b].mean()) for a, b in itertools.pairwise(edges)],
        "seconds_per_commit": [
            float(taken[where == i].mean()) if (where == i).any() else math.nan for i in range(BINS)
        ],
    }
    slopes = {name: _slope(done, values) for name, values in bins.items() if name != "done"}
    return {
        "shards": n,
        "seconds": call.seconds[-1],
        "commits": len(commits),
        "in_flight": call.in_flight,
        "bins": {name: [None if math.isnan(v) else v for v in values] for name, values in bins.items()},
        "slopes": slopes,
    }


def _slope(x: list[float], y: list[float]) -> float:
    known = np.isfinite(y)
    return slope(np.asarray(x)[known].tolist(), np.asarray(y)[known].tolist())


def remove(path: Path) -> None:
    """Delete a file or a tree."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def say(text: str) -> None:
    """Progress, for who waits."""
    print(text, flush=True)


# --- all of it ---------------------------------------------------------------------------------------------------


def measure(size: Size, folder: Path) -> dict[str, Any]:
    """Everything, in one run."""
    x = raw.fields(size.samples, size.sizes)
    codecs = [measure_codec(raw.CODECS[name], x[: size.few], size, folder) for name in size.codecs]
    main = [measure_codec(raw.CODECS[name], x, size, folder) for name in size.main]
    many = raw.write(x, raw.CODECS[MAIN], folder, "many")
    few = raw.write(x[: size.samples // 16], raw.CODECS[MAIN], folder, "few")
    del x
    call = in_process if size.apart else in_this_process
    out = {
        "size": asdict(size),
        "main": main,
        "codecs": codecs,
        "workers": measure_workers(many, size, folder),
        "memory": call(measure_memory, few, many, size, folder),
    }
    remove(many)
    remove(few)
    tiny = [measure_tiny(n, folder) for n in size.tiny]
    return {**out, "tiny": tiny, "growth": measure_growth(size.shards, folder)}


def tables(found: dict[str, Any]) -> str:
    """What was found, to be read."""
    size, memory = found["size"], found["memory"]
    shape = " x ".join(map(str, size["sizes"]))
    parts = [
        [
            row["codec"],
            row["samples"],
            row["raw_bytes"] / row["stored_bytes"],
            *(row["alone_s"][part] for part in PARTS),
            row["sum_s"],
            row["wall_s"],
            row["ratio"],
            row["raw_bytes"] / row["wall_s"] / 1e6,
        ]
        for row in (*found["main"], *found["codecs"])
    ]
    workers = [[r["kind"], r["workers"], r["start_s"], r["wall_s"], r["speedup"]] for r in found["workers"]]
    peaks = [
        [name, *(f"{peak[who] / 2**20:.0f}" for who in ("worker", "driver"))] for name, peak in memory["peaks"].items()
    ]
    tiny = [
        [row["shards"], row["in_flight"], *(1e3 * row["seconds_per_shard"][stage] for stage in ENCODING)]
        for row in found["tiny"]
    ]
    fastest = max(found["codecs"], key=lambda row: row["raw_bytes"] / row["wall_s"])
    smallest = max(found["codecs"], key=lambda row: row["raw_bytes"] / row["stored_bytes"])
    return f"""# From raw fields to committed primitives

Samples {shape}, float32; stages {", ".join(ENCODING)}. Files are in the page cache;
`compute.memory` is {size["memory"]}.

## Each part alone, in seconds, and the stages with one worker

{markdown(["source", "samples", "ratio", *PARTS, "sum", "wall", "wall/sum", "MB/s"], parts)}

Each part on one thread, for as many passes over the source as the stages make
({found["main"][0]["samples_read_per_sample"]:.2f} reads of each sample); `compute`: what the workers compute, all in
memory; `read_back`: reading Tucker forms and primitives from the store, for the stages after the first. Zarr decodes
chunks on threads of its own, so `wall` can be less than `sum`. `ratio`: raw bytes to stored bytes. Of sources of equal
size, "{fastest["codec"]}" was encoded fastest; "{smallest["codec"]}" is the smallest.

## Workers

{markdown(["kind", "workers", "start s", "wall s", "times one"], workers)}

## Memory of one worker process, MiB

{markdown(["after", "worker", "driver"], peaks)}

N = {memory["samples"][0]}, 16 N = {memory["samples"][1]} samples: {memory["growth"]:.3f} times the memory.
The work took {memory["work_bytes"] / 2**20:.0f} MiB, `diffats plan` said {memory["predicted_bytes"] / 2**20:.0f} MiB.

## Overhead: shards of one sample of 8 x 8, ms a shard, two threads

{markdown(["shards", "in flight", *ENCODING], tiny)}

{growth_table(found["growth"])}"""


def growth_table(growth: dict[str, Any]) -> str:
    """Costs of a shard at the beginning and at the end of a long run."""
    ends = [
        [name, values[0], values[-1], growth["slopes"][name]]
        for name, values in growth["bins"].items()
        if name != "done"
    ]
    marks, quarter = growth["marks"], len(growth["marks"]) // 4
    held = [max(mark["tasks"] for mark in part) for part in (marks[:quarter], marks[-quarter:])]
    return f"""## {growth["shards"]} shards of one number through scheduler and store

{markdown(["what", "first 1/16", "last 1/16", "exponent"], ends)}

{growth["seconds"]:.0f} s, {growth["commits"]} commits, at most {growth["in_flight"]} shards in flight. The
scheduler held at most {held[0]} tasks in the first quarter and {held[1]} in the last, the
process {marks[0]["rss_bytes"] / 2**20:.0f} and {marks[-1]["rss_bytes"] / 2**20:.0f} MiB.
`finish` took {growth["finish_s"]:.2f} s.
"""


def picture(found: dict[str, Any]) -> Figure:
    """The parts by codec, workers, and the cost of a shard against the shards done."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1.4))
    rows = [*found["main"], *found["codecs"]]
    bottom = np.zeros(len(rows))
    per_gb = np.array([1e9 / row["raw_bytes"] for row in rows])
    for part in PARTS:
        height = np.array([row["alone_s"][part] for row in rows]) * per_gb
        left.bar(range(len(rows)), height, bottom=bottom, label=part, width=0.6)
        bottom += height
    wall = np.array([row["wall_s"] for row in rows]) * per_gb
    left.plot(wall, "k_", markersize=28, label="wall, one worker")
    names = [f"{row['codec']}, {row['samples']}" for row in rows]
    left.set_xticks(range(len(rows)), [name.replace(", ", "\n").replace(" + ", "\n+ ") for name in names], fontsize=6)
    left.set_ylim(top=1.35 * float(max(bottom.max(), wall.max())))
    left.set(ylabel="seconds a GB of raw data", title="each part alone: source, samples")
    left.legend(fontsize=7, ncols=4, loc="upper left")
    names = [f"{row['workers']} {row['kind']}" for row in found["workers"]]
    middle.bar(names, [row["wall_s"] for row in found["workers"]], width=0.6)
    middle.tick_params(axis="x", labelrotation=30)
    middle.set(ylabel="wall seconds", title="workers")
    _draw_growth(right, found["growth"])
    return figure


def _draw_growth(ax: Any, growth: dict[str, Any]) -> None:
    for name in ("seconds_per_shard", "bookkeeping_s_per_shard", "seconds_per_commit"):
        values = [math.nan if value is None else value for value in growth["bins"][name]]
        ax.loglog(
            growth["bins"]["done"], values, ".-", label=f"{name.replace('_', ' ')}: {growth['slopes'][name]:+.2f}"
        )
    ax.set(xlabel="shards done", ylabel="seconds", title="cost against what is done, exponent")
    ax.legend(fontsize=7)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = arguments("Costs of encoding, part by part; --full: the long run of tiny shards alone.", argv)
    if options.mode == "full":
        _long_run(options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="diffats-bench-") as folder:
        found = measure(QUICK if options.mode == "quick" else DEFAULT, Path(folder))
    table = tables(found)
    print(table)
    if options.folder is not None:
        save("pipeline", {"mode": options.mode, **found}, table, picture(found), options.folder)


def _long_run(destination: Path) -> None:
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory(prefix="diffats-bench-") as folder:
        growth = measure_growth(LONG, Path(folder))
    table = growth_table(growth)
    print(table)
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    _draw_growth(figure.subplots(), growth)
    save("shards", {"growth": growth}, table, figure, destination)


if __name__ == "__main__":
    main()
