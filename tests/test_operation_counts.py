"""What each stage reads, writes, copies, commits and submits, counted: more of it fails here, without a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed
import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from tiny_runs import calls, changed, run, small_recipe, waves

from diffats.config import Recipe
from diffats.sources import opening
from diffats.stages import Workspace, align, decompose
from diffats.store import Store, Version

N, SHARD, CHUNK = 60, 10, 5
SHARDS, CHUNKS = N // SHARD, N // CHUNK
SMALL = {"time": 6, "x": 8}
FORMS = ["anomaly_error", "condition_initial", "core", "factor_time", "factor_x", "numerical_rank", "relative_error"]
FORMS += ["source_digest", "spectrum_time", "spectrum_x", "truncation_error"]


def recipe_of(folder: Path, sizes: dict[str, int] = SMALL, **compute: Any) -> Recipe:
    """A Zarr source of five samples a chunk, and shards of two chunks."""
    field = waves(N, *sizes.values()).astype("f4")
    ds = xr.Dataset({"u": (("run", *sizes), field)})
    ds.to_zarr(
        folder / "u.zarr", zarr_format=3, consolidated=False, encoding={"u": {"chunks": (CHUNK, *sizes.values())}}
    )
    data = {
        "source": str(folder / "u.zarr"),
        "modes": list(sizes),
        "sample_dim": "run",
        "split": {"test": 0.25},
        "condition": {"initial": {"dim": "time", "index": 0}},
    }
    ranks = {"decompose": {"ranks": dict.fromkeys(sizes, 3)}}
    return small_recipe(folder / "root", data, **ranks, compute={"workers": 2, "shard_samples": SHARD, **compute})


class Seen:
    """Chunks that went through the stores, by array, and tasks that were submitted."""

    def __init__(self) -> None:
        self.raw: Counter[str] = Counter()
        self.read: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.tasks = 0


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Count for a ``with`` block."""
    seen = Seen()

    def noting(owner: Any, name: str, note: Any) -> None:
        original = getattr(owner, name)

        def noted(self: Any, *arguments: Any, **options: Any) -> Any:
            note(*arguments)
            return original(self, *arguments, **options)

        patch.setattr(owner, name, noted)

    def counted(counter: Counter[str], level: int) -> Any:
        def note(key: str, *_: Any) -> None:
            array, found, chunk = key.partition("/c/")
            if found:
                counter[array if level else f"{array}/{chunk}"] += 1

        return note

    def submitted(_: Any, items: list[Any], *__: Any) -> None:
        seen.tasks += len(items)

    with monkeypatch.context() as patch:
        noting(zarr.storage.LocalStore, "get", counted(seen.raw, 0))
        noting(icechunk.IcechunkStore, "get", counted(seen.read, 1))
        noting(icechunk.IcechunkStore, "set", counted(seen.written, 1))
        noting(distributed.Client, "map", submitted)
        yield seen


def each(group: str, names: list[str], times: int) -> dict[str, int]:
    return {f"{group}/{name}": times for name in names}


def of(counter: Counter[str], group: str, names: list[str]) -> dict[str, int]:
    return {f"{group}/{name}": counter[f"{group}/{name}"] for name in names}


def in_shards(counter: Counter[str], version: Version) -> dict[str, int]:
    """Of what is filled shard by shard; the rest is written with the template."""
    return of(counter, version.group, list(version.record.filled))


def commits(recipe: Recipe) -> list[str]:
    """Messages, oldest first."""
    repo = Store.open(Workspace(recipe).store_location).repo
    return [info.message for info in repo.ancestry(branch="main")][::-1][1:]


def find(recipe: Recipe, stage: str) -> Version:
    work = Workspace(recipe)
    version = decompose.tucker_version(work) if stage == "decompose" else align.primitives_version(work)
    assert version is not None
    return version


def test_raw_data_is_read_once_for_the_mean_and_once_for_the_decomposition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path)
    with watched(monkeypatch) as seen:
        run(recipe, ["decompose"])
    assert seen.raw == {f"u/{chunk}/0/0": 2 for chunk in range(CHUNKS)}
    assert seen.tasks == 2 * SHARDS
    # Other ranks need no other mean.
    other = changed(recipe, decompose={"ranks": {"time": 2, "x": 2}})
    with watched(monkeypatch) as seen:
        run(other, ["decompose"])
    assert seen.raw == {f"u/{chunk}/0/0": 1 for chunk in range(CHUNKS)}
    assert seen.tasks == SHARDS


def test_shards_are_whole_chunks_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path, shard_samples=None)
    monkeypatch.setattr("diffats.stages.workspace.SHARD_BYTES", 13 * 6 * 8 * 4)
    with watched(monkeypatch) as seen:
        run(recipe, ["decompose"])
    assert find(recipe, "decompose").record.shard == 10
    assert seen.raw == {f"u/{chunk}/0/0": 2 for chunk in range(CHUNKS)}


