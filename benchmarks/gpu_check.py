"""What can only be known on a GPU, in eight minutes: `python -m benchmarks.gpu_check`, or `make gpu-check`.

Do kernels, networks and resumed trainings give there what they give on the CPU, and how far from the device's bounds
are encoding, training, sampling and loading? Nothing is needed but the checkout and what the library imports. Each
part runs in a process of its own, with a limit, and what it finds is written at once: a part that fails is reported
with its error, and the others run. Without a GPU all of it runs on the CPU at smaller sizes, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks import gpu_kernels, gpu_networks, training_step
from benchmarks.common import RESULTS, markdown, processor_features, save
from benchmarks.gpu_run import SIZES, Row, Run

ROOT = Path(__file__).parents[1]
_TAIL = 25  # lines of a failed part's output
_CPU_PATIENCE = 3  # times the limits: compilers take long, and a laptop does other work


@dataclass(frozen=True)
class Part:
    """A part of the check: its title, what gives its rows, and seconds after which it is stopped."""

    title: str
    rows: Callable[[Run], Iterator[Row]]
    limit: float


#: In the order in which they run; the limits are less than eight minutes together.
PARTS = {
    "device": Part("The device", gpu_kernels.device, 30),
    "kernels": Part("Kernels against the CPU in float64", gpu_kernels.equality, 50),
    "networks": Part("Networks against the CPU in float64", gpu_networks.network_equality, 35),
    "resume": Part("The same bits", gpu_networks.resuming, 35),
    "encoding": Part("Encoding", gpu_kernels.encoding, 40),
    "training": Part("Training", gpu_networks.training, 50),
    "loading": Part("Loading", gpu_networks.loading, 25),
    "sampling": Part("Sampling", gpu_networks.sampling, 35),
    "graphs": Part("Training with CUDA graphs", gpu_networks.graphs, 90),
    "compile": Part("Training with torch.compile", gpu_networks.compiling, 80),
}


# --- running ---------------------------------------------------------------------------------------------------------


def check(
    device: str, size: str, write: Callable[[dict[str, Any]], None], limits: Mapping[str, float]
) -> dict[str, Any]:
    """Run the parts that have a limit, one after the other; ``write`` gets the results after every row."""
    found: dict[str, Any] = {"device": device, "size": size, "processor": processor_features(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="diffats-gpu-check-") as folder:
        for name, limit in limits.items():
            entry: dict[str, Any] = {"state": "running", "rows": []}
            found["parts"][name] = entry
            started = time.perf_counter()
            for row in _rows(entry, name, device, size, Path(folder) / name, limit):
                entry["rows"].append(row)
                write(found)
            entry["seconds"] = time.perf_counter() - started
            print(f"{PARTS[name].title}: {entry['state']}, {entry['seconds']:.0f} s", flush=True)
            write(found)
    return found


def _rows(entry: dict[str, Any], name: str, device: str, size: str, folder: Path, limit: float) -> Iterator[Row]:
    """Rows of a part as they come; how it ended goes into ``entry``."""
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    command += ["--device", device, "--size", size, "--part", name]
    environment = {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    environment["TRITON_CACHE_DIR"] = str(folder / "triton")
    if device == "cpu":  # about whether the check runs: two threads that wait for each other may not end in time
        environment["OMP_NUM_THREADS"] = "1"
    with (
        tempfile.TemporaryFile("w+") as output,
        _process(command, environment, output) as process,
    ):
        late = threading.Event()
        timer = threading.Timer(limit, _stop, (process, late))
        timer.daemon = True
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # else it was stopped within it
                yield json.loads(line)
        code = process.wait()
        timer.cancel()
        entry["state"] = "done"
        if code != 0:
            entry["state"] = f"stopped after {limit:g} s" if late.is_set() else f"failed, exit code {code}"
            output.seek(0)
            entry["output"] = _without_places(output.read().splitlines()[-_TAIL:], folder)


@contextmanager
def _process(command: Sequence[str], environment: dict[str, str], output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A process and its children, which end with this block; what it prints on standard error goes to ``output``."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=output,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _stop(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _without_places(lines: Sequence[str], folder: Path) -> list[str]:
    """Without the folders of this machine: results are published."""
    places = {str(folder): "FOLDER", str(ROOT): ".", sys.prefix: "ENVIRONMENT", sys.base_prefix: "PYTHON"}
    places[str(Path.home())] = "HOME"
    out = []
    for line in lines:
        for place, word in places.items():
            line = line.replace(place, word) if place != "/" else line
        out.append(line)
    return out


def print_part(name: str, device: str, size: str) -> None:
    """The rows of one part, a line of JSON each; whatever else prints, prints on standard error."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as rows, tempfile.TemporaryDirectory() as folder:
        os.dup2(2, 1)
        for row in PARTS[name].rows(Run(torch.device(device), SIZES[size], Path(folder))):
            rows.write(json.dumps(row) + "\n")
            rows.flush()


