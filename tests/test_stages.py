"""The stages: bad samples, gauge, versions, what is done again and what is not."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from tiny_runs import ALL, MODEL, PRIMITIVES, calls, changed, run, small_recipe, waves

import diffats
from diffats import bundle, sources, stages
from diffats.config import Recipe
from diffats.errors import InputError, RankError, RootMismatchError, SourceError, StoreNotFoundError, TooManyFailedError
from diffats.primitives import Layout
from diffats.progress import ProgressLine
from diffats.stages import Workspace, align, decompose, evaluate, fit_normalisation, generate, select_anchor, train
from diffats.stages.outlook import outlook
from diffats.stages.report import anchor_samples
from diffats.stages.workspace import Hooks
from diffats.store import STATUS, Version

N = 28  # four shards of seven


def write(folder: Path, field: np.ndarray, nu: np.ndarray | None = None, units: str = "m") -> dict[str, Any]:
    """A Zarr store of samples, every fourth of the first 28 held out; its data section."""
    n = len(field)
    side = np.where((np.arange(n) % 4 == 1) & (np.arange(n) < N), "test", "train").astype(object)
    nu = np.linspace(1, 2, n) if nu is None else nu
    u = (("run", "y", "x"), field, {"units": units})
    ds = xr.Dataset({"u": u, "nu": ("run", nu)}, coords={"split": ("run", side)})
    ds.to_zarr(folder / "u.zarr", zarr_format=3, consolidated=False)
    return {
        "source": str(folder / "u.zarr"),
        "variables": ["u"],
        "modes": ["y", "x"],
        "sample_dim": "run",
        "split": {"by": "coordinate", "coordinate": "split", "values": ["test"]},
        "condition": {"scalars": ["nu"], "dropout": 0.1},
        "max_failed": 0.5,
    }


def fields(n: int = N) -> np.ndarray:
    return (waves(n, 6, 8) + 4).astype("f4")


def make(folder: Path, field: np.ndarray | None = None, **sections: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    data = write(folder, fields() if field is None else field) | sections.pop("data", {})
    return small_recipe(folder / "root", data, **{"decompose": {"ranks": {"y": 3, "x": 3}}, **sections})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = make(tmp_path_factory.mktemp("finished"))
    run(recipe)
    return recipe


@pytest.fixture
def copied(finished: Recipe, tmp_path: Path) -> Recipe:
    """A finished root that a test may change."""
    shutil.copytree(finished.root, tmp_path / "root")
    return changed(finished, root=str(tmp_path / "root"))


def version(recipe: Recipe, group: str) -> Version:
    work = Workspace(recipe)
    found = {
        "tucker": decompose.tucker_version,
        "primitives": align.primitives_version,
        "normalisation": fit_normalisation.normalisation_version,
        "anchor": lambda w: select_anchor.anchor_version(w, select_anchor.require_tucker(w)),
    }[group](work)
    assert found is not None
    return found


def skipped(results: dict[str, stages.StageResult]) -> set[str]:
    return {name for name, result in results.items() if result.skipped}


# Bad samples -----------------------------------------------------------------------------------------------------


def bad_samples() -> np.ndarray:
    """One sample of each kind that cannot be used, beside some that would shift every statistic."""
    bad = np.full((4, 6, 8), 1e6, "f4")
    bad[0, 2, 3], bad[1, 0, 0], bad[2] = np.nan, np.inf, 0
    return bad


def test_bad_samples_reach_nothing(finished: Recipe, tmp_path: Path) -> None:
    nu = np.append(np.linspace(1, 2, N), [1.0, 1.0, 1.0, np.inf])  # the last one's condition is what is bad
    data = write(tmp_path, np.concatenate([fields(), bad_samples()]), nu)
    recipe = changed(finished, root=str(tmp_path / "root"), data=data)
    results = run(recipe)
    assert results["decompose"].failed == 4
    meaning = {flag: name for name, flag in STATUS.items()}
    status = version(recipe, "primitives").dataset()["status"].values
    assert [meaning[int(flag)] for flag in status[N:]] == ["non_finite", "non_finite", "all_zero", "non_finite"]
    for group in ("anchor", "normalisation"):
        clean, dirty = (version(each, group).dataset() for each in (finished, recipe))
        for name in (name for name in clean.data_vars if "sample" not in clean[name].dims):
            np.testing.assert_array_equal(clean[name], dirty[name])
    models = [diffats.load(each.root) for each in (finished, recipe)]
    assert len({train.weights_digest(model.directory) for model in models}) == 1
    again = run(finished, ["evaluate"])["evaluate"]
    assert results["evaluate"].facts["metrics"] == again.facts["metrics"]


def test_a_shard_without_a_good_sample(tmp_path: Path) -> None:
    field = fields()
    field[7:14] = np.nan
    recipe = make(tmp_path, field)
    results = run(recipe, PRIMITIVES)
    assert results["align"].failed == 7


def test_too_many_failures_are_listed_and_a_higher_limit_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = fields()
    field[[3, 9, 20], 0, 0] = np.nan
    recipe = make(tmp_path, field, data={"max_failed": 0.05})
    with pytest.raises(TooManyFailedError, match=r"3 of 28.*3 \(non_finite\).*data.max_failed"):
        run(recipe, ["decompose"])
    with calls(decompose, "decompose", monkeypatch) as made:
        result = run(changed(recipe, data={"max_failed": 0.2}), ["decompose"])["decompose"]
    assert (result.failed, made) == (3, [])


def test_nothing_usable_is_told_with_the_share_that_is_missing(tmp_path: Path) -> None:
    field = fields()
    field[:, :3] = np.nan
    with pytest.raises(SourceError, match=r"50\.0% .*data\.missing"):
        run(make(tmp_path, field), ["decompose"])


# Masks -----------------------------------------------------------------------------------------------------------


def test_a_mask_is_what_most_samples_lack(tmp_path: Path) -> None:
    field = fields()
    field[:, 0, :2] = np.nan
    field[8, 3, 3] = np.nan  # more is missing
    field[11, 0, 0] = 5.0  # less is missing
    field[12, 0, 0] = np.inf
    recipe = make(tmp_path, field, data={"missing": "mask", "max_failed": 0.2})
    results = run(recipe, ["decompose"])
    assert results["decompose"].failed == 3
    scaling, mean = decompose.read_scaling(
        Workspace(recipe).store_location, decompose.scaling_version(Workspace(recipe)).snapshot
    )
    assert scaling.mask is not None
    assert np.argwhere(scaling.mask).tolist() == [[0, 0], [0, 1]]
    assert np.isfinite(mean).all()


def test_holes_that_move_are_no_mask(tmp_path: Path) -> None:
    field = fields()
    for i in range(N):
        field[i, i % 6, i % 8] = np.nan
    recipe = make(tmp_path, field, data={"missing": "mask", "max_failed": 0.2})
    with pytest.raises(SourceError, match="not at the same points"):
        run(recipe, ["decompose"])


# Gauge -----------------------------------------------------------------------------------------------------------


def test_primitives_do_not_depend_on_the_gauge_of_the_decomposition(
    copied: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = version(copied, "primitives").dataset().load()
    original = decompose.decompose
    rng = np.random.default_rng(3)

    def turned(x: np.ndarray, layout: Layout, method: str) -> Any:
        streams, tucker = original(x, layout, method)
        Q = [np.linalg.qr(rng.normal(size=(len(x), 3, 3)).astype("f4"))[0] for _ in range(2)]
        core = Q[0].mT @ streams["core"] @ Q[1]
        return {
            "core": core, "factor_y": streams["factor_y"] @ Q[0], "factor_x": streams["factor_x"] @ Q[1]
        }, tucker  # fmt: skip

    work = Workspace(copied)
    location, anchor = work.store_location, select_anchor.anchor_version(work, select_anchor.require_tucker(work))
    assert anchor is not None
    anchors = align.read_anchors(location, anchor.snapshot)
    with monkeypatch.context() as patch:
        patch.setattr(decompose, "decompose", turned)
        run(copied, ["decompose"], restart=True)
    monkeypatch.setattr(align, "read_anchors", lambda *address: anchors)
    run(copied, ["select_anchor", "align"])
    after = version(copied, "primitives").dataset().load()
    clear = (before["overlap"].values > 0.05).all(axis=1)
    assert clear.sum() > N // 2
    for name in ("core", "factor_y", "factor_x"):
        np.testing.assert_allclose(after[name].values[clear], before[name].values[clear], atol=5e-4)


# Once, and not again ---------------------------------------------------------------------------------------------


def test_a_second_run_reads_nothing_and_says_so(finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with calls(sources.Samples, "read", monkeypatch) as reads, calls(Version, "fill", monkeypatch) as fills:
        results = run(finished)
    assert skipped(results) == set(ALL)
    assert (reads, fills) == ([], [])
    assert all(result.seconds < 2 for result in results.values())


def test_the_same_source_by_another_path_is_the_same_data(finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(finished.data.source)
    monkeypatch.chdir(source.parent)
    assert skipped(run(changed(finished, data={"source": source.name}))) == set(ALL)


@pytest.mark.parametrize(
    ("sections", "redone"),
    [
        ({"generate": {"steps": 1}}, {"generate", "evaluate"}),
        ({"evaluate": {"samples": 5}}, {"evaluate"}),
        ({"train": {"lr": 1e-4}}, {"train", "generate", "evaluate"}),
        ({"anchor": {"strategy": "mean"}}, set(ALL) - {"decompose"}),
        ({"decompose": {"ranks": {"y": 2, "x": 2}}}, set(ALL)),
    ],
)
def test_a_change_redoes_what_follows_from_it_and_nothing_else(
    copied: Recipe, sections: dict[str, Any], redone: set[str]
) -> None:
    results = run(changed(copied, **sections))
    assert set(ALL) - skipped(results) == redone
    assert skipped(run(copied)) == set(ALL)  # and the old versions are still there


def test_other_aligned_modes_need_no_new_decomposition(tmp_path: Path) -> None:
    np.savez(tmp_path / "u.npz", u=waves(20, 4, 5, 6))
    data = {"source": str(tmp_path / "u.npz"), "modes": ["dim_1", "dim_2", "dim_3"], "sample_dim": "dim_0"}
    recipe = small_recipe(tmp_path / "root", data, decompose={"ranks": {"dim_1": 2, "dim_2": 2, "dim_3": 2}})
    run(recipe, PRIMITIVES)
    two = changed(recipe, align={"modes": ["dim_1", "dim_3"]})
    results = run(two, PRIMITIVES)
    assert skipped(results) == {"decompose"}
    assert version(two, "primitives").dataset()["core"].dims == ("sample", "rank_dim_1", "dim_2", "rank_dim_3")
    assert skipped(run(recipe, PRIMITIVES)) == set(PRIMITIVES)


def test_more_steps_continue_and_fewer_do_not(copied: Recipe) -> None:
    def progress(done: int, total: int, failed: int) -> None:
        seen.append(done)

    seen: list[int] = []
    run(changed(copied, train={"steps": 8}), ["train"], progress=progress)
    assert seen == [6, 7, 8]
    seen.clear()
    fewer = changed(copied, train={"steps": 3})
    run(fewer, ["train"], progress=progress)
    assert seen == [1, 2, 3]
    fresh = changed(fewer, root=copied.root + "-fresh")
    run(fresh, [*PRIMITIVES, "train"])
    digests = {train.weights_digest(train.require_bundle(Workspace(each)).directory) for each in (fewer, fresh)}
    assert len(digests) == 1
    assert [row["step"] for row in train.history(Workspace(copied), identity(copied))] == [2, 4, 5]


def identity(recipe: Recipe) -> str:
    work = Workspace(recipe)
    return train.model_fingerprint(work, *train.require_normalisation(work))


def test_restart_makes_the_same_anew(copied: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {group: version(copied, group).digest for group in ("tucker", "primitives", "normalisation")}
    weights = train.weights_digest(train.require_bundle(Workspace(copied)).directory)
    with calls(decompose, "decompose", monkeypatch) as made:
        results = run(copied, restart=True)
    assert len(made) == 4
    assert skipped(results) == set()
    assert {group: version(copied, group).digest for group in before} == before
    assert train.weights_digest(train.require_bundle(Workspace(copied)).directory) == weights


def stored_samples(recipe: Recipe) -> xr.Dataset:
    work = Workspace(recipe)
    found = generate.samples_version(work, train.require_bundle(work))
    assert found is not None
    return found.dataset().load()


@pytest.mark.parametrize(("factor", "units"), [(4, "m"), (4, "cm"), (1, "cm")])
def test_a_changed_source_is_another_data_set(copied: Recipe, tmp_path: Path, factor: int, units: str) -> None:
    moved = tmp_path / "other"
    moved.mkdir()
    before = stored_samples(copied)["u"]
    recipe = changed(copied, data=write(moved, fields() * np.float32(factor), units=units))
    assert skipped(run(recipe)) == set()
    after = stored_samples(recipe)["u"]  # the primitives are the same numbers
    assert (before.attrs["units"], after.attrs["units"]) == ("m", units)
    np.testing.assert_allclose(after, factor * before, rtol=1e-5)
    assert diffats.load(recipe.root).template["u"].attrs["units"] == units
    assert skipped(run(copied)) == set(ALL)
    assert diffats.load(recipe.root).template["u"].attrs["units"] == "m"


def test_a_root_serves_what_was_generated_and_evaluated_last(copied: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    other = changed(copied, generate={"steps": 5, "sampler": "unipc", "guidance": 1.5})
    with calls(bundle.Bundle, "generate", monkeypatch) as made:
        results = run(other)
    assert skipped(results) == {*PRIMITIVES, "train"}
    assert {call[0].recipe.generate for call in made} == {other.generate}  # samples and forecasts alike
    for recipe in (other, copied):
        run(recipe, ["generate"])
        model, stored = diffats.load(recipe.root), stored_samples(recipe)
        assert model.recipe.generate == recipe.generate.model_copy(
            update={"impose": False}
        )  # there is no initial slice
        assert model.provenance["recipe_fingerprint"] == train.recipe_fingerprint(Workspace(recipe))
        served = model.sample(6, recipe.seed, conditions={"nu": stored["condition_nu"].values})
        np.testing.assert_allclose(served["u"], stored["u"], atol=1e-4)
    assert not np.allclose(stored_samples(other)["u"], stored_samples(copied)["u"], atol=1e-2)


def test_looking_at_a_recipe_does_not_change_what_is_served(copied: Recipe) -> None:
    other = changed(copied, generate={"steps": 5})
    assert train.require_bundle(Workspace(other)).recipe.generate.steps == 5
    assert diffats.load(copied.root).recipe.generate.steps == 2


# Anchors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "index", "mean"])
def test_other_anchors(copied: Recipe, strategy: str) -> None:
    recipe = changed(copied, anchor={"strategy": strategy, "index": 4 if strategy == "index" else None})
    results = run(recipe, ["select_anchor", "align"])
    chosen = results["select_anchor"].facts["chosen"]
    shown = anchor_samples(version(recipe, "anchor").attrs["chosen"])  # on the report
    if strategy == "mean":
        assert chosen == {"y": -1, "x": -1}
        assert shown is None
    else:
        assert shown == f"y: {chosen['y']}, x: {chosen['x']}"
        side = version(recipe, "tucker").dataset()["split"].values
        assert side[chosen["y"]] == "train"
        assert chosen["y"] == chosen["x"]


def test_an_index_that_is_no_training_sample_is_refused(finished: Recipe) -> None:
    with pytest.raises(InputError, match=r"anchor\.index 1 is not a good training sample"):
        run(changed(finished, anchor={"strategy": "index", "index": 1}), ["select_anchor"])


# Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["select_anchor", "align", "fit_normalisation", "train", "generate", "evaluate"])
def test_a_stage_says_which_one_comes_first(tmp_path: Path, stage: str) -> None:
    with pytest.raises(StoreNotFoundError, match="Run `diffats"):
        run(make(tmp_path), [stage])


def test_a_root_belongs_to_one_name_and_shape(finished: Recipe) -> None:
    with pytest.raises(RootMismatchError):
        run(changed(finished, name="another"), ["decompose"])


def test_ranks_that_cannot_be_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make(tmp_path, decompose={"ranks": {"y": 7, "x": 7}})
    with calls(sources.Samples, "read", monkeypatch) as reads, pytest.raises(RankError, match="rank 7"):
        run(recipe, ["decompose"])
    assert reads == []


def test_a_metric_that_the_data_do_not_have_is_refused(copied: Recipe) -> None:
    short = Workspace(changed(copied, evaluate={"metric": "spectrum_error"}))
    with pytest.raises(InputError, match=r"spectrum_error.*energy_distance"):
        evaluate.check_metric(short, {"energy_distance": {"value": 1.0}, "spectrum_error": {"value": None}})


def test_an_unknown_stage_is_refused(finished: Recipe) -> None:
    with pytest.raises(InputError, match='no stage "anchor"'):
        stages.run("anchor", finished)


def test_a_root_at_a_url_is_refused(finished: Recipe) -> None:
    with pytest.raises(InputError, match="is a URL"):
        Workspace(changed(finished, root="s3://bucket/a"))


# Bounds ----------------------------------------------------------------------------------------------------------


def test_the_number_of_compared_and_generated_samples_is_bounded_by_memory(finished: Recipe) -> None:
    work = Workspace(finished)
    model = train.require_bundle(work)
    assert generate.shard_size(work, model) == 4
    assert evaluate.sample_limit(work, model) == 6
    model.layout = Layout("tgp", ("y", "x"), {"y": 8192, "x": 8192}, {"y": 3, "x": 3}, ("y", "x"))
    assert generate.shard_size(work, model) == 1
    assert evaluate.sample_limit(work, model) == 2


def test_warnings_name_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    field = np.ones((N, 6, 8), "f4") * np.arange(1, N + 1, dtype="f4")[:, None, None]
    field[5, 0, 0] = np.nan
    with caplog.at_level(logging.WARNING, "diffats"):
        run(make(tmp_path, field), ["decompose"])
    assert "1 of 28 samples failed and are left out: 5 (non_finite)" in caplog.text
    assert "numerical rank below" in caplog.text


def test_summary_of_a_run(finished: Recipe) -> None:
    results = run(finished)
    made = stages.summary(finished, results.values())
    assert made["n_samples"] == N
    assert made["n_failed"] == 0
    assert set(made["reconstruction_error"]) == {"mean", "max"}
    assert set(made["overlap_sigma_min"]) == {"y", "x"}
    assert made["generated"]["count"] == 6
    assert set(made["seconds"]) == set(ALL)
    assert "Primitives:" in stages.describe(finished, results.values())


def test_hooks_are_told_of_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    recipe = make(tmp_path)
    for name in MODEL:
        seen.clear()
        run(recipe, [name], progress=lambda *counts: seen.append(counts))
        done, total, failed = seen[-1]
        assert done == total
        assert failed == 0
    assert Hooks().restart is False


def test_a_training_tells_its_loss_beside_its_steps(copied: Recipe) -> None:
    line = ProgressLine("train")
    run(copied, ["train"], restart=True, progress=line)
    losses = [row["loss"] for row in train.history(Workspace(copied), identity(copied))]
    steps = copied.train.steps
    assert str(line).startswith(f"{steps}/{steps} steps  ")
    assert str(line).endswith(f", left 0:00  loss {losses[-1]:.3g}")


def test_a_training_says_how_long_it_will_take(
    copied: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "diffats")
    monkeypatch.setattr("diffats.training._TIMED_SECONDS", 0.0)
    run(copied, ["train"], restart=True)
    told = "train: {}, about 1 s on cpu"
    assert caplog.messages.count(told.format(f"{copied.train.steps} steps")) == 1
    run(changed(copied, train={"steps": 9}), ["train"])
    assert caplog.messages.count(told.format("3 of 9 steps left")) == 1


def test_the_outlook_says_what_is_left(copied: Recipe, tmp_path: Path) -> None:
    fresh = Workspace(make(tmp_path / "fresh"))
    n, steps = fresh.samples.n, copied.train.steps
    untimed = f"{steps} steps of training, which are timed when they begin"
    assert outlook(fresh, stages.STAGES) == f"about 1 s to encode {n} samples, then {untimed}"
    assert outlook(fresh, ["train", "generate"]) == untimed
    assert outlook(fresh, ["generate"]) == ""
    encoded = f"{n} samples, which are encoded already, then "
    assert outlook(Workspace(copied), stages.STAGES) == f"{encoded}{steps} steps of training, which are done already"
    more = changed(copied, train={"steps": 1000 + steps})
    told = re.escape(f"{encoded}about ") + r"\d+ \w+" + re.escape(f" to train 1,000 of {1000 + steps:,} steps")
    assert re.fullmatch(told, outlook(Workspace(more), stages.STAGES))


# --- what is compared with what -----------------------------------------------------------------------------------


def test_samples_are_compared_within_quarters_of_a_scalar(finished: Recipe) -> None:
    work, model = Workspace(finished), train.require_bundle(Workspace(finished))
    nu = np.linspace(1, 2, N)
    training = nu[np.arange(N) % 4 != 1]
    found = evaluate.strata(work, {"scalar_nu": nu})
    assert found.tolist() == [int((value >= np.quantile(training, [0.25, 0.5, 0.75])).sum()) for value in nu]
    assert np.ptp(np.bincount(found[np.arange(N) % 4 != 1])) <= 1
    low, middle, high = np.quantile(training, [0.25, 0.5, 0.75])
    assert evaluate.condition_names(work, model) == {
        0: f"nu below {low:.3g}",
        1: f"nu {low:.3g} to {middle:.3g}",
        2: f"nu {middle:.3g} to {high:.3g}",
        3: f"nu from {high:.3g}",
    }


def test_two_scalars_are_cut_at_their_medians(finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluate, "scalar_edges", lambda work, name, cuts: np.array({"scalar_a": [1.0], "scalar_b": [5.0]}[name])
    )
    work = Workspace(changed(finished, data={"condition": {"scalars": ["a", "b"]}}))
    raw = {"scalar_a": np.array([0, 0, 2, 2]), "scalar_b": np.array([4, 6, 4, 6])}
    assert evaluate.strata(work, raw).tolist() == [0, 1, 2, 3]
    model = train.require_bundle(Workspace(finished))
    names = evaluate.condition_names(work, model)
    assert names == {
        0: "a below 1, b below 5",
        1: "a below 1, b from 5",
        2: "a from 1, b below 5",
        3: "a from 1, b from 5",
    }


def test_ensembles_are_drawn_for_every_group_before_any_has_two(tmp_path: Path) -> None:
    data = write(tmp_path, fields())
    flow = np.full(N, 3)
    flow[np.arange(N) % 4 == 1] = [0, 0, 0, 0, 1, 1, 2]  # of the test samples
    xr.Dataset(coords={"flow": ("run", flow)}).to_zarr(tmp_path / "u.zarr", mode="a", zarr_format=3, consolidated=False)
    data["split"]["group"] = "flow"
    recipe = small_recipe(tmp_path / "root", data, decompose={"ranks": {"y": 3, "x": 3}})
    run(recipe, PRIMITIVES)
    work = Workspace(recipe)
    chosen = [evaluate.case_indices(work, count) for count in range(1, 8)]
    assert all((np.arange(N) % 4 == 1)[indices].all() and (np.diff(indices) > 0).all() for indices in chosen)
    assert [len(indices) for indices in chosen] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(flow[chosen[2]]) == [0, 1, 2]
    assert sorted(flow[chosen[4]]) == [0, 0, 1, 1, 2]
    assert chosen[2].tolist() == evaluate.case_indices(Workspace(recipe), 3).tolist()


def test_a_variable_without_any_value_is_named(tmp_path: Path) -> None:
    u = fields()
    ds = xr.Dataset({"u": (("run", "y", "x"), u), "v": (("run", "y", "x"), np.full_like(u, np.nan))})
    ds.to_zarr(tmp_path / "two.zarr", zarr_format=3, consolidated=False)
    data = {"source": str(tmp_path / "two.zarr"), "variables": ["u", "v"], "modes": ["y", "x"], "sample_dim": "run"}
    ranks = {"component": 2, "y": 3, "x": 3}
    recipe = small_recipe(tmp_path / "root", data | {"missing": "mask"}, decompose={"ranks": ranks})
    with pytest.raises(SourceError, match='every value of variable "v" is missing'):
        run(recipe, ["decompose"])
