"""The measurement of quality: every method runs on every kind of task, and its numbers mean what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality, quality_curves, quality_methods, quality_report
from benchmarks.quality import METHODS, Run, Task, validation_part
from benchmarks.quality_analysis import errors_and_overlaps, near_pair_stretch, smallest_overlaps
from benchmarks.quality_report import Row, Table
from diffats.config import load_recipe
from diffats.primitives import decompose
from diffats.simulate import simulate
from diffats.training import loss_weights

Array = np.ndarray[Any, Any]
STEPS = load_recipe(quality.RECIPES / "moving_digits.toml").train.steps
SHORT = ("train.steps=2", "train.batch=4", "model.width=16", "model.depth=1", "model.heads=2", "generate.steps=2")
TINY = {
    "burgers_1d": (
        *SHORT,
        "simulate.count=90",
        "simulate.sizes={time=20,x=64}",
        "primitive.patch={time=5,x=8}",
        "primitive.rank=6",
        "evaluate.members=3",
    ),
    "moving_digits": (
        *SHORT,
        "simulate.count=40",
        "simulate.sizes={time=15,y=16,x=16}",
        "decompose.ranks={y=6,x=6}",
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Changes of the recipes by task, and data made for them."""
    place = tmp_path_factory.mktemp("quality")
    changes = {task: (*given, f"data.source={place / task}.zarr") for task, given in TINY.items()}
    for task, given in changes.items():
        simulate(load_recipe(quality.RECIPES / f"{task}.toml", given))
    return changes


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    monkeypatch.setattr(quality, "CASES", 3)


TRAINED = [
    (task, method)
    for task in TINY
    for method in METHODS
    if method != "neural operator" or task == "burgers_1d"
]  # fmt: skip


@pytest.mark.parametrize(("task", "method"), TRAINED)
def test_a_run_measures_and_is_not_repeated(data: dict[str, tuple[str, ...]], task: str, method: str) -> None:
    run = Run(task, method, 0, data[task])
    if method == "neural operator":  # it gets the time that ours took
        pytest.importorskip("neuralop")
        quality.measure(Run(task, "ours", 0, data[task]))
    done = quality.measure(run)
    metrics = done["metrics"]
    assert np.isfinite(metrics["energy_distance"]["value"])
    assert ("crps" in metrics) == (task == "burgers_1d")
    if task == "moving_digits" and method == "raw fields":  # it writes fields as they are
        distance = metrics["energy_distance"]
        assert distance["codec"] == pytest.approx(distance["train_vs_test"], abs=1e-5)
        assert metrics["nearest_training_ratio"]["codec"] is None
        assert metrics["spectrum_error"]["codec"] < 1e-4  # of the test samples
    elif method == "gaussian of fields":
        assert metrics["energy_distance"]["codec"] is None
    elif task == "moving_digits":
        assert metrics["energy_distance"]["codec"] != pytest.approx(
            metrics["energy_distance"]["train_vs_test"], abs=1e-5
        )
    assert json.loads((run.directory / quality.RESULT).read_text()) == json.loads(json.dumps(done))
    (run.directory / quality.RESULT).write_text(json.dumps(done | {"mark": 1}))
    assert quality.measure(run)["mark"] == 1


@pytest.mark.parametrize("task", TINY)
def test_all_methods_have_as_many_numbers_and_cost(data: dict[str, tuple[str, ...]], task: str) -> None:
    found = Task(Run(task, "ours", 0, data[task]))
    x = found.scaled
    made = {
        name: fit(x[found.train], found.recipe, found.layout, 0)
        for name, fit in quality_methods.REPRESENTATIONS.items()
    }
    for name, method in made.items():
        streams = method.encode(x[:8])
        assert {n: v.shape[1:] for n, v in streams.items()} == {s.name: s.shape for s in method.layout.streams}, name
        again = method.decode(streams)
        error = np.linalg.norm(again - x[:8]) / np.linalg.norm(x[:8])
        assert error < (1e-5 if name == "raw fields" else 0.6), name
        if name != "raw fields":
            assert 0.5 * found.layout.numbers < method.numbers <= found.layout.numbers, name
    same = [made[name].decode(made[name].encode(x[:8])) for name in ("ours", "no alignment", "random anchor")]
    np.testing.assert_allclose(same[1], same[0], atol=1e-4)
    np.testing.assert_allclose(same[2], same[0], atol=1e-4)


