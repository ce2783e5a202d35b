"""Where a recipe's things are: its samples, stores, models and pages, each found by fingerprint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import xarray as xr

from diffats import sources
from diffats.config import Data, Recipe, portable, portable_place
from diffats.digests import json_digest
from diffats.disk import replace_text
from diffats.errors import InputError, SourceError, StoreNotFoundError
from diffats.primitives import decomposed_modes
from diffats.progress import waiting
from diffats.sources.opening import absolute
from diffats.store import Store, Version
from diffats.store.location import absolute as absolute_place

# Raise a number where a stage's results change though its configuration does not.
ALGORITHMS = {
    "scaling": 2,
    "tucker": 4,
    "anchor": 2,
    "primitives": 1,
    "normalisation": 2,
    "drift": 1,
    "model": 2,
    "samples": 1,
    "evaluation": 4,
}
SHARD_BYTES, LARGEST_SHARD_BYTES = 16 * 2**20, 64 * 2**20
MAX_SHARD_SAMPLES = 4096
# Where the source is and how it is opened: its digest tells what it holds. The condition belongs to the next group,
# bounds to the last one.
_NOT_CONTENT = ("source", "engine", "storage_options", "condition", "max_failed", "grows", "version", "bounds")

Log = Callable[[dict[str, float], int], None]
Progress = Callable[[int, int, int], None]


def _no_log(metrics: dict[str, float], step: int) -> None:
    """Metrics go nowhere."""


def _no_progress(done: int, total: int, failed: int) -> None:
    """Progress is not shown."""


@dataclass(frozen=True)
class StageResult:
    """What a stage left behind.

    Attributes
    ----------
    stage, skipped
        The stage's name; whether everything was there already.
    fingerprint, version, location
        Identity of the result, its version (a snapshot id or content digest), and where it is.
    done, total, failed
        Samples (or training steps).
    seconds
        Wall time of this call.
    metrics, facts
        Numbers for the tracker; plain data for ``--json``.
    summary
        A few lines of Markdown.
    pictures
        PNG bytes by title.
    """

    stage: str
    fingerprint: str
    version: str
    location: str
    skipped: bool = False
    done: int = 0
    total: int = 0
    failed: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """How a stage tells what it does: metrics by step, samples done, and whether to start anew."""

    log: Log = _no_log
    progress: Progress = _no_progress
    restart: bool = False


def fingerprint(kind: str, config: Mapping[str, Any], *inputs: str) -> str:
    """Identity of a stage's output: its configuration, its inputs, its algorithm's version.

    >>> fingerprint("anchor", {"strategy": "medoid"}, "abc") == fingerprint("anchor", {"strategy": "mean"}, "abc")
    False
    """
    return json_digest([kind, ALGORITHMS[kind], config, inputs], default=str)


def shard_samples(recipe: Recipe, sizes: Mapping[str, int], itemsize: int, *, chunk: int = 1) -> int:
    """Samples in one shard: about 16 MiB of raw data, whatever the machine, and whole chunks of the source.

    Parameters
    ----------
    recipe
        Its ``compute.shard_samples``, where given, is the answer.
    sizes, itemsize
        Of a sample and its numbers.
    chunk
        Samples in a chunk of the source (see :func:`source_chunk`). A chunk in two shards is read twice, so a shard is
        a multiple of it, or one chunk of up to 64 MiB, or one of equal parts where chunks are larger.

    >>> from diffats.config import parse_recipe
    >>> recipe = parse_recipe({"name": "a", "data": {"source": "a.nc", "modes": ["y", "x"], "sample_dim": "t"},
    ...                        "decompose": {"ranks": {"y": 2, "x": 2}}})
    >>> [shard_samples(recipe, {"y": 256, "x": 256}, 4, chunk=chunk) for chunk in (1, 10, 100, 600)]
    [64, 60, 100, 60]
    """
    if recipe.compute.shard_samples:
        return recipe.compute.shard_samples
    one = math.prod(sizes.values()) * itemsize
    fits = max(1, min(MAX_SHARD_SAMPLES, SHARD_BYTES // one))
    if chunk <= fits:
        return fits - fits % chunk
    if chunk <= MAX_SHARD_SAMPLES and chunk * one <= LARGEST_SHARD_BYTES:
        return chunk
    parts = [part for part in range(fits, fits // 2, -1) if chunk % part == 0]
    return parts[0] if parts else fits


def source_chunk(samples: sources.Samples) -> int:
    """Samples in one chunk of the source; 1 where windows or a split that drops some leave no such number."""
    dim = samples.data.sample_dim
    if dim is None or samples.data.windows.size or samples.dropped:
        return 1
    chunks = [samples.dataset[name].encoding.get("preferred_chunks") or {} for name in samples.variables]
    return max(int(sizes.get(dim) or 1) for sizes in chunks)


def shard_bounds(n: int, shard: int) -> list[tuple[int, int]]:
    """Start and stop of every shard.

    >>> shard_bounds(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + shard, n)) for start in range(0, n, shard)]


