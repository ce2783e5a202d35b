"""Parts of ``benchmarks.gpu_check``: networks on the device against the CPU, training, sampling, resuming, loading."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import synthetic
from benchmarks.gpu_kernels import difference
from benchmarks.gpu_run import NOT_RUN, Row, Run, agreement, judged
from benchmarks.training_step import (
    PARTS,
    Batch,
    Call,
    Callee,
    Prepare,
    Problem,
    Step,
    as_network,
    compiled,
    eager,
)
from diffats.diffusion import Diffusion, Draw, Network, element_weights
from diffats.generation import generate
from diffats.loader import PrimitiveSet
from diffats.models import Denoiser
from diffats.training import WEIGHTS, train

#: Largest relative differences of predictions, gradients and samples from those of float64 on the CPU.
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}
SAMPLER, CALLS = "dpm++", 10
_COMPARED = 2  # samples
_WARM_UP = 3


def problem_of(run: Run, name: str, *, folder: Path | None = None) -> Problem:
    """One of ``synthetic.NETWORKS``, as large as the run has it."""
    given = [] if run.size.batch is None else [f"train.batch={run.size.batch}"]
    return Problem.named(name, [*run.size.overrides, *given], run.size.samples, shard=run.size.shard, folder=folder)


# --- networks against float64 on the CPU -----------------------------------------------------------------------------


def network_equality(run: Run) -> Iterator[Row]:
    """Predictions, gradients and samples on the device against those of float64 on the CPU."""
    for name in run.size.networks:
        problem = problem_of(run, name)
        network = problem.denoiser()
        z, cond, draw = problem.batch(_COMPARED, torch.device("cpu"))
        wide = {key: x.double() if x.is_floating_point() else x for key, x in cond.items()}
        batch = (z.double(), wide, Draw(draw.t, draw.eps.double(), draw.drop))
        expected = _answers(problem, network.double(), "float32", batch)
        there = problem.batch(_COMPARED, run.device)
        network = network.float().to(run.device)
        for precision, bound in BOUNDS.items():
            found = _answers(problem, network, precision, there)
            for what, a, b in zip(("prediction", "gradient"), found, expected, strict=True):
                yield judged(what, name, precision, difference=difference(a, b.numpy()), bound=bound)
    yield _compared_samples(run, run.size.networks[0])


def _answers(problem: Problem, network: Denoiser, precision: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Predictions ``(B, D)``, and the gradient of the loss ``(1, parameters)``."""
    z, cond, draw = batch
    diffusion, weights = Diffusion(problem.recipe.diffusion), element_weights(problem.data.sizes).to(z)
    call = as_network(Call(network, problem.names, precision), problem.names)
    with torch.no_grad():
        prediction = call(diffusion.add_noise(z, draw.eps, draw.t), draw.t, cond, draw.drop)
    loss = diffusion.loss(call, z, cond, weights, draw)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return prediction.float() if precision == "bfloat16" else prediction, torch.cat(
        [g.reshape(1, -1) for g in gradients], 1
    )


def _compared_samples(run: Run, name: str) -> Row:
    """The same network on both devices, in float32: their noise is the same."""
    problem = problem_of(run, name)
    network = problem.denoiser()
    expected = _drawn(problem, network, torch.device("cpu"))
    found = _drawn(problem, network.to(run.device), run.device)
    return judged("samples", name, "float32", difference=difference(found, expected), bound=10 * BOUNDS["float32"])


def _drawn(problem: Problem, network: Network, device: torch.device, count: int = _COMPARED) -> np.ndarray:
    _, cond = problem.read(count)
    layout, diffusion = problem.data.layout, Diffusion(problem.recipe.diffusion)
    given = {"cond": cond, "steps": CALLS, "sampler": SAMPLER, "batch": count, "device": device.type}
    return generate(network, layout, diffusion, range(count), 0, **given)  # type: ignore[arg-type]


# --- training --------------------------------------------------------------------------------------------------------