# --- the page --------------------------------------------------------------------------------------------------------


def failures(found: dict[str, Any]) -> list[str]:
    """What did not run to its end, and what does not hold; a line each."""
    out = []
    for name, entry in found["parts"].items():
        if entry["state"] != "done":
            out.append(f"{PARTS[name].title}: {entry['state']}")
        for row in entry["rows"]:
            if row.get("holds") is False:
                what = [row[key] for key in ("network", "what", "case", "dtype", "precision") if key in row]
                size = row.get("difference", row.get("largest_difference"))
                out.append(f"{PARTS[name].title}: not equal: {', '.join(what)} (difference {size:.1e})")
    return out


def page(found: dict[str, Any]) -> str:
    """All of it, to be read."""
    bounds = {row["what"]: row for row in _of(found, "device")}
    where = _device_words(bounds) if found["device"] == "cuda" else "**no GPU was there: this run is on a CPU**"
    problems = failures(found)
    lines = ["# Check on a GPU", "", f"Device: {where}. Processor: {found['processor']}.", ""]
    if found["device"] != "cuda":
        lines += [
            "It shows that the check runs, at reduced sizes and on one thread; it says nothing about a GPU. Times and"
        ]
        lines += ["bounds vary with what else the machine does, and shares, of which some exceed 100 %, with them.", ""]
    lines += [f"- {problem}" for problem in problems] or ["All parts ran to their end, and what is compared holds."]
    missing = [f"- {line}" for line in _not_run(found)]
    lines += ["", "Not run:", "", *missing] if missing else ["", "Nothing was left out."]
    tables = {
        "device": _device_table,
        "kernels": _equality_table,
        "networks": _equality_table,
        "resume": _resume_table,
        "encoding": _encoding_table,
        "training": _training_table,
        "graphs": _training_table,
        "compile": _training_table,
        "sampling": _sampling_table,
        "loading": _loading_table,
    }
    for name, entry in found["parts"].items():
        rows = [row for row in entry["rows"] if "not_run" not in row]
        lines += ["", f"## {PARTS[name].title}", ""]
        lines += [tables[name](rows, found, bounds)] if rows else ["Nothing was measured."]
        if entry.get("output"):
            lines += ["", "It ended with:", "", "```", *entry["output"], "```"]
    return "\n".join(lines)


def _of(found: dict[str, Any], name: str) -> list[Row]:
    return [row for row in found["parts"].get(name, {"rows": []})["rows"] if "not_run" not in row]


def _not_run(found: dict[str, Any]) -> list[str]:
    grouped: dict[str, list[str]] = {}
    for name, entry in found["parts"].items():
        for row in entry["rows"]:
            if "not_run" in row:
                what = row.get("what") or f"{row['network']} in {row['precision']} ({row['how']})"
                grouped.setdefault(f"{PARTS[name].title} ({row['not_run']})", []).append(what)
    return [f"{title}: {', '.join(what)}" for title, what in grouped.items()]