def test_a_shard_is_written_once_and_committed_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    with watched(monkeypatch) as seen:
        run(recipe, ["decompose"])
    version = find(recipe, "decompose")
    assert list(version.record.filled) == FORMS
    assert in_shards(seen.written, version) == each("tucker", FORMS, SHARDS)
    assert of(seen.written, "tucker", ["status", "shard_digest"]) == each("tucker", ["status", "shard_digest"], 1)
    # What a shard's forms were is not read again, but for the errors and ranks of the summary.
    summary = ["anomaly_error", "numerical_rank", "relative_error", "truncation_error"]
    assert in_shards(seen.read, version) == each("tucker", FORMS, 0) | each("tucker", summary, SHARDS)
    whole = f"{SHARDS} of {SHARDS} shards"
    assert commits(recipe) == [
        "store of tiny", "scaling: whole", "tucker: template", f"tucker: {whole}", "tucker: complete"
    ]  # fmt: skip


def test_anchors_alignment_and_statistics_read_primitives_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    run(recipe, ["decompose"])
    before = len(commits(recipe))
    factors = ["factor_time", "factor_x"]

    with watched(monkeypatch) as seen:
        run(recipe, ["select_anchor"])
    assert not seen.raw
    assert seen.tasks == 2 * SHARDS
    assert sum(of(seen.read, "tucker", factors).values()) == 2 * 2 * SHARDS + 2  # two passes, then the chosen
    assert of(seen.read, "tucker", ["status", "split"]) == each("tucker", ["status", "split"], 2 * SHARDS)
    assert of(seen.read, "tucker", ["core"]) == {"tucker/core": 0}

    with watched(monkeypatch) as seen:
        run(recipe, ["align"])
    version = find(recipe, "align")
    assert not seen.raw
    assert seen.tasks == SHARDS
    aligned = ["condition_initial", "core", *factors]
    assert of(seen.read, "tucker", [*aligned, "status"]) == each("tucker", [*aligned, "status"], SHARDS)
    assert list(version.record.filled) == [*aligned, "overlap"]
    assert in_shards(seen.written, version) == each("primitives", [*aligned, "overlap"], SHARDS)
    assert of(seen.read, "primitives", aligned) == each("primitives", aligned, 0)

    with watched(monkeypatch) as seen:
        run(recipe, ["fit_normalisation"])
    assert not seen.raw
    assert seen.tasks == 2 * SHARDS  # principal axes, then deviations along them
    assert of(seen.read, "primitives", factors) == each("primitives", factors, 2 * SHARDS)
    assert of(seen.read, "primitives", ["core"]) == each("primitives", ["core"], SHARDS)  # it has no axes
    assert commits(recipe)[before:] == [
        "anchor: whole", "primitives: template", f"primitives: {SHARDS} of {SHARDS} shards", "primitives: complete",
        "normalisation: whole",
    ]  # fmt: skip


def test_a_source_is_opened_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    with calls(opening, "open_source", monkeypatch) as opened, calls(Version, "move", monkeypatch) as versions:
        run(recipe, ["decompose"])
    assert len(opened) <= 2  # by the stage, and by the first of its workers
    assert len(versions) <= 12  # whatever the number of shards


def test_the_sums_of_the_medoid_travel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    run(recipe, ["decompose"])
    with calls(distributed.Client, "scatter", monkeypatch) as scattered:
        run(recipe, ["select_anchor"])
    assert len(scattered) == 1
    ((sums,),) = (arguments[1] for arguments in scattered)
    assert {mode: accumulators[0].P.shape for mode, accumulators in sums.items()} == {"time": (6, 6), "x": (8, 8)}


def test_a_commit_of_many_shards_writes_what_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of status and digests, and manifests, of the shards that are new; not of those that are there."""
    monkeypatch.setattr("diffats.store.schema._ROWS_AT_ONCE", 64)
    monkeypatch.setattr("diffats.store.repository._MANIFEST_CHUNKS", 4)
    n, size = 64, 2
    store = Store.create_or_open(tmp_path / "store")
    template = xr.Dataset({"v": (("sample", "x"), np.broadcast_to(np.float32(0), (n, 3)))})

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"v": np.ones((stop - start, 3), "f4"), "status": np.ones(stop - start, "i1")}

    class Serial:
        def map(self, function: Any, items: Any, **options: Any) -> Any:
            return ((item, function(item)) for item in items)

    version = store.begin("tucker", template, fingerprint="f", shard=size)
    with watched(monkeypatch) as seen:
        version.fill(make, Serial(), commit_every=4)
    assert seen.written == {"tucker/v": 32, "tucker/status": 8, "tucker/shard_digest": 16}
    repo = store.repo  # the first way is release 2's
    listed = getattr(repo, "list_manifest_files", lambda snapshot: repo.lookup_snapshot(snapshot).manifests)
    manifests = {info.id for info in listed(version.snapshot)}
    files = list((tmp_path / "store" / "manifests").iterdir())
    assert len(files) < 8 * 3 * 2 + 4
    assert len(manifests) >= 8
