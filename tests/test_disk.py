"""What takes its place whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffats import disk
from diffats.digests import is_signed, json_digest, signed

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Killed(BaseException):
    """A process that ends at some call."""


def fill(path: Path, text: str) -> None:
    with disk.replace_folder(path) as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "a").write_text(text)


def fail(folder: Path) -> None:
    (folder / "half").touch()
    raise OSError("the disk is full")


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("first", "second"):
        fill(tmp_path / "x", text)
        assert (tmp_path / "x" / "inside" / "a").read_text() == text
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_whose_filling_fails_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "x", "first")
    with pytest.raises(OSError, match="full"), disk.replace_folder(tmp_path / "x") as folder:
        fail(folder)
    assert (tmp_path / "x" / "inside" / "a").read_text() == "first"
    fill(tmp_path / "x", "second")
    assert sorted(path.name for path in (tmp_path / "x").rglob("*")) == ["a", "inside"]
    assert os.listdir(tmp_path) == ["x"]


def test_a_kill_at_any_moment_loses_neither_the_old_nor_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every rename, sync and removal: the next try finds the folder, old or new, or the old one set aside."""
    for moment in range(20):
        place = tmp_path / str(moment)
        place.mkdir()
        fill(place / "x", "old")
        calls = [0]

        def die(real, calls=calls, moment=moment):
            def called(*arguments, **options):
                calls[0] += 1
                if calls[0] == moment + 1:
                    raise Killed
                return real(*arguments, **options)

            return called

        with monkeypatch.context() as patch:
            patch.setattr(disk.os, "replace", die(os.replace))
            patch.setattr(disk, "sync_to_disk", die(disk.sync_to_disk))
            patch.setattr(disk.shutil, "rmtree", die(disk.shutil.rmtree))
            try:
                fill(place / "x", "new")
            except Killed:
                finished = False
            else:
                finished = True
        there = [path.read_text() for path in (place / "x", place / ".x.earlier") for path in path.glob("inside/a")]
        assert there
        assert set(there) <= {"old", "new"}
        with pytest.raises(OSError, match="later"), disk.replace_folder(place / "x"):
            raise OSError("later")
        assert (place / "x" / "inside" / "a").read_text() in ("old", "new")
        fill(place / "x", "last")
        assert (place / "x" / "inside" / "a").read_text() == "last"
        if finished:
            break
    assert finished
    assert moment > 5


def test_all_of_a_folder_is_on_disk_before_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    sync, rename = disk.sync_to_disk, os.replace
    monkeypatch.setattr(disk, "sync_to_disk", lambda path: (told.append(("sync", path.name)), sync(path)))
    monkeypatch.setattr(disk.os, "replace", lambda a, b: (told.append(("rename", Path(b).name)), rename(a, b)))
    fill(tmp_path / "x", "text")
    assert told == [("sync", "inside"), ("sync", "a"), ("sync", ".x.partial"), ("rename", "x"), ("sync", tmp_path.name)]
    told.clear()
    disk.replace_text(tmp_path / "y", "text")
    assert told == [("sync", ".y.partial"), ("rename", "y"), ("sync", tmp_path.name)]


def test_a_link_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        partial = disk.partial_name(tmp_path / "newest")
        partial.symlink_to(name)
        disk.put_in_place(partial, tmp_path / "newest")
        assert os.readlink(tmp_path / "newest") == name


# --- digests ------------------------------------------------------------------------------------------------------


def test_digests_are_what_they_were() -> None:
    assert json_digest(["tucker", 1, {"b": 2.5, "a": [None, True]}, ("x", "é")]) == (
        "b4bbeae608f5547503b2a7a622c5acdb61ca9ba661276d78c0971a14b8db2dd0"
    )


@given(st.dictionaries(st.text().filter(lambda key: key != "digest"), json_values, max_size=4))
def test_a_signed_description_is_recognised_and_a_changed_one_is_not(description: dict[str, object]) -> None:
    made = signed(description)
    assert is_signed(made)
    assert signed(made) == made
    assert not is_signed({**made, "one more": 0, "digest": made["digest"]}) or made.get("one more") == 0
    assert not is_signed(description)