def _device_words(bounds: Mapping[str, Row]) -> str:
    facts = bounds.get("facts", {})
    names = ("capability", "memory_gib", "multiprocessors", "driver", "cuda", "bfloat16")
    return ", ".join([str(facts.get("name", "unknown")), *(f"{name} {facts[name]}" for name in names if name in facts)])


def _share(row: Row, bounds: Mapping[str, Row]) -> str:
    """What the bound takes of the time: operations at the product's speed, or bytes at the copy's, the longer."""
    product, copy = bounds.get(row["product"]), bounds.get("copy")
    if product is None or copy is None:
        return "unknown"
    least = max(row["flops"] / product["flops_per_s"], row.get("bytes", 0) / copy["bytes_per_s"])
    return f"{least / row['seconds']:.1%}"


def _device_table(rows: list[Row], _found: dict[str, Any], _bounds: Mapping[str, Row]) -> str:
    cells = [
        *(
            [f"product in {row['what']}", f"{row['flops_per_s'] / 1e12:.3g} Tflop/s"]
            for row in rows
            if "flops_per_s" in row
        ),
        *([row["what"], f"{row['bytes_per_s'] / 1e9:.3g} GB/s"] for row in rows if "bytes_per_s" in row),
        *([row["what"], f"{1e6 * row['seconds']:.3g} us"] for row in rows if "seconds" in row),
    ]
    note = "A copy counts bytes read and written. The time of one small operation is what launching a kernel costs."
    return f"{markdown(['bound', 'measured'], cells)}\n\n{note}"


def _equality_table(rows: list[Row], _found: dict[str, Any], _bounds: Mapping[str, Row]) -> str:
    worst: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["what"], row["dtype"]
        worst[key] = max(worst.get(key, row), row, key=lambda row: row["difference"] / row["bound"])
    header = ["what", "dtype", "largest difference", "bound", "holds", "where"]
    cells = [
        [
            what,
            dtype,
            f"{row['difference']:.1e}",
            f"{row['bound']:.0e}",
            "yes" if row["holds"] else "**NO**",
            row["case"],
        ]
        for (what, dtype), row in worst.items()
    ]
    return f"Relative to the norm of a sample, over all cases.\n\n{markdown(header, cells)}"


def _resume_table(rows: list[Row], _found: dict[str, Any], _bounds: Mapping[str, Row]) -> str:
    words = {"again": "run a second time", "interrupted": "interrupted, and gone on from its checkpoint"}
    cells = [
        [row["network"], row["precision"], row["steps"], words[row["what"]], "yes" if row["holds"] else "**NO**",
         f"{row['largest_difference']:.1e}"]
        for row in rows
    ]  # fmt: skip
    header = ["network", "precision", "steps", "training", "the same weights to the bit", "largest difference"]
    return markdown(header, cells)


def _encoding_table(rows: list[Row], _found: dict[str, Any], bounds: Mapping[str, Row]) -> str:
    cells = [
        [row["what"], row["case"], row["dtype"], row["batch"], 1e6 * row["seconds"], _share(row, bounds)]
        for row in rows
    ]
    return markdown(["what", "samples", "dtype", "batch", "us a sample", "of the bound"], cells)


def _training_table(rows: list[Row], found: dict[str, Any], bounds: Mapping[str, Row]) -> str:
    parts = training_step.PARTS
    usual = "bfloat16" if found["device"] == "cuda" else "float32"
    now = {row["network"]: row["seconds"] for row in _of(found, "training") if row["precision"] == usual}
    cells = []
    for row in rows:
        each = row["parts_s"]
        shares = (
            _share({**row, "flops": row["network_flops"], "seconds": seconds}, bounds)
            for seconds in (row["seconds"], each["forward"] + each["backward"])
        )
        what = (row[key] for key in ("network", "precision", "how", "batch", "tokens"))
        times = (1e3 * each[part] for part in parts)
        faster = now[row["network"]] / row["seconds"] if row["network"] in now else None
        cells.append([*what, 1e3 * row["seconds"], faster, *shares, *times, row["first_s"]])
    header = ["network", "precision", "how", "batch", "tokens", "ms a step", f"times as fast as now ({usual}, eager)"]
    header += ["of the bound", "forward and backward, of it"]
    note = (
        "A step without its batch, which is read beside the step before. Parts are timed alone, each to its end: on a\n"
        "GPU they add up to more than a step. Bound: the network's products, forward and backward, at the speed\n"
        "of a large one in this precision; the optimiser's count as overhead. The second step's loss is compared with\n"
        "that of an eager step of this precision."
    )
    return f"{markdown([*header, *(f'{part}, ms' for part in parts), 'first step, s'], cells)}\n\n{note}"


