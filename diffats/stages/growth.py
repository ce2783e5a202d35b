"""A source that grows: what its versions share, what in it is new, and whether what is old is still there.

Samples of any source are told apart by their digests (`source_digest`). So that not all of a growing one must be read
for it, each of its shards has a digest of the files and chunks that it was read from (`source_stamp`); only where that
differs are samples read again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from diffats import sources
from diffats.attributes import text_values
from diffats.compute import Cluster
from diffats.config import Data
from diffats.errors import SourceChangedError
from diffats.sources.parts import files_along, sample_digests
from diffats.stages.workspace import Workspace, open_group, shard_bounds
from diffats.store import Version
from diffats.store.shards import Fill

Array = npt.NDArray[Any]
log = logging.getLogger("diffats.growth")

DIGEST, STAMP = "source_digest", "source_stamp"
_DESCRIBING = ("sample", "split")  # coordinates of ours, which say nothing of where a sample comes from
_SHOWN = 3
_FILES = 1000  # whose names a version keeps; more would make every commit longer


@dataclass(frozen=True)
class Base:
    """The first version of a lineage, whose samples determine anchors and statistics of all of them."""

    fingerprint: str
    digest: str
    n: int


def base_of(version: Version) -> Base:
    """The version that it has grown from in the first place; itself, where it has not grown."""
    known = version.attrs.get("base")
    return Base(**known) if known else Base(version.fingerprint, version.digest, version.record.n)


def known_samples(version: Version) -> int:
    """How many samples the version had that this one has grown from; none where it has not grown."""
    return int(version.attrs.get("grown_from", {}).get("n", 0))


def grown_attrs(previous: Version) -> dict[str, Any]:
    """What a version says about those that it has grown from; they may be gone when it is read."""
    direct = Base(previous.fingerprint, previous.digest, previous.record.n)
    return {"base": asdict(base_of(previous)), "grown_from": asdict(direct)}


def newly_failed(version: Version, good: Array, *, skipped: bool) -> int:
    """How many samples a call has left out; of a growing source, those of earlier growths were told then."""
    known = known_samples(version)
    if not json.loads(version.attrs["recipe"])["data"]["grows"]:
        return int((~good).sum())
    return 0 if skipped else int((~good[known:]).sum())


def files_attr(samples: sources.Samples) -> dict[str, Any]:
    """What a version says about the files of a glob: their names and lengths, in order; nothing where they are many."""
    files = files_along(samples.dataset, samples.growing_dim)
    return {"files": files} if 0 < len(files) <= _FILES else {}


def only_new(function: Fill, version: Version, location: str) -> Fill:
    """A shard's function that takes samples that are stored already from the store."""
    known = known_samples(version)
    if not known % version.record.shard:
        return function
    address = (location, version.group, version.snapshot)
    return partial(fill_rest, function=function, address=address, names=version.record.filled, known=known)


def fill_rest(
    start: int, stop: int, *, function: Fill, address: tuple[str, str, str], names: tuple[str, ...], known: int
) -> Mapping[str, Array]:
    """A shard whose first samples may be known: of the one that is pending, their chunk still holds them."""
    if not start < known < stop:
        return function(start, stop)
    old, new = open_group(*address).read([*names, "status"], start, known), function(known, stop)
    return {name: np.concatenate([values, new[name]]) for name, values in old.items()}


# --- what may have changed ----------------------------------------------------------------------------------------


def check_appended(work: Workspace, previous: Version, template: xr.Dataset, cluster: Cluster) -> None:
    """Refuse a source in which a sample that was encoded is not where and what it was.

    Parameters
    ----------
    previous
        The Tucker forms of the samples that are known.
    template
        Of the new version: its coordinates say what the source has now.
    cluster
        Reads again the samples whose files or chunks were written anew.

    Raises
    ------
    SourceChangedError
        Which lists the samples, and says what to do.
    """
    _check_places(work, previous, template)
    bounds = shard_bounds(previous.record.n, previous.record.shard)
    same = (previous.dataset(indexes=False)[STAMP].values == work.samples.stamps(bounds)).all(axis=1)
    doubtful = [bound for bound, unchanged in zip(bounds, same, strict=True) if not unchanged]
    if not doubtful:
        return
    function = partial(read_digests, data=work.data, seed=work.recipe.seed, boundary=work.samples.boundary)
    changed = []
    for (start, stop), found in cluster.map(function, doubtful, ordered=True):
        known = previous.read([DIGEST], start, stop)[DIGEST]
        for i in np.flatnonzero((known != found).any(axis=1)):
            place = place_of(template, int(start + i), places_of(template))
            changed.append(f"{place}: digest {known[i].tobytes().hex()[:8]}, now {found[i].tobytes().hex()[:8]}")
    if changed:
        raise _changed(work, "with other values than now", changed, previous)
    count = sum(stop - start for start, stop in doubtful)
    log.info("%s was written anew where %d known samples are; they are the same", work.recipe.data.source, count)


def read_digests(bounds: tuple[int, int], *, data: Data, seed: int, boundary: int | None) -> Array:
    """Digests ``(k, 16)`` of the samples of a run as the source has them now."""
    samples = sources.open_samples(data, seed, boundary, fresh=False)
    indices = np.arange(*bounds)
    x = samples.read(indices)
    return sample_digests(x, samples.conditions(indices, x))


def check_kind(work: Workspace, previous: Version) -> None:
    """Refuse samples of another shape, dtype, unit or grid, or with other classes.

    Raises
    ------
    SourceChangedError
        Which says what differs.
    """
    for text in kind_differences(work, previous):
        raise _changed(work, text)


