"""A training step by part against the machine's own products, with one thread and all, alone and beside busy processes.

``python -m benchmarks.training [--quick] [--folder PATH]``
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import arguments, best_seconds, markdown, processor_features, save
from benchmarks.training_step import AFTER, PARTS, Prepare, Problem, Step, compiled, eager
from diffats.muon import orthogonalise
from diffats.pace import Pace, Way
from diffats.training import hidden_matrices

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CPU = torch.device("cpu")
BUSY = 2  # processes beside the training
_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm.default: 0, _ATEN.bmm.default: 0, _ATEN.addmm.default: 1, _ATEN.baddbmm.default: 1}


@dataclass(frozen=True)
class Network:
    """A network that is measured: its name, changes of its recipe, and how much is timed."""

    name: str
    label: str
    overrides: tuple[str, ...] = ()
    repeats: int = 15
    compare: bool = True  # with torch.optim.Muon, AdamW alone, and torch.compile


@dataclass(frozen=True)
class Size:
    """What is measured."""

    networks: tuple[Network, ...]
    compile: bool = True
    samples: int = 256


DEFAULT = Size(
    (
        Network("demo", "demo"),
        Network("small", "burgers_2d, small"),
        Network("paper", "burgers_2d, paper; batch 8", ("train.batch=8",), repeats=3, compare=False),
    )
)
TINY = ("model.width=16", "model.depth=1", "model.heads=2", "train.batch=4")
QUICK = Size((Network("demo", "demo", TINY, repeats=2),), compile=False, samples=16)


# --- the bound -------------------------------------------------------------------------------------------------------


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the matrix products that are called, by the shapes of their two matrices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a product, and do it."""
        if func in _PRODUCTS:
            a, b = args[_PRODUCTS[func] : _PRODUCTS[func] + 2]
            self.shapes[tuple(a.shape), tuple(b.shape)] += 1
        return func(*args, **(kwargs or {}))


