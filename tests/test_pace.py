"""How steps are run: what is tried, what is kept, and when it is tried again."""

import json
import logging
import time

import pytest
import torch

from diffats import pace, training
from diffats.pace import Pace, Way
from tests.tiny_primitives import tiny_recipe, tiny_set


class Machine:
    """A step whose time is a function of threads and precision; results depend on threads where told so."""

    def __init__(self, seconds, *, same=True):
        self.seconds, self.same, self.calls = seconds, same, []

    def __call__(self, precision):
        threads = torch.get_num_threads()
        self.calls.append(Way(threads, precision))
        time.sleep(self.seconds(threads, precision))
        return [torch.ones(2) if self.same else torch.full((2,), float(threads))]


@pytest.fixture(autouse=True)
def four_threads(monkeypatch):
    monkeypatch.setattr(pace, "_TRIAL", 0.02)
    monkeypatch.setattr(pace, "_LONG", 0.003)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_the_fastest_number_of_threads_is_held_and_given_back():
    chosen = Pace(
        Machine(lambda threads, _: {1: 0.004, 2: 0.001, 4: 0.004}[threads]), device="cpu", precision="float32"
    )
    assert chosen.way == Way(2, "float32")
    with chosen:
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


def test_where_more_threads_gain_nothing_one_is_used():
    assert Pace(Machine(lambda *_: 0.002), device="cpu", precision="float32").way.threads == 1


def test_bfloat16_is_tried_only_where_its_products_are_faster(monkeypatch):
    fast = Machine(lambda _, precision: 0.001 if precision == "bfloat16" else 0.004)
    for gain, expected in ((0.01, "float32"), (2.0, "bfloat16")):
        monkeypatch.setattr(pace, "product_gain", lambda device, gain=gain: gain)
        fast.calls.clear()
        assert Pace(fast, device="cpu").way.precision == expected
        assert {way.precision for way in fast.calls} == {"float32", expected}


def test_bfloat16_that_gains_nothing_in_whole_steps_is_not_used(monkeypatch):
    monkeypatch.setattr(pace, "product_gain", lambda device: 2.0)
    assert Pace(Machine(lambda *_: 0.005), device="cpu").way.precision == "float32"


def test_bfloat16_is_not_tried_for_short_steps(monkeypatch):
    monkeypatch.setattr(pace, "product_gain", lambda device: 8.0)
    machine = Machine(lambda *_: 0.001)
    monkeypatch.setattr(pace, "_LONG", 0.2)
    assert Pace(machine, device="cpu").way.precision == "float32"
    assert {way.precision for way in machine.calls} == {"float32"}


def test_what_is_given_is_not_tried():
    machine = Machine(lambda *_: 0.0)
    assert Pace(machine, device="cpu", precision="bfloat16", threads=3).way == Way(3, "bfloat16")
    assert not machine.calls


def test_off_the_cpu_the_products_alone_decide(monkeypatch):
    machine = Machine(lambda *_: 0.0)
    for gain, expected in ((1.0, "float32"), (8.0, "bfloat16")):
        monkeypatch.setattr(pace, "product_gain", lambda device, gain=gain: gain)
        assert Pace(machine, device="cuda").way == Way(4, expected)
    assert not machine.calls


def test_a_training_that_goes_on_keeps_its_way(tmp_path):
    kept = tmp_path / "pace.json"
    first = Pace(Machine(lambda threads, _: 0.001 * threads), device="cpu", precision="float32", kept=kept)
    slower = Machine(lambda threads, _: 0.008 / threads)
    assert Pace(slower, device="cpu", kept=kept).way == first.way == Way(1, "float32")
    assert not slower.calls


@pytest.mark.parametrize("change", ["another machine", "cut", "of another kind"])
def test_what_another_machine_or_a_damaged_file_says_is_not_used(tmp_path, change, caplog):
    kept = tmp_path / "pace.json"
    Pace(Machine(lambda threads, _: 0.001 * threads), device="cpu", precision="float32", kept=kept)
    text = json.dumps(json.loads(kept.read_text()) | {"machine": "AVX2, 64 cores"})
    kept.write_text({"another machine": text, "cut": kept.read_text()[:20], "of another kind": "[1]"}[change])
    machine = Machine(lambda threads, _: 0.008 / threads)
    assert Pace(machine, device="cpu", precision="float32", kept=kept).way == Way(4, "float32")
    assert ("damaged" in caplog.text) == (change != "another machine")


def test_threads_change_later_only_where_results_do_not(monkeypatch):
    monkeypatch.setattr(pace, "_SOON", 0.0)
    for same, expected in ((True, 1), (False, 4)):
        machine = Machine(lambda threads, _: 0.008 / threads, same=same)
        with Pace(machine, device="cpu", precision="float32") as held:
            assert held.way.threads == 4
            machine.seconds = lambda threads, _: 0.004 * threads  # neighbours came
            machine("float32")
            held.review()
            assert held.way.threads == torch.get_num_threads() == expected


def test_steps_as_fast_as_they_were_are_not_tried_again():
    machine = Machine(lambda *_: 0.002)
    with Pace(machine, device="cpu", precision="float32") as held:
        machine.calls.clear()
        held.review()
        assert not machine.calls


def test_emulated_products_are_told_from_native_ones():
    gain = pace.product_gain("cpu")
    native = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert gain < 1 if not native else gain > 0.5


def test_the_trial_changes_no_training(tmp_path, caplog):
    caplog.set_level(logging.INFO, "diffats.pace")
    data, recipe = tiny_set(), tiny_recipe(train={"precision": "float32"})
    tried = training.train(data, recipe, tmp_path / "a", device="cpu")
    assert "train: a step takes" in caplog.text
    fixed = training.train(data, recipe, tmp_path / "b", device="cpu", threads=json.loads(
        (tmp_path / "a" / "pace.json").read_text())["threads"])  # fmt: skip
    assert tried.weights.read_bytes() == fixed.weights.read_bytes()


@pytest.mark.parametrize(("width", "batch"), [(16, 8), (64, 8), (64, 32)])
def test_where_a_trial_finds_the_same_bits_a_training_has_them(tmp_path, width, batch):
    data = tiny_set()
    recipe = tiny_recipe(model={"width": width, "depth": 2, "heads": 2}, train={"precision": "float32", "batch": batch})
    runs = {n: training.train(data, recipe, tmp_path / str(n), device="cpu", threads=n) for n in (1, 2)}
    torch.set_num_threads(2)
    training.train(data, recipe, tmp_path / "auto", device="cpu")
    free = json.loads((tmp_path / "auto" / "pace.json").read_text())["free"]
    same = runs[1].weights.read_bytes() == runs[2].weights.read_bytes()
    assert same or len(free) == 1
