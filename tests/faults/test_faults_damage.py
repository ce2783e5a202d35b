"""A byte flipped or a file removed: ``diffats verify`` says where, and what is good is not computed again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import SEED, STEPS, N, Unbroken, Zygote, checkpoint_content, content, samples, write
from ledger import tried
from tiny_runs import changed

from diffats.config import Recipe
from diffats.stages import Workspace
from diffats.store import Store

pytestmark = pytest.mark.timeout(1800)

Damage = Callable[[Path, random.Random], None]


def flip(file: Path, rng: random.Random) -> None:
    """Change one bit of a file's content."""
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)


def remove(file: Path, rng: random.Random) -> None:
    """Lose a file."""
    file.unlink()


def cut(file: Path, rng: random.Random) -> None:
    """Lose the end of a file."""
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


DAMAGES: dict[str, Damage] = {"a bit flipped": flip, "the end lost": cut, "removed": remove}


@pytest.fixture
def finished(unbroken: Unbroken, tmp_path: Path) -> tuple[Recipe, Path]:
    recipe = unbroken.after("report", tmp_path)
    for store in Workspace(recipe).repositories():
        forget_history(store)
    return recipe, write(recipe, tmp_path / "recipe.toml")


def forget_history(store: Store) -> None:
    """Leave only what the versions of a store are made of: damage to anything else harms nobody."""
    now = datetime.now(UTC)
    store.repo.expire_snapshots(now)
    store.repo.garbage_collect(now)


EMPTY = "1CECHNKREP0F1RSTCMT0"  # the snapshot that every repository begins with, in which there is nothing


# What lies in a root, and what ``verify`` must name where one of it is damaged.
STORED = {
    "chunk": ("store/chunks/*", "shard "),
    "manifest": ("store/manifests/*", ""),
    "snapshot": ("store/snapshots/*", ""),
    "generated chunk": ("samples/chunks/*", "shard "),
}
FILES = {
    "checkpoint, tensors": (f"training/*/checkpoint-{STEPS}/*.safetensors", f"checkpoint-{STEPS}"),
    "checkpoint, state": (f"training/*/checkpoint-{STEPS}/state.json", f"checkpoint-{STEPS}"),
    "bundle, weights": ("bundles/*/weights.safetensors", "weights.safetensors"),
    "bundle, arrays": ("bundles/*/arrays.safetensors", "arrays.safetensors"),
    "bundle, description": ("bundles/*/bundle.json", "bundle"),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [*STORED, *FILES])
def test_damage_is_found(zygote: Zygote, finished: tuple[Recipe, Path], tmp_path: Path, kind: str, damage: str) -> None:
    recipe, file = finished
    root = Path(recipe.root)
    pattern, named = (STORED | FILES)[kind]
    candidates = sorted(path for path in root.glob(pattern) if path.stat().st_size and path.name != EMPTY)
    rng = random.Random(f"{SEED} {kind} {damage}")
    # Icechunk has no checksums of its own: a bit of a snapshot may lie where nothing of a version is, as in a message.
    harmless = kind == "snapshot" and damage == "a bit flipped"
    chosen = rng.sample(candidates, min(4, len(candidates))) if not harmless else rng.choices(candidates, k=12)
    outcome = "verify names it" + ", where it changes anything that is read" * harmless
    with tried(damage, kind, outcome, seed=SEED) as fault:
        fault.count = 0
        for number, path in enumerate(chosen):
            kept = path.read_bytes()
            DAMAGES[damage](path, rng)
            told = zygote.run("verify", file, log=tmp_path / f"{number}.log")
            path.write_bytes(kept)
            assert "Traceback" not in told.said, told.said
            if told.code == 0 and harmless:
                continue  # every shard of every version was read and is as it was
            assert told.code == 1, (path, told.said)
            assert named in told.said, (path, told.said)
            fault.count += 1
        assert fault.count
    whole = zygote.run("verify", file, log=tmp_path / "whole.log")
    assert whole.code == 0, whole.said


# What a repository keeps beside the data, and what ``verify`` must name.
KEPT = {
    "repository, head": ("refs/branch.main/ref.json", "refs/branch.main/ref.json is damaged or lost"),
    "repository, tag of a version": ("refs/tag.tucker-*/ref.json", "of "),
    "repository, settings": ("config.yaml", "config.yaml is damaged or lost. Remove it"),
    "repository, commit of the past": ("snapshots/*", "snapshots/"),
    "repository, log of a commit": ("transactions/*", ""),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KEPT)
def test_damage_beside_the_data_is_found_or_harmless(
    zygote: Zygote, unbroken: Unbroken, tmp_path: Path, kind: str, damage: str
) -> None:
    recipe = unbroken.after("normalise", tmp_path)
    file, store = write(recipe, tmp_path / "recipe.toml"), Path(recipe.root) / "store"
    other = zygote.run("decompose", file, "--set", "decompose.tolerance=0.2", log=tmp_path / "other.log")
    assert other.code == 0, other.said  # the recipe's own versions are now found by their tags
    pattern, named = KEPT[kind]
    rng = random.Random(f"{SEED} {kind} {damage}")
    candidates = sorted(path for path in store.glob(pattern) if path.name != EMPTY)
    outcome = "verify names it, or all is there as before; the next run ends well or with a message"
    with tried(damage, kind, outcome, seed=SEED) as fault:
        chosen = rng.sample(candidates, min(4, len(candidates)))
        fault.count = len(chosen)
        for number, path in enumerate(chosen):
            kept = path.read_bytes()
            DAMAGES[damage](path, rng)
            told = zygote.run("verify", file, log=tmp_path / f"verify {number}.log")
            assert "Traceback" not in told.said, told.said
            assert (told.code, named in told.said) in ((1, True), (0, True), (0, False)), (path, told.said)
            after = {verb: zygote.run(verb, file, log=tmp_path / f"{verb} {number}.log") for verb in ("plan", "align")}
            for ended in after.values():
                assert ended.code in (0, 1, 2), (path, ended.said)
                assert "Traceback" not in ended.said, (path, ended.said)
            if told.code == 0:
                assert "already there" in after["align"].said, (path, after["align"].said)
            path.write_bytes(kept)
    whole = zygote.run("verify", file, log=tmp_path / "whole.log")
    assert whole.code == 0, whole.said
    assert samples(recipe) == unbroken.samples


