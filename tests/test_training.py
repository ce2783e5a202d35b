from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_primitives import LAYOUT, tiny_recipe, tiny_set

from diffats import calibration, training
from diffats.config import Recipe, Train
from diffats.diffusion import Diffusion, element_weights
from diffats.errors import InputError, TrainingDivergedError
from diffats.generation import generate, load_denoiser
from diffats.loader import PrimitiveSet
from diffats.primitives import ConditionLayout, Layout, Moments, Normalisation, decode, encode
from diffats.training import (
    TrainResult,
    average_decay,
    learning_rate,
    loss_weights,
    read_checkpoint,
    read_history,
)


def run(directory: Path, recipe: Recipe | None = None, *, labels: bool = True, **options: object) -> TrainResult:
    data = tiny_set(24, labels=labels)
    options = {"threads": 1, **options}  # else what is fastest now, which may give other bits
    return training.train(data, recipe or tiny_recipe(), directory, device="cpu", **options)  # type: ignore[arg-type]


def steps(count: int, **more: object) -> Recipe:
    return tiny_recipe(train={"steps": count, **more})


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Bits are compared with those of other processes: the order of sums must not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stop(Exception):
    """Stands for anything that ends a process between two steps."""


def run_until(directory: Path, step: int, recipe: Recipe | None = None) -> None:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Stop

    with pytest.raises(Stop):
        run(directory, recipe, progress=progress)


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tmp_path_factory.mktemp("unbroken"))


def test_what_a_training_leaves(unbroken: TrainResult) -> None:
    directory = unbroken.weights.parent
    assert unbroken.step == 12
    assert unbroken.seconds > 0
    assert {path.name for path in directory.iterdir()} == {
        "checkpoint-8", "checkpoint-12", "history.jsonl", "weights.safetensors",
    }  # fmt: skip
    assert [row["step"] for row in unbroken.history] == [2, 4, 6, 8, 10, 12]
    assert read_history(directory) == unbroken.history
    assert set(unbroken.history[0]) == {"step", "loss", "heldout_loss", "lr", "rate"}
    assert unbroken.heldout_loss == unbroken.history[-1]["heldout_loss"]
    assert_same_bits(unbroken.weights, directory / "checkpoint-12" / "ema.safetensors")
    data = tiny_set(24, labels=True)
    denoiser = load_denoiser(
        unbroken.weights, LAYOUT, data.conditions, tiny_recipe().model, data.normalisation, device="cpu"
    )
    z = generate(denoiser, LAYOUT, Diffusion(tiny_recipe().diffusion), range(3), 0, steps=4, device="cpu")
    assert np.isfinite(z).all()


def test_the_same_bits_again(unbroken: TrainResult, tmp_path: Path) -> None:
    assert_same_bits(run(tmp_path).weights, unbroken.weights)


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_resumed_equals_unbroken(unbroken: TrainResult, tmp_path: Path, step: int) -> None:
    run_until(tmp_path, step)
    result = run(tmp_path)
    assert_same_bits(result.weights, unbroken.weights)
    for name in ("model", "ema", "optimizer"):
        file = f"checkpoint-12/{name}.safetensors"
        assert_same_bits(tmp_path / file, unbroken.weights.parent / file)
    assert [row["step"] for row in read_history(tmp_path)] == [2, 4, 6, 8, 10, 12]
    assert result.heldout_loss == unbroken.heldout_loss