def _compiled_with_graphs(call: Call, _inputs: tuple[Tensor, ...]) -> Callee:
    compiled = torch.compile(call, mode="reduce-overhead")

    def marked(*given: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        prediction: Tensor = compiled(*given)
        return prediction

    return marked


def _captured(call: Call, inputs: tuple[Tensor, ...]) -> Callee:
    graphed: Callee = torch.cuda.make_graphed_callables(call, inputs, allow_unused_input=True)  # type: ignore[assignment]
    return graphed


def operations(problem: Problem, device: torch.device) -> dict[str, int]:
    """Flops of the products in a training step, and in one network call without a gradient."""
    step = Step(problem, device, "float32", eager)
    counted = {}
    with sdpa_kernel(SDPBackend.MATH):  # as products, which are counted alike on every device
        for name, parts in (
            ("forward", ["forward"]),
            ("network", ["forward", "backward"]),
            ("optimiser", ["optimiser"]),
        ):
            with FlopCounterMode(display=False) as counter:
                for part in parts:
                    getattr(step, part)()
            counted[name] = int(counter.get_total_flops())
    return counted


def training(run: Run) -> Iterator[Row]:
    """Steps as they are now, in every precision."""
    for name in run.size.networks:
        problem = problem_of(run, name)
        flops = operations(problem, run.device)
        for precision in ("float32", "bfloat16"):
            yield _timed_step(run, name, problem, flops, precision, precision, "eager", eager)
        if run.cuda:
            torch.set_float32_matmul_precision("high")
            yield _timed_step(run, name, problem, flops, "float32", "TF32", "eager", eager)
            torch.set_float32_matmul_precision("highest")
        else:
            yield {"network": name, "precision": "TF32", "how": "eager", "not_run": NOT_RUN}


def compiling(run: Run) -> Iterator[Row]:
    """Steps of a network that ``torch.compile`` has compiled; their losses are those of eager ones."""
    precision = "bfloat16" if run.cuda else "float32"
    for name in run.size.networks:
        row = {"network": name, "precision": precision, "how": "compile"}
        if name not in run.size.compiled:
            yield {**row, "not_run": "it takes minutes on a CPU"}
            continue
        problem = problem_of(run, name)
        flops = operations(problem, run.device)
        yield _timed_step(run, name, problem, flops, precision, precision, "compile", compiled)


def graphs(run: Run) -> Iterator[Row]:
    """Steps of a network whose kernels are launched at once, by CUDA graphs, with and without ``torch.compile``."""
    ways: dict[str, Prepare] = {"graphs": _captured, "compile, graphs": _compiled_with_graphs}
    for how, prepare in ways.items():
        for name in run.size.networks:
            if not run.cuda:
                yield {"network": name, "precision": "bfloat16", "how": how, "not_run": NOT_RUN}
                continue
            problem = problem_of(run, name)
            flops = operations(problem, run.device)
            yield _timed_step(run, name, problem, flops, "bfloat16", "bfloat16", how, prepare)


def _timed_step(
    run: Run,
    name: str,
    problem: Problem,
    flops: dict[str, int],
    precision: str,
    product: str,
    how: str,
    prepare: Prepare,
) -> Row:
    expected = _second_loss(Step(problem, run.device, precision, eager))
    step = Step(problem, run.device, precision, prepare)
    first = run.seconds(step.whole)
    loss = _second_loss(step, done=1)
    run.seconds(step.whole, _WARM_UP)
    seconds = run.best(step.whole)
    parts = {part: float("inf") for part in PARTS}
    for _ in range(run.size.repeats + 1):
        for part in PARTS:
            parts[part] = min(parts[part], run.seconds(getattr(step, part)))
    return {
        "network": name,
        "precision": product,
        "how": how,
        "batch": problem.recipe.train.batch,
        "tokens": step.denoiser.n_tokens + step.denoiser.condition.count,
        "parameters": sum(p.numel() for p in step.denoiser.parameters()),
        "first_s": first,
        "seconds": seconds,
        "parts_s": parts,
        "flops": flops["network"] + flops["optimiser"],
        "network_flops": flops["network"],
        "product": product,
        "what": "loss of the second step",
        **agreement(abs(loss - expected) / expected, BOUNDS[precision]),
    }


def _second_loss(step: Step, done: int = 0) -> float:
    """After one update: wrong gradients would show in it."""
    for _ in range(2 - done):
        step.whole()
    return float(step.loss.detach())


# --- sampling --------------------------------------------------------------------------------------------------------


def sampling(run: Run) -> Iterator[Row]:
    """Network calls a second in ``generate``."""
    for name in run.size.networks:
        problem = problem_of(run, name)
        count = problem.recipe.generate.batch if run.size.batch is None else run.size.batch
        network = problem.denoiser().to(run.device).eval().requires_grad_(False)
        flops = operations(problem, run.device)["forward"] * count // problem.recipe.train.batch
        for precision, how in (("float32", "eager"), ("bfloat16", "eager"), ("bfloat16", "graphs")):
            row: Row = {"network": name, "precision": precision, "how": how, "sampler": SAMPLER, "batch": count}
            if how == "graphs" and not run.cuda:
                yield {**row, "not_run": NOT_RUN}
                continue
            call: Callee = Call(network, problem.names, precision)
            if how == "graphs":
                call = _replayed(problem, call, count, run.device)
            drawing = partial(_drawn, problem, as_network(call, problem.names), run.device, count)
            seconds = run.best(drawing) / CALLS
            yield {**row, "seconds": seconds, "flops": flops, "product": precision}


@torch.no_grad()
def _replayed(problem: Problem, call: Callee, count: int, device: torch.device) -> Callee:
    """The call as a CUDA graph, without gradients: its inputs are copied in, its prediction is copied out."""
    z, cond, draw = problem.batch(count, device)
    held = [z, draw.t, *(cond[name] for name in problem.names)]
    # what is allocated at the first call must be there before capture
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call(held[0], held[1], None, *held[2:])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prediction = call(held[0], held[1], None, *held[2:])

    def replay(z: Tensor, t: Tensor, _drop: Tensor | None, *given: Tensor) -> Tensor:
        for target, source in zip(held, (z, t, *given), strict=True):
            target.copy_(source)
        graph.replay()
        return prediction.clone()

    return replay


# --- the same bits ---------------------------------------------------------------------------------------------------


class _Interrupted(Exception):
    """Ends a training as a crash would: without a last checkpoint."""


def resuming(run: Run) -> Iterator[Row]:
    """Whether a training ends with the same bits when it is run twice, and when it is interrupted and goes on."""
    name = run.size.networks[0]
    for precision in ("float32", "bfloat16"):
        problem = _with_steps(problem_of(run, name), run.size.steps, precision)
        trained = {how: run.folder / f"{precision}-{how}" for how in ("once", "again", "interrupted")}
        for how, folder in trained.items():
            if how == "interrupted":
                _interrupted(problem, folder, run.device, 3 * run.size.steps // 4)
            train(problem.data, problem.recipe, folder, device=run.device.type)
        once = trained.pop("once") / WEIGHTS
        for how, folder in trained.items():
            row = _same(once, folder / WEIGHTS)
            yield {"network": name, "precision": precision, "what": how, "steps": run.size.steps, **row}


def _with_steps(problem: Problem, steps: int, precision: str) -> Problem:
    settings = {
        "steps": steps,
        "checkpoint_every": max(1, steps // 2),
        "log_every": max(1, steps // 2),
        "precision": precision,
    }
    recipe = problem.recipe.model_copy(update={"train": problem.recipe.train.model_copy(update=settings)})
    return Problem(recipe, problem.data)


def _interrupted(problem: Problem, folder: Path, device: torch.device, after: int) -> None:
    def stop(step: int, _steps: int) -> None:
        if step == after:
            raise _Interrupted

    try:
        train(problem.data, problem.recipe, folder, progress=stop, device=device.type)
    except _Interrupted:
        return
    raise AssertionError(f"the training of {problem.recipe.train.steps} steps did not come to step {after}")


def _same(once: Path, other: Path) -> Row:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (once, other)]
    a, b = (load_file(path) for path in (once, other))
    largest = max(float((a[key].double() - b[key].double()).abs().max()) for key in a)
    return {"holds": digests[0] == digests[1], "largest_difference": largest, "weights": digests}


# --- loading ---------------------------------------------------------------------------------------------------------


def loading(run: Run) -> Iterator[Row]:
    """Seconds of reading a batch: in the first pass over a store on disk, later, and bringing it to the device."""
    for name in run.size.networks:
        problem = problem_of(run, name, folder=run.folder)
        data, size = problem.data, problem.recipe.train.batch
        first, later = (run.seconds(partial(_read_all, data, size, number)) / _steps(data, size) for number in (0, 1))
        z, cond = problem.read(size)
        draw, tensors = problem.draw(size), [torch.from_numpy(x) for x in (z, *cond.values())]
        yield {
            "network": name,
            "batch": size,
            "bytes": synthetic.batch_bytes(data, size),
            "first_s": first,
            "later_s": later,
            "draw_s": run.best(partial(problem.draw, size)),
            "to_device_s": run.best(partial(_bring, tensors, draw, run.device)),
        }


def _steps(data: PrimitiveSet, size: int) -> int:
    return -(-len(data.train) // size)


def _read_all(data: PrimitiveSet, size: int, number: int) -> None:
    """Every batch of one pass over the samples."""
    steps = _steps(data, size)
    for step in range(number * steps, (number + 1) * steps):
        data.read_step(0, step, size)


def _bring(tensors: Sequence[Tensor], draw: Draw, device: torch.device) -> None:
    for x in tensors:
        x.to(device)
    draw.to(device)