@pytest.mark.parametrize("damage", DAMAGES)
def test_training_goes_back_to_the_last_good_checkpoint(
    zygote: Zygote, brief: Unbroken, tmp_path: Path, damage: str
) -> None:
    recipe = brief.after("train", tmp_path)
    file, root = write(recipe, tmp_path / "recipe.toml"), Path(recipe.root)
    shutil.rmtree(root / "bundles")
    (last,) = root.glob(f"training/*/checkpoint-{STEPS}")
    with tried(damage, "newest checkpoint", "training goes on from the one before, and says so", seed=SEED):
        DAMAGES[damage](last / "ema.safetensors", random.Random(SEED))
        done = zygote.run("train", file, log=tmp_path / "train.log")
        assert done.code == 0, done.said
        assert f"checkpoint-{STEPS} is damaged" in done.said
        assert f"training continues at step {STEPS - 5}" in done.said
        assert checkpoint_content(root) == {k: v for k, v in brief.content.items() if k.startswith("checkpoint")}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_source_is_damaged(zygote: Zygote, unbroken: Unbroken, tmp_path: Path, damage: str) -> None:
    # In files of six samples, so that one of them is damaged alone.
    ds = xr.open_zarr(unbroken.folder / "u.zarr", consolidated=False).load()
    for number, start in enumerate(range(0, N, 6)):
        part = ds.isel(run=slice(start, start + 6)).assign_coords(run=np.arange(N)[start : start + 6])
        part.to_netcdf(tmp_path / f"u_{number}.nc", engine="h5netcdf", encoding={"u": {"chunksizes": (1, 6, 8)}})
    recipe = changed(unbroken.after(None, tmp_path), data={"source": str(tmp_path / "u_*.nc")})
    file = write(recipe, tmp_path / "recipe.toml")
    done = zygote.run("decompose", file, log=tmp_path / "decompose.log")
    assert done.code == 0, done.said
    rng, path = random.Random(f"{SEED} source {damage}"), tmp_path / "u_3.nc"
    kept = path.stat()
    with tried(damage, "source, under the same time", "verify names the sample or the file", seed=SEED):
        if damage == "a bit flipped":  # in the numbers of a sample
            raw, sample = bytearray(path.read_bytes()), rng.randrange(18, 24)
            at = raw.index(ds["u"].values[sample].tobytes()) + rng.randrange(6 * 8 * 4)
            raw[at] ^= 1 << rng.randrange(8)
            path.write_bytes(raw)
            named = f"sample {sample} (run={sample}) in u_3.nc is not what was encoded"
        else:
            DAMAGES[damage](path, rng)
            named = "u_3.nc"
        if path.exists():
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        told = zygote.run("verify", file, log=tmp_path / "verify.log")
        assert told.code == 1, told.said
        assert named in told.said, told.said
        assert "Traceback" not in told.said


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["a bit flipped", "removed"])
def test_a_damaged_chunk_is_made_again(zygote: Zygote, unbroken: Unbroken, tmp_path: Path, damage: str) -> None:
    recipe = unbroken.after("generate", tmp_path)
    file, root = write(recipe, tmp_path / "recipe.toml"), Path(recipe.root)
    chunk = max(root.glob("samples/chunks/*"), key=lambda path: path.stat().st_size)
    with tried(damage, "generated chunk, then --restart", "made again, the same bits", seed=SEED):
        DAMAGES[damage](chunk, random.Random(SEED))
        assert zygote.run("verify", file, log=tmp_path / "verify.log").code == 1
        done = zygote.run("generate", file, "--restart", log=tmp_path / "generate.log")
        assert done.code == 0, done.said
        assert content(recipe) == unbroken.content


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["weights.safetensors", "arrays.safetensors", "bundle.json"])
def test_a_damaged_model_is_made_again(
    zygote: Zygote, unbroken: Unbroken, tmp_path: Path, name: str, damage: str
) -> None:
    recipe = unbroken.after("generate", tmp_path)
    file, root = write(recipe, tmp_path / "recipe.toml"), Path(recipe.root)
    (damaged,) = root.glob(f"bundles/*/{name}")
    outcome = "generate refuses it; train makes it again from the checkpoint"
    with tried(damage, f"model, {name}", outcome, seed=SEED):
        DAMAGES[damage](damaged, random.Random(SEED))
        refused = zygote.run("generate", file, log=tmp_path / "generate.log")
        assert refused.code in (1, 2), refused.said
        assert "Traceback" not in refused.said
        done = zygote.run("train", file, log=tmp_path / "train.log")
        assert done.code == 0, done.said
        assert content(recipe) == unbroken.content
