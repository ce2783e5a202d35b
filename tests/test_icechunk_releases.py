"""Repositories of both formats under the installed release of Icechunk, and those that the other release has made."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from repositories import (
    FORMATS,
    RELEASE,
    VALUES,
    add_version,
    empty_repository,
    fresh,
    head_file,
    made_by_other_release,
    problems,
)

import diffats
from diffats.config import Data
from diffats.errors import SourceError, StoreError
from diffats.icechunk_releases import format_of, holds_repository
from diffats.sources.opening import open_source, stamp
from diffats.store import Store
from diffats.store import history as changing
from diffats.store.location import storage_for


def test_what_release_1_made_is_read_written_pruned_and_stays_in_its_format(tmp_path: Path) -> None:
    place = tmp_path / "store"
    made_by_other_release(place, 1)
    np.testing.assert_array_equal(diffats.open_version(str(place), "v")["v"], VALUES)
    assert problems(place) == []
    for fingerprint in ("second", "third"):
        add_version(place, fingerprint)
    store = fresh(place)
    (first,) = [entry for entry in store.versions() if entry["fingerprint"] == "first"]
    changing.rollback(store, first, lambda _: None)
    changing.prune(fresh(place), 1, lambda _: None, grace=timedelta(0))
    assert problems(place) == []
    np.testing.assert_array_equal(diffats.open_version(str(place), "v")["v"], VALUES)
    assert format_of(fresh(place).repo) == 1
    assert head_file(place).name == "ref.json"
    assert not (place / "repo").exists()


@pytest.mark.skipif(RELEASE < 2, reason="tells nothing of release 1")
def test_what_release_2_made_is_read_and_written(tmp_path: Path) -> None:
    place = tmp_path / "store"
    made_by_other_release(place, 2)
    add_version(place, "second")
    assert problems(place) == []
    assert format_of(fresh(place).repo) == 2


@pytest.mark.skipif(RELEASE > 1, reason="release 2 reads it")
def test_release_1_says_which_release_a_repository_of_format_2_needs(tmp_path: Path) -> None:
    place = tmp_path / "store"
    made_by_other_release(place, 2)
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    needs = r"uses Icechunk v2 format.*\)\. Install icechunk 2 or later, which needs Python 3\.12"
    for opens in (Store.open, Store.create_or_open):
        with pytest.raises(StoreError, match=needs):
            opens(place)
    with pytest.raises(SourceError, match=needs):
        open_source(Data(source=str(place), modes=["x"], sample_dim="sample"))
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_new_repository_has_the_format_that_all_releases_read(tmp_path: Path) -> None:
    assert format_of(Store.create_or_open(tmp_path / "store").repo) == 1


@pytest.mark.parametrize("format_", FORMATS)
def test_a_source_of_either_format_is_recognised_and_its_commits_seen(tmp_path: Path, format_: int) -> None:
    place = tmp_path / "store"
    empty_repository(place, format_)
    add_version(place, "first")
    data = Data(source=str(place), group="v", modes=["x"], sample_dim="sample")
    before = stamp(data)
    np.testing.assert_array_equal(open_source(data)["v"], VALUES)
    add_version(place, "second")
    assert stamp(data) != before


def test_what_is_no_repository(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "a.nc").write_bytes(b"CDF")
    assert not holds_repository(storage_for(tmp_path))
    with pytest.raises(SourceError, match="is a folder, but neither a Zarr store nor an Icechunk repository"):
        open_source(Data(source=str(tmp_path), modes=["x"], sample_dim="sample"))


def test_a_place_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"cannot be opened or made \(repositories can only be created in clean"):
        Store.create_or_open(tmp_path)
    assert (tmp_path / "a.txt").read_text() == "mine"
