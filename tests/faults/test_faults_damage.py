"""A byte flipped or a file removed: ``diffats verify`` says where, and what is good is not computed again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from commands import SEED, STEPS, Unbroken, Zygote, checkpoint_content, content, write
from ledger import tried

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
@pytest.mark.parametrize("damage", ["a bit flipped", "removed"])
def test_the_source_is_damaged(zygote: Zygote, unbroken: Unbroken, tmp_path: Path, damage: str) -> None:
    shutil.copytree(unbroken.folder / "u.zarr", tmp_path / "u.zarr", copy_function=shutil.copy2)
    recipe = unbroken.after(None, tmp_path, source=tmp_path)
    file = write(recipe, tmp_path / "recipe.toml")
    done = zygote.run("decompose", file, log=tmp_path / "decompose.log")
    assert done.code == 0, done.said
    chunk = next(path for path in sorted((tmp_path / "u.zarr" / "u" / "c").rglob("*")) if path.is_file())
    with tried(damage, "source", "verify says that it is not what was encoded", seed=SEED):
        DAMAGES[damage](chunk, random.Random(SEED))
        told = zygote.run("verify", file, log=tmp_path / "verify.log")
        assert told.code == 1, told.said
        assert "u.zarr" in told.said, told.said
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
