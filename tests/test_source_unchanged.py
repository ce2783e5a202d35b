"""What ``verify`` says of a source that is not what was encoded: which samples, which files."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from tiny_runs import run, small_recipe, waves

from diffats.config import Recipe
from diffats.stages import Workspace, files
from diffats.store import Store

N = 24
FIELD = waves(N, 6, 8).astype("f4")


def dataset(start: int = 0, stop: int = N) -> xr.Dataset:
    field = xr.DataArray(FIELD[start:stop], dims=("run", "time", "x"), attrs={"units": "K"})
    return xr.Dataset({"u": field}, coords={"run": np.arange(start, stop), "x": np.arange(8.0)})


def encoded(folder: Path, source: str, **data: Any) -> Recipe:
    given = {"source": str(folder / source), "modes": ["time", "x"], "sample_dim": "run", "split": {"test": 0.25}}
    recipe = small_recipe(folder / "root", {**given, **data}, decompose={"ranks": {"time": 3, "x": 3}})
    run(recipe, ["decompose"])
    assert problems(recipe) == []
    return recipe


def problems(recipe: Recipe) -> list[str]:
    """As a command of its own finds them: nothing that this process has open helps."""
    return files.problems(Workspace(recipe))


def unseen(path: Path, damage: Callable[[bytearray], None]) -> None:
    """Change a file as a failing disk does: its size and time stay."""
    kept, raw = path.stat(), bytearray(path.read_bytes())
    damage(raw)
    path.write_bytes(raw)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))


def flip_last(raw: bytearray) -> None:
    raw[-1] ^= 1


@pytest.fixture
def stored(tmp_path: Path) -> Recipe:
    plain: dict[str, Any] = {"u": {"chunks": (4, 6, 8), "compressors": ()}}
    dataset().to_zarr(tmp_path / "u.zarr", zarr_format=3, consolidated=False, encoding=plain)
    return encoded(tmp_path, "u.zarr")


@pytest.fixture
def joined(tmp_path: Path) -> Recipe:
    for number in range(4):
        part = dataset(6 * number, 6 * number + 6)
        part.to_netcdf(tmp_path / f"u_{number}.nc", encoding={"u": {"fletcher32": True, "chunksizes": (1, 6, 8)}})
    return encoded(tmp_path, "u_*.nc")


def test_a_bit_that_changes_under_the_same_time_is_found(stored: Recipe, tmp_path: Path) -> None:
    unseen(tmp_path / "u.zarr/u/c/2/0/0", flip_last)
    assert run(stored, ["decompose"])["decompose"].skipped
    (problem,) = problems(stored)
    assert f'data.source "{tmp_path}/u.zarr": sample 11 (run=11) is not what was encoded. Bring' in problem


def test_a_chunk_that_is_gone_or_unreadable_is_found_by_its_samples(stored: Recipe, tmp_path: Path) -> None:
    chunk = tmp_path / "u.zarr/u/c/1/0/0"
    kept = chunk.read_bytes()
    for damage in (kept[:100], b""):
        chunk.write_bytes(damage)
        (problem,) = problems(stored)
        assert re.search(
            r'sample 4 \(run=4\) to 7 are not what was encoded \(data.source: "u".* cannot be read', problem
        )
    chunk.unlink()
    (problem,) = problems(stored)
    assert "sample 4 (run=4) to 7 are not what was encoded. Bring the source back" in problem


def test_what_was_only_copied_is_unchanged(stored: Recipe, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "u.zarr", tmp_path / "copy.zarr")
    shutil.rmtree(tmp_path / "u.zarr")
    (tmp_path / "copy.zarr").rename(tmp_path / "u.zarr")
    assert problems(stored) == []


def test_a_damaged_file_of_a_glob_is_named(joined: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "u_2.nc"
    start = path.read_bytes().index(FIELD[14].tobytes())

    def damage(raw: bytearray) -> None:
        raw[start + 5] ^= 4

    unseen(path, damage)
    told = problems(joined)
    assert len(told) == 1
    assert "sample 14 (run=14) in u_2.nc is not what was encoded" in told[0]


def test_a_file_of_a_glob_that_is_gone_is_named(joined: Recipe, tmp_path: Path) -> None:
    (tmp_path / "u_1.nc").unlink()
    lost, count, samples, moved = problems(joined)
    assert 'file u_1.nc is gone, which held points 6 to 11 along "run"' in lost
    assert "it has 18 samples, and 24 were encoded" in count
    assert "sample 6 (run=6) to 11" in samples
    assert "12 samples, the first of them sample 12, are at other places" in moved


def test_a_file_that_cannot_be_opened_and_a_source_that_is_gone_are_named(joined: Recipe, tmp_path: Path) -> None:
    (tmp_path / "u_3.nc").write_bytes(b"nothing of the kind")
    (problem,) = problems(joined)
    assert "u_3.nc" in problem
    for path in tmp_path.glob("u_*.nc"):
        path.unlink()
    (problem,) = problems(joined)
    assert "matches no file" in problem


def test_other_units_points_and_numbers_are_told(stored: Recipe, tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "u.zarr", mode="r+")
    root["x"][3] = 7.0
    root["u"].attrs["units"] = "m"
    units, points = problems(stored)
    assert 'encoded as another kind: variable "u" was float32' in units
    assert 'coordinate "x" had other values' in points
    root["x"][3], root["u"].attrs["units"] = 3.0, "K"
    root["run"][5] = 50
    (problem,) = problems(stored)
    assert 'coordinate "run" of its samples has other values' in problem


def test_more_samples_are_a_change_only_of_a_source_that_does_not_grow(tmp_path: Path) -> None:
    for grows in (False, True):
        place = tmp_path / str(grows)
        dataset(0, 20).to_zarr(place / "u.zarr", zarr_format=3, consolidated=False)
        recipe = encoded(place, "u.zarr", grows=grows)
        dataset(20, 24).to_zarr(place / "u.zarr", append_dim="run", consolidated=False)
        told = problems(recipe)
        assert len(told) == (0 if grows else 1)
        assert all("it has 24 samples, and 20 were encoded" in text for text in told)
        zarr.open_array(place / "u.zarr/u", mode="r+")[9, 0, 0] = 7.0
        assert "sample 9 (run=9) is not what was encoded" in problems(recipe)[-1]


def test_windows_and_repositories_are_compared_too(tmp_path: Path) -> None:
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))

    def commit(field: np.ndarray) -> None:
        session = repository.writable_session("main")
        ds = xr.Dataset({"u": (("time", "x"), field)})
        ds.to_zarr(session.store, mode="w", zarr_format=3, consolidated=False)
        session.commit("u")

    field = waves(1, 80, 6)[0]
    commit(field)
    windows = {"size": {"time": 8}, "stride": {"time": 4}}
    recipe = encoded(tmp_path, "repo", modes=["time", "x"], sample_dim=None, windows=windows)
    field[41] = 0
    commit(field)
    (problem,) = problems(recipe)
    assert "sample 9 (time_start=36) to 10 are not what was encoded" in problem


def test_where_the_stored_digests_are_damaged_the_source_is_not_blamed(stored: Recipe, tmp_path: Path) -> None:
    for chunk in (tmp_path / "root/store/chunks").iterdir():
        chunk.write_bytes(chunk.read_bytes()[:-3])
    assert problems(stored) == []
    assert Store.open(tmp_path / "root/store").verify()


def test_of_many_damaged_places_some_are_listed_and_all_are_counted(stored: Recipe, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "_SHOWN", 2)
    array = zarr.open_array(f"{stored.data.source}/u", mode="r+")
    array[::2] = 0
    told = problems(stored)
    assert len(told) == 3
    assert "10 more samples are not what was encoded" in told[-1]
