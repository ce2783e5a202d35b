"""Training: from primitives to averaged weights, with atomic checkpoints and exact resume.

Everything random in step ``s`` is a function of (seed, s), and the learning rate of (s, ``train.steps``), so a training
that was interrupted anywhere and run again ends with the same bits as an unbroken one on the same machine.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import errno
import functools
import hashlib
import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffats import calibration, config, processes
from diffats.diffusion import Diffusion, Draw, element_weights, random_source
from diffats.digests import file_digest, is_signed, signed
from diffats.disk import replace_file, replace_folder, replace_text
from diffats.errors import InputError, Terminated, TrainingDivergedError
from diffats.loader import PrimitiveSet
from diffats.models import Denoiser, resolve_device
from diffats.muon import Muon, orthogonalise
from diffats.pace import Pace, Precision, fast_products, precisions
from diffats.primitives import field_sensitivity
from diffats.progress import duration, waiting

logger = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
HISTORY = "history.jsonl"
CALIBRATION = "calibration.safetensors"
KEPT_CHECKPOINTS = 2
SENSITIVITY_SAMPLES = 256
HELDOUT_SAMPLES = 64
_TIMED_SECONDS = 3.0  # of steps, from which the time of all is told
_CALIBRATING = timedelta(hours=6)  # at most: the first of several processes calibrates while the others wait
_INITIAL, _STEP, _HELDOUT, _TRIAL = 3, 4, 5, 6  # keep the random numbers of these uses of one seed apart

Tensors = dict[str, Tensor]
Log = Callable[[dict[str, float], int], None]


@dataclass(frozen=True)
class TrainResult:
    """What a training left: averaged weights and, where asked for, a calibration (safetensors), and the curves."""

    weights: Path
    calibration: Path | None
    step: int
    seconds: float
    heldout_loss: float
    history: list[dict[str, float]]


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest held-out loss so far."""

    step: int
    loss: float
    weights: Tensors


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after ``step`` steps."""

    step: int
    tensors: dict[str, Tensors]
    state: dict[str, Any] = field(default_factory=dict)


def learning_rate(step: int, train: config.Train) -> float:
    """The rate of one step: linear warm-up, then a cosine from ``train.lr`` to a tenth of it at ``train.steps``.

    The warm-up is cut to half of the steps. A training that goes on with more steps follows the longer schedule from
    where it stands: the rate rises again, and the earlier steps are not repeated.

    >>> train = config.Train(steps=1000, lr=1e-3, warmup=100)
    >>> [round(learning_rate(step, train), 6) for step in (0, 99, 550, 1000)]
    [1e-05, 0.001, 0.00055, 0.0001]
    """
    warmup = min(train.warmup, train.steps // 2)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, train.steps - warmup)
    return train.lr * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def average_decay(step: int, decay: float) -> float:
    """Decay of the averaged weights after ``step`` updates: short memory at first, so that the start is forgotten.

    >>> average_decay(0, 0.999), average_decay(10**6, 0.999)
    (0.1, 0.999)
    """
    return min(decay, (1 + step) / (10 + step))


# Checkpoints


def write_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint-<step>`` so that it is there whole or not at all, and remove all but the last two."""
    final = directory / f"checkpoint-{checkpoint.step}"
    for begun in directory.glob(".checkpoint-*"):  # also of another step, by a process that was killed
        shutil.rmtree(begun, ignore_errors=True)
    with replace_folder(final) as folder:
        digests = {}
        for name, tensors in checkpoint.tensors.items():
            path = folder / f"{name}.safetensors"
            calibration.save_tensors(path, tensors)
            digests[path.name] = file_digest(path)
        state = signed({"step": checkpoint.step, "files": digests, **checkpoint.state})
        (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for _, old in _checkpoints(directory)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read_checkpoint(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is intact; None where there is none. Damaged ones are logged and passed over."""
    for step, path in _checkpoints(directory):
        try:
            return _load_checkpoint(path, step)
        except _DAMAGE as error:
            if getattr(error, "errno", None) in _IN_THE_WAY:
                raise
            logger.warning("%s is damaged (%s): trying the one before.", path, error)
    return None


def remove_damaged(directory: Path, intact: int) -> None:
    """Remove checkpoints after the newest intact one: they would take the place of one that could be used."""
    for step, path in _checkpoints(directory):
        if step > intact:
            shutil.rmtree(path, ignore_errors=True)


def damaged_checkpoints(directory: Path) -> list[str]:
    """What is wrong with the checkpoints of a training, a line each."""
    found = []
    for step, path in _checkpoints(directory):
        try:
            _load_checkpoint(path, step)
        except _DAMAGE as error:
            found.append(f"{path} is damaged ({error}). Training that goes on uses the one before.")
    return found


def _checkpoints(directory: Path) -> list[tuple[int, Path]]:  # newest first
    found = []
    for path in directory.glob("checkpoint-*"):
        number = path.name.partition("-")[2]
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found, reverse=True)


# What a lost, cut or changed file of a checkpoint raises.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError)
# What keeps this process from a file that may be all right: nothing is then taken for damaged, and removed.
_IN_THE_WAY = (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.ESTALE)


def _load_checkpoint(path: Path, step: int) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not is_signed(state):
        raise ValueError("state.json does not match its digest")
    del state["digest"]
    tensors = {}
    for name, digest in state.pop("files").items():
        if file_digest(path / name) != digest:
            raise ValueError(f"{name} does not match its digest")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    if state.pop("step") != step:
        raise ValueError("state.json is of another step")
    return Checkpoint(step, tensors, state)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is for."""
    return [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks.")]


def make_optimizers(model: nn.Module, train: config.Train) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the others, at the same rate."""
    lr, decay = train.lr, train.weight_decay
    matrices = hidden_matrices(model) if train.optimizer == "muon" else []
    hidden = set(matrices)
    others = [p for p in model.parameters() if p not in hidden]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, weight_decay=decay, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=decay))
    return optimizers


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Tensors:
    return {
        f"{key}/{name}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        if parameter in optimizer.state
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizers(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Tensors) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names.values()}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        states[name][kind] = value
    for optimizer in optimizers:
        whole = optimizer.state_dict()
        own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        whole["state"] = dict(enumerate(states[name] for name in own))
        optimizer.load_state_dict(whole)


# Curves


def read_history(directory: Path) -> list[dict[str, float]]:
    """The logged metrics of a training, oldest first; empty where there are none."""
    path = directory / HISTORY
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the process was killed while it wrote this line
            break
    return rows


def _write_history(directory: Path, rows: list[dict[str, float]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    replace_text(directory / HISTORY, text)


# The training itself


def loss_weights(data: PrimitiveSet, weighting: str, seed: int = 0) -> Tensor:
    """Weights ``(D,)`` of the numbers of a primitive in the loss; their sum is 1 where there are no coordinates.

    ``"stream"``: a mean over each stream, then over streams. ``"field"``: by how much of the field each number is, to
    first order, so that the loss is the field's error as long as errors are small; found from the samples that the
    first steps train on, which few shards hold. Both are the same along the axes on which coordinates turn a stream,
    so there a number's weight is that of the stream's own numbers times its unit squared.
    """
    streams, normalisation = data.layout.streams, data.normalisation
    if weighting == "stream":
        relative = [np.broadcast_to(normalisation.unit(s.name) / normalisation.scale[s.name], s.shape) for s in streams]
        return (
            element_weights(data.sizes) * torch.from_numpy(np.concatenate([d.ravel() for d in relative]) ** 2).float()
        )
    z, _ = data.read(data.batch(seed, 0, min(len(data.train), SENSITIVITY_SAMPLES)))
    sensitivity = field_sensitivity(normalisation.undo(data.layout.unflatten(z)), data.layout)

    def squared(unit: Callable[[str], Any]) -> np.ndarray:
        return np.concatenate([(sensitivity[s.name] * unit(s.name) ** 2).reshape(-1) for s in streams])

    whole = squared(normalisation.scale.__getitem__).sum()
    return torch.from_numpy((squared(normalisation.unit) / whole).astype(np.float32))


class _Stop:
    """Whether Ctrl-C or SIGTERM has asked to stop, and which."""

    number: int | None = None

    def error(self, text: str) -> KeyboardInterrupt:
        """What the training then ends with."""
        return Terminated(text) if self.number == signal.SIGTERM else KeyboardInterrupt(text)


@contextlib.contextmanager
def _stop_request() -> Iterator[_Stop]:
    """Notes Ctrl-C or SIGTERM; a second signal acts at once. Only the main thread can listen."""
    asked = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    # None: a handler that was not installed from Python
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        logger.warning("%s: saving a checkpoint, then stopping.", signal.Signals(number).name)
        asked.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()


def _settings(data: PrimitiveSet, recipe: config.Recipe) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued; ``train.steps`` and the intervals may differ."""
    arrays = data.normalisation.to_arrays()
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    chosen = config.as_before(recipe.model_dump(mode="json"))
    return {
        "seed": recipe.seed,
        "model": recipe.model.model_dump(),
        "diffusion": chosen["diffusion"],
        "train": {key: value for key, value in chosen["train"].items() if key not in config.NOT_LEARNED},
        "dropout": recipe.data.condition.dropout,
        "layout": data.layout.to_dict(),
        "conditions": {key: value for key, value in data.conditions.to_dict().items() if key != "ranges"},
        "normalisation": digest.hexdigest(),
        "samples": len(data.train),
    }


def _autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _leave_group() -> None:
    """End the connections between processes before Python does, whose end may else abort (SIGABRT) in their threads."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Training:
    """The network, its optimiser and averaged weights, and how many steps they have seen."""

    def __init__(
        self,
        data: PrimitiveSet,
        recipe: config.Recipe,
        directory: Path,
        *,
        log: Log,
        progress: Callable[[int, int], None] | None,
        device: str,
        threads: int | None,
    ) -> None:
        self.data, self.recipe, self.train, self.directory = data, recipe, recipe.train, directory
        self.log, self.progress, self.threads = log, progress, threads
        # Accelerate's device is that of the whole process; alone, the recipe decides. Without an accelerator it does
        # not see that a launcher started several processes, unless it is told to use the CPU.
        wanted = resolve_device(device)
        launched = processes.count() > 1
        if launched:
            logger.info("train: %s", processes.meeting())
        waiting = InitProcessGroupKwargs(timeout=_CALIBRATING)
        self.accelerator = Accelerator(
            device_placement=False,
            cpu=launched and wanted.type == "cpu",
            mixed_precision="no",  # the recipe has its own
            kwargs_handlers=[waiting],
        )
        alone = self.accelerator.num_processes == 1
        if not alone:
            atexit.unregister(_leave_group)
            atexit.register(_leave_group)
        self.device = wanted if alone else self.accelerator.device
        self._check_batch()
        self.diffusion = Diffusion(recipe.diffusion)
        self.element_weights = loss_weights(data, recipe.train.weighting, recipe.seed).to(self.device)
        self._build()
        self.step, self.seconds = 0, 0.0
        self.heldout_loss = math.nan
        self.best: Best | None = None
        self.pace: Pace | None = None
        self._kept_pace: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []
        self.settings = _settings(data, recipe)
        self._heldout: tuple[Tensor, Tensors, Draw] | None = None
        self._start_window()

    def _check_batch(self) -> None:
        number = self.accelerator.num_processes
        if self.train.batch % number:
            raise InputError(
                f"train.batch {self.train.batch} is no multiple of the {number} processes. "
                f"Use {number * max(1, self.train.batch // number)}."
            )

    def _build(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_source(self.recipe.seed, _INITIAL).initial_seed())
            denoiser = Denoiser(self.data.layout, self.data.conditions, self.recipe.model, self.data.normalisation)
        self.denoiser = denoiser.to(self.device)
        self.ema = AveragedModel(self.denoiser)
        self.ema.requires_grad_(False)
        optimizers = make_optimizers(self.denoiser, self.train)
        self.network, *self.optimizers = self.accelerator.prepare(self.denoiser, *optimizers)

    # resume

    def restore(self) -> None:
        """Continue from the newest intact checkpoint, if there is one."""
        checkpoint = read_checkpoint(self.directory)
        if checkpoint is None:
            return
        self._check_settings(checkpoint)
        if self.accelerator.is_main_process:
            remove_damaged(self.directory, checkpoint.step)
        self.denoiser.load_state_dict(checkpoint.tensors["model"])
        self.ema.module.load_state_dict(checkpoint.tensors["ema"])
        self.ema.n_averaged.fill_(checkpoint.step)
        _load_optimizers(self.denoiser, self._inner_optimizers, checkpoint.tensors["optimizer"])
        self.step, self.seconds = checkpoint.step, float(checkpoint.state["seconds"])
        self._kept_pace = checkpoint.state.get("pace")
        if "best" in checkpoint.tensors:
            step, loss = checkpoint.state["best"]
            self.best = Best(step, loss, checkpoint.tensors["best"])
        if checkpoint.state["heldout_loss"] is not None:
            self.heldout_loss = float(checkpoint.state["heldout_loss"])
        self.history = [row for row in read_history(self.directory) if row["step"] <= self.step]
        logger.info("training continues at step %d of %d", self.step, self.train.steps)

    @property
    def _inner_optimizers(self) -> list[torch.optim.Optimizer]:
        return [optimizer.optimizer for optimizer in self.optimizers]  # accelerate wraps them

    def _check_settings(self, checkpoint: Checkpoint) -> None:
        before = checkpoint.state["settings"]
        now = json.loads(json.dumps(self.settings))
        for key, value in now.items():
            if before.get(key) != value:
                change = _difference(before.get(key), value)
                raise InputError(
                    f'training in {self.directory} was started with another "{key}": {change}. '
                    "Only train.steps and train.calibrate may change: undo the change, or train in an empty directory."
                )

    # how steps run

    def _tell_duration(self, since: float, first: int) -> bool:
        """Once a few steps are timed, say how long all take; whether that is said, or no longer worth it."""
        seconds, left = time.perf_counter() - since, self.train.steps - self.step
        if seconds < _TIMED_SECONDS and left:
            return False
        if left and self.accelerator.is_main_process:
            counted = f"{left:,} of {self.train.steps:,} steps left" if first else f"{self.train.steps:,} steps"
            total = (left if first else self.train.steps) * seconds / (self.step - first)
            after = ", then the calibration" if self.train.calibrate else ""
            logger.info("train: %s, about %s on %s%s", counted, duration(total), self.device.type, after)
        return True

    def _set_pace(self) -> Pace:
        device, precision, threads, kept = self.device.type, self.train.precision, self.threads, self._kept_pace
        if self.accelerator.num_processes > 1:  # they must agree without a trial, and their launcher gives threads
            threads = threads or torch.get_num_threads()
            precision = "float32" if precision == "auto" and device == "cpu" else precisions(precision, device)[0]
            kept = None
        pace = Pace(self._trial, device=device, precision=precision, threads=threads, kept=kept)
        if self.accelerator.num_processes > 1:
            pace.products = "float32" if device == "cpu" else precisions("auto", device)[0]
        for optimizer in self._inner_optimizers:
            if isinstance(optimizer, Muon):
                optimizer.products = pace.products
        return pace

    def _trial(self, precision: Precision) -> list[Tensor]:
        """What a step does, to a network of the same shapes none of whose weights is zero, as many are at the start."""
        (z, cond, draw), network = self._example
        with _autocast(precision, self.device):
            loss = self.diffusion.loss(network, z, cond, self.element_weights, draw)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        hidden = hidden_matrices(network) if self.train.optimizer == "muon" else []
        norm = torch.nn.utils.get_total_norm(gradients)
        directions = orthogonalise([p.grad for p in hidden if p.grad is not None], fast_products(self.device.type))
        network.zero_grad(set_to_none=True)
        return [loss.detach(), norm, *gradients, *directions]

    @functools.cached_property
    def _example(self) -> tuple[tuple[Tensor, Tensors, Draw], nn.Module]:
        network = copy.deepcopy(self.denoiser)
        source = random_source(self.recipe.seed, _TRIAL)
        for p in network.parameters():
            p.data.add_(torch.randn(p.shape, generator=source).to(p.device), alpha=0.02)
        return self._read(self.step), network

    @property
    def _precision(self) -> Precision:
        assert self.pace is not None
        return self.pace.way.precision

    # one step

    def _read(self, step: int) -> tuple[Tensor, Tensors, Draw]:
        """The part of a step's batch that belongs to this process."""
        size, seed = self.train.batch, self.recipe.seed
        # every process draws the whole batch's randomness, so the result does not depend on their number
        draw = self.diffusion.draw(
            size,
            self.data.numbers,
            dropout=self.recipe.data.condition.dropout,
            generator=random_source(seed, _STEP, step),
        )
        share = size // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        return self._tensors(*self.data.read_step(seed, step, size, mine), draw.part(mine))

    def _tensors(self, z: np.ndarray, cond: Mapping[str, np.ndarray], draw: Draw) -> tuple[Tensor, Tensors, Draw]:
        tensors = {name: torch.from_numpy(values).to(self.device) for name, values in cond.items()}
        return torch.from_numpy(z).to(self.device), tensors, draw.to(self.device)

    def _batches(self) -> Generator[tuple[Tensor, Tensors, Draw], None, None]:
        with ThreadPoolExecutor(1, thread_name_prefix="diffats-batch") as pool:  # reads one step ahead
            coming = pool.submit(self._read, self.step)
            for step in range(self.step + 1, self.train.steps + 1):
                batch = coming.result()
                if step < self.train.steps:
                    coming = pool.submit(self._read, step)
                yield batch

    def _update(self, batch: tuple[Tensor, Tensors, Draw]) -> None:
        z, cond, draw = batch
        with _autocast(self._precision, self.device):
            loss = self.diffusion.loss(self.network, z, cond, self.element_weights, draw)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(list(self.denoiser.parameters()), self.train.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.train)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = average_decay(self.step, self.train.ema)
        self.ema.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.ema.update_parameters(self.denoiser)
        self._sums += torch.stack([loss.detach(), norm])
        self.step += 1

    # reports

    def _start_window(self) -> None:
        self._sums = torch.zeros(2, device=self.device)  # of loss and gradient norm: read only when they are reported
        self._window = (self.step, time.perf_counter())

    def _check_finite(self) -> None:
        sums: Tensor = self.accelerator.reduce(self._sums, reduction="sum")  # all processes must agree to stop
        # A last step may have thrown the weights out of range before any loss has seen them.
        finite = [sums.isfinite().all(), *(x.isfinite().all() for x in self.denoiser.state_dict().values())]
        if not bool(torch.stack(finite).all()):
            raise self._diverged()

    def _diverged(self) -> TrainingDivergedError:
        good = _checkpoints(self.directory)
        where = f"The last good checkpoint is {good[0][1]}" if good else "There is no checkpoint yet"
        return TrainingDivergedError(
            f"training of {self.recipe.name}: loss, gradient or weights are not finite between steps "
            f"{self._window[0] + 1} and {self.step}. {where}. Lower train.lr (now {self.train.lr:g}) or train.clip "
            f"(now {self.train.clip:g}), or lengthen train.warmup."
        )

    def _report(self) -> None:
        start, since = self._window
        loss = float(self.accelerator.reduce(self._sums, reduction="mean")[0]) / (self.step - start)
        rate = (self.step - start) * self.train.batch / (time.perf_counter() - since)
        self.heldout_loss = self._evaluate()
        if self.train.keep == "best" and self.heldout_loss < (math.inf if self.best is None else self.best.loss):
            copied = {name: x.detach().to("cpu", copy=True) for name, x in self.ema.module.state_dict().items()}
            self.best = Best(self.step, self.heldout_loss, copied)
        row = {"loss": loss, "lr": learning_rate(self.step - 1, self.train), "rate": rate}
        if math.isfinite(self.heldout_loss):
            row["heldout_loss"] = self.heldout_loss
        self.history.append({"step": self.step, **row})
        if self.accelerator.is_main_process:
            with (self.directory / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.history[-1]) + "\n")
            self.log(row, self.step)
        self._start_window()

    @torch.no_grad()
    def _evaluate(self) -> float:
        """The loss of the averaged weights on held-out samples, always with the same noise."""
        scored = self.data.scored
        if not len(scored) or not self.accelerator.is_main_process:
            return math.nan
        if self._heldout is None:
            spread = np.linspace(0, len(scored) - 1, HELDOUT_SAMPLES).round().astype(int)
            generator = random_source(self.recipe.seed, _HELDOUT)
            draw = self.diffusion.draw(HELDOUT_SAMPLES, self.data.numbers, generator=generator)
            self._heldout = self._tensors(*self.data.read(scored[spread]), draw)
        z, cond, draw = self._heldout
        with _autocast(self._precision, self.device):
            return float(self.diffusion.loss(self.ema.module, z, cond, self.element_weights, draw))

    def _save(self, seconds: float) -> None:
        if self.accelerator.is_main_process:
            tensors = {
                "model": self.denoiser.state_dict(),
                "ema": self.ema.module.state_dict(),
                "optimizer": _optimizer_tensors(self.denoiser, self._inner_optimizers),
            }
            heldout = self.heldout_loss if math.isfinite(self.heldout_loss) else None
            pace = None if self.pace is None else self.pace.to_dict()
            state: dict[str, Any] = {
                "seconds": seconds,
                "heldout_loss": heldout,
                "settings": self.settings,
                "pace": pace,
            }
            if self.best is not None:
                tensors["best"] = self.best.weights
                state["best"] = [self.best.step, self.best.loss]
            write_checkpoint(self.directory, Checkpoint(self.step, tensors, state))
        self.accelerator.wait_for_everyone()

    # the loop

    def run(self) -> None:
        """Train until ``train.steps``, or until a signal asks to stop."""
        if self.step >= self.train.steps:
            return
        if self.accelerator.is_main_process:
            _write_history(self.directory, self.history)  # without rows after the checkpoint
        started = time.perf_counter() - self.seconds
        self.network.train()
        with waiting("timing a few steps"):
            self.pace = self._set_pace()
        self._start_window()
        first, since, told = self.step, time.perf_counter(), False
        with _stop_request() as stop, contextlib.closing(self._batches()) as batches, self.pace:
            for batch in batches:
                begun = time.perf_counter()
                self._update(batch)
                last = self.step == self.train.steps
                if not last:
                    self.pace.review(time.perf_counter() - begun)
                stopping = self._agree(stop.number is not None)
                report = last or self.step % self.train.log_every == 0
                save = last or stopping or self.step % self.train.checkpoint_every == 0
                if report or save:
                    self._check_finite()
                if report:
                    self._report()
                if save:
                    self._save(time.perf_counter() - started)
                if self.progress is not None and self.accelerator.is_main_process:
                    self.progress(self.step, self.train.steps)
                told = told or self._tell_duration(since, first)
                if stopping and not last:
                    raise stop.error(f"training stopped at step {self.step}; run again to continue")
        self.seconds = time.perf_counter() - started

    def _agree(self, stop: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return stop
        asked = torch.tensor(float(stop), device=self.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def result(self) -> TrainResult:
        """Write the averaged weights and say what was done."""
        weights = self.directory / WEIGHTS
        if self.accelerator.is_main_process:
            if self.best is not None:
                self.ema.module.load_state_dict(self.best.weights)
                logger.info("train: the weights of step %d have the lowest held-out loss and are kept", self.best.step)
            step = self.step if self.best is None else self.best.step
            tensors, metadata = self.ema.module.state_dict(), {"step": str(step)}
            replace_file(weights, lambda path: calibration.save_tensors(path, tensors, metadata))
        self.accelerator.wait_for_everyone()
        calibrated = self._calibrate(weights) if self.train.calibrate else None
        return TrainResult(weights, calibrated, self.step, self.seconds, self.heldout_loss, self.history)

    def _calibrate(self, weights: Path) -> Path:
        """Fit the calibration to the batches that would have come next."""
        file = self.directory / CALIBRATION
        if self.accelerator.is_main_process:
            steps = range(self.step, self.step + calibration.BATCHES)
            with waiting("calibrating the model"), self.pace or self._set_pace():
                calibration.fit(
                    self.ema.module.eval(),
                    self.diffusion,
                    [self.data.read_step(self.recipe.seed, step, self.train.batch) for step in steps],
                    seed=self.recipe.seed,
                    dropped=self.recipe.data.condition.dropout > 0,
                    file=file,
                    identity=calibration.weights_identity(weights, self.settings),
                    device=self.device,
                    at_once=self.train.batch // self.accelerator.num_processes,
                    progress=_log_calibration,
                )
        self.accelerator.wait_for_everyone()
        return file


def _log_calibration(done: int, levels: int) -> None:
    if done == 1 or done % 8 == 0 or done == levels:
        logger.info("train: calibrated at %d of %d noise levels", done, levels)


def train(
    data: PrimitiveSet,
    recipe: config.Recipe,
    directory: str | Path,
    *,
    log: Log = lambda metrics, step: None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> TrainResult:
    """Train a denoiser on primitives, continuing what ``directory`` holds.

    Started by ``torchrun`` or ``accelerate launch``, each process takes its part of every batch; only the main one
    writes and logs.

    Parameters
    ----------
    data
        The primitives; their held-out part (``scored``) is scored, never trained on.
    recipe
        Its ``model``, ``diffusion``, ``train``, ``seed`` and condition dropout are used.
    directory
        A local directory for ``checkpoint-<step>`` (the last two), ``history.jsonl``, ``weights.safetensors``
        and, where ``train.calibrate`` asks for it, ``calibration.safetensors``.
    log
        Called with metrics and step every ``train.log_every`` steps: ``loss`` (mean since the last call), ``lr``,
        ``rate`` (samples a second) and ``heldout_loss`` (averaged weights, always the same noise).
    progress
        Called with steps done and steps in all, after each step.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; which of several accelerators a process has, accelerate says.
    threads
        Of the CPU, for the network's operations; what is fastest now where left out, see `diffats.pace`.

    Raises
    ------
    InputError
        Where ``directory`` holds a training with other settings than more steps or calibration.
    TrainingDivergedError
        Where the loss or a gradient is NaN or infinite; nothing of it is saved.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM (then `Terminated`), once a checkpoint is written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    training = _Training(data, recipe, directory, log=log, progress=progress, device=device, threads=threads)
    training.restore()
    training.run()
    return training.result()


def rehearse(
    data: PrimitiveSet, recipe: config.Recipe, *, device: str = "auto", threads: int | None = None
) -> Generator[nn.Module, None, None]:
    """Do the steps of a training without writing anything; the averaged network before the first, and after each."""
    training = _Training(
        data, recipe, Path(), log=lambda metrics, step: None, progress=None, device=device, threads=threads
    )
    training.network.train()
    training.pace = training._set_pace()
    yield training.ema.module  # ready
    with contextlib.closing(training._batches()) as batches, training.pace:
        for batch in batches:
            training._update(batch)
            training._sums.tolist()  # waits for the device
            yield training.ema.module


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return f"{key}: {_difference(before.get(key), now.get(key))}"
    return f"{str(before)[:60]} before, {str(now)[:60]} now"