@pytest.mark.parametrize("method", list(quality_methods.REPRESENTATIONS))
def test_a_method_can_be_trained_on_shifted_samples(data: dict[str, tuple[str, ...]], method: str) -> None:
    """A step of shifted samples is what the shifted fields and their initial states are written as."""
    task = Task(Run("burgers_1d", method, 0, (*data["burgers_1d"], "train.shift=['x']")))
    made = quality_methods.REPRESENTATIONS[method](task.scaled[task.train], task.recipe, task.layout, 0)
    if made.initial is not None:
        task.replace_initial(made.initial(task.given["initial"]))
    found = quality._primitive_set(task, made, made.encode(task.scaled), 0)
    z, cond = found.read_step(0, 0, 16)
    x = task.scaled[found.batch(0, 0, 16)]
    turned = {by: made.decode(made.encode(np.roll(x, by, axis=2))) for by in range(0, 64, 8)}  # by whole patches
    fields = made.decode(found.normalisation.undo(made.layout.unflatten(z)))
    shifts = [next(by for by in turned if np.allclose(turned[by][i], fields[i], atol=1e-3)) for i in range(16)]
    assert len(set(shifts)) > 1
    if made.initial is None:
        initial = task.conditions.normalise(task.raw_conditions)["initial"][found.batch(0, 0, 16)]
        wanted = np.stack([np.roll(each, by) for each, by in zip(initial, shifts, strict=True)])
        np.testing.assert_allclose(cond["initial"], wanted, atol=1e-5)


@pytest.mark.parametrize("task", TINY)
def test_a_turned_gauge_is_the_same_field(data: dict[str, tuple[str, ...]], task: str) -> None:
    found = Task(Run(task, "ours", 0, data[task]))
    method = quality_methods.random_rotations(found.scaled[found.train], found.recipe, found.layout, 0)
    streams = method.encode(found.scaled[:5])
    assert method.augment is not None
    turned = method.augment(streams, np.random.default_rng(0))
    assert np.abs(turned["core"] - streams["core"]).max() > 0.1
    np.testing.assert_allclose(method.decode(turned), method.decode(streams), atol=1e-4)


def test_the_recipe_says_what_ours_is_aligned_to(data: dict[str, tuple[str, ...]]) -> None:
    near = {}
    for strategy in ("medoid", "mean"):
        task = Task(Run("moving_digits", "ours", 0, (*data["moving_digits"], f"anchor.strategy={strategy}")))
        x = task.scaled[task.train]
        anchor = (quality_methods.aligned(x, task.recipe, task.layout, 0).anchors or {})["x"]
        U = decompose(x, task.layout)[0]["factor_x"]
        near[strategy] = float(np.sum((np.swapaxes(anchor, 0, 1) @ U) ** 2))
    assert near["mean"] > near["medoid"]


def test_a_conditional_gaussian_finds_a_linear_law() -> None:
    rng = np.random.default_rng(0)
    states, scalars = 5.0 * rng.standard_normal((400, 500)), rng.standard_normal((400, 3))
    z = scalars @ rng.standard_normal((3, 5)) + 0.1 * rng.standard_normal((400, 5))
    wanted = (np.repeat(states[300:], 20, axis=0), np.repeat(scalars[300:], 20, axis=0))
    drawn = quality_methods.conditional_gaussian(states[:300], scalars[:300], z[:300], wanted, seed=0)
    drawn = drawn.reshape(100, 20, 5)
    assert np.abs(drawn.mean(axis=1) - z[300:]).mean() < 0.25  # 0.08 with the scalars alone, above 1 without them
    assert 0.08 < drawn.std(axis=1).mean() < 0.3


