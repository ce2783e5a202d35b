"""Damage to what Icechunk keeps beside the data: the head, tags, settings, and commits of the past."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from repositories import FORMATS, VALUES, add_version, empty_repository, fresh, head_file, problems

from diffats.errors import IntegrityError
from diffats.store import Store, Version
from diffats.store import history as changing
from diffats.store.location import forget


@pytest.fixture(params=FORMATS, ids=lambda format_: f"format {format_}")
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A repository with two versions of a group, the first of which is only found by its tag."""
    empty_repository(tmp_path / "store", request.param)
    for fingerprint in ("first", "second"):
        add_version(tmp_path / "store", fingerprint)
    return tmp_path / "store"


@pytest.fixture
def place_1(tmp_path: Path) -> Path:
    """The same, in format 1, which keeps tags and settings in files of their own."""
    empty_repository(tmp_path / "store", 1)
    for fingerprint in ("first", "second"):
        add_version(tmp_path / "store", fingerprint)
    return tmp_path / "store"


def damages(path: Path) -> list[tuple[str, bytes | None]]:
    kept = path.read_bytes()
    return [("lost", None), ("cut", kept[: len(kept) // 2]), ("empty", b""), ("not text", b"\xff" + kept)]


def damage(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def test_without_a_head_nothing_is_made_in_its_place(place: Path) -> None:
    head = head_file(place)
    kept = head.read_bytes()
    for _, content in damages(head):
        damage(head, content)
        for opens in (Store.open, Store.create_or_open):
            forget()
            with pytest.raises(IntegrityError) as caught:
                opens(place)
            assert f"{head.relative_to(place).as_posix()} is damaged or lost. Bring it back" in str(caught.value)
        head.write_bytes(kept)
    assert problems(place) == []


@pytest.mark.skipif(2 not in FORMATS, reason="Icechunk 1 has no such format")
def test_a_lost_head_of_format_2_is_brought_back_as_the_message_says(tmp_path: Path) -> None:
    place = tmp_path / "store"
    empty_repository(place, 2)
    for fingerprint in ("first", "second"):
        add_version(place, fingerprint)
    head_file(place).unlink()
    newest = min((place / "overwritten").iterdir(), key=lambda path: path.name)
    (place / "repo").write_bytes(newest.read_bytes())
    second = fresh(place).version("v", "second")  # all but the last change, a tag, is there
    assert second is not None
    np.testing.assert_array_equal(second.dataset()["v"], VALUES)
    assert len(problems(place)) <= 1
    add_version(place, "third")
    assert problems(place) == []


def test_a_repository_that_is_being_made_is_waited_for(place: Path) -> None:
    head = head_file(place)
    head.rename(head.with_suffix(".later"))  # Icechunk writes it last
    maker = threading.Timer(0.3, head.with_suffix(".later").rename, [head])
    maker.start()
    assert fresh(place).latest("v") is not None
    maker.join()


def test_damaged_settings_are_named_and_lost_ones_harm_nothing(place_1: Path) -> None:
    settings = place_1 / "config.yaml"
    settings.write_bytes(settings.read_bytes()[:70])
    forget()
    with pytest.raises(IntegrityError, match=r"config.yaml is damaged or lost. Remove it"):
        Store.open(place_1)
    settings.unlink()
    assert problems(place_1) == []


def test_a_version_whose_tag_is_lost_is_named_and_not_pruned_for_it(place_1: Path) -> None:
    first = Store.open(place_1).version("v", "first")
    assert first is not None
    (folder,) = (place_1 / "refs").glob("tag.v-first-*")
    tag = folder / "ref.json"
    kept = tag.read_bytes()
    for _, content in damages(tag):
        damage(tag, content)
        assert fresh(place_1).version("v", "first") is None
        (problem,) = problems(place_1)
        assert "refs/tag.v-first-N/ref.json of a version of group v is damaged or lost" in problem
        assert f'Bring it back: it holds {{"snapshot": "{first.snapshot}"}}' in problem
        tag.write_bytes(kept)
        assert problems(place_1) == []
    tag.unlink()
    store = fresh(place_1)
    changing.prune(store, 2, lambda _: None)
    again = store.version("v", "first")
    assert again is not None
    assert again.digest == first.digest
    assert problems(place_1) == []


def test_a_version_that_was_pruned_is_not_missed(place: Path) -> None:
    store = fresh(place)
    changing.prune(store, 1, lambda _: None)
    assert store.version("v", "first") is None
    assert problems(place) == []


def test_a_damaged_commit_is_named_and_all_others_are_verified(place: Path) -> None:
    first = Store.open(place).version("v", "first")
    assert first is not None
    path = place / "snapshots" / first.snapshot
    kept = path.read_bytes()
    for content in (None, kept[:40], b""):
        damage(path, content)
        told = problems(place)
        if head_file(place).name == "repo":  # which holds the history too, so that only reading the version fails
            assert len(told) == 1
            assert f"snapshot {first.snapshot} is damaged or lost" in told[0]
        else:
            assert len(told) == 2
            assert f"snapshots/{first.snapshot} of version v-first-1 is damaged or lost" in told[0]
            assert f"snapshots/{first.snapshot}, a commit of the past, is damaged or lost" in told[1]
            with pytest.raises(IntegrityError, match="damaged or lost"):
                fresh(place).versions()
        with pytest.raises(IntegrityError, match="damaged or lost"):
            changing.prune(fresh(place), 2, lambda _: None)
        second = fresh(place).version("v", "second")
        assert second is not None
        np.testing.assert_array_equal(second.dataset()["v"], VALUES)
        path.write_bytes(kept)
    assert problems(place) == []


@pytest.mark.parametrize("kind", ["chunks", "manifests"])
def test_reading_what_is_damaged_says_where_and_what_to_do(place: Path, kind: str) -> None:
    for path in sorted((place / kind).iterdir()):
        kept = path.read_bytes()
        for content in (None, kept[: len(kept) // 2], b"", kept[:-1] + bytes([kept[-1] ^ 1])):
            damage(path, content)
            for fingerprint in ("first", "second"):
                assert_typed(fresh(place).version("v", fingerprint), place)
            path.write_bytes(kept)


def assert_typed(version: Version | None, place: Path) -> None:
    """The right numbers, or an error that names the group and says what to do."""
    assert version is not None
    for read in (
        lambda: version.dataset()["v"].values,
        lambda: version.dataset()["v"].isel(sample=[3, 9], x=slice(None)).values,
        lambda: version.read(["v"], 0, 20)["v"],
        lambda: version.dataset()["status"].values,
        version.status,
        version.shard_digests,
    ):
        said, values = "", np.empty(0)
        try:
            values = read()
        except IntegrityError as error:
            said = str(error)
        assert not said or (f"store {place}, group v" in said and "`diffats verify` says what is damaged" in said)
        if values.shape == VALUES.shape:
            np.testing.assert_array_equal(values, VALUES)


def test_attributes_that_changed_are_noticed_when_a_version_is_opened(tmp_path: Path) -> None:
    store = Store.create_or_open(tmp_path / "store")
    ds = xr.Dataset({"v": ("x", VALUES[0])})
    made = store.put("scaling", ds, fingerprint="f", attrs={"template": "0.5"})
    with store.writing() as session:  # as a bit that changes in a snapshot does, whose bytes have no checksum
        zarr.open_group(session.store, path="scaling", mode="r+").attrs["template"] = "0.7"
        snapshot = store.commit(session, "damage", {})
    with pytest.raises(
        IntegrityError, match=rf"group scaling: the attributes in snapshots/{snapshot} are not what was"
    ):
        Version(store, "scaling", snapshot)
    assert Version(store, "scaling", made.snapshot).attrs["template"] == "0.5"