def _sampling_table(rows: list[Row], _found: dict[str, Any], bounds: Mapping[str, Row]) -> str:
    header = ["network", "precision", "how", "samples at once", "network calls a second", "of the bound"]
    cells = [
        [row["network"], row["precision"], row["how"], row["batch"], 1 / row["seconds"], _share(row, bounds)]
        for row in rows
    ]
    return f"{markdown(header, cells)}\n\nWith {gpu_networks.SAMPLER}, {gpu_networks.CALLS} calls for a sample."


def _loading_table(rows: list[Row], found: dict[str, Any], bounds: Mapping[str, Row]) -> str:
    fastest: dict[str, float] = {}
    for row in (row for name in ("training", "graphs", "compile") for row in _of(found, name)):
        fastest[row["network"]] = min(fastest.get(row["network"], float("inf")), row["seconds"])
    way = bounds.get("host to device", bounds.get("copy"))
    cells = []
    for row in rows:
        later = row["later_s"] + row["draw_s"] + row["to_device_s"]
        step = fastest.get(row["network"])
        bound = "unknown" if way is None else f"{row['bytes'] / way['bytes_per_s'] / later:.1%}"
        times = [1e3 * row[key] for key in ("first_s", "later_s", "draw_s", "to_device_s")]
        cells.append(
            [
                row["network"],
                row["batch"],
                row["bytes"] / 1e6,
                *times,
                bound,
                "unknown" if step is None else f"{later / step:.1%}",
            ]
        )
    header = ["network", "batch", "MB", "first pass, ms", "later, ms", "noise, ms", "to the device, ms"]
    note = (
        "A batch from a Zarr store on this machine's disk, with random shifts where the recipe asks for them. Shares\n"
        "are those of a later pass with its noise and its way to the device; the step is the fastest that was measured."
    )
    return f"{markdown([*header, 'of the way to the device', 'of the fastest step'], cells)}\n\n{note}"


# --- the command -----------------------------------------------------------------------------------------------------


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: a GPU where there is one"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work? saves nothing without --out")
    parser.add_argument("--out", type=Path, help=f"where results go ({RESULTS.parent.name}/{RESULTS.name})")
    parser.add_argument("--part", choices=tuple(PARTS), help="print the rows of one part, and save nothing")
    parser.add_argument("--size", choices=tuple(SIZES), help="what to measure, by default what fits the device")
    options = parser.parse_args(argv)
    there = torch.cuda.is_available()
    if options.device == "auto":
        options.device = "cuda" if there else "cpu"
    if options.device == "cuda" and not there:
        parser.error("no CUDA device is available here. Use --device cpu, or a torch that is built for CUDA.")
    options.size = options.size or ("tiny" if options.quick else "gpu" if options.device == "cuda" else "cpu")
    options.out = options.out or (None if options.quick else RESULTS)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Check, print and save; 1 where something did not run to its end or does not hold."""
    options = _options(argv)
    if options.part is not None:
        print_part(options.part, options.device, options.size)
        return 0

    def write(found: dict[str, Any]) -> None:
        if options.out is not None:
            save("gpu_check", found, page(found), folder=options.out)

    patience = 1 if options.device == "cuda" else _CPU_PATIENCE
    found = check(options.device, options.size, write, {name: patience * part.limit for name, part in PARTS.items()})
    print(page(found))
    return 1 if failures(found) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a part ends with the check
    sys.exit(main())