@pytest.mark.parametrize("task", TINY)
def test_every_method_gets_the_same_operations(data: dict[str, tuple[str, ...]], task: str) -> None:
    changes = (*data[task], "train.steps=40")
    done = {name: quality.measure(Run(task, name, 0, changes))["facts"] for name in quality_methods.REPRESENTATIONS}
    spent = {name: facts["steps"] * facts["flops_per_call"] for name, facts in done.items()}
    for name, operations in spent.items():
        assert abs(operations / spent["ours"] - 1) <= 0.5 / (done[name]["steps"] - 0.5), name  # steps are whole


def test_random_rotations_are_weighed_as_they_are_trained_on(data: dict[str, tuple[str, ...]]) -> None:
    task = Task(Run("moving_digits", "random rotations", 0, data["moving_digits"]))
    made = quality_methods.random_rotations(task.scaled[task.train], task.recipe, task.layout, 0)
    found = quality._primitive_set(task, made, made.encode(task.scaled), 0)
    weights = found.layout.unflatten(loss_weights(found, "field").numpy()[None])
    columns = weights["factor_y"][0].mean(axis=0)
    assert columns.max() < 2 * columns.min()


def test_a_network_is_trained_once_for_all_samplers(data: dict[str, tuple[str, ...]]) -> None:
    plain = Run("moving_digits", "ours", 0, data["moving_digits"])
    quality.measure(plain)
    before = (plain.training / "weights.safetensors").stat().st_mtime_ns
    other = Run("moving_digits", "ours", 0, (*data["moving_digits"], "generate.sampler=ddim"))
    assert other.training == plain.training != other.directory / "training"
    quality.measure(other)
    assert (plain.training / "weights.safetensors").stat().st_mtime_ns == before


def test_without_conditions_numbers_are_means_over_draws(data: dict[str, tuple[str, ...]]) -> None:
    task = Task(Run("moving_digits", "ours", 0, data["moving_digits"]))
    k, _, _ = quality._sizes_of_comparison(task)
    sources, numbers = quality._wanted(task)
    assert len(sources) == len(set(numbers.tolist())) == quality.DRAWS * k
    draws = [task.fields[task.train[:k]] * (1 + draw) for draw in range(quality.DRAWS)]
    together = quality._measured(task, quality.Sampled(np.concatenate(draws), None, None))
    alone = [quality._measured(task, quality.Sampled(draw, None, None)) for draw in draws]
    for metric in ("energy_distance", "sliced_wasserstein", "spread_ratio"):
        wanted = np.mean([each[metric]["value"] for each in alone])
        assert together[metric]["value"] == pytest.approx(wanted), metric
        assert together[metric]["label"] == alone[0][metric]["label"]


def test_a_network_is_kept_where_only_sampling_and_scoring_change() -> None:
    run = Run("moving_digits", "ours", 0)
    other = Run("moving_digits", "ours", 0, ("generate.steps=50", "evaluate.members=4"))
    assert other.training == run.training
    assert other.directory != run.directory


def test_rows_of_an_earlier_recipe_do_not_stay_beside_new_ones() -> None:
    def row(task: str, method: str, value: float) -> Row:
        return Row(task, method, 0, "crps", value)

    earlier = [row("burgers_1d", "ours", 1.0), row("burgers_2d", "ours", 2.0), row("burgers_2d", "raw fields", 3.0)]
    found = [row("burgers_2d", "ours", 4.0)]
    then = {"burgers_1d": "a", "burgers_2d": "b"}
    assert quality.merged(earlier, then, found, then) == [*found, earlier[2], earlier[0]]  # leading tasks first
    assert quality.merged(earlier, then, found, then | {"burgers_1d": "c"}) == [*found, earlier[2]]

    names = ["ours", "training mean", "codec of ours", "raw fields", "codec of raw fields", "gaussian of fields"]
    names += ["ours, ddpm at 10", "ours, dpm++ at 5"]
    found = [row("burgers_2d", name, 1.0) for name in names]
    assert quality.merged(found[4:], then, found[:4], then) == found  # as planned
    assert quality.merged([], then, found * 2, then) == found  # references are in every run's rows


