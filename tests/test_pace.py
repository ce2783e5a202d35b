"""How steps are run: what is tried, what is kept, and when it is tried again."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffats import pace, training
from diffats.pace import Pace, Way
from tests.tiny_primitives import tiny_recipe, tiny_set


class Machine:
    """Steps that take, on a clock of their own, a function of threads and precision; results may depend on threads."""

    def __init__(self, seconds, clock, *, same=True):
        self.seconds, self.clock, self.same, self.calls = seconds, clock, same, []

    def __call__(self, precision):
        threads = torch.get_num_threads()
        self.calls.append(Way(threads, precision))
        self.clock.now += self.seconds(threads, precision)
        return [torch.ones(2) if self.same else torch.full((2,), float(threads))]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in steps only, so that no neighbour of the tests changes what they find."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pace, "product_gain", lambda device: 0.01)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: made.now, monotonic=lambda: made.now))
    return made


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gain(monkeypatch):
    """Sets bfloat16's gain."""
    return lambda value: monkeypatch.setattr(pace, "product_gain", lambda device: value)


def few(threads, _):
    """More threads are slower."""
    return 0.01 * threads


def many(threads, _):
    """More threads are faster."""
    return 0.08 / threads


def test_the_fastest_number_of_threads_is_held_and_given_back(clock):
    chosen = Pace(Machine(lambda n, _: 0.01 * (1 + abs(n - 2)), clock), device="cpu", precision="float32")
    assert chosen.way == Way(2, "float32")
    with chosen:
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


def test_where_more_threads_gain_nothing_one_is_used(clock):
    assert Pace(Machine(lambda *_: 0.02, clock), device="cpu", precision="float32").way.threads == 1


def test_fewer_threads_are_not_tried_where_they_were_much_slower_already(clock):
    machine = Machine(many, clock)
    assert Pace(machine, device="cpu", precision="float32").way.threads == 4
    assert {way.threads for way in machine.calls} == {4, 2}


def test_bfloat16_is_tried_only_where_its_products_are_faster(gain, clock):
    fast = Machine(lambda _, precision: 0.3 if precision == "bfloat16" else 0.9, clock)
    for value, expected in ((0.01, "float32"), (2.0, "bfloat16")):
        gain(value)
        fast.calls.clear()
        assert Pace(fast, device="cpu").way.precision == expected
        assert {way.precision for way in fast.calls} == {"float32", expected}


def test_bfloat16_that_gains_nothing_in_whole_steps_is_not_used(gain, clock):
    gain(2.0)
    assert Pace(Machine(lambda *_: 0.5, clock), device="cpu").way.precision == "float32"


def test_bfloat16_is_not_tried_for_short_steps(gain, clock):
    gain(8.0)
    machine = Machine(lambda *_: 0.01, clock)
    assert Pace(machine, device="cpu").way.precision == "float32"
    assert {way.precision for way in machine.calls} == {"float32"}


@pytest.mark.parametrize(("value", "expected"), [(0.01, "float32"), (2.0, "float32"), (8.0, "bfloat16")])
def test_iterations_use_bfloat16_only_where_it_is_several_times_as_fast(value, expected, gain, clock):
    gain(value)
    assert Pace(Machine(few, clock), device="cpu").products == expected


def test_what_is_given_is_not_tried(clock):
    machine = Machine(few, clock)
    assert Pace(machine, device="cpu", precision="bfloat16", threads=3).way == Way(3, "bfloat16")
    assert not machine.calls


def test_off_the_cpu_the_products_alone_decide(gain, clock):
    machine = Machine(few, clock)
    for value, expected in ((1.0, "float32"), (8.0, "bfloat16")):
        gain(value)
        assert Pace(machine, device="cuda").way == Way(4, expected)
    assert not machine.calls


def test_a_training_that_goes_on_keeps_its_way(clock, gain):
    gain(8.0)
    first = Pace(Machine(few, clock, same=False), device="cpu", precision="float32")
    kept = json.loads(json.dumps(first.to_dict()))
    gain(0.01)
    machine = Machine(many, clock)
    again = Pace(machine, device="cpu", kept=kept)
    assert again.way == first.way == Way(1, "float32")
    assert again.products == first.products == "bfloat16"
    assert again.to_dict() == first.to_dict()
    assert not machine.calls


