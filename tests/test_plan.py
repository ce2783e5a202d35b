"""The dry run: metadata only, the right figures, and a pilot whose table can be trusted."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from tiny_recipe import waves, write_recipe
from tiny_runs import CASES as OWN_DATA
from tiny_runs import PRIMITIVES, calls
from tiny_runs import run as run_stages
from torch import nn
from typer.testing import CliRunner, Result

from diffats import timing, training
from diffats.cli import app
from diffats.config import Recipe, load_recipe
from diffats.errors import InputError
from diffats.loader import PrimitiveSet
from diffats.models import Denoiser, resolve_device
from diffats.primitives import Layout, RankErrors, affordable
from diffats.schedule import usable_levels
from diffats.sources.samples import Samples
from diffats.stages import Workspace, align
from diffats.stages import pilot as piloting
from diffats.stages import plan as planning
from diffats.store import Store

ALONE = ("train.steps=1", "data.condition={}")


def run(*arguments: object, overrides: tuple[str, ...] = ()) -> Result:
    options = [word for override in overrides for word in ("--set", override)]
    return CliRunner().invoke(app, [*map(str, arguments), *options])


def planned(recipe: Path, *options: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    result = run("plan", recipe, "--json", *options, overrides=overrides)
    assert result.exit_code == 0, result.stderr
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def zarr_recipe(directory: Path, data: xr.Dataset) -> Path:
    recipe = write_recipe(directory, data)
    data.to_zarr(directory / "tiny.zarr", zarr_format=3, consolidated=False)
    recipe.write_text(recipe.read_text().replace("tiny.nc", "tiny.zarr"))
    return recipe


# --- metadata only ----------------------------------------------------------------------------------------------


def test_plan_reads_no_field_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = zarr_recipe(tmp_path, waves())
    read: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        read.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    before = sorted(tmp_path.rglob("*"))
    planned(recipe)
    assert any(key.startswith("time/c") for key in read)  # an index coordinate: the counting works
    assert not any(key.startswith("u/c") for key in read)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_pilot_reads_at_most_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, waves(400))
    read: list[int] = []
    plain = Samples.read
    monkeypatch.setattr(Samples, "read", lambda self, indices: read.extend(indices) or plain(self, indices))
    made = planned(recipe, "--pilot")
    assert len(read) == len(set(read)) == 256
    assert made["train"] == 300
    assert not (tmp_path / "root").exists()


# --- figures ----------------------------------------------------------------------------------------------------


def test_the_figures(tmp_path: Path) -> None:
    made = planned(write_recipe(tmp_path), overrides=("decompose.ranks={time=2,x=2}", "compute.shard_samples=5"))
    assert (made["samples"], made["train"], made["test"], made["dropped"]) == (24, 18, 6, 0)
    assert (made["sizes"], made["dtype"]) == ({"time": 6, "x": 8}, "float32")
    assert (made["ranks"], made["aligned"]) == ({"time": 2, "x": 2}, ["time", "x"])
    assert made["streams"] == {"core": [2, 2], "factor_time": [6, 2], "factor_x": [8, 2]}
    assert (made["numbers_per_sample"], made["numbers_per_primitive"]) == (48, 4 + 12 + 16)
    assert made["compression"] == pytest.approx(48 / 32)
    assert (made["bytes_in"], made["bytes_out"]) == (24 * 48 * 4, 24 * (32 + 32) * 4)
    assert (made["shard_samples"], made["shards"]) == (5, 5)
    assert made["peak_bytes_per_worker"] >= 5 * 48 * 4
    assert made["rough_seconds"] > 0
    assert set(made["exists"].values()) == {"to do"}


def test_the_text_says_it_all(tmp_path: Path) -> None:
    result = run("plan", write_recipe(tmp_path), overrides=("decompose.ranks={time=2,x=2}",))
    assert result.exit_code == 0
    for line in (
        "samples      24 (18 train, 6 test, 0 dropped at the split)",
        "held out     6 entries of sample: 11, 14, 16, 17, 19 and 1 more; 6 groups that do not depend on each other",
        "each         time 6, x 8; float32",
        "ranks        time 2, x 2; aligned: time, x",
        "primitive    32 of 48 numbers: 1.5x",
        "bytes        in 4.5 KiB, out 6.0 KiB before compression by the store",
        "shards       1 of 24 samples, about 640.0 MiB at most in a worker",
        "rough time   1 s to encode; with --pilot also training and generation",
        "exists       tucker: to do, anchor: to do, primitives: to do, normalisation: to do, model: to do, samples: to",
    ):
        assert line in result.stdout
    assert result.stderr == "warning: Only 6 test samples: differences may be chance; have 50 or more\n"


def test_dates_and_gap_of_a_series(tmp_path: Path) -> None:
    time = xr.date_range("2001-01-01", periods=364, freq="D")
    recipe = write_recipe(tmp_path, xr.Dataset({"u": (("time", "x"), np.ones((364, 8)))}, coords={"time": time}))
    overrides = (
        *("data.sample_dim=", "data.condition={}", "data.windows.size={time=4}", "data.windows.stride={time=2}"),
        *("data.split.by=coordinate", "data.split.coordinate=time", "data.split.test=0.3"),
    )
    made = planned(recipe, overrides=overrides)
    held = made["split"]["held_out"]
    assert (held["along"], held["count"], held["first"]) == (["time"], 1, ["2001-09-14 .. 2001-12-30"])
    assert made["split"]["gaps"] == {"time": {"points": 2, "distance": 3 * 86400.0, "unit": "s"}}
    assert (made["split"]["test_groups"], made["test"]) == (27, 53)
    assert ["53 test samples make 27 groups" in caution for caution in made["cautions"]] == [True]
    shown = run("plan", recipe, overrides=overrides).stdout
    assert "held out     1 stretch of time: 2001-09-14 .. 2001-12-30; 27 groups that do not depend" in shown
    assert "gap          time: 2 points between training and test samples (3.0 days)" in shown


def test_ranks_that_compress_nothing_are_warned_of(tmp_path: Path) -> None:
    result = run("plan", write_recipe(tmp_path))
    assert result.exit_code == 0
    assert "warning: the primitive stores 51 numbers and the sample 48: nothing is compressed" in result.stderr


def test_what_exists_grows_stage_by_stage(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for verb, group in (("decompose", "tucker"), ("anchor", "anchor"), ("align", "primitives")):
        assert planned(recipe)["exists"][group] == "to do"
        assert run(verb, recipe).exit_code == 0
        assert planned(recipe)["exists"][group] == "finished"


def test_a_tolerance_is_planned_without_ranks_until_they_are_found(tmp_path: Path) -> None:
    recipe, overrides = write_recipe(tmp_path), ("decompose={tolerance=0.3}",)
    assert "ranks" not in planned(recipe, overrides=overrides)
    assert "found from the tolerance on a pilot" in run("plan", recipe, overrides=overrides).stdout
    pilot = planned(recipe, "--pilot", overrides=overrides)["pilot"]
    assert run("decompose", recipe, overrides=overrides).exit_code == 0
    assert planned(recipe, overrides=overrides)["ranks"] == pilot[0]["ranks"]


# --- what would fail only after training ------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("noise_steps", [50, 1000])
def test_no_more_steps_than_the_target_can_use(tmp_path: Path, schedule: str, noise_steps: int) -> None:
    from diffats.diffusion import Diffusion

    diffusion = (f"diffusion={{target='eps',schedule='{schedule}',noise_steps={noise_steps}}}",)
    recipe = load_recipe(write_recipe(tmp_path), diffusion)
    levels = usable_levels(recipe.diffusion)
    assert len(Diffusion(recipe.diffusion).timesteps(levels)) == levels
    planned(tmp_path / "tiny.toml", overrides=(*diffusion, f"generate.steps={levels}"))
    if levels == noise_steps:
        return
    result = run("plan", tmp_path / "tiny.toml", overrides=(*diffusion, f"generate.steps={levels + 1}"))
    assert result.exit_code == 2
    assert f"generate.steps {levels + 1} exceeds {levels}, the noise levels that target " in result.stderr
    with pytest.raises(InputError, match=f"at most {levels}"):
        Diffusion(recipe.diffusion).timesteps(levels + 1)


@pytest.mark.parametrize(("points", "fits"), [(7, False), (8, True)])
def test_spectra_decide_only_where_there_are_some(tmp_path: Path, points: int, fits: bool) -> None:
    from diffats import evaluation

    recipe = write_recipe(tmp_path, waves().isel(x=slice(points)))
    result = run("plan", recipe, overrides=("evaluate.metric=spectrum_error",))
    assert result.exit_code == (0 if fits else 2)
    refusal = f'evaluate.metric "spectrum_error" needs a mode of at least 8 points (sample: time=6, x={points}). Use'
    assert (refusal in result.stderr) is not fits
    x = np.random.default_rng(0).normal(size=(3, 4, 6, points))
    fields = evaluation.Fields(("time", "x"), x[0], x[1], x[2], mean=np.zeros(()), scale=np.ones(()))
    assert ("spectrum_error" in evaluation.evaluate(fields)) is fits


# --- the pilot --------------------------------------------------------------------------------------------------


def test_the_recipes_row_is_what_the_stage_then_measures(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    row = planned(recipe, "--pilot")["pilot"][0]
    assert (row["choice"], row["ranks"], row["samples"]) == ("recipe", {"time": 3, "x": 3}, 18)
    assert run("decompose", recipe).exit_code == 0
    tucker = Store.open(tmp_path / "root" / "store").latest("tucker")
    assert tucker is not None
    stored = tucker.dataset().load()
    train = stored.isel(sample=stored["split"].values == "train")
    for name in ("anomaly_error", "relative_error"):
        assert row[name] == pytest.approx(float(train[name].mean()), rel=1e-4)


def wide(n: int = 20) -> xr.Dataset:
    """Samples large enough that several ranks compress them."""
    rng = np.random.default_rng(0)
    decay = np.exp(-np.add.outer(np.arange(12), np.arange(14)) / 4)
    left, right = (np.linalg.qr(rng.normal(size=(n, m, m)))[0] for m in (12, 14))
    field = left @ (decay * rng.normal(size=(n, 12, 14))) @ right.transpose(0, 2, 1)
    return xr.Dataset({"u": (("sample", "time", "x"), 5 + field)})


def test_rows_reach_their_errors_with_few_numbers(tmp_path: Path) -> None:
    rows = planned(write_recipe(tmp_path, wide()), "--pilot", overrides=ALONE)["pilot"][1:]
    assert len(rows) >= 2
    assert all(0 <= value <= 1 for row in rows for value in row["overlap"].values())
    assert [row["numbers"] for row in rows] == sorted(row["numbers"] for row in rows)
    for row in rows:
        assert row["anomaly_error"] <= float(row["choice"].removeprefix("error <= ")) * 1.01
        assert row["compression"] > 1
        assert row["anomaly_error_max"] >= row["anomaly_error"] > row["relative_error"]  # the mean is 5


def test_the_table_is_printed(tmp_path: Path) -> None:
    text = run("plan", write_recipe(tmp_path, wide()), "--pilot", overrides=ALONE).stdout
    assert "aligned: time, x\nchoice          numbers  compression    error  overlap  ranks\nrecipe " in text
    assert "\nerror <= 0.5 " in text
    assert "\noverlap by rank      1     2     3     4     5     6     8    10    12\ntime " in text
    assert "mean of 15 training samples" in text


CASES: dict[str, tuple[str, ...]] = {
    "several variables": ('data.variables=["u","v"]', "decompose.ranks={component=2,time=3,x=3}"),
    "a mode in the core": ('data.modes=["time","x","y"]', "decompose.ranks={time=2,x=2}"),
    "merged into the core": (
        'data.modes=["time","x","y"]',
        "decompose.ranks={time=3,x=2,y=3}",
        'align.modes=["time","x"]',
    ),
    "matrix": ("decompose={}", 'primitive={kind="mgp",patch={time=4,x=7},rank=3}'),
    "matrix by channel": (
        'data.modes=["time","x","y"]',
        "decompose={}",
        'primitive={kind="mgp",patch={time=4,x=7},rank=3}',
    ),
    "masked": ('data.missing="mask"',),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pilot_serves_every_kind_of_recipe(tmp_path: Path, case: str) -> None:
    data = wide()
    data["v"] = 2 - 3 * data.u
    asked = " ".join(CASES[case])
    if '"y"' in asked:
        data = data.expand_dims(y=3).copy(deep=True)
        data["u"] = data.u + np.random.default_rng(1).normal(size=data.u.shape) / 9
    if case == "masked":
        data["u"] = data.u.where((data.time > 1) | (data.x > 2))
    recipe = write_recipe(tmp_path, data if '"v"' in asked else data[["u"]])
    rows = planned(recipe, "--pilot", overrides=(*ALONE, *CASES[case]))["pilot"]
    assert rows[0]["choice"] == "recipe"
    assert len(rows) >= 2
    assert all(np.isfinite(row["anomaly_error"]) for row in rows)
    errors = [row["anomaly_error"] for row in rows[1:] if row["aligned"] == rows[0]["aligned"]]
    assert errors == sorted(errors, reverse=True)


# --- how long the rest takes ------------------------------------------------------------------------------------


def test_the_pilot_says_how_long_the_rest_takes(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    times = planned(recipe, "--pilot", overrides=("train.steps=2500",))["times"]
    assert (times["train_steps"], times["train_done"], times["generate_samples"]) == (2500, 0, 6)
    assert times["device"] == str(resolve_device())
    assert times["train_seconds"] == pytest.approx(2500 * times["seconds_per_step"])
    assert times["seconds_per_step"] > 0
    assert times["generate_seconds"] > 0
    assert not (tmp_path / "root").exists()
    text = run("plan", recipe, "--pilot").stdout
    assert re.search(r"^rough time   1 s to encode$", text, re.MULTILINE)
    assert re.search(r"^training     4 steps, about 1 s on \S+ \(\d\S* s a step\)$", text, re.MULTILINE)
    assert re.search(r"^generation   6 samples, about 1 s$", text, re.MULTILINE)


def test_steps_that_are_done_are_not_told_again(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    for verb in ("decompose", "anchor", "align", "normalise", "train"):
        assert run(verb, recipe).exit_code == 0
    before = sorted((tmp_path / "root").rglob("*"))
    more = planned(recipe, "--pilot", overrides=("train.steps=6",))["times"]
    assert (more["train_steps"], more["train_done"]) == (6, 4)
    assert more["train_seconds"] == pytest.approx(2 * more["seconds_per_step"])
    assert (
        "\ntraining     2 of 6 steps left, about "
        in run("plan", recipe, "--pilot", overrides=("train.steps=6",)).stdout
    )
    assert "\ntraining     all 4 steps are done (" in run("plan", recipe, "--pilot").stdout
    left = ("train.calibrate=true",)
    assert planned(recipe, "--pilot", overrides=left)["times"]["train_seconds"] > 0
    assert re.search(r" s a step\); about \d+ s to calibrate", run("plan", recipe, "--pilot", overrides=left).stdout)
    other = planned(recipe, "--pilot", overrides=("model.width=32",))["times"]
    assert other["train_done"] == 0
    assert sorted((tmp_path / "root").rglob("*")) == before


def parameters(data: PrimitiveSet, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's parameters; of a class's embedding without the number of classes."""
    network = Denoiser(data.layout, data.conditions, recipe.model)
    by_class = {id(x) for module in network.modules() if isinstance(module, nn.Embedding) for x in module.parameters()}
    return {name: tuple(x.shape)[id(x) in by_class :] for name, x in network.named_parameters()}


