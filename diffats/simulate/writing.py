"""Where simulated data go: a Zarr store that appears when it is whole, made chunk by chunk by Dask workers.

Until then everything lies in a directory beside it: the store, and an empty file for each chunk that is finished. (That
a chunk's own file is there proves nothing: Zarr stores no chunk of zeros.) A chunk's content follows from the settings
alone, so a simulation that was stopped and run again gives the same bits as one that was not.
"""

from __future__ import annotations

import importlib
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import xarray as xr
import zarr

from diffats.compute import open_cluster
from diffats.config import Recipe, Simulate
from diffats.digests import json_digest
from diffats.disk import put_in_place
from diffats.errors import RecipeError, SimulationError, StoreError
from diffats.simulate.drawing import Array
from diffats.store.lock import store_lock

log = logging.getLogger("diffats.simulate")

CHUNK_BYTES = 16 * 2**20
_FINGERPRINT, _SETTINGS = "simulation_fingerprint", "simulation"  # attributes by which our own stores are known

Progress = Callable[[int, int, int], None]


class Problem(Protocol):
    """What each problem's module has."""

    VERSION: int
    """Raised where the same settings give other numbers."""
    MOST_TOGETHER: int
    """Trajectories that are solved as one."""
    IN_PROCESSES: bool
    """Whether it holds Python's interpreter for most of its time, so that threads would wait for each other."""

    def solver(self) -> str:
        """What solves it, with its version."""

    def describe(self, settings: Simulate) -> xr.Dataset:
        """Coordinates and parameters of all samples, and variables without memory."""

    def solve(self, settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
        """The variables of the samples in ``part``, whose ``sample`` numbers them."""


@dataclass(frozen=True)
class Simulated:
    """What is there after a simulation.

    Attributes
    ----------
    problem, source, fingerprint
        What, where, and by which settings.
    skipped
        Whether it was all there already.
    done, total, failed
        Samples made by this call, samples there are, and none that failed.
    train, test
        Samples of the two sides; columns of the photographs.
    bytes
        Of the variables, before compression.
    seconds
        Wall time of this call.
    """

    problem: str
    source: str
    fingerprint: str
    skipped: bool
    done: int
    total: int
    train: int
    test: int
    bytes: int
    seconds: float
    failed: int = 0


@dataclass(frozen=True)
class _Job:
    """What a worker needs to make any chunk."""

    settings: str
    place: str


def find_problem(settings: Simulate) -> Problem:
    """The module of a problem."""
    return cast(Problem, importlib.import_module(f"diffats.simulate.{settings.problem}"))


def simulate(recipe: Recipe, *, restart: bool = False, progress: Progress | None = None) -> Simulated:
    """Make the data that a recipe's ``[simulate]`` section describes, at its ``data.source``.

    Parameters
    ----------
    recipe
        The recipe.
    restart
        Remove what an earlier simulation left there first.
    progress
        Called with (done, total, failed), in samples.

    Raises
    ------
    RecipeError
        Where there is no such section, or it describes nothing that can be made.
    StoreError
        Where something else lies at ``data.source``.
    SimulationError
        Where a solver diverges.
    """
    started = time.monotonic()
    settings = _settings(recipe)
    problem = find_problem(settings)
    whole = _describe(settings.model_dump_json())
    place = Path(recipe.data.source).expanduser().absolute()
    partial = place.with_name(f"{place.name}.partial")
    identity = fingerprint(settings)
    with store_lock(place):
        if restart:
            _remove(place)
            _drop(partial)
        skipped = _is_there(place, identity)
        made = 0
        if not skipped:
            made = _make(recipe, settings, problem, whole, partial, progress)
            put_in_place(partial / "data.zarr", place)
        _drop(partial)
    tests = int((whole["held_out"].values > 0).sum())
    total = int(whole.sizes["sample"])
    size = sum(int(variable.nbytes) for variable in whole.data_vars.values())
    seconds = time.monotonic() - started
    train = int(whole["held_out"].size) - tests
    return Simulated(settings.problem, str(place), identity, skipped, made, total, train, tests, size, seconds)


def fingerprint(settings: Simulate) -> str:
    """Identity of simulated data: the settings, and the problem's version."""
    options = settings.model_dump(mode="json")
    if settings.strips == 1:
        del options["strips"]  # data that were made before it came stay what they are
    return json_digest([options, find_problem(settings).VERSION])


def _settings(recipe: Recipe) -> Simulate:
    if recipe.simulate is None:
        raise RecipeError(
            "the recipe has no section [simulate], which says what to make. Add it with simulate.problem."
        )
    return recipe.simulate


@lru_cache(maxsize=4)
def _describe(settings: str) -> xr.Dataset:
    parsed = Simulate.model_validate_json(settings)
    whole = find_problem(parsed).describe(parsed)
    return whole.assign_coords(sample=np.arange(whole.sizes["sample"]))


def _is_there(place: Path, identity: str) -> bool:
    """Whether these data lie there already."""
    if not place.exists():
        return False
    if _identity(place) != identity:
        whose = "made by other settings" if _identity(place) else "not made by diffats simulate"
        fix = (
            "Add --restart to make it anew, or name another data.source."
            if _identity(place)
            else ("It is left alone: name another data.source.")
        )
        raise StoreError(f"data.source {place} was {whose}. {fix}")
    return True


def _identity(place: Path) -> str | None:
    """The fingerprint of simulated data; None of anything else."""
    if not (place / "zarr.json").is_file():
        return None
    found = zarr.open_group(place, mode="r").attrs.get(_FINGERPRINT)
    return None if found is None else str(found)


def _remove(place: Path) -> None:
    """Remove simulated data, and refuse to remove anything else."""
    if place.exists():
        if _identity(place) is None:
            raise StoreError(f"{place} was not made by diffats simulate, and is left alone. Name another data.source.")
        shutil.rmtree(place)


def _drop(partial: Path) -> None:
    """Remove what an unfinished simulation left, and refuse to remove anything else."""
    if partial.exists():
        if not (partial / "finished").is_dir():
            raise StoreError(f"{partial} was not made by diffats simulate. Move it, or name another data.source.")
        shutil.rmtree(partial)


def _make(
    recipe: Recipe, settings: Simulate, problem: Problem, whole: xr.Dataset, partial: Path, progress: Progress | None
) -> int:
    """Make the chunks that are missing; how many samples those were."""
    store, finished = partial / "data.zarr", partial / "finished"
    if not _begun(store, finished, fingerprint(settings)):
        _drop(partial)
        finished.mkdir(parents=True)
        _write_template(store, whole, settings, problem)
        (finished / "template").touch()
    chunk = chunk_samples(whole, settings, problem)
    total = int(whole.sizes["sample"])
    parts = [(start, min(start + chunk, total)) for start in range(0, total, chunk)]
    missing = [part for part in parts if not (finished / str(part[0])).exists()]
    done = total - sum(stop - start for start, stop in missing)
    if done:
        log.info("simulate: %d of %d samples are there already", done, total)
    job = _Job(settings.model_dump_json(), str(store))
    several = problem.IN_PROCESSES and recipe.compute.workers > 1 and len(missing) > 1
    compute = recipe.compute.model_copy(update={"processes": recipe.compute.processes or several})
    made = 0
    with open_cluster(compute) as cluster:
        for (start, stop), _ in cluster.map(make_chunk, missing, shared=job):
            (finished / str(start)).touch()
            made += stop - start
            if progress is not None:
                progress(done + made, total, 0)
    return made


def _begun(store: Path, finished: Path, identity: str) -> bool:
    """Whether a simulation with these settings was begun and can go on.

    Raises
    ------
    StoreError
        Where one with other settings was.
    """
    if not (finished / "template").exists():
        return False
    if _identity(store) != identity:
        raise StoreError(
            f"{store.parent} holds a simulation with other settings that was not finished. "
            "Add --restart to drop it, or name another data.source."
        )
    return True


def chunk_samples(whole: xr.Dataset, settings: Simulate, problem: Problem) -> int:
    """Samples in a chunk: whole trajectories, of at most 16 MiB together."""
    one = sum(int(variable.nbytes) for variable in whole.data_vars.values()) // int(whole.sizes["sample"])
    together = max(1, min(problem.MOST_TOGETHER, CHUNK_BYTES // (one * settings.clips)))
    return min(int(whole.sizes["sample"]), together * settings.clips)


def _write_template(store: Path, whole: xr.Dataset, settings: Simulate, problem: Problem) -> None:
    """Coordinates and attributes, and arrays of which every chunk is still to come."""
    attrs = {
        **whole.attrs,
        "Conventions": "CF-1.11",
        "source": problem.solver(),
        "diffats_version": version("diffats"),
        _SETTINGS: settings.model_dump_json(),
        _FINGERPRINT: fingerprint(settings),
    }
    xr.Dataset(coords=whole.drop_vars("sample").coords, attrs=attrs).to_zarr(
        store, mode="w", zarr_format=3, consolidated=False
    )
    root = zarr.open_group(store, mode="r+")
    chunk = chunk_samples(whole, settings, problem)
    others = " ".join(str(name) for name in whole.coords if name not in whole.dims)
    for name, variable in whole.data_vars.items():
        root.create_array(
            str(name),
            shape=variable.shape,
            chunks=(chunk, *variable.shape[1:]),
            dtype=variable.dtype,
            fill_value=math.nan,
            dimension_names=[str(dim) for dim in variable.dims],
            attributes={**variable.attrs, "coordinates": others},
        )


def make_chunk(part: tuple[int, int], shared: _Job) -> None:
    """Solve and write the samples of one chunk; runs on a worker."""
    start, stop = part
    settings = Simulate.model_validate_json(shared.settings)
    chosen = _describe(shared.settings).isel(sample=slice(start, stop))
    made = find_problem(settings).solve(settings, chosen)
    root = zarr.open_group(shared.place, mode="r+")
    for name, values in made.items():
        _check_finite(name, values, chosen)
        cast(Any, root[name])[start:stop] = values


def _check_finite(name: str, values: Array, part: xr.Dataset) -> None:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        one = part.isel(sample=int(bad[0]))
        parameters = ", ".join(f"{key} = {one[key].item():.6g}" for key in one.coords if one[key].ndim == 0)
        raise SimulationError(
            f'simulate: "{name}" of {len(bad)} samples is not finite, first with {parameters}: the solver diverged. '
            "Use more grid points, or report these numbers."
        )