def test_a_finished_training_does_nothing(unbroken: TrainResult, tmp_path: Path) -> None:
    first = run(tmp_path)
    seen: list[int] = []
    again = run(tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == []
    assert (again.step, again.heldout_loss, again.history) == (12, first.heldout_loss, first.history)
    assert again.seconds == pytest.approx(first.seconds, rel=0.5)
    assert_same_bits(again.weights, unbroken.weights)
    fewer = run(tmp_path, steps(5))  # was trained for longer already: nothing is undone
    assert fewer.step == 12


def test_more_steps_continue(unbroken: TrainResult, tmp_path: Path) -> None:
    run(tmp_path)
    seen: list[int] = []
    longer = run(tmp_path, steps(20), progress=lambda done, total: seen.append(done))
    assert seen == list(range(13, 21))
    assert longer.step == 20
    assert [row["step"] for row in longer.history] == list(range(2, 21, 2))
    run(other := tmp_path / "other")
    run_until(other, 15, steps(20))
    assert_same_bits(run(other, steps(20)).weights, longer.weights)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, steps(2))
    with pytest.raises(InputError, match=r'another "train": lr: 0\.003 before, 0\.1 now.*Only train\.steps and'):
        run(tmp_path, steps(4, lr=0.1))
    with pytest.raises(InputError, match='another "conditions"'):
        run(tmp_path, steps(4), labels=False)
    run(tmp_path, steps(4, log_every=1, checkpoint_every=1))  # how often to look is no setting of the training


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state", "half state"])
def test_a_damaged_checkpoint_is_passed_over(
    unbroken: TrainResult, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path)
    newest = tmp_path / "checkpoint-12"
    file = newest / "optimizer.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "no state":
        (newest / "state.json").unlink()
    else:
        (newest / "state.json").write_text('{"step": 12, "fil')
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path)
    assert "checkpoint-12 is damaged" in caplog.text
    assert_same_bits(result.weights, unbroken.weights)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 12  # replaced by a good one


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_until(tmp_path, 5)
    real = calibration.save_file

    def fail(tensors: dict[str, torch.Tensor], path: Path, **more: object) -> None:
        if path.name == "optimizer.safetensors":
            raise OSError("no space left on device")
        real(tensors, path)

    monkeypatch.setattr(calibration, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        run(tmp_path)
    monkeypatch.undo()
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 4
    run(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_half_written_line_of_history_is_dropped(tmp_path: Path) -> None:
    run_until(tmp_path, 7)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert [row["step"] for row in run(tmp_path).history] == [2, 4, 6, 8, 10, 12]


def test_nan_stops_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Diffusion.loss
    calls = []

    def loss(self: Diffusion, model: object, *rest: object) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(1)
        return real(self, model, *rest) * (float("nan") if len(calls) > 9 else 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(Diffusion, "loss", loss)
    with pytest.raises(TrainingDivergedError, match=r"training of tiny: .* not finite between steps 9 and 10"):
        run(tmp_path, tiny_recipe(train={"precision": "float32"}))  # without a trial, whose steps would count
    monkeypatch.undo()
    assert not (tmp_path / "weights.safetensors").exists()
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 8
    assert all(x.isfinite().all() for x in checkpoint.tensors["model"].values())


def test_nan_in_a_gradient_stops_before_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters: list[torch.nn.Parameter], *rest: object, **more: object) -> torch.Tensor:
        parameters[0].grad.fill_(float("inf"))  # type: ignore[union-attr]
        return real(parameters, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with pytest.raises(TrainingDivergedError, match="There is no checkpoint yet"):
        run(tmp_path, steps(12, log_every=100, checkpoint_every=3))
    assert read_checkpoint(tmp_path) is None


def test_averaged_weights_move_and_differ(unbroken: TrainResult, tmp_path: Path) -> None:
    directory = unbroken.weights.parent
    early, late = (load_file(directory / f"checkpoint-{step}" / "ema.safetensors") for step in (8, 12))
    model = load_file(directory / "checkpoint-12" / "model.safetensors")
    moved = [name for name in late if not torch.equal(early[name], late[name])]
    assert {name for name in late if "null" not in name} <= set(moved)  # what stands for a dropped condition may rest
    assert any(not torch.equal(late[name], model[name]) for name in late)
    plain = run(tmp_path, steps(12, ema=0.0))  # no memory: the weights themselves
    assert_same_bits(plain.weights, tmp_path / "checkpoint-12" / "model.safetensors")


def test_averaging_is_the_recurrence(tmp_path: Path) -> None:
    recipe = steps(6, ema=0.3, checkpoint_every=1, log_every=100)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 7):
        with pytest.raises(Stop) if step < 6 else contextlib.nullcontext():
            run(tmp_path, recipe, progress=_stop_at(step))
        model = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
        decay = average_decay(step - 1, 0.3)
        expected = model if step == 1 else {k: decay * expected[k] + (1 - decay) * model[k] for k in model}
    averaged = load_file(tmp_path / "checkpoint-6" / "ema.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-6)


def _stop_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step < total:
            raise Stop

    return progress


def test_overfits_a_tiny_set(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        model={"width": 32, "depth": 2, "heads": 2},
        train={"steps": 400, "batch": 16, "lr": 5e-3, "log_every": 100, "checkpoint_every": 1000, "ema": 0.95},
    )
    history = training.train(tiny_set(6), recipe, tmp_path, device="cpu").history
    assert history[-1]["loss"] < 0.4  # the mean alone has 1, the exact denoiser of five samples 0.15
    assert history[-1]["heldout_loss"] > history[-1]["loss"]  # pure noise has nothing to generalise


def test_logs_and_progress(tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    seen: list[tuple[int, int]] = []
    run(
        tmp_path,
        steps(5),
        log=lambda metrics, step: logged.append((step, metrics)),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [step for step, _ in logged] == [2, 4, 5]
    assert all(metrics.keys() == {"loss", "heldout_loss", "lr", "rate"} for _, metrics in logged)
    assert seen == [(i, 5) for i in range(1, 6)]


def test_learning_rate_is_a_function_of_step_and_steps() -> None:
    train = Train(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, train) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)
    short = Train(steps=4, warmup=100, lr=1.0)
    assert [learning_rate(step, short) for step in range(3)] == [0.5, 1.0, 1.0]


def test_the_loss_weighs_numbers_by_what_they_do_to_the_field() -> None:
    """To first order, the weighted error of a primitive is the error of its field; not so with a mean over streams."""
    rng = np.random.default_rng(0)
    layout = Layout("tgp", ("t", "y", "x"), {"t": 6, "y": 5, "x": 7}, {"t": 3, "x": 4}, ("t", "x"))
    x = np.einsum("kta,ayx->ktyx", rng.standard_normal((60, 6, 6)), rng.standard_normal((6, 5, 7)) * 3.0)
    anchors = {str(s.mode): np.linalg.qr(rng.standard_normal(s.shape))[0] for s in layout.streams[1:]}
    streams, _ = encode(x, anchors, layout)
    dims = {s.name: ("sample", *s.dims) for s in layout.streams}
    dataset = xr.Dataset(
        {name: (dims[name], values) for name, values in streams.items()}, {"split": ("sample", ["train"] * 60)}
    )
    moments = {name: Moments() for name in streams}
    for name, values in streams.items():
        moments[name].add(values)
    data = PrimitiveSet(dataset, layout, Normalisation.fit(moments), ConditionLayout())
    weights = loss_weights(data, "field").numpy()
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    truth, _ = data.read(data.train)
    ratios = {}
    for name, start, stop in [("core", 0, 60), ("factor_t", 60, 78), ("factor_x", 78, 106)]:
        z = truth.copy()
        z[:, start:stop] += 1e-3 * rng.standard_normal((60, stop - start)).astype(np.float32)
        change = decode(data.normalisation.undo(layout.unflatten(z)), layout) - decode(
            data.normalisation.undo(layout.unflatten(truth)), layout
        )
        ratios[name] = (change**2).sum() / ((z - truth) ** 2 @ weights).sum()
    assert max(ratios.values()) < 1.1 * min(ratios.values())
    assert loss_weights(data, "stream").tolist() == element_weights(data.sizes).tolist()


def test_loss_weights_come_from_the_shards_that_training_reads_first(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_set(24, labels=False)
    asked: list[list[int]] = []
    read = data.read

    def recorded(indices: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        asked.append(indices.tolist())
        return read(indices)

    monkeypatch.setattr(data, "read", recorded)
    loss_weights(data, "field", seed=3)
    assert asked == [data.batch(3, 0, len(data.train)).tolist()]


def test_adamw_can_be_had_and_differs(unbroken: TrainResult, tmp_path: Path) -> None:
    other = load_file(run(tmp_path, steps(12, optimizer="adamw")).weights)
    plain = load_file(unbroken.weights)
    assert any(not torch.equal(plain[name], other[name]) for name in plain)


# Whole processes

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tiny_primitives import tiny_recipe, tiny_set
from diffats import training

def progress(done, total):
    print(done, flush=True)
    import time
    time.sleep(float(sys.argv[3]))

recipe = tiny_recipe(train={"calibrate": True})
result = training.train(tiny_set(24, labels=True), recipe, Path(sys.argv[2]), device="cpu", progress=progress)
assert result.calibration.is_file()
from accelerate import PartialState
assert PartialState().num_processes == int(sys.argv[4])
"""


# `accelerate launch --cpu` starts one process only, where there is no accelerator.
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
GLOO = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}


def start_child(directory: Path, pause: float, *launcher: str, processes: int = 1) -> subprocess.Popen[str]:
    script = directory.with_suffix(".py")
    script.write_text(CHILD)
    command = [*(launcher or (sys.executable, "-W", "error")), str(script)]
    arguments = [str(Path(__file__).parent), str(directory), str(pause), str(processes)]
    return subprocess.Popen(
        command + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(GLOO if processes > 1 else {})},
    )


def wait_for_step(child: subprocess.Popen[str], step: int) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == str(step):
            return
    raise AssertionError(f"the child ended early: {child.communicate()[1]}")


@pytest.mark.faults
def test_killed_and_run_again(unbroken: TrainResult, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    child = start_child(directory, 0.05)
    wait_for_step(child, 7)
    child.kill()
    child.communicate()
    assert [path.name for path in directory.glob("checkpoint-*")] == ["checkpoint-4"]
    assert_same_bits(run(directory).weights, unbroken.weights)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_a_checkpoint(unbroken: TrainResult, tmp_path: Path, number: signal.Signals) -> None:
    directory = tmp_path / "run"
    child = start_child(directory, 0.2)
    wait_for_step(child, 5)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    assert f"{'Terminated' if number == signal.SIGTERM else 'KeyboardInterrupt'}: training stopped at step" in errors
    checkpoint = read_checkpoint(directory)
    assert checkpoint is not None
    assert checkpoint.step in (5, 6, 7)
    assert_same_bits(run(directory).weights, unbroken.weights)


@pytest.mark.slow
def test_two_processes_do_what_one_does(unbroken: TrainResult, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    child = start_child(directory, 0.0, sys.executable, *TORCHRUN, processes=2)
    output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert output.split() == [str(step) for step in range(1, 13)]  # the main process alone reports
    two, one = load_file(directory / "weights.safetensors"), load_file(unbroken.weights)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)  # sums of another order
    assert [row["step"] for row in read_history(directory)] == [2, 4, 6, 8, 10, 12]


def test_state_is_plain_json(unbroken: TrainResult) -> None:
    state = json.loads((unbroken.weights.parent / "checkpoint-12" / "state.json").read_text())
    assert state["step"] == 12
    assert set(state["files"]) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    assert str(Path.cwd()) not in json.dumps(state)


def test_the_best_of_a_training_is_kept_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out losses that rise after the second report: its weights are kept, also where a stop fell after it."""
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
    monkeypatch.setattr(training._Training, "_evaluate", lambda self: losses[self.step])
    asked = steps(8, keep="best")
    whole = run(tmp_path / "whole", asked)
    run_until(tmp_path / "cut", 6, asked)
    assert_same_bits(run(tmp_path / "cut", asked).weights, whole.weights)
    with safe_open(whole.weights, "pt") as file:
        assert file.metadata()["step"] == "4"
    losses[8] = 0.5
    run(tmp_path / "last", asked)
    averaged = tmp_path / "last" / "checkpoint-8" / "ema.safetensors"
    assert_same_bits(tmp_path / "last" / "weights.safetensors", averaged)
    assert_same_bits(run(tmp_path / "plain", steps(8)).weights, averaged)


def test_validation_samples_are_not_trained_on() -> None:
    whole = tiny_set(24)
    part = PrimitiveSet(whole.dataset, whole.layout, whole.normalisation, whole.conditions, validation=0.25)
    assert sorted([*part.train, *part.scored]) == whole.train.tolist()
    assert len(part.scored) == round(0.25 * len(whole.train))
    assert (whole.scored == whole.test).all()
    orders = np.concatenate([part.batch(0, step, 4) for step in range(20)])
    assert set(orders) == set(part.train)