def products(call: Callable[[], object]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The products of a call; attention counts as the two that it is.

    >>> x = torch.ones(2, 3)
    >>> products(lambda: (x @ x.T, x @ x.T))
    Counter({((2, 3), (3, 2)): 2})
    """
    counted = Products()
    with sdpa_kernel(SDPBackend.MATH), counted:
        call()
    return counted.shapes


def bound_seconds(shapes: Counter[tuple[tuple[int, ...], tuple[int, ...]]], repeats: int) -> float:
    """How long bare products of these shapes take, each timed by itself, its matrices in the cache where they fit."""
    total = 0.0
    for (left, right), count in shapes.items():
        a, b = torch.randn(left), torch.randn(right)
        out = a @ b
        calls = max(1, min(50, int(2e8 / (2 * out.numel() * left[-1] + 1))))  # some milliseconds

        def several(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out, calls: int = calls) -> None:
            for _ in range(calls):
                torch.matmul(a, b, out=out)

        total += count * best_seconds(several, repeats) / calls
    return total


# --- steps -----------------------------------------------------------------------------------------------------------


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(count)  # until they compute
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def parts_seconds(step: Step, repeats: int) -> dict[str, float]:
    """The median time of each part of a step."""
    times: dict[str, list[float]] = {part: [] for part in PARTS}
    for again in range(repeats + 1):
        for part in times:
            started = time.perf_counter()
            getattr(step, part)()
            if again:
                times[part].append(time.perf_counter() - started)
    return {part: statistics.median(seconds) for part, seconds in times.items()}


def measure(network: Network, size: Size) -> dict[str, Any]:
    """Everything about one network."""
    problem = Problem.named(network.name, network.overrides, size.samples)
    step = Step(problem, CPU, "float32", eager)
    own = products(lambda: (step.forward(), step.backward()))  # type: ignore[func-returns-value]
    updates = products(step.optimiser)
    rows, threads = [], torch.get_num_threads()
    for neighbours in (0, BUSY):
        with busy(neighbours):
            chosen = Pace(lambda _: _trial(step), device="cpu", precision="float32").way
            for count in sorted({1, threads, chosen.threads}):
                rows.append(_row(step, network, neighbours, count, own, updates))
            for row in rows:
                row["chosen"] |= row["busy"] == neighbours and row["threads"] == chosen.threads
    return {
        "network": network.label,
        "batch": problem.recipe.train.batch,
        "tokens": step.denoiser.n_tokens + step.denoiser.condition.count,
        "parameters": sum(p.numel() for p in step.denoiser.parameters()),
        "optimizer": problem.recipe.train.optimizer,
        "rows": rows,
        "others": _others(problem, network, size) if network.compare else [],
    }


def _trial(step: Step) -> list[torch.Tensor]:
    """What a training tries: a step that changes no weights."""
    step.denoiser.zero_grad(set_to_none=True)
    step.forward()
    step.backward()
    hidden = hidden_matrices(step.denoiser) if step.train.optimizer == "muon" else []
    return orthogonalise([p.grad for p in hidden if p.grad is not None])


def _row(
    step: Step, network: Network, neighbours: int, threads: int, own: Counter[Any], updates: Counter[Any]
) -> dict[str, Any]:
    with Way(threads, "float32").hold():
        parts = parts_seconds(step, network.repeats)
        row: dict[str, Any] = {"busy": neighbours, "threads": threads, "parts_s": parts, "chosen": False}
        row["step_s"] = _after(parts)
        if not neighbours:
            row["network_bound_s"] = bound_seconds(own, network.repeats)
            row["update_bound_s"] = bound_seconds(updates, network.repeats)
            row["network_share"] = row["network_bound_s"] / (parts["forward"] + parts["backward"])
            row["step_share"] = (row["network_bound_s"] + row["update_bound_s"]) / row["step_s"]
        row["loading_share"] = parts["batch"] / row["step_s"]
        row["muon_share"] = parts["muon"] / row["step_s"]
    return row


def _after(parts: Mapping[str, float]) -> float:
    """Seconds of what is not done beside the step before."""
    return sum(parts[part] for part in AFTER)


def _others(problem: Problem, network: Network, size: Size) -> list[dict[str, Any]]:
    """The same network with other optimisers, and compiled; alone, with one thread."""
    ways: dict[str, tuple[str, Prepare]] = {"as it is": ("muon", eager), "AdamW alone": ("adamw", eager)}
    ways["torch.optim.Muon"] = ("torch", eager)
    if size.compile:
        ways["torch.compile"] = ("muon", compiled)
    found = []
    with Way(1, "float32").hold():
        for name, (optimizer, prepare) in ways.items():
            step = Step(_with_optimizer(problem, "adamw" if optimizer == "adamw" else "muon"), CPU, "float32", prepare)
            if optimizer == "torch":
                step.optimizers[1] = _torchs(step.optimizers[1])
            started = time.perf_counter()
            step.whole()
            first = time.perf_counter() - started
            parts = parts_seconds(step, min(network.repeats, 7))
            found.append({"how": name, "first_s": first, "step_s": _after(parts), "parts_s": parts})
    return found


def _with_optimizer(problem: Problem, name: str) -> Problem:
    train = problem.recipe.train.model_copy(update={"optimizer": name})
    return Problem(problem.recipe.model_copy(update={"train": train}), problem.data)


def _torchs(ours: torch.optim.Optimizer) -> torch.optim.Muon:
    group = ours.param_groups[0]
    return torch.optim.Muon(group["params"], lr=group["lr"], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


# --- the page --------------------------------------------------------------------------------------------------------


def page(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: steps by part, and the same network trained otherwise."""
    header = ["network", "beside", "threads", *(f"{part}, ms" for part in PARTS), "step, ms", "muon"]
    header += ["loading", "network of bound", "step of bound"]
    rows = [_cells(result["network"], row) for result in results for row in result["rows"]]
    facts = [
        f"{r['network']}: {r['parameters'] / 1e6:.1f} million parameters, {r['tokens']} tokens, batch {r['batch']}, "
        f"{r['optimizer']}."
        for r in results
    ]
    others = [
        [r["network"], row["how"], 1e3 * row["step_s"], 1e3 * _optimiser(row["parts_s"]), row["first_s"]]
        for r in results
        for row in r["others"]
    ]
    return "\n\n".join(
        [
            "# A training step",
            f"Median milliseconds of a step's parts in float32 on {processor_features()}. The batch is read and the "
            "noise drawn beside the step before, so the step is the sum of the others. *Chosen*: what `diffats train` "
            "would take there. The bound is the time of the bare matrix products of the same shapes, measured in the "
            "same run: of the network's own (forward and backward), and of all (with the optimiser's).",
            markdown(header, rows),
            " ".join(facts),
            "The same networks alone on one thread, otherwise trained. The first step compiles.",
            markdown(["network", "how", "step, ms", "optimiser, ms", "first step, s"], others),
        ]
    )


def _optimiser(parts: Mapping[str, float]) -> float:
    return parts["adamw"] + parts["muon"]


def _cells(name: str, row: dict[str, Any]) -> list[object]:
    beside = f"{row['busy']} busy processes" if row["busy"] else "nothing"
    threads = f"{row['threads']}{', chosen' if row['chosen'] else ''}"
    milliseconds = [1e3 * row["parts_s"][part] for part in PARTS]
    shares = [_percent(row.get(key)) for key in ("muon_share", "loading_share", "network_share", "step_share")]
    return [name, beside, threads, *milliseconds, 1e3 * row["step_s"], *shares]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def picture(results: Sequence[dict[str, Any]]) -> Figure:
    """Bars of each network's step by part, by threads and neighbours, against the bound."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(results), 4), layout="constrained")
    for axes, result in zip(figure.subplots(1, len(results), squeeze=False)[0], results, strict=True):
        names = [f"{row['threads']} thread{'s' * (row['threads'] > 1)}\n{row['busy']} busy" for row in result["rows"]]
        bottom = [0.0] * len(names)
        for part in AFTER:
            heights = [1e3 * row["parts_s"][part] for row in result["rows"]]
            axes.bar(names, heights, bottom=bottom, label=part)
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        axes.set(title=result["network"], ylabel="ms a step")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[-1].legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and save."""
    options = arguments(__doc__ or "", argv)
    size = QUICK if options.mode == "quick" else DEFAULT
    results = []
    for network in size.networks:
        results.append(measure(network, size))
        print(page(results[-1:]), flush=True)
    if options.folder is not None:
        save(
            "training",
            {"processor": processor_features(), "networks": results},
            page(results),
            picture(results),
            options.folder,
        )


if __name__ == "__main__":
    main()