def test_a_changed_recipe_is_measured_anew() -> None:
    run = Run("moving_digits", "ours", 0)
    assert run.directory != Run("moving_digits", "ours", 0, ("train.steps=3",)).directory
    assert run.directory == Run("moving_digits", "ours", 0, (f"train.steps={STEPS}",)).directory


# --- why methods learn well or badly ------------------------------------------------------------------------------


def test_an_isometry_stretches_nothing_and_noise_tears_neighbours_apart() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6))
    x = np.concatenate([x, x + 0.01 * rng.standard_normal(x.shape)])  # every sample has a near neighbour
    turned = 3.0 * x @ np.linalg.qr(rng.standard_normal((6, 6)))[0]
    np.testing.assert_allclose(near_pair_stretch(x, turned), 1.0, rtol=1e-6)
    assert near_pair_stretch(x, rng.standard_normal(x.shape))[0] > 20


def test_overlaps_are_those_of_the_worst_mode_and_one_for_the_anchor_itself(data: dict[str, tuple[str, ...]]) -> None:
    task = Task(Run("moving_digits", "ours", 0, data["moving_digits"]))
    x = task.scaled[:3]
    own = {str(s.mode): decompose(x[:1], task.layout)[0][s.name][0] for s in task.layout.streams[1:]}
    overlaps = smallest_overlaps(x, task.layout, own, "sthosvd")
    assert overlaps[0] == pytest.approx(1.0, abs=1e-5)
    assert (overlaps[1:] < 0.99).all()


def test_the_correlation_with_overlaps_is_of_the_samples_drawn(data: dict[str, tuple[str, ...]]) -> None:
    task = Task(Run("burgers_1d", "ours", 0, data["burgers_1d"]))
    made = quality_methods.REPRESENTATIONS["ours"](task.scaled[task.train], task.recipe, task.layout, 0)
    truth = task.scaled[task.test[:8]]
    assert made.anchors is not None
    overlaps = smallest_overlaps(truth, task.layout, made.anchors, "sthosvd")
    worse_with_less = truth * (2.0 - overlaps)[:, None, None]  # relative error 1 - overlap
    assert errors_and_overlaps(made, truth, worse_with_less, "sthosvd")["overlap_error"] == pytest.approx(-1.0)


# --- what the page says ------------------------------------------------------------------------------------------


def rows(task: str, values: dict[tuple[str, str], tuple[float, ...]]) -> list[Row]:
    return [
        Row(task, method, seed, metric, value)
        for (method, metric), measured in values.items()
        for seed, value in enumerate(measured)
    ]


def target(label: str) -> quality_report.Target:
    return next(each for each in quality_report.TARGETS if label in each.label)


def test_a_target_that_is_missed_is_bold_and_one_that_is_met_is_not() -> None:
    given = {("ours", "crps"): (0.1,), ("no alignment", "crps"): (0.4,), ("random anchor", "crps"): (0.09,)}
    table = Table("burgers_1d", rows("burgers_1d", given))
    assert target("no alignment").cell(table) == "0.1 < 0.4"
    assert target("random anchor").cell(table) == "**0.1 > 0.09**"
    assert target("persistence").cell(table) == ""  # not measured
    assert target("energy distance").cell(table) == "—"  # of tasks without conditions


def test_intervals_decide_where_there_are_several_seeds() -> None:
    given = {
        ("ours", "crps"): (0.10, 0.11, 0.12),
        ("no alignment", "crps"): (0.4, 0.41, 0.42),
        ("random anchor", "crps"): (0.09, 0.10, 0.12),
    }
    table = Table("burgers_2d", rows("burgers_2d", given))
    assert target("no alignment").cell(table) == "0.11 < 0.41 (apart)"
    assert target("random anchor").cell(table) == "0.11 > 0.103 (within intervals)"