@pytest.mark.parametrize("change", [{"machine": "AVX2, 64 cores"}, {"precision": "bfloat16"}])
def test_what_is_of_another_machine_or_precision_is_not_used(clock, change):
    kept = Pace(Machine(few, clock), device="cpu", precision="float32").to_dict() | change
    assert Pace(Machine(many, clock), device="cpu", precision="float32", kept=kept).way == Way(4, "float32")


def test_kept_threads_that_are_not_allowed_now_are_replaced_where_results_are_the_same(clock):
    kept = Pace(Machine(lambda n, _: 0.05 + 0.05 / n, clock), device="cpu", precision="float32").to_dict()
    assert (kept["threads"], kept["free"]) == (4, [4, 2, 1])
    torch.set_num_threads(2)
    assert Pace(Machine(many, clock), device="cpu", precision="float32", kept=kept).way.threads == 2


def held_for(held, machine, clock, seconds):
    """Run steps for so long; the numbers of threads that they had."""
    used, end = [], clock.now + seconds
    while clock.now < end:
        begun = clock.now
        machine("float32")
        used.append(held.way.threads)
        held.review(clock.now - begun)
    return used


@pytest.mark.parametrize(("same", "expected"), [(True, 1), (False, 4)])
def test_threads_change_when_neighbours_come_but_only_where_results_do_not(clock, same, expected):
    machine = Machine(lambda n, _: 0.05 + 0.05 / n, clock, same=same)
    with Pace(machine, device="cpu", precision="float32") as held:
        assert held.way.threads == 4
        machine.seconds = lambda n, _: 0.2 * n
        held_for(held, machine, clock, 200)
        assert held.way.threads == torch.get_num_threads() == expected


def test_steps_as_fast_as_they_were_are_tried_again_rarely(clock):
    machine = Machine(lambda n, _: 0.05 + 0.05 / n, clock)
    with Pace(machine, device="cpu", precision="float32") as held:
        machine.calls.clear()
        held_for(held, machine, clock, 3600)
        tried = [way for way in machine.calls if way.threads != 4]
        assert 0 < sum(machine.seconds(way.threads, "") for way in tried) < 0.02 * 3600


def test_emulated_products_are_told_from_native_ones():
    gain = pace.product_gain("cpu")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx2" in flags:
        assert (gain > 1) == ("bf16" in flags)
    assert gain > 0


def test_the_trial_changes_no_training_and_the_checkpoint_keeps_what_it_found(tmp_path, caplog):
    caplog.set_level(logging.INFO, "diffats.pace")
    torch.set_num_threads(2)
    data, recipe = tiny_set(), tiny_recipe(train={"precision": "float32"})
    tried = training.train(data, recipe, tmp_path / "a", device="cpu")
    assert "train: a step takes" in caplog.text
    kept = training.read_checkpoint(tmp_path / "a").state["pace"]
    fixed = training.train(data, recipe, tmp_path / "b", device="cpu", threads=kept["threads"])
    assert tried.weights.read_bytes() == fixed.weights.read_bytes()


def test_a_training_that_goes_on_tries_nothing(tmp_path, caplog):
    torch.set_num_threads(2)
    data, recipe = tiny_set(), tiny_recipe()
    training.train(data, tiny_recipe(train={"steps": 6}), tmp_path, device="cpu")
    before = training.read_checkpoint(tmp_path).state["pace"]
    caplog.set_level(logging.INFO, "diffats.pace")
    caplog.clear()
    training.train(data, recipe, tmp_path, device="cpu")
    assert "a step takes" not in caplog.text
    assert training.read_checkpoint(tmp_path).state["pace"] == before


@pytest.mark.parametrize(("width", "batch"), [(16, 8), (64, 8), (64, 32)])
def test_where_a_trial_finds_the_same_bits_a_training_has_them(tmp_path, width, batch):
    data = tiny_set()
    recipe = tiny_recipe(model={"width": width, "depth": 2, "heads": 2}, train={"precision": "float32", "batch": batch})
    runs = {n: training.train(data, recipe, tmp_path / str(n), device="cpu", threads=n) for n in (1, 2)}
    torch.set_num_threads(2)
    training.train(data, recipe, tmp_path / "auto", device="cpu")
    free = training.read_checkpoint(tmp_path / "auto").state["pace"]["free"]
    same = runs[1].weights.read_bytes() == runs[2].weights.read_bytes()
    assert same or len(free) == 1
