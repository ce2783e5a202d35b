"""The report's pictures of samples, drawn from real runs on data of every kind."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_runs import ALL, CASES, changed, run

from diffats import bundle, evaluation, metrics
from diffats.config import parse_recipe, portable
from diffats.stages import Workspace, align, evaluate, galleries, generate, select_anchor, train

PICTURES = {
    "climate": {"forecast", "fields", "film", "plume", "error_in_time"},
    "images": {"gallery", "gaussian"},
    "winds": {"forecast", "samples_u", "film", "plume", "error_in_time"},
}


@pytest.fixture(scope="module", params=PICTURES)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All pictures of samples of a tiny run."""
    case = CASES[request.param](tmp_path_factory.mktemp(request.param))
    run(case.recipe, ALL)
    work = Workspace(case.recipe)
    model = train.require_bundle(work)
    generated = evaluate.require_samples(work, model)
    made = evaluate.generated_fields(work, model, generated)
    fields = evaluate.compared(work, model, made, forecast=case.recipe.makes_forecasts)
    anchor = align.require_anchor(work, select_anchor.require_tucker(work))
    searched = generate.truth_indices(work, evaluate.gaussian_limit(model), "train")
    pictures, captions = galleries.sample_pictures(work, fields, generated, anchor, primitives_searched=searched)
    return SimpleNamespace(
        name=request.param, work=work, fields=fields, searched=searched, pictures=pictures, captions=captions
    )


def test_every_kind_of_data_has_its_pictures(drawn: Any) -> None:
    always = {"reconstruction"} | ({"medoid"} if "medoid" in drawn.pictures else set())
    assert drawn.pictures.keys() - always == PICTURES[drawn.name]
    for data in drawn.pictures.values():
        picture = Image.open(io.BytesIO(data))
        assert np.asarray(picture.convert("L")).std() > 1  # not blank
        assert len(data) < 1_000_000
    assert all(drawn.captions[name] for name in drawn.pictures.keys() & {"gallery", "forecast", "fields", "samples_u"})


def test_the_nearest_is_the_nearest(drawn: Any) -> None:
    if "gallery" not in drawn.pictures:
        pytest.skip("forecasts have no such row")
    chosen = galleries.chosen_places(drawn.fields, {}, [], 3, 1)
    rows = galleries.gallery_rows(drawn.work, drawn.fields, chosen, drawn.searched)
    train_set = drawn.work.samples.read(drawn.searched)
    for place, found in zip(chosen["generated"], rows["nearest"], strict=True):
        gaps = np.linalg.norm(drawn.fields.z_train - drawn.fields.z_generated[place], axis=1)
        np.testing.assert_array_equal(found, train_set[np.argmin(gaps)])


def test_the_report_shows_the_ensembles_that_were_evaluated(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if drawn.fields.ensemble is None:
        pytest.skip("no forecasts")
    kept = evaluate.kept_ensemble(drawn.work, evaluate.require_samples(drawn.work, train.require_bundle(drawn.work)))
    np.testing.assert_allclose(kept, drawn.fields.ensemble, rtol=1e-4, atol=1e-4)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("drawn again")

    monkeypatch.setattr(bundle.Bundle, "generate", refuse)
    assert Path(run(drawn.work.recipe, ["report"])["report"].location).is_file()


def test_the_first_view_is_of_what_varies_most_and_less_its_mean(drawn: Any) -> None:
    first, *others = galleries.views(drawn.work, drawn.fields)
    anomalies = drawn.work.recipe.data.center == "point"
    assert ("difference from the training mean" in first.painter.heading) == anomalies
    shown = first.of(drawn.fields.test)
    np.testing.assert_allclose(shown, drawn.fields.test - (drawn.fields.mean if anomalies else 0.0))
    if drawn.name == "winds":
        assert first.painter.heading.startswith("v, level 850 hPa")
        assert [view.painter.variable for view in others] == ["u"]
    if drawn.name == "climate":
        assert first.painter.is_map
        assert first.painter.flipped == (True, False)
        assert [view.name for view in others] == ["fields"]


def test_without_primitives_the_nearest_is_found_between_fields() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 4, 5))
    fields = evaluation.Fields(("y", "x"), *x, mean=np.zeros(()), scale=np.ones(()))
    gaps = np.linalg.norm((fields.generated[:, None] - fields.train[None]).reshape(6, 6, -1), axis=-1)
    np.testing.assert_array_equal(evaluation.nearest_to_generated(fields), gaps.argmin(axis=1))
    np.testing.assert_allclose(evaluation.nearest_training(fields)["generated"], gaps.min(axis=1), rtol=1e-5)
    assert metrics.nearest_rows(np.zeros((600, 1)), np.array([[1.0], [0.5]])).tolist() == [1] * 600


def test_classes_have_columns_of_their_own() -> None:
    x = np.arange(8.0).reshape(8, 1, 1)
    fields = evaluation.Fields(("y", "x"), x, x, x, mean=np.zeros(()), scale=np.ones(()))
    labels = {
        kind: np.array(["a", "b", "unlabelled", "a", "b", "unlabelled", "a", "a"], object) for kind in ("train", "test")
    }
    labels["generated"] = np.array(["a", "unlabelled", "a", "a", "b", "unlabelled", "a", "a"], object)
    classes = galleries.shown_classes(labels, 5)
    assert classes == ["a", "b", "unlabelled"]
    chosen = galleries.chosen_places(fields, labels, classes, 6, 2)
    assert chosen["generated"] == [0, 2, 4, None, 1, 5, 3, 6, None, None, None, None]
    for kind, places in chosen.items():
        assert [labels[kind][i] for i in [*places[:2], *places[6:8]]] == ["a"] * 4


def test_how_samples_are_shown_changes_no_identity(tmp_path: Path) -> None:
    data = {"source": str(tmp_path / "a.npy"), "modes": ["y", "x", "band"], "sample_dim": "n"}
    plain = parse_recipe({"name": "a", "data": data, "decompose": {"ranks": {"y": 2, "x": 2}}})
    shown = changed(plain, report={"rgb": [29, 19, 9]})
    assert portable(shown) == portable(plain)
    assert "report" not in portable(plain)
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(9, 4, 5, 30)))
    one, two = Workspace(plain), Workspace(shown)
    assert one.scaling_fingerprint == two.scaling_fingerprint
    assert train.recipe_fingerprint(one) == train.recipe_fingerprint(two)