def test_a_target_that_means_meet_within_intervals_is_in_italics() -> None:
    given = {
        ("ours", "energy_distance"): (0.10, 0.11, 0.15),
        ("no alignment", "energy_distance"): (0.12, 0.13, 0.13),
        ("random anchor", "energy_distance"): (0.12, 0.13, 0.13),
        ("training samples", "energy_distance"): (0.09,),
    }
    table = Table("moving_digits", rows("moving_digits", given))
    assert target("no alignment").cell(table) == "*0.12 < 0.127 (within intervals)*"
    assert target("random anchor").cell(table) == "0.12 < 0.127 (within intervals)"  # met: it is not worse
    assert target("energy distance within 1.5").cell(table) == "*0.12 < 0.135 (within intervals)*"


def test_the_crps_is_compared_with_every_baseline() -> None:
    crps = {"ours": 0.3, "random anchor": 0.2, "raw fields": 0.4, "neural operator": 0.5, "persistence": 0.1}
    table = Table("karman", rows("karman", {(method, "crps"): (value,) for method, value in crps.items()}))
    assert "CRPS below every baseline | 2 of 2 |" in quality_report.targets([table])
    table.values["neural operator", "crps"] = {0: 0.25}
    assert "CRPS below every baseline | **1 of 2** |" in quality_report.targets([table])


def test_values_that_differ_by_rounding_have_no_interval() -> None:
    table = Table(
        "karman", rows("karman", {("ours", "crps"): (0.3, 0.1 + 0.2, 0.3), ("raw fields", "crps"): (1, 2, 3)})
    )
    assert table.cell("ours", "crps") == "0.3"
    assert "±" in table.cell("raw fields", "crps")


def test_the_page_counts_runs_not_samplers_and_links_pictures_that_are_there(tmp_path: Path) -> None:
    given = {("ours", "crps"): (0.1,), ("ours", "seconds"): (9.0,), ("ours, ddim at 10", "seconds"): (1.0,)}
    given |= {("ours", "train_seconds"): (7200.0,), ("ours, ddim at 10", "train_seconds"): (7200.0,)}
    measured = rows("karman", given)
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "karman.gif").touch()
    quality_report.write(measured, ["a machine"], tmp_path, {}, planned=2)
    page = (tmp_path / "quality.md").read_text()
    assert "1 of 2 runs" in page
    assert "All trainings together took 2.0 hours of one core." in page
    assert "(quality/karman.gif)" in page
    quality_report.write(measured, ["a machine"], tmp_path, {}, planned=1)
    assert "Not finished" not in (tmp_path / "quality.md").read_text()


def test_what_coordinates_and_calibration_do_has_a_table_of_its_own(tmp_path: Path) -> None:
    given = {
        ("ours", "crps"): (0.1, 0.3),
        ("ours", "seconds"): (9.0, 9.0),
        ("raw fields", "crps"): (0.5,),
        ("ours (plain)", "crps"): (0.15,),
        ("ours (plain)", "seconds"): (9.0,),
    }
    quality_report.write(rows("karman", given), ["a machine"], tmp_path, {}, planned=2)
    page = (tmp_path / "quality.md").read_text()
    assert "Not finished" not in page  # of ours two seeds are there, and what is plain is not counted
    before, _, after = page.partition(quality_report.PLAIN_TEXT)
    assert "(plain)" not in before
    assert after.strip().splitlines()[2:4] == ["| ours | 0.1 |", "| ours (plain) | 0.15 |"]  # seed 0 of each


def test_plain_runs_leave_out_what_a_method_has() -> None:
    runs = {run.method: run for run in quality.plain_plan(["karman"])}
    assert "neural operator" not in runs
    both, calibration = runs["ours"], runs["raw fields"]
    assert both.training != Run("karman", "ours", 0, quality.MEASURED).training
    assert calibration.training == Run("karman", "raw fields", 0, quality.MEASURED).training
    assert calibration.directory != Run("karman", "raw fields", 0, quality.MEASURED).directory


