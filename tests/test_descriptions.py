"""What a person reads on the tracker's pages, and that what a person wrote there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffats import registry
from diffats.registry import Tracker, notes


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('root')}/mlflow.db", "told")


def test_versions_of_earlier_releases_are_found_by_their_tags(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.create_registered_model("earlier", description="Generative model of fields, by diffats. Load it.")
    tags = {"diffats.weights": "9" * 64, "diffats.data_digest": "8" * 64, "diffats.metric.crps": "0.5"}
    tracker.client.create_model_version("earlier", str(tmp_path), tags=tags)
    assert tracker.find("earlier", {"weights": "9" * 64}) == "1"
    assert tracker.find("earlier", {"weights": "9" * 64, "model_recipe": "7" * 64}) is None
    assert registry.data_digests("earlier", tracker.uri) == {"8" * 16}


def test_the_pages_tell_who_is_champion_and_who_was(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.create_registered_model("told", description="Generative model of fields, by diffats. Load it.")
    tracker.client.create_model_version("told", str(tmp_path), tags={"diffats.metric.crps": "0.5"})  # of before
    tracker.client.create_model_version("told", str(tmp_path), tags={"headline": "CRPS 0.4", "verdict": "better | so"})
    own = Tracker(tracker.uri, "told")
    own.tell_champion("told", "2", {"candidate/crps": 0.4})
    assert "told has no champion yet" in own.client.get_registered_model("told").description
    own.set_alias("told", "champion", "2")
    own.tell_champion("told", "2", {"candidate/crps": 0.4, "champion/crps": 0.4})
    for text in (
        own.client.get_registered_model("told").description,
        own.client.get_experiment(own.experiment_id).tags[notes.NOTE_TAG],
    ):
        assert "**Champion: [told version 2](#/models/told/versions/2?" in text
        assert "(better | so)" in text
    [run] = own.client.search_runs([own.experiment_id], "tags.`diffats.champions` = 'told'")
    points = own.client.get_metric_history(run.info.run_id, "candidate/crps")
    assert {(point.step, point.value) for point in points} == {(1, 0.5), (2, 0.4)}
    table = run.data.tags[notes.NOTE_TAG]
    assert table.index("told version 2") < table.index("told version 1")
    assert "**champion** |" in table
    assert r"better \| so |" in table
    own.client.update_registered_model("told", description="Do not use it.")
    own.tell_champion("told", "2", {"champion/crps": 0.4})
    assert own.client.get_registered_model("told").description == "Do not use it."


def test_a_description_that_a_person_wrote_stays(tracker: Tracker) -> None:
    parent = tracker.start("described")
    with tracker.stage(parent, "report") as run:
        run.describe("First.")
        run.describe("Second.")
        assert tracker.client.get_run(parent).data.tags[notes.NOTE_TAG] == notes.signed("Second.")
        tracker.client.set_tag(parent, notes.NOTE_TAG, "Looks wrong to me.")
        run.describe("Third.")
    assert tracker.client.get_run(parent).data.tags[notes.NOTE_TAG] == "Looks wrong to me."


def test_a_long_description_is_cut_at_a_line() -> None:
    text = notes.signed("\n".join(f"| row {i} |" for i in range(1000)))
    assert len(text) <= notes.MAX_NOTE
    assert notes.owned(text)
    assert text.splitlines()[-3].endswith("|")


def test_a_tag_that_a_person_broke_hides_no_version(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.create_registered_model("broken")
    for text in ("no json", "[1]"):
        tracker.client.create_model_version("broken", str(tmp_path), tags={"diffats.identity": text})
    assert tracker.find("broken", {"weights": "ab"}) is None
    assert registry.data_digests("broken", tracker.uri) == set()
