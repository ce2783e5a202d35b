"""Registration: candidate always, champion where it is not worse, each model once."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_runs import ALL, calls, changed, images, run

import diffats
from diffats import bundle, registry, stages
from diffats.config import Recipe
from diffats.errors import InputError
from diffats.stages import Workspace, evaluate, generate, register, train


class FakeTracker:
    """What the stage asks of a tracker, in memory."""

    uri = "memory"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: list[tuple[dict[str, str], Path]] = []
        self.aliases: dict[str, str] = {}
        self.described: dict[str, tuple[str, dict[str, str]]] = {}
        self.decisions: list[tuple[str, dict[str, float]]] = []

    def find(self, name: str, digests: dict[str, str]) -> str | None:
        return next((str(i) for i, (known, _) in enumerate(self.versions, 1) if digests.items() <= known.items()), None)

    def register(self, directory: Path, name: str, run_id: str, digests: dict[str, str]) -> str:
        kept = self.folder / str(len(self.versions) + 1)
        self.versions.append((digests, shutil.copytree(directory, kept, dirs_exist_ok=True)))
        self.aliases["candidate"] = str(len(self.versions))
        return self.aliases["candidate"]

    def alias(self, name: str, alias: str) -> str | None:
        return self.aliases.get(alias)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def made_by(self, name: str, version: str) -> str:
        return "experiments/1/runs/run"

    def describe_version(self, name: str, version: str, text: str, tags: dict[str, str]) -> None:
        self.described[version] = (text, tags)

    def tell_champion(self, name: str, version: str, numbers: dict[str, float]) -> None:
        self.decisions.append((version, numbers))

    def download(self, uri: str) -> Path:
        return self.versions[int(self.aliases[uri.partition("@")[2]]) - 1][1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    recipe = images(tmp_path_factory.mktemp("images")).recipe
    run(recipe, ALL)
    return recipe


@pytest.fixture
def recipe(finished: Recipe, tmp_path: Path) -> Recipe:
    shutil.copytree(finished.root, tmp_path / "root")
    return changed(finished, root=str(tmp_path / "root"))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTracker:
    made = FakeTracker(tmp_path / "registered")
    monkeypatch.setattr(registry.Tracker, "for_recipe", lambda recipe: made)
    return made


def judged(recipe: Recipe, value: float, gaussian: float | None) -> None:
    """Have the evaluation say something else."""
    import json

    work = Workspace(recipe)
    found = evaluate.read_evaluation(work)
    assert found is not None
    metrics, identity = found
    metrics[recipe.deciding_metric] |= {"value": value, "gaussian": gaussian}
    evaluate.evaluation_path(work, identity).write_text(json.dumps(metrics))


def registered(recipe: Recipe, *, restart: bool = False) -> dict[str, Any]:
    work = Workspace(recipe)
    return register.run(work, stages.workspace.Hooks(restart=restart), "run").facts["model"]


def test_a_first_model_that_beats_the_gaussian_is_champion(recipe: Recipe, tracker: FakeTracker) -> None:
    judged(recipe, 0.1, 0.2)
    model = registered(recipe)
    assert (model["alias"], model["version"], model["uri"]) == ("champion", "1", "models:/tiny@champion")
    assert "the Gaussian's 0.2" in model["verdict"]
    assert tracker.aliases == {"candidate": "1", "champion": "1"}


@pytest.mark.parametrize("gaussian", [0.05, None])
def test_a_first_model_that_does_not_is_candidate(recipe: Recipe, tracker: FakeTracker, gaussian: float | None) -> None:
    judged(recipe, 0.1, gaussian)
    model = registered(recipe)
    assert model["alias"] == "candidate"
    assert model["verdict"].startswith("not champion")
    assert tracker.aliases == {"candidate": "1"}


@pytest.mark.parametrize(("value", "alias"), [(-1e3, "champion"), (1e3, "candidate")])
def test_a_second_model_is_champion_where_it_is_not_worse(
    recipe: Recipe, tracker: FakeTracker, value: float, alias: str
) -> None:
    judged(recipe, 0.1, 0.2)
    registered(recipe)
    second = changed(recipe, seed=3, train={"steps": 6})
    run(second, ALL)
    judged(second, value, 0.2)
    model = registered(second)
    assert (model["version"], model["alias"]) == ("2", alias)
    assert "against the champion's" in model["verdict"]
    assert tracker.aliases == {"candidate": "2", "champion": "2" if alias == "champion" else "1"}
    first = registered(recipe)  # there already: says where it stands now
    assert first["alias"] == ("" if alias == "champion" else "champion")
    assert len(tracker.versions) == 2


def test_the_champion_is_measured_as_the_candidate_was(recipe: Recipe, tracker: FakeTracker) -> None:
    found = evaluate.read_evaluation(Workspace(recipe))
    assert found is not None
    model = train.require_bundle(Workspace(recipe))
    again = register.current_metric(Workspace(recipe), model, "energy_distance", candidate=model)
    assert again == pytest.approx(found[0]["energy_distance"]["value"], rel=1e-4, abs=1e-6)
    other = changed(recipe, primitive={"rank": 3}, anchor={"strategy": "mean"})  # other streams, same samples
    run(other, ALL)
    candidate = train.require_bundle(Workspace(other))
    measured = register.current_metric(Workspace(other), model, "energy_distance", candidate=candidate)
    assert measured == pytest.approx(again, rel=1e-4)


def test_the_champion_is_given_the_labels_of_the_candidate(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    candidate, champion = (train.require_bundle(Workspace(recipe)) for _ in range(2))
    champion.examples = {"label": np.zeros_like(champion.examples["label"])}  # it had one class to learn from
    with calls(bundle.Bundle, "generate", monkeypatch) as made:
        register.current_metric(Workspace(recipe), champion, "energy_distance", candidate=candidate)
    assert all(call[0] is champion for call in made)
    given = np.concatenate([call[3]["label"] for call in made])
    np.testing.assert_array_equal(given, candidate.drawn_conditions(np.arange(6), recipe.seed)["label"])
    assert given.any()


def test_the_registered_model_samples_as_the_evaluated_samples_were_made(recipe: Recipe, tracker: FakeTracker) -> None:
    first = registered(recipe)
    other = changed(recipe, generate={"steps": 3, "sampler": "unipc"})
    results = run(other, ALL)
    assert results["train"].skipped
    second = registered(other, restart=True)
    assert (first["version"], second["version"]) == ("1", "2")
    served = [bundle.load(directory).recipe.generate for _, directory in tracker.versions]
    assert served == [asked.generate.model_copy(update={"impose": False}) for asked in (recipe, other)]  # no initial
    work = Workspace(other)
    stored = generate.samples_version(work, train.require_bundle(work))
    assert stored is not None
    samples = stored.dataset().load()
    again = bundle.load(tracker.versions[1][1]).sample(
        6, other.seed, conditions={"label": samples["condition_label"].values}
    )
    np.testing.assert_allclose(again["rgb"], samples["rgb"], atol=1e-4)
    registered(recipe)  # there already
    assert diffats.load(recipe.root).recipe.generate == served[0]


def test_other_sampling_alone_makes_samples_and_a_report_and_no_version(recipe: Recipe, tracker: FakeTracker) -> None:
    judged(recipe, 0.1, 0.2)
    assert registered(recipe)["alias"] == "champion"
    page = Path(stages.run("report", recipe).location)
    written = page.read_bytes()
    other = changed(recipe, generate={"steps": 3})
    results = run(other, ALL)
    assert results["train"].skipped
    assert not results["generate"].skipped
    model = registered(other)
    assert (model["version"], model["alias"]) == ("1", "champion")
    assert "only generate.* differs from version 1" in model["verdict"]
    assert len(tracker.versions) == 1
    assert tracker.aliases == {"candidate": "1", "champion": "1"}
    second = Path(stages.run("report", other).location)
    assert second.parent != page.parent
    assert page.read_bytes() == written
    assert "only generate.* differs from version 1" in second.read_text(encoding="utf-8")
    stable = Path(recipe.root) / "report.html"
    assert stable.resolve() == second.resolve()
    assert not Path(stable.readlink()).is_absolute()
    measured = changed(recipe, evaluate={"samples": 4})
    run(measured, ["evaluate"])
    told = Path(stages.run("report", measured).location).read_text(encoding="utf-8")
    assert "registered after another evaluation" in told
    assert "only generate.* differs" not in told
    again = stages.run("report", recipe)
    assert again.skipped
    assert stable.resolve() == page.resolve()  # it is that of the recipe that was run last
    assert registered(recipe)["verdict"].startswith("first champion")
    assert (
        registered(changed(recipe, evaluate={"metric": "spectrum_error"}))["version"] == "2"
    )  # judged by another measure


def test_versions_of_earlier_releases_are_known(recipe: Recipe, tracker: FakeTracker) -> None:
    registered(recipe)
    del tracker.versions[0][0]["model_recipe"]
    assert registered(recipe)["version"] == "1"


def test_a_page_of_an_earlier_release_is_kept(recipe: Recipe, tracker: FakeTracker, monkeypatch: Any) -> None:
    root = Path(recipe.root)
    (root / "report.html").write_text("<p>old")
    (root / "report.json").write_text('{"fingerprint": "0123456789abcdef"}')
    (root / "pictures").mkdir()
    monkeypatch.setattr(Path, "symlink_to", refused)  # a file system without links
    made = Path(stages.run("report", recipe).location)
    (kept,) = root.glob("reports/*-01234567")
    assert (kept / "report.html").read_text() == "<p>old"
    assert (kept / "pictures").is_dir()
    assert (root / "report.html").read_bytes() == made.read_bytes()
    assert not (root / "report.html").is_symlink()
    assert stages.run("report", recipe).skipped
    assert len(list(root.glob("reports/*"))) == 2


def refused(*arguments: Any, **options: Any) -> None:
    raise OSError("no links here")


def test_models_of_other_samples_are_not_compared(
    recipe: Recipe, tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(recipe, 0.1, 0.2)
    registered(recipe)
    original = bundle.load

    def other(path: Path, **options: Any) -> bundle.Bundle:
        model = original(path, **options)
        if path == tracker.versions[0][1]:
            model.label_names = ["cow"]
        return model

    again = changed(recipe, train={"steps": 6})
    run(again, ALL)
    monkeypatch.setattr(register, "bundle", SimpleNamespace(**{**vars(bundle), "load": other}))
    model = registered(again)
    assert model["alias"] == "candidate"
    assert "cannot be compared with the champion, which has other labels" in model["verdict"]


def test_a_registration_that_was_interrupted_is_not_doubled(
    recipe: Recipe, tracker: FakeTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(recipe, 0.1, 0.2)
    for name in ("decide", "write_record"):
        with monkeypatch.context() as patch:
            patch.setattr(register, name, None)
            with pytest.raises(TypeError):
                registered(recipe)
    assert registered(recipe)["alias"] == "champion"
    assert len(tracker.versions) == 1
    work = Workspace(recipe)
    assert register.run(work, stages.workspace.Hooks(), None).skipped
    tracker.versions.clear()  # the tracker was deleted: registered anew
    tracker.aliases.clear()
    assert registered(recipe)["version"] == "1"


def test_registering_needs_a_run_and_an_evaluation(recipe: Recipe, tracker: FakeTracker) -> None:
    with pytest.raises(InputError, match="needs an MLflow run"):
        register.run(Workspace(recipe), stages.workspace.Hooks(), None)
    with pytest.raises(InputError, match="not evaluated"):
        registered(changed(recipe, evaluate={"samples": 4}))


def test_forecasts_are_held_against_trivial_predictors() -> None:
    row = {"label": "Forecast", "value": 1.0, "better": "lower", "gaussian": None, "training_mean": 2.0}
    better, worse = {**row, "persistence": 1.5}, {**row, "persistence": 0.5}
    assert register.first_verdict([better, better])[1]
    assert not register.first_verdict([better, worse])[1]
    assert not register.first_verdict([worse])[1]
    assert not register.first_verdict([{**row, "training_mean": None}])[1]
    chance = {**better, "groups": 40, "intervals": {"persistence": [-1.5, 0.5], "training_mean": [-1.5, -0.5]}}
    words, good = register.first_verdict([chance])
    assert good
    assert "is lower than persistence's 1.5 (not distinguishable) and beats the training mean's 2" in words


def test_a_tracked_run_from_data_to_alias(recipe: Recipe) -> None:
    parent, uri = stages.start_tracking(recipe)
    results = {name: stages.run(name, recipe, parent_run=parent) for name in ("evaluate", "register")}
    stages.finish_tracking(recipe, parent)
    model = results["register"].facts["model"]
    assert model["version"] == "1"
    assert diffats.load(registry.download(model["uri"], uri)).sample(2, steps=1).sizes["sample"] == 2
    tracker = registry.Tracker.for_recipe(recipe)
    runs = {run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id])}
    copy = changed(recipe, root=f"{recipe.root}-copy")
    for each in (recipe, copy):  # that changes nothing
        if each is copy:
            shutil.copytree(recipe.root, copy.root)
        parent, _ = stages.start_tracking(each)
        again = stages.run("register", each, parent_run=parent)
        stages.finish_tracking(each, parent)
        assert again.skipped
        assert again.facts["model"]["version"] == "1"
        tracker = registry.Tracker.for_recipe(each)
        assert {run.info.run_id for run in tracker.client.search_runs([tracker.experiment_id])} == runs
        assert len(tracker.client.search_model_versions(f"name = '{each.name}'")) == 1
    made = stages.summary(recipe, results.values())
    assert made["model"]["uri"] == model["uri"]
    assert "MLflow:" in stages.describe(recipe, results.values())
