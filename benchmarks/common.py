"""What every benchmark shares: the machine in words, the best of several timings, and writing results."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import psutil
import threadpoolctl

from diffats.disk import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

#: Where committed results lie.
RESULTS = Path(__file__).parent / "results"
_LIBRARIES = (
    *("numpy", "scipy", "torch", "tensorly", "pyttb", "kmedoids"),
    *("zarr", "icechunk", "xarray", "h5netcdf", "dask", "distributed"),
)


def machine() -> dict[str, Any]:
    """Processor, memory, versions and thread counts, and the day; nothing that names the computer or its owner."""
    # A library loaded twice, or two that share one, gives one row each; paths would tell about the computer.
    threads = {pool["internal_api"]: int(pool["num_threads"]) for pool in threadpoolctl.threadpool_info()}
    return {
        "cpu": _cpu(),
        "features": _features(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name)) is not None},
        "threads": dict(sorted(threads.items())),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


_FEATURES = (  # as a processor's flags name them (x86 and Arm); of each row the first that is there
    (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sve", "SVE"), ("asimd", "NEON")),
    (("avx512_bf16", "bfloat16"), ("avx_ne_convert", "bfloat16"), ("bf16", "bfloat16")),
    (("amx_bf16", "AMX"), ("amx_tile", "AMX"), ("sme", "SME")),
)


def processor_features() -> str:
    """The processor, its cores, and what decides how fast it multiplies matrices: vectors, bfloat16, matrix units.

    >>> processor_features().split(", ")[0] == machine()["cpu"]
    True
    """
    facts = machine()
    return ", ".join([str(facts["cpu"]), f"{facts['cores']} cores", *facts["features"]])


def _features() -> list[str]:
    flags = _flags()
    if not flags:
        return ["features unknown"]
    rows = [next((name for flag, name in row if flag in flags), None) for row in _FEATURES]
    rows[1] = rows[1] or "no bfloat16"
    return [row for row in rows if row is not None]


def _flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, []))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_line() -> str:
    """``machine()`` in one line, for the foot of a table."""
    facts = machine()
    libraries = ", ".join(f"{name} {version}" for name, version in facts["libraries"].items())
    threads = ", ".join(f"{name} {count}" for name, count in facts["threads"].items())
    return (
        f"{processor_features()}, {facts['memory_gib']} GiB, {facts['system']}; "
        f"Python {facts['python']}, {libraries}; threads: {threads}; {facts['date']}."
    )


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """``mode`` ("quick", "default" or "full") and ``folder``, ``None`` where nothing is to be saved."""
    parser = argparse.ArgumentParser(description=description)
    modes = parser.add_mutually_exclusive_group()
    for mode, text in (("quick", "seconds: does it work? saves nothing without --folder"), ("full", "the large sizes")):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="default", help=text)
    parser.add_argument("--folder", type=Path, help=f"where results go ({RESULTS.parent.name}/{RESULTS.name})")
    found = parser.parse_args(argv)
    if found.folder is None and found.mode != "quick":
        found.folder = RESULTS
    return found


def best_seconds(f: Callable[[], object], repeats: int, warmup: int = 1) -> float:
    """The least wall time of ``repeats`` calls, in seconds, after ``warmup`` calls that do not count.

    >>> best_seconds(lambda: None, 3) < 1
    True
    """
    for _ in range(warmup):
        f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def in_process(f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``f`` in a new process, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(f, *args, **kwargs).result()


def in_this_process(f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``f``; for trying what ``in_process`` would take seconds to start."""
    return f(*args, **kwargs)


def peak_bytes(_: object = None) -> int:
    """The most memory that this process has ever held (resident), in bytes; the argument lets a cluster map it.

    >>> peak_bytes() > 2**20
    True
    """
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone: getrusage starts from what the parent process held
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of ``y`` in ``x``: least squares through the logarithms.

    >>> round(slope([1, 10, 100], [3, 30, 300]), 6)
    1.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers with three digits.

    >>> print(markdown(["what", "s"], [["read", 0.12345]]))
    | what | s |
    |---|---|
    | read | 0.123 |
    """
    lines = [list(header), *([_shown(cell) for cell in row] for row in rows)]
    first, *rest = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([first, "|" + "---|" * len(header), *rest])


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:.0f}"
    return "" if cell is None else str(cell)


def save(
    name: str, results: dict[str, Any], table_markdown: str, figure: Figure | None = None, folder: Path = RESULTS
) -> None:
    """Write ``NAME.json``, ``NAME.md`` and ``NAME.png`` into a folder; the machine is added to the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"machine": machine(), **results}
    texts = {"json": json.dumps(tree, indent=1) + "\n", "md": f"{table_markdown.rstrip()}\n\n{machine_line()}\n"}
    for ending, text in texts.items():
        replace_file(folder / f"{name}.{ending}", partial(Path.write_text, data=text, encoding="utf-8"))
    if figure is not None:
        figure.savefig(folder / f"{name}.png", dpi=110)