def test_a_part_of_the_methods_does_not_replace_the_picture_of_all(tmp_path: Path) -> None:
    measured = rows("burgers_1d", {(method, "seconds"): (9.0,) for method in ("ours", "raw fields")})
    np.savez(tmp_path / "e.npz", generated=np.zeros((2, 3, 4)), test=np.ones((2, 3, 4)))
    ours, raw = {"ours": tmp_path / "e.npz"}, {"raw fields": tmp_path / "e.npz"}
    heights = []
    for examples in (ours, ours | raw, ours):
        quality_report.write(measured, ["a machine"], tmp_path, {"burgers_1d": examples}, planned=1)
        with Image.open(tmp_path / "quality" / "burgers_1d.png") as image:
            heights.append(image.height)
    assert heights[0] < heights[1] == heights[2]


def test_curves_show_every_method_and_sampler_that_was_measured(tmp_path: Path) -> None:
    given = {
        ("ours", "energy_distance"): (0.1, 0.3),
        ("no alignment", "energy_distance"): (-0.01,),  # an unbiased estimate may fall below zero
        ("training samples", "energy_distance"): (0.05,),
        ("ours, ddim at 5", "energy_distance"): (0.4,),
        ("ours, ddim at 10", "energy_distance"): (-0.2,),
        ("ours, ddim at 10", "seconds"): (1.0,),
    }
    table = quality_report.Table("moving_digits", rows("moving_digits", given))
    assert quality_report.by_sampler(table) == {"ddim": {5: 0.4, 10: -0.2}}
    text = "\n".join(quality_report.curves([table], tmp_path))
    for name in ("methods", "calls"):
        assert f"(quality/{name}.png)" in text
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    nothing = quality_report.Table("karman", rows("karman", {("ours", "seconds"): (1.0,)}))
    assert quality_report.curves([nothing], tmp_path) == []


def test_the_plot_of_methods_has_the_best_above_and_estimates_below_zero_at_the_edge() -> None:
    errors = {"ours": (0.2, 0.1), "no alignment": (2.0, float("nan")), "random anchor": (-0.01, 0.1)}
    (ax, *_) = quality_curves.methods({"moving_digits": ("energy distance", errors, 0.1)}).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no alignment", "ours", "random anchor"]
    dots, intervals = ax.lines[0:6:2], ax.lines[1:6:2]
    assert [dot.get_marker() for dot in dots] == ["o", "o", "<"]
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], [2.0, 0.2, ax.get_xlim()[0]])
    np.testing.assert_allclose(intervals[1].get_xdata(), [0.1, 0.3])


def test_the_plot_of_calls_has_a_line_for_each_sampler() -> None:
    values = {"ddim": {10: 0.2, 5: 0.4, 20: -0.1}, "unipc": {5: 0.3}}
    (ax, *_) = quality_curves.calls({"moving_digits": ("energy distance", values)}).axes
    assert [list(zip(*line.get_data(), strict=True)) for line in ax.lines] == [[(5, 0.4), (10, 0.2)], [(5, 0.3)]]


def test_a_classifier_is_better_the_nearer_it_is_to_one_half() -> None:
    given = {
        ("ours", "two_sample_accuracy"): (0.4,),
        ("ours", "energy_distance"): (0.01,),
        ("gaussian of fields", "two_sample_accuracy"): (0.75,),
    }
    table = Table("moving_digits", rows("moving_digits", given))
    assert target("less told apart than a gaussian of fields").cell(table) == "0.1 < 0.25"