def kind_differences(work: Workspace, previous: Version) -> Iterator[str]:
    """In what shape, dtype, unit, grid or classes the source's samples differ from stored ones."""
    old, new = sources.template_from_json(previous.attrs["template"]), work.samples.template()
    for name, variable in old.data_vars.items():
        before, now = _kind(variable), _kind(new[name]) if name in new else "nothing"
        if now != before:
            yield f'as another kind: variable "{name}" was {before}, and is {now} now'
    for name, coord in old.coords.items():
        if name in new.coords and name not in work.recipe.data.windows.size and not coord.equals(new.coords[name]):
            yield f'as another kind: coordinate "{name}" had other values'
    labels = list(work.samples.label_names)
    if labels != previous.attrs["label_names"]:
        yield f"with classes {previous.attrs['label_names']}, which are {labels} now"


def _kind(array: xr.DataArray) -> str:
    sizes = ", ".join(f"{dim}={size}" for dim, size in array.sizes.items())
    return f"{array.dtype} ({sizes}) in {array.attrs.get('units', 'no unit')}"


def _check_places(work: Workspace, previous: Version, new: xr.Dataset) -> None:
    """Refuse a source in which known samples are gone, moved or on the other side of the split."""
    old = previous.dataset()
    names = [str(name) for name, coord in old.coords.items() if coord.dims[:1] == ("sample",)]
    missing = [name for name in names if name not in new.coords]
    if missing:
        raise _changed(work, f"with coordinate {', '.join(missing)}, which is gone")
    n, both = old.sizes["sample"], min(old.sizes["sample"], new.sizes["sample"])
    moved = np.ones(n, bool)
    moved[:both] = False
    for name in names:
        differs = _differ(old[name].values[:both], new[name].values[:both])
        moved[:both] |= differs.reshape(both, -1).any(axis=1)
    if moved.any():
        moves = _moves(old, new, np.flatnonzero(moved).tolist())
        raise _changed(work, "that are gone or elsewhere", moves, previous)


def lost_files(work: Workspace, previous: Version) -> Iterator[str]:
    """Files of a glob that were encoded and are gone."""
    dim, start = work.samples.growing_dim, 0
    there = Counter(name for name, _ in files_along(work.samples.dataset, dim))
    for name, length in previous.attrs.get("files", []):
        there[name] -= 1
        if there[name] < 0:
            yield f'file {name} is gone, which held points {start} to {start + length - 1} along "{dim}"'
        start += length


def moved_coordinates(old: xr.Dataset, new: xr.Dataset) -> list[str]:
    """Coordinates of samples that have other values in the one than in the other, as far as both have samples."""
    both = min(old.sizes["sample"], new.sizes["sample"])
    names = [str(n) for n, coord in old.coords.items() if coord.dims[:1] == ("sample",) and n not in _DESCRIBING]
    return [n for n in names if n not in new.coords or _differ(old[n].values[:both], new[n].values[:both]).any()]


def _differ(old: Array, new: Array) -> Array:
    old, new = text_values(old), text_values(new)  # earlier releases stored text as bytes where the source did
    if old.shape[1:] != new.shape[1:]:
        return np.ones(len(old), bool)
    both_missing = (old != old) & (new != new)
    return np.asarray((old != new) & ~both_missing)


def _moves(old: xr.Dataset, new: xr.Dataset, numbers: list[int]) -> Iterator[str]:
    """What has become of samples, told by their coordinates."""
    places = places_of(old)
    now = {key: i for i, key in enumerate(_keys(new, places))}
    before = _keys(old, places)
    for i in numbers:
        j = now.get(before[i]) if places else None
        if j == i:
            fate = f"now {new['split'].values[i]} sample"
        elif j is not None:
            fate = f"now sample {j}"
        else:
            fate = f"gone, in its place {place_of(new, i, places)}" if i < new.sizes["sample"] and places else "gone"
        yield f"{place_of(old, i, places)}: {fate}"


def places_of(ds: xr.Dataset) -> list[str]:
    """Names of coordinates with one value a sample that say where it comes from."""
    return [str(name) for name, c in ds.coords.items() if c.dims == ("sample",) and name not in _DESCRIBING]


def _keys(ds: xr.Dataset, places: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(map(_text, ds[name].values) for name in places), strict=True))


def place_of(ds: xr.Dataset, i: int, places: list[str]) -> str:
    """A sample by its number and where it comes from."""
    values = ", ".join(f"{name}={_text(ds[name].values[i])}" for name in places)
    return f"sample {i} ({values})" if values else f"sample {i}"


def _text(value: Any) -> str:
    """A coordinate's value, the same in any unit of time."""
    return str(np.datetime_as_string(value, unit="auto") if isinstance(value, np.datetime64) else value)


def _changed(
    work: Workspace, what: str, samples: Iterable[str] = (), previous: Version | None = None
) -> SourceChangedError:
    """The error, with what became of files first, and of a few samples."""
    listed = list(samples)
    gone = [] if previous is None else list(lost_files(work, previous))
    files = f"{'; '.join(gone)}. " if gone else ""
    count = f"{len(listed)} " if listed else ""
    more = "; ... (`diffats verify RECIPE.toml` lists all)" if len(listed) > _SHOWN else ""
    shown = f": {'; '.join(listed[:_SHOWN])}{more}" if listed else ""
    return SourceChangedError(
        f"{work.recipe.data.source}: {files}data.grows expects that known samples stay as they are and new ones come "
        f"after them, but {count}known samples were encoded {what}{shown}. Mend the source, or run `diffats decompose "
        "RECIPE.toml --restart`: it encodes everything anew, with new anchors and statistics."
    )


def new_samples(work: Workspace, previous: Version | None) -> int:
    """How many samples are not in the newest version; all without one."""
    return work.samples.n - (0 if previous is None else min(previous.record.n, work.samples.n))