def shard_runs(n: int, shard: int, *, sample_bytes: int, result_bytes: int) -> list[tuple[int, int]]:
    """Start and stop of runs of whole shards, for a pass whose result has a size of its own, as a sum has.

    A run reads at least four times what it returns, so that results take no more time to travel and merge than data
    to read. It follows from sizes alone, and there are 64 runs or more where there are as many shards: sums over runs,
    taken in order, have the same bits on any number of workers.

    Parameters
    ----------
    n, shard
        Samples, and samples in a shard.
    sample_bytes
        What is read of one sample.
    result_bytes
        What one call returns.

    >>> shard_runs(1000, 1, sample_bytes=100, result_bytes=200)[:2]
    [(0, 8), (8, 16)]
    >>> shard_runs(5, 2, sample_bytes=100, result_bytes=200)
    [(0, 2), (2, 4), (4, 5)]
    """
    wanted = math.ceil(4 * result_bytes / (shard * sample_bytes))
    most = math.ceil(math.ceil(n / shard) / 64)
    return shard_bounds(n, shard * max(1, min(wanted, most)))


@lru_cache(maxsize=8)
def open_group(location: str, group: str, snapshot: str) -> Version:
    """A stored group, opened once per process, since a worker needs it for every shard."""
    return Version(Store.open(location), group, snapshot)


@lru_cache(maxsize=8)
def read_group(location: str, group: str, snapshot: str) -> xr.Dataset:
    """The same as a dataset, lazily."""
    return open_group(location, group, snapshot).dataset(indexes=False)


def find_store(location: str) -> Store | None:
    """The repository, where there is one."""
    try:
        return Store.open(location)
    except StoreNotFoundError:
        return None


