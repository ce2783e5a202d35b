"""Preprocess, train and generate again and again in one process, on a source that grows: nothing else may grow.

``python -m benchmarks.soak --minutes 30``. Each cycle appends samples to the source, encodes them, trains a small model
from the start, generates and evaluates, removes old models, and prunes the stores to two versions. Memory, open files,
threads and disk are looked at after every cycle. At the end the growth over the last two thirds of the run, from a
straight line through it, is compared with stated bounds, and the exit code is 1 where one is exceeded.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import psutil
import xarray as xr

from diffats import stages
from diffats.compute import open_cluster
from diffats.config import Recipe, parse_recipe
from diffats.stages import Workspace, versions

CYCLE = ("decompose", "select_anchor", "align", "fit_normalisation", "train", "generate", "evaluate")
FIRST, APPENDED = 240, 8  # samples
SIZES = (24, 32)
KEPT_MODELS = 2
IDLE_SECONDS = 11  # Icechunk's threads that have nothing to do for ten seconds end
SETTLED = 1 / 3  # of the run: libraries load and caches fill until then


@dataclass(frozen=True)
class Sample:
    """What the process holds after a cycle.

    Attributes
    ----------
    memory
        Resident set, in MiB.
    files, threads
        Open descriptors and threads.
    disk
        Bytes of the root for each byte of the source.
    """

    memory: float
    files: float
    threads: float
    disk: float


#: Most that each may grow over the last two thirds of the run: memory in MiB, disk as a share of itself.
BOUNDS = Sample(memory=64.0, files=4.0, threads=4.0, disk=0.25)


def main(argv: Sequence[str] | None = None) -> int:
    """Run for some minutes; print what grew; 1 where it is too much."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=float, default=30.0, help="how long; two at least say anything")
    minutes = options.parse_args(argv).minutes
    logging.getLogger("diffats").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="diffats-soak-") as folder:
        taken = soak(Path(folder), 60 * minutes)
    grown = growth(taken)
    for name, value, bound in rows(grown):
        print(f"{name:<8} grew by {value:8.2f}, at most {bound:g}{'' if value <= bound else '   TOO MUCH'}")
    return int(any(value > bound for _, value, bound in rows(grown)))


def soak(folder: Path, seconds: float) -> list[Sample]:
    """Cycles until the time is over, and what each left."""
    recipe, end = small_recipe(folder), time.monotonic() + seconds
    taken: list[Sample] = []
    grow(folder, FIRST)
    with open_cluster(recipe.compute):
        while time.monotonic() < end or len(taken) < 6:
            began = time.monotonic()
            cycle(recipe)
            taken.append(look(folder))
            last = taken[-1]
            print(
                f"{len(taken):4d}: {time.monotonic() - began:5.1f} s, memory {last.memory:7.1f} MiB, {last.files:.0f} "
                f"files, {last.threads:.0f} threads, {last.disk:.2f} bytes on disk for each of the source",
                flush=True,
            )
            grow(folder, APPENDED)
    return taken


def small_recipe(folder: Path) -> Recipe:
    """A recipe whose cycle takes seconds."""
    return parse_recipe(
        {
            "name": "soak",
            "root": str(folder / "root"),
            "data": {
                "source": str(folder / "u.zarr"),
                "variables": ["u"],
                "modes": ["y", "x"],
                "sample_dim": "time",
                "grows": True,
                "split": {"test": 0.2},
            },
            "decompose": {"ranks": {"y": 4, "x": 4}},
            "model": {"width": 32, "depth": 2, "heads": 2},
            "train": {"steps": 30, "batch": 16, "warmup": 5, "checkpoint_every": 10},
            "generate": {"count": 16, "steps": 4, "batch": 8},
            "evaluate": {"members": 2, "samples": 16},
            "compute": {"workers": 2, "shard_samples": 16, "device": "cpu"},
        }
    )


def grow(folder: Path, count: int) -> None:
    """Append samples to the source, of the same kind as those before."""
    place = folder / "u.zarr"
    first = xr.open_zarr(place, consolidated=False).sizes["time"] if place.exists() else 0
    rng = np.random.default_rng(first)
    y, x = (np.sin(np.outer(np.arange(n) + 1, np.arange(1, 5)) * 0.2) for n in SIZES)
    u = np.einsum("nr,yr,xr->nyx", rng.normal(size=(count, 4)), y, x) + 0.05 * rng.normal(size=(count, *SIZES))
    part = xr.Dataset({"u": (("time", "y", "x"), u.astype("f4"))}, coords={"time": first + np.arange(count)})
    if first:
        part.to_zarr(place, append_dim="time", consolidated=False, zarr_format=3)
    else:
        chunks = {"u": {"chunks": (APPENDED, *SIZES)}, "time": {"chunks": (1024,)}}
        part.to_zarr(place, consolidated=False, zarr_format=3, encoding=chunks)


def cycle(recipe: Recipe) -> None:
    """All stages, then what an operator does to keep a root small."""
    with stages.tracked(recipe, latest=True) as parent:
        for stage in CYCLE:
            stages.run(stage, recipe, parent_run=parent if stage in ("train", "evaluate") else None)
    for kind in ("training", "bundles"):  # before their data, which stay as long as a model made from them
        found = [path for path in Path(recipe.root, kind).iterdir() if path.is_dir()]
        for old in sorted(found, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_MODELS]:
            shutil.rmtree(old)
    versions.prune(Workspace(recipe), 2)


def look(folder: Path) -> Sample:
    """What this process holds now; memory that is free goes back to the system first, where it can."""
    time.sleep(IDLE_SECONDS)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    process = psutil.Process()
    return Sample(
        memory=process.memory_info().rss / 2**20,
        files=process.num_fds(),
        threads=process.num_threads(),
        disk=used(folder / "root") / used(folder / "u.zarr"),
    )


def used(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def growth(taken: Sequence[Sample]) -> Sample:
    """How much each grew over the settled part of the run: the slope of the line through it, times its length."""
    settled = taken[int(SETTLED * len(taken)) :]
    at = np.arange(len(settled))
    grown = {}
    for name in (field.name for field in fields(Sample)):
        values = np.array([getattr(sample, name) for sample in settled])
        slope = np.polyfit(at, values, 1)[0] * (len(settled) - 1)
        grown[name] = float(slope / values[0] if name == "disk" else slope)
    return Sample(**grown)


def rows(grown: Sample) -> list[tuple[str, float, float]]:
    """Name, growth and bound of each."""
    return [(field.name, getattr(grown, field.name), getattr(BOUNDS, field.name)) for field in fields(Sample)]


if __name__ == "__main__":
    sys.exit(main())
