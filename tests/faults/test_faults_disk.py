"""A disk that fills up, a root that is read-only, and one that belongs to somebody else."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bad_inputs
import pytest
from commands import CHANGES, VERBS, Unbroken, Zygote, before, write
from ledger import tried

from diffats.store import Store

pytestmark = pytest.mark.timeout(1800)

PAGE = 4096
NOBODY = 65534
SHARES = (0.0, 0.1, 0.3, 0.6, 0.9)  # of what a verb writes, for which there is room
FULL = ("No space left on device", "disk is full", "full")


class SmallDisk:
    """A file system of its own, of any size, in a mount name space that no other process sees."""

    def __init__(self, folder: Path) -> None:
        self.zygote = Zygote("unshare", "--map-root-user", "--mount")
        self.place = folder
        self.zygote.system("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)

    @property
    def outside(self) -> Path:
        """The same folder for processes outside."""
        return Path(f"/proc/{self.zygote.process.pid}/root{self.place}")

    def check(self, unbroken: Unbroken, folder: Path) -> None:
        """Compare what was made, in a copy: Icechunk follows the outer folder's links to another place."""
        shutil.copytree(self.outside, folder)
        unbroken.check(unbroken.after(None, folder))

    def used(self) -> int:
        """Bytes in use."""
        state = os.statvfs(self.outside)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def remount(self, options: str) -> None:
        """Change its size, or whether it can be written."""
        self.zygote.system("mount", "-o", f"remount,{options}", self.place)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    given = shutil.which("unshare")
    possible = given and subprocess.run(
        [given, "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if not possible or possible.returncode:
        pytest.skip("no file system of a given size: this machine lets nobody mount one in a name space")
    made = SmallDisk(tmp_path)
    yield made
    made.zygote.close()


def written(folder: Path) -> int:
    """Bytes that the files of a folder take on the small disk."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def fill_up(disk: SmallDisk, unbroken: Unbroken, logs: Path, shares: tuple[float, ...], verbs: tuple[str, ...]) -> None:
    """One root through every verb, each with too little room several times, and then with enough."""
    recipe = unbroken.after(None, disk.place)
    file = write(recipe, logs / "recipe.toml")
    for verb in VERBS:
        if verb in verbs:
            used, earlier = disk.used(), before(verb)
            grows = written(unbroken.folder / verb) - (written(unbroken.folder / earlier) if earlier else 0)
            outcome = "ended with a message and exit code 1 or 2; the same command finished once there was room"
            with tried("disk full", verb, outcome) as fault:
                fault.count = 0
                for number, share in enumerate(shares):
                    disk.remount(f"size={int(used + share * grows + PAGE)}")
                    ended = disk.zygote.run(verb, file, log=logs / f"{verb}-{number}.log", changes=CHANGES)
                    assert "Traceback" not in ended.said, ended.said
                    assert ended.left == []
                    if ended.code == 0:  # it needed less
                        break
                    assert ended.code in (1, 2), ended.said
                    assert any(word in ended.said for word in FULL), ended.said
                    fault.count += 1
                disk.remount("size=64m")
        done = disk.zygote.run(verb, file, log=logs / f"{verb}-last.log", changes=CHANGES)
        assert done.code == 0, done.said
    disk.check(unbroken, logs / "kept")
    verified = disk.zygote.run("verify", file, log=logs / "verify.log")
    assert verified.code == 0, verified.said


@pytest.mark.faults
def test_disk_full_in_every_stage(
    disk: SmallDisk, unbroken: Unbroken, tmp_path_factory: pytest.TempPathFactory
) -> None:
    fill_up(disk, unbroken, tmp_path_factory.mktemp("logs"), SHARES, VERBS)


@pytest.mark.faults
def test_read_only_root(disk: SmallDisk, unbroken: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> None:
    logs = tmp_path_factory.mktemp("logs")
    recipe = unbroken.after(None, disk.place)
    file = write(recipe, logs / "recipe.toml")
    for verb in VERBS:
        disk.remount("ro")
        with tried("read-only root", verb, "refused with exit code 2 before anything was done; then finished"):
            refused = disk.zygote.run(verb, file, log=logs / f"{verb}-0.log")
            assert refused.code == 2, refused.said
            assert "Traceback" not in refused.said
            assert "read-only" in refused.said.lower()
        disk.remount("rw")
        done = disk.zygote.run(verb, file, log=logs / f"{verb}.log", changes=CHANGES)
        assert done.code == 0, done.said
    disk.check(unbroken, logs / "kept")


@pytest.fixture
def powerless(tmp_path: Path) -> Iterator[Zygote]:
    """Commands of a user who may only what the permissions of files allow."""
    launcher = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if launcher and shutil.which(launcher[0]) is None:
        pytest.skip("no setpriv: permissions do not bind the superuser")
    made = Zygote(*launcher)
    yield made
    made.close()


@pytest.mark.faults
def test_permission_denied(powerless: Zygote, unbroken: Unbroken, tmp_path: Path) -> None:
    for verb in ("plan", *VERBS):
        recipe = unbroken.after(before(verb) if verb in VERBS else None, tmp_path / verb)
        file, root = write(recipe, tmp_path / f"{verb}.toml"), Path(recipe.root)
        root.mkdir(exist_ok=True)
        for place in (root, *root.rglob("*")):
            forbid(place)
        with tried("permission denied", verb, "refused with exit code 2 before anything was done"):
            refused = powerless.run(verb, file, log=tmp_path / f"{verb}.log")
            assert refused.code == 2, refused.said
            assert "Traceback" not in refused.said
            assert "cannot be written" in refused.said


@pytest.mark.faults
def test_sources_that_may_not_be_read(powerless: Zygote, tmp_path: Path) -> None:
    for row in bad_inputs.ROWS["Sources that may not be read"]:
        folder = tmp_path / row.what.replace(" ", "-")
        folder.mkdir()
        assert row.make is not None
        row.make(folder)
        options = [word for option in row.options for word in ("--set", option.replace("{dir}", str(folder)))]
        place = folder / row.locked
        kept = place.stat().st_mode
        place.chmod(0)
        with tried("permission to read denied", row.what, "refused with exit code 2; nothing was made of it"):
            for verb in ("plan", "decompose") if row.outcome == bad_inputs.REFUSED else ("decompose",):
                refused = powerless.run(verb, folder / "tiny.toml", *options, log=tmp_path / f"{folder.name}.{verb}")
                assert refused.code == bad_inputs.CODES[row.outcome], refused.said
                assert row.says.replace("{dir}", str(folder)) in refused.said, refused.said
                assert "Traceback" not in refused.said
        place.chmod(kept)
        store = folder / "root" / "store"
        made = Store.open(store).latest("tucker") if store.is_dir() else None
        assert made is None


def forbid(place: Path) -> None:
    """Take the right to write something."""
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
    place.chmod(0o555 if place.is_dir() else 0o444)