def test_the_codec_of_a_method_has_a_line_where_it_differs_from_ours() -> None:
    given = {
        ("ours", "relative_l2"): (0.1,),
        ("codec of ours", "relative_l2"): (0.01,),
        ("codec of no alignment", "relative_l2"): (0.01,),
        ("codec of global basis", "relative_l2"): (0.02,),
    }
    table = Table("burgers_1d", rows("burgers_1d", given))
    own = [m for m in table.methods if m.startswith("codec") and table.has_own_codec(m, ["relative_l2", "crps"])]
    assert own == ["codec of ours", "codec of global basis"]
    assert not table.has_own_codec("codec of global basis", ["crps"])


@pytest.mark.parametrize(("few", "cell"), [(0.104, "0.104 : 0.1"), (0.106, "**0.106 : 0.1**")])
def test_few_calls_are_compared_with_many(few: float, cell: str) -> None:
    sampler = load_recipe(quality.RECIPES / "burgers_1d.toml").generate.sampler
    given = {(f"ours, {sampler} at 10", "crps"): (few,), (f"ours, {sampler} at 250", "crps"): (0.1,)}
    page = quality_report.targets([Table("burgers_1d", rows("burgers_1d", given))])
    assert f"5 % of 250 | {cell} |" in page


def test_frames_are_along_time_of_the_first_component_with_colours_last() -> None:
    of_flow = np.arange(2 * 2 * 3 * 4 * 5).reshape(2, 2, 3, 4, 5)
    np.testing.assert_array_equal(quality_report.frames(of_flow, ["component", "time", "y", "x"]), of_flow[:, 0])
    of_photographs = np.zeros((2, 3, 4, 5))
    assert quality_report.frames(of_photographs, ["channel", "y", "x"]).shape == (2, 1, 4, 5, 3)
    assert quality_report.frames(np.zeros((2, 4, 5)), ["time", "x"]).shape == (2, 1, 4, 5)


@pytest.mark.parametrize(
    ("task", "sizes"), [("burgers_2d", (2, 6, 5, 5)), ("burgers_1d", (6, 5)), ("image_patches", (3, 8, 8))]
)
def test_the_gallery_is_a_film_where_fields_move(tmp_path: Path, task: str, sizes: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).random((8, *sizes))
    np.savez(tmp_path / "e.npz", generated=samples, test=samples)
    path = quality_report.gallery({"ours": tmp_path / "e.npz"}, tmp_path, task)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == (6 if task == "burgers_2d" else 1)


# --- the part for choosing settings -------------------------------------------------------------------------------


def test_validation_keeps_whole_trajectories_and_a_range_of_parameters() -> None:
    trajectory, is_test = np.repeat(np.arange(50), 4), np.repeat(np.arange(50) % 10 == 0, 4)
    re = np.repeat(np.linspace(40, 90, 50), 4)
    part = validation_part({"trajectory": trajectory}, {"scalar_re": re}, is_test, ["time", "x"], (5, 8))
    chosen = ~is_test & (part == 1)
    assert not set(trajectory[chosen]) & set(trajectory[~is_test & (part == 0)])
    between = (re > re[~is_test][48]) & (re < re[~is_test][62])
    assert chosen[between & ~is_test].all()
    assert 0.1 < chosen.sum() / (~is_test).sum() < 0.25


def test_validation_windows_share_no_pixel_with_those_of_training() -> None:
    start = np.arange(0, 320, 8)
    is_test = start > 240
    part = validation_part({"x_start": start}, {}, is_test, ["channel", "y", "x"], (3, 64, 64))
    train, chosen = (start[~is_test & (part == kind)] for kind in (0, 1))
    assert len(train)
    assert len(chosen)
    assert train.max() + 64 <= chosen.min()


def test_validation_never_scores_on_test_samples(data: dict[str, tuple[str, ...]]) -> None:
    whole, part = (Task(Run("burgers_1d", "ours", 0, data["burgers_1d"], validate)) for validate in (False, True))
    test = {sample.tobytes() for sample in whole.fields[whole.is_test]}
    assert not test & {sample.tobytes() for sample in part.fields}
    assert part.is_test.sum() > 0