class Workspace:
    """One recipe and everything that belongs to it.

    Raises
    ------
    InputError
        Where the root is a URL: models, pages and the run database need a local directory.
    """

    def __init__(self, recipe: Recipe) -> None:
        if "://" in recipe.location:
            raise InputError(
                f'root "{portable_place(recipe.location)}" is a URL. Use a local directory for root. '
                "Only repositories can lie there: give the URL as store."
            )
        self.recipe = recipe
        self._finished: dict[tuple[str, str], Version] = {}
        self.root = Path(recipe.location).absolute()

    @cached_property
    def data(self) -> Data:
        """The recipe's data section with an absolute source, so that workers elsewhere can open it."""
        return self.recipe.data.model_copy(update={"source": absolute(self.recipe.data.source)})

    @cached_property
    def samples(self) -> sources.Samples:
        """The raw samples, opened lazily.

        Raises
        ------
        SourceError
            Where they are missing or unreadable, or still to be simulated.
        """
        if self.recipe.simulate is not None and not Path(self.data.source).exists():
            raise SourceError(
                f"data.source {self.data.source} is not there yet. Run `diffats simulate RECIPE.toml` first: it makes "
                f'the data of problem "{self.recipe.simulate.problem}".'
            )
        with waiting(f"opening {self.portable['data']['source']}"):
            return sources.open_samples(self.data, self.recipe.seed, self._boundary)

    @property
    def _boundary(self) -> int | None:
        """Where the held-out end of a growing source began, so that no sample changes sides; None for now."""
        store = find_store(self.store_location) if self.recipe.data.grows else None
        version = store.version("scaling", self.scaling_fingerprint) if store is not None else None
        return None if version is None else version.attrs["boundary"]

    def rebase(self) -> None:
        """Open the samples of a growing source as if nothing was encoded yet."""
        self.samples = sources.open_samples(self.data, self.recipe.seed)

    @cached_property
    def encoding(self) -> dict[str, Any]:
        """What determines the Tucker forms beside the data, their mean and their scale."""
        recipe, found = self.recipe, self.recipe.decompose.tolerance is not None
        return {
            "primitive": self.portable["primitive"],
            "decompose": self.portable["decompose"] | ({"error": "anomaly"} if found else {}),  # once: of the field
            "decomposed": decomposed_modes(recipe) if recipe.primitive.kind == "tgp" else (),
            "condition": {k: v for k, v in self.portable["data"]["condition"].items() if k != "dropout"},
            "shard": recipe.compute.shard_samples,
        }

    @cached_property
    def scaling_fingerprint(self) -> str:
        """Identity of the training mean, scale and mask.

        Those of a growing source stay as they were first, whatever the source holds now, and belong to one way of
        encoding it: another one must not change them.
        """
        config = {key: value for key, value in self.portable["data"].items() if key not in _NOT_CONTENT}
        if self.recipe.data.split.by != "sample":  # then groups move no sample
            config["split"] = {key: value for key, value in config["split"].items() if key != "group"}
        options = {"data": config, "seed": self.recipe.seed, **self._new_split()}
        if self.recipe.data.grows:
            return fingerprint("scaling", {**options, "encoding": self.encoding}, "grows")
        return fingerprint("scaling", options, self.source_digest)

    def _new_split(self) -> dict[str, str]:
        """What tells stores apart whose options are the same and whose split is not: earlier releases held out any
        windows of a run, and windows that overlap others."""
        split = self.recipe.data.split
        if split.by != "sample" or not self.recipe.data.windows.size:
            return {}
        held = sources.open_samples(
            self.data, self.recipe.seed, fresh=False
        ).holds_out  # the boundary of others plays no part
        return {} if held == "samples" else {"holds_out": held}

    @cached_property
    def shard(self) -> int:
        """Raw samples in one shard."""
        samples = self.samples
        chunk = source_chunk(samples)
        shard = shard_samples(self.recipe, samples.sizes, samples.dtype.itemsize, chunk=chunk)
        return shard if self.recipe.data.grows else min(samples.n, shard)

    @cached_property
    def source_digest(self) -> str:
        """What identifies the content of the source; where ``data.version`` is given, as it was encoded then."""
        text = self.recipe.data.version
        return self.samples.fingerprint() if text is None else self._encoded_from(text)

    def _encoded_from(self, text: str) -> str:
        """The source's digest that a stored version holds."""
        store = find_store(self.store_location)
        entries = [] if store is None else store.resolve(text)
        found = {entry["source"] for entry in entries if entry["group"] in ("tucker", "primitives")}
        if len(found) != 1:
            raise StoreNotFoundError(
                f'data.version "{text}" names no version of the groups tucker and primitives in {self.store_location}. '
                "See `diffats inspect RECIPE.toml --history`."
            )
        return str(found.pop())

    @property
    def store_location(self) -> str:
        """The data set's repository."""
        return self._place("store")

    @property
    def samples_location(self) -> str:
        """The repository of generated samples."""
        return self._place("samples")

    def _place(self, name: str) -> str:
        return absolute_place(f"{self.recipe.store or self.root}/{name}")

    @cached_property
    def store(self) -> Store:
        """The data set's repository, created where there is none."""
        return self._repository(self.store_location)

    @cached_property
    def generated(self) -> Store:
        """The generated samples' repository, created where there is none."""
        return self._repository(self.samples_location)

    def _repository(self, location: str) -> Store:
        store = find_store(location) or Store.create_or_open(location)  # reading takes no lock
        store.check(self.recipe.name, self.recipe.tensor_modes)
        return store

    def find(self, group: str, identity: str) -> Version | None:
        """The version of a group with this fingerprint, finished or not; a finished one is looked up once."""
        key = (group, identity)
        if key not in self._finished:
            version = (self.generated if group == "samples" else self.store).version(group, identity)
            return version if version is None else self.keep(version)
        return self._finished[key]

    def keep(self, version: Version) -> Version:
        """Have ``find`` return this version, if it is finished."""
        if version.complete:
            self._finished[version.group, version.fingerprint] = version
        return version

    def note_seconds(
        self, stage: str, seconds: float, work: str, *, done: bool, add: bool = False, fresh: bool = False
    ) -> None:
        """Remember how long a stage took, with what interrupted runs of the same ``work`` had spent before.

        Parameters
        ----------
        seconds
            Since the last note of this run.
        work
            What tells the stage's work from another: a recipe's fingerprint, or a training's directory.
        done
            Whether the work is finished; what comes later is other work, unless it is to be added (``add``).
        fresh
            Whether the work was begun anew, and what was spent on it before is not to count.
        """
        noted = self._noted()
        known = noted.get(stage, {})
        same = known.get("work") == work and (add or not known["done"]) and not fresh
        noted[stage] = {"seconds": seconds + (known["seconds"] if same else 0.0), "work": work, "done": done}
        replace_text(self._seconds_path, json.dumps(noted, indent=1))

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, interrupted runs included, in the order in which they first ran."""
        return {stage: float(note["seconds"]) for stage, note in self._noted().items()}

    def _noted(self) -> dict[str, dict[str, Any]]:
        path = self._seconds_path
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        # Earlier releases noted the newest run's seconds alone.
        return {
            stage: note if isinstance(note, dict) else {"seconds": note, "work": "", "done": True}
            for stage, note in found.items()
        }

    @property
    def _seconds_path(self) -> Path:
        return self.root / "seconds.json"

    def repositories(self) -> list[Store]:
        """The repositories that are there already; none is created."""
        found = [find_store(location) for location in (self.store_location, self.samples_location)]
        return [store for store in found if store is not None]

    @cached_property
    def portable(self) -> dict[str, Any]:
        """The recipe as stored and logged: no machine paths."""
        return portable(self.recipe)

    def attrs(self, **more: Any) -> dict[str, Any]:
        """Attributes of every group that this recipe writes; one made from another has its snapshot under its name."""
        return {"recipe": json.dumps(self.portable, sort_keys=True), "source": self.source_digest, **more}

    def require(self, version: Version | None, group: str, verb: str) -> Version:
        """The version, or an error that names the command which makes it."""
        if version is None or not version.complete:
            raise StoreNotFoundError(
                f'{self.store_location} has no finished group "{group}" for this recipe. '
                f"Run `diffats {verb} RECIPE.toml` first, or the whole flow."
            )
        return version
