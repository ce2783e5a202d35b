"""Commands under test: started, disturbed, and run again; and what they must have made in the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tiny_runs
from tiny_runs import small_recipe, trajectories

from diffats.config import Recipe
from diffats.stages import Workspace, align
from diffats.store import STATUS

N = 35
SHARD = 3
STEPS = 40
VERBS = ("decompose", "anchor", "align", "normalise", "train", "generate", "evaluate", "register", "report")
CHANGES = ("commit_every_shard",)  # of changes.py: what a kill may hurt then takes most of the time
PROJECT = Path(__file__).parents[2]
SEED = int(os.environ.get("DIFFATS_FAULTS_SEED", "20261122"))
STOPPED = 143  # 128 + SIGTERM
STOP_SECONDS = 10.0  # in which a command that was asked to end must have ended


def make_recipe(folder: Path, root: Path | None = None, **sections: Any) -> Recipe:
    """A data set of twelve shards with conditions, and a recipe whose every stage takes a moment."""
    data = trajectories(folder / "u.zarr", N, 6, 8)
    given: dict[str, Any] = {
        "decompose": {"tolerance": 0.1},
        "normalise": {"coordinates": "spectral"},
        "train": {"steps": STEPS, "checkpoint_every": 5, "log_every": 5, "calibrate": True},
        "generate": {"count": 12, "steps": 4, "batch": 2},
        "compute": {"shard_samples": SHARD},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section} if isinstance(section, dict) else section
    return small_recipe(root or folder / "root", data, **given)


def write(recipe: Recipe, file: Path) -> Path:
    """The recipe as a file; JSON values are TOML here."""

    def lines(tree: Mapping[str, Any], name: str = "") -> list[str]:
        plain = [f"{k} = {json.dumps(v)}" for k, v in tree.items() if not isinstance(v, dict) and v is not None]
        tables = [lines(v, f"{name}.{k}" if name else k) for k, v in tree.items() if isinstance(v, dict)]
        return [*([f"[{name}]"] if name else []), *plain, *(line for table in tables for line in table)]

    file.write_text("\n".join(lines(recipe.model_dump(mode="json"))) + "\n")
    return file


# --- commands ---------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it), what it said, and how long it took."""

    code: int
    said: str
    seconds: float
    left: list[str] = field(default_factory=list)  # processes that outlived it


class Command:
    """A running command, in a session of its own."""

    def __init__(self, pid: int, log: Path, wait: Any) -> None:
        self.pid, self.log, self._wait = pid, log, wait
        self.started = time.monotonic()

    def kill(self, number: signal.Signals) -> Ended:
        """Send a signal and see how it ends."""
        os.kill(self.pid, number)  # not yet waited for, so its number is nobody else's
        return self.end()

    def end(self) -> Ended:
        """Wait for its end and for that of the processes that it started."""
        asked = time.monotonic()
        code = self._wait(self.pid)
        seconds = time.monotonic() - asked
        said = self.log.read_text() if self.log.exists() else ""  # one stopped at once has not opened it
        return Ended(code, said, seconds, outliving(self.pid))


THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def start_real(module: str, *arguments: object, log: Path, environment: Mapping[str, str] | None = None) -> Command:
    """Start ``python -m MODULE ARGUMENTS``, as a user does."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    given = {**os.environ, **THREADS, **(environment or {})}
    with log.open("a") as said:
        # By hand, a checkout's own folder is the current one.
        options: dict[str, Any] = {"cwd": PROJECT, "env": given, "start_new_session": True}
        process = subprocess.Popen(words, stdout=said, stderr=said, **options)
    return Command(process.pid, log, lambda pid: process.wait(300))


def outliving(session: int, patience: float = 5.0) -> list[str]:
    """Command lines of the processes of a session that do not end within some seconds."""
    end = time.monotonic() + patience
    while (left := of_session(session)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def of_session(session: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


class Zygote:
    """Starts commands by forking a process that has imported everything.

    Parameters
    ----------
    launcher
        A command that this process is started with, such as one that gives it another name space.
    """

    def __init__(self, *launcher: str) -> None:
        script = Path(__file__).with_name("zygote.py")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([*launcher, sys.executable, str(script)], cwd=script.parents[2], **pipes)
        assert self._read() == "ready"

    def start(
        self,
        *arguments: object,
        log: Path,
        changes: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        """Start ``diffats ARGUMENTS``.

        Parameters
        ----------
        log
            Gets what it says.
        changes
            Functions of ``changes.py`` to begin with.
        environment
            Variables besides those of this process.
        """
        request = {
            "arguments": [str(argument) for argument in arguments],
            "log": str(log),
            "changes": list(changes),
            "environment": dict(environment or {}),
        }
        return Command(int(self._ask(request)), log, self.wait)

    def run(self, *arguments: object, log: Path, **options: Any) -> Ended:
        """Run one to its end."""
        return self.start(*arguments, log=log, **options).end()

    def wait(self, pid: int) -> int:
        """Exit code of a command."""
        return int(self._ask({"wait": pid}))

    def system(self, *command: object) -> None:
        """Run a command of the system where the zygote is."""
        assert self._ask({"system": [str(word) for word in command]}) == "0", command

    def close(self) -> None:
        """End it; it has nothing to lose."""
        self.process.kill()
        self.process.communicate()

    def _ask(self, request: dict[str, Any]) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


# --- what was made ----------------------------------------------------------------------------------------------


def content(recipe: Recipe) -> dict[str, str]:
    """What tells every stored result of a recipe from another, to the bit."""
    return {**tiny_runs.content(recipe), **checkpoint_content(Path(recipe.root))}


def checkpoint_content(root: Path) -> dict[str, str]:
    """Digests of the last checkpoint's tensors: weights, their average, and the optimiser's state."""
    (last,) = root.glob(f"training/*/checkpoint-{STEPS}")
    files = sorted(last.glob("*.safetensors"))
    return {f"checkpoint {file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def samples(recipe: Recipe) -> dict[str, Any]:
    """Numbers, sides and states of all encoded samples: none lost, none twice."""
    version = align.primitives_version(Workspace(recipe))
    assert version is not None
    ds = version.dataset()
    assert (ds["status"].values == STATUS["ok"]).all()
    return {name: ds[name].values.tolist() for name in ("sample", "split", "condition_scalar_nu")}


def leftovers(root: Path) -> list[str]:
    """Files that were begun and not finished."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*partial*"))


@dataclass(frozen=True)
class Unbroken:
    """A recipe whose verbs ran one after the other, each to its end.

    Attributes
    ----------
    folder
        Holds the source, and a copy of the root as each verb left it.
    seconds
        What each verb took.
    content, samples
        What was made.
    """

    folder: Path
    seconds: dict[str, float]
    content: dict[str, str]
    samples: dict[str, object]

    def after(self, verb: str | None, folder: Path, source: Path | None = None) -> Recipe:
        """The same recipe, with nothing done yet after a verb, in another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        if verb is not None:
            shutil.copytree(self.folder / verb, folder / "root")
        return make_recipe(source or self.folder, folder / "root")

    def check(self, recipe: Recipe) -> None:
        """Compare all that a recipe has made, to the bit."""
        made = content(recipe)
        different = sorted(
            name for name in made.keys() | self.content.keys() if made.get(name) != self.content.get(name)
        )
        assert not different, f"not what an unbroken run makes: {', '.join(different)}"
        assert samples(recipe) == self.samples


def run_unbroken(zygote: Zygote, folder: Path, verbs: Sequence[str]) -> Unbroken:
    """Run verbs, and keep what each left."""
    recipe, seconds = make_recipe(folder), {}
    file = write(recipe, folder / "recipe.toml")
    for verb in verbs:
        done = zygote.run(verb, file, log=folder / f"{verb}.log", changes=CHANGES)
        assert done.code == 0, done.said
        seconds[verb] = done.seconds
        shutil.copytree(recipe.root, folder / verb)
    return Unbroken(folder, seconds, content(recipe), samples(recipe))


def before(verb: str) -> str | None:
    """The verb that a verb follows."""
    place = VERBS.index(verb)
    return VERBS[place - 1] if place else None