@pytest.mark.parametrize("case", OWN_DATA)
def test_the_network_that_is_timed_is_the_one_that_is_trained(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = OWN_DATA[case](tmp_path).recipe
    work = Workspace(recipe)
    with calls(timing, "measure", monkeypatch) as timed:
        piloting.times(work, piloting.pilot(work).rows[0]["ranks"])
    with calls(training, "train", monkeypatch) as trained:
        run_stages(recipe, (*PRIMITIVES, "train"))
    assert parameters(timed[0][0], recipe) == parameters(trained[0][0], recipe)
    assert timed[0][0].condition_names == trained[0][0].condition_names


def test_a_device_of_another_machine_is_not_timed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = next(name for name in ("cuda", "mps") if name != resolve_device().type)
    work = Workspace(load_recipe(write_recipe(tmp_path), (f"compute.device={missing}",)))
    assert piloting.times(work, {"time": 3, "x": 3}) == {}
    assert f'training and generation were not timed: device "{missing}" is not available here' in caplog.text


# --- the smallest ranks, against all of them --------------------------------------------------------------------


def brute_force(x: np.ndarray[Any, Any], decomposed: list[int], target: float) -> float:
    """The fewest numbers among all ranks whose truncated HOSVD has at most this root-mean-square error."""
    shape, best = x.shape[1:], math.inf
    factors = {
        mode: np.linalg.svd(np.moveaxis(x, mode + 1, 1).reshape(len(x), shape[mode], -1))[0] for mode in decomposed
    }
    for ranks in itertools.product(*(range(1, shape[mode] + 1) for mode in decomposed)):
        kept = x
        for mode, rank in zip(decomposed, ranks, strict=True):
            U = factors[mode][..., :rank]
            kept = np.moveaxis(np.einsum("nij,nkj,nk...->ni...", U, U, np.moveaxis(kept, mode + 1, 1)), 1, mode + 1)
        lost = ((x - kept) ** 2).reshape(len(x), -1).sum(1) / (x**2).reshape(len(x), -1).sum(1)
        core = math.prod(shape) // math.prod(shape[m] for m in decomposed) * math.prod(ranks)
        lawful = all(rank * rank <= core for rank in ranks)
        numbers = core + sum(shape[mode] * rank for mode, rank in zip(decomposed, ranks, strict=True))
        if lawful and lost.mean() <= target**2:
            best = min(best, numbers)
    return best


@pytest.mark.parametrize("decomposed", [[0, 1], [0, 1, 2], [0, 2]])
def test_the_smallest_ranks_are_the_smallest(decomposed: list[int]) -> None:
    rng = np.random.default_rng(0)
    shape, names = (5, 6, 7), "abc"
    x = rng.normal(size=(4, *shape)) * np.exp(-np.add.outer(np.add.outer(np.arange(5), np.arange(6)), np.arange(7)))
    sizes = dict(zip(names, shape, strict=True))
    modes = tuple(names[mode] for mode in decomposed)
    layout = Layout("tgp", tuple(names), sizes, dict.fromkeys(modes, 2), modes)
    errors, whole = RankErrors.measure(x, x, layout), RankErrors.measure(x, x, layout, "abc")
    for target in (0.5, 0.1, 0.02):
        ranks = errors.smallest(target)
        assert ranks is not None
        assert whole.smallest(target, modes) == ranks
        core = math.prod(ranks.get(name, sizes[name]) for name in names)
        numbers = core + sum(sizes[mode] * rank for mode, rank in ranks.items())
        assert numbers == brute_force(x, decomposed, target)


def test_long_modes_have_few_candidates_but_their_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffats.primitives.ranks._CANDIDATES", 64)  # 8 a mode, of 30 and 40
    x = np.random.default_rng(0).normal(size=(2, 30, 2)) @ np.eye(2, 40)
    layout = Layout("tgp", ("t", "x"), {"t": 30, "x": 40}, {"t": 2, "x": 2}, ("t", "x"))
    assert RankErrors.measure(x, x, layout).smallest(0.01) == {"t": 2, "x": 2}
    noise = np.random.default_rng(0).normal(size=(2, 30, 40))
    assert RankErrors.measure(noise, noise, layout).smallest(1e-6) == {"t": 30, "x": 30}  # the product law's


def test_a_share_of_the_samples_leaves_out_the_hardest() -> None:
    rng = np.random.default_rng(0)
    easy = rng.normal(size=(10, 8, 1)) @ rng.normal(size=(10, 1, 9))
    x = np.concatenate([easy, rng.normal(size=(1, 8, 9))])
    layout = Layout("tgp", ("t", "x"), {"t": 8, "x": 9}, {"t": 2, "x": 2}, ("t", "x"))
    every, most = (RankErrors.measure(x, x, layout, share=share) for share in (1.0, 0.9))
    assert every.smallest(0.01) != {"t": 1, "x": 1}
    assert most.smallest(0.01) == {"t": 1, "x": 1}
    assert RankErrors.measure(x, x, layout, share=1 - 1e-9).lost == pytest.approx(every.lost)


def test_the_rows_of_a_tolerance_are_what_the_stage_finds(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, wide())
    rows = planned(recipe, "--pilot", overrides=ALONE)["pilot"]
    ranks = next(row["ranks"] for row in rows if row["choice"] == "error <= 0.3")
    overrides = (*ALONE, "decompose={tolerance=0.3}")
    assert run("decompose", recipe, overrides=overrides).exit_code == 0
    assert planned(recipe, overrides=overrides)["ranks"] == ranks


def test_overlaps_are_those_of_the_stages(tmp_path: Path) -> None:
    """Of samples that all are in the pilot; the medoid itself does not count there."""
    recipe = write_recipe(tmp_path, wide())
    overrides = (*ALONE, "data.center=none", "data.scale=none", "decompose.ranks={time=2,x=2}")
    made = planned(recipe, "--pilot", overrides=overrides)
    for verb in ("decompose", "anchor", "align"):
        assert run(verb, recipe, overrides=overrides).exit_code == 0
    work = Workspace(load_recipe(recipe, overrides))
    primitives = align.primitives_version(work)
    assert primitives is not None
    found = primitives.dataset()
    train = ~work.samples.is_test
    for axis, mode in enumerate(("time", "x")):
        smallest = found["overlap"].values[train, axis]
        expected = np.median(smallest[smallest < 1 - 1e-6])
        assert made["pilot"][0]["overlap"][mode] == pytest.approx(expected, rel=1e-4)
    assert made["overlaps"]["time"]["2"] == pytest.approx(made["pilot"][0]["overlap"]["time"], rel=1e-4)


def test_weak_ranks_are_named() -> None:
    found = piloting.Pilot([], {"y": {1: 0.9, 2: 0.04, 3: 0.2}, "x": {1: 0.9}})
    assert found.first_below(0.05) == {"y": 2}


def test_large_samples_make_a_small_pilot(tmp_path: Path) -> None:
    layout = Layout("tgp", ("t", "x"), {"t": 2000, "x": 3000}, {"t": 2, "x": 2}, ("t", "x"))
    assert len(affordable(256, layout)) == 2
    small = Workspace(load_recipe(write_recipe(tmp_path)))
    assert len(affordable(256, planning.planned_layout(small) or layout)) == 256


# --- what would fail later --------------------------------------------------------------------------------------


def test_plan_refuses_a_root_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    refused = run("plan", recipe)
    assert refused.exit_code == 2
    assert "is read-only, or belongs to somebody else. Change that, or use another root" in refused.stderr


def test_plan_refuses_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffats.compute._CONNECT_SECONDS", 0.5)
    refused = run("plan", write_recipe(tmp_path), overrides=("compute.scheduler=tcp://127.0.0.1:9",))
    assert refused.exit_code == 2
    assert 'no Dask scheduler answers at "tcp://127.0.0.1:9"' in refused.stderr
