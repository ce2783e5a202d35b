"""Many files as one data set, without Dask and without reading their fields."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources.agreement import check_agreement, kind, near, same_in_all
from diffats.sources.joined_arrays import joined, repeated, stacked, turned
from diffats.sources.unreadable import reason, values_of

logger = logging.getLogger("diffats.sources")

_BY_NAMES = "in the order of the numbers in their names"
_DATE = 6  # digits from which on a number in a name may be a date, which has gaps by itself
_SHOWN = 5


def join(datasets: Sequence[xr.Dataset], names: Sequence[str], data: Data, *, every: bool = False) -> xr.Dataset:
    """One lazy data set of many.

    Files with the same variables are put one after the other along ``data.concat_dim``, or along the one dim whose
    coordinate differs; a dim that no file has becomes a new one, one file each. Their order is that of the dim's
    coordinate, else that of the numbers in their names. What a file has once and another has otherwise, such as a
    number, a static field or a time, belongs to its own entries. Files with different variables are merged.

    ``encoding["parts"]`` lists the files in order, with the dim and their lengths, and ``encoding["joined"]`` says how
    they were joined; ``encoding["order"]`` are the names where their numbers tell another order than the alphabet.
    ``encoding["each_file"]`` marks a variable that each file has once.

    Parameters
    ----------
    datasets, names
        The files and their paths.
    data
        The recipe's section; the variables that it names, and coordinates, are compared between files.
    every
        Compare all variables: where nothing says yet which ones matter.

    Raises
    ------
    SourceError
        Where the files do not fit together, or the dim cannot be told from their coordinates.
    """
    datasets = _alike_coordinates(datasets)
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for index, dataset in enumerate(datasets):
        groups[frozenset(str(name) for name in dataset.data_vars)].append(index)
    named = None if every else _named(data)
    made = [
        _join_group([datasets[i] for i in members], [names[i] for i in members], data, named)
        for members in groups.values()
    ]
    return made[0] if len(made) == 1 else _merge(made, groups, names)


def how_joined(dataset: xr.Dataset) -> str:
    """How the files of a source were joined, in words; nothing where it is one file."""
    return str(dataset.encoding.get("joined", ""))


def by_numbers(name: str) -> str:
    """A text by which names sort like the numbers in them.

    >>> sorted(["u_10.nc", "u_2.nc", "u_1.nc"], key=by_numbers)
    ['u_1.nc', 'u_2.nc', 'u_10.nc']
    """
    return re.sub(r"\d+", lambda number: number.group().zfill(20), name)


def _named(data: Data) -> set[str]:
    """What a recipe names of a source."""
    condition, split = data.condition, data.split
    names = [*data.variables, *condition.fields, *condition.scalars, *data.climatology]
    names += filter(None, [condition.labels, split.group, split.coordinate])
    return {*names, *(name.partition(".")[0] for name in names)}


# --- which files belong together ----------------------------------------------------------------------------------


def _alike_coordinates(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Data sets in which a coordinate of one of them is a coordinate in all that have it."""
    known = {name for dataset in datasets for name in dataset.coords}
    others = [known.intersection(dataset.data_vars) for dataset in datasets]
    return [dataset.set_coords(other) if other else dataset for dataset, other in zip(datasets, others, strict=True)]


def _merge(
    made: Sequence[xr.Dataset], groups: Mapping[frozenset[str], Sequence[int]], names: Sequence[str]
) -> xr.Dataset:
    """Data sets of different variables as one."""
    try:
        merged = xr.merge(made, join="exact", compat="identical", combine_attrs="override")
    except (ValueError, xr.MergeError) as error:
        _refuse_lost(groups, names)
        raise SourceError(
            f"data.source: {len(names)} files with different variables do not fit together: {reason(error)}. "
            "Give a glob of files that share their coordinates."
        ) from error
    merged.encoding["joined"] = "; ".join([f"{len(made)} kinds of files, merged", *filter(None, map(how_joined, made))])
    return merged


def _refuse_lost(groups: Mapping[frozenset[str], Sequence[int]], names: Sequence[str]) -> None:
    """Refuse a variable that some files lack and that others have beside the same ones."""
    for less, lacking in groups.items():
        for more, having in groups.items():
            if less < more:
                raise SourceError(
                    f'data.source: "{min(more - less)}" is in {names[having[0]]} but not in {names[lacking[0]]}. '
                    "Narrow the glob to files of one kind."
                )


def _join_group(datasets: list[xr.Dataset], names: list[str], data: Data, named: set[str] | None) -> xr.Dataset:
    if len(datasets) == 1:
        return datasets[0]
    order = sorted(range(len(names)), key=lambda i: by_numbers(names[i]))
    datasets, names = [datasets[i] for i in order], [names[i] for i in order]
    dim = data.concat_dim or _differing_dim(datasets, names, data)
    datasets = _with_common_coordinates(datasets, names, dim, named or set())
    datasets = [datasets[0], *(_turned_like(datasets[0], dataset) for dataset in datasets[1:])]
    _check_sizes(datasets, names, dim)
    check_agreement(datasets, names, dim)
    order, by = _order(datasets, dim)
    made = _put_together([datasets[i] for i in order], [names[i] for i in order], dim, named)
    if named is not None and data.concat_dim is None and dim in data.modes and dim not in data.windows.size:
        _check_tiles(made, names, dim)
    is_new = "" if dim in datasets[0].dims else "the new dim "
    made.encoding["joined"] = f'{len(names)} files along {is_new}"{dim}", {by}'
    if by.startswith(_BY_NAMES):
        _tell_order(made, names, dim, matters=dim != data.sample_dim)
    return made


def _check_tiles(made: xr.Dataset, names: Sequence[str], dim: str) -> None:
    """Refuse a mode along which files were joined though what they hold of it overlaps: these are no parts of one."""
    index = made.indexes.get(dim)
    if index is None or index.dtype.kind not in "fiuM":
        return
    if not index.is_unique or not (index.is_monotonic_increasing or index.is_monotonic_decreasing):
        raise SourceError(
            f'data.source: {len(names)} files ({names[0]}, ...) are joined along "{dim}", the only dim whose '
            "coordinate differs, but they overlap there. Set data.concat_dim where they are no parts of one field, or "
            "bring them onto one grid."
        )


def _with_common_coordinates(
    datasets: list[xr.Dataset], names: list[str], dim: str, named: set[str]
) -> list[xr.Dataset]:
    """Data sets without the coordinates that only some have; refused where one of these is needed."""
    every = dict.fromkeys(name for dataset in datasets for name in dataset.coords)
    partial = [name for name in every if not all(name in dataset.coords for dataset in datasets)]
    for name in partial:
        having = next(n for dataset, n in zip(datasets, names, strict=True) if name in dataset.coords)
        lacking = next(n for dataset, n in zip(datasets, names, strict=True) if name not in dataset.coords)
        where = f'"{name}" is in {having} but not in {lacking}'
        if name == dim or str(name) in named or any(name in dataset.dims for dataset in datasets):
            raise SourceError(f"data.source: {where}. Narrow the glob to files of one kind.")
        logger.warning("data.source: a coordinate is left out, because %s.", where)
    return [dataset.drop_vars(partial, errors="ignore") for dataset in datasets] if partial else datasets


def _turned_like(first: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """A data set with the dims of its variables in the order of another one."""
    odd = {
        name: turned(variable, first.variables[name].dims)
        for name, variable in other.variables.items()
        if variable.dims != first.variables[name].dims and set(variable.dims) == set(first.variables[name].dims)
    }
    return other.assign(odd) if odd else other


# --- along which dim, and in which order --------------------------------------------------------------------------


def _differing_dim(datasets: list[xr.Dataset], names: list[str], data: Data) -> str:
    first = datasets[0]
    differing = [
        str(dim)
        for dim in first.dims
        if dim in first.indexes and any(not _same_index(first, dataset, dim) for dataset in datasets[1:])
    ]
    if len(differing) == 1:
        return differing[0]
    if not differing:
        new = [mode for mode in data.modes if mode not in first.dims and mode in first.coords]
        if data.sample_dim in (None, *first.dims) and len(new) == 1:
            return new[0]  # each file is one point of this mode, such as one time
        if data.sample_dim is not None:
            return data.sample_dim
    found = f"several do ({', '.join(differing)})" if differing else "none does"
    raise SourceError(
        f"data.source: {len(datasets)} files ({names[0]}, ...) are joined along the dim whose coordinate differs, "
        f"but {found}. Set data.concat_dim."
    )


def _same_index(first: xr.Dataset, other: xr.Dataset, dim: Hashable) -> bool:
    if dim not in other.indexes:
        return False
    a, b = first.indexes[dim], other.indexes[dim]
    return bool(a.equals(b)) or (a.dtype.kind in "fiu" and b.dtype.kind in "fiu" and near(a.values, b.values))


def _check_sizes(datasets: Sequence[xr.Dataset], names: Sequence[str], dim: str) -> None:
    first = datasets[0]
    for dataset, name in zip(datasets[1:], names[1:], strict=True):
        if dim not in first.dims and dict(dataset.sizes) != dict(first.sizes):
            raise SourceError(
                f"data.source: {name} has dims {dict(dataset.sizes)}, but {names[0]} has {dict(first.sizes)}, so they "
                f'cannot be stacked along the new dim "{dim}". Give files of one shape, or another data.concat_dim.'
            )
        other = next((d for d, n in first.sizes.items() if d != dim and dataset.sizes.get(d) != n), None)
        if other is not None:
            raise SourceError(
                f'data.source: dim "{other}" has {first.sizes[other]} points in {names[0]} but '
                f'{dataset.sizes.get(other, "none")} in {name}; only "{dim}", along which files are joined, may '
                "differ. Narrow the glob, or set data.concat_dim."
            )


def _order(datasets: Sequence[xr.Dataset], dim: str) -> tuple[list[int], str]:
    """The order of files along a dim, and whose it is: the coordinate's, a time's that each has, the names'."""
    known, by = _first_values(datasets, dim), "in the order of its coordinate"
    if known is None and dim not in datasets[0].dims:
        times = [name for name in datasets[0].coords if _is_own_time(datasets, name)]
        if len(times) == 1:
            known, by = _first_values(datasets, times[0]), f'in the order of "{times[0]}"'
    if known is None:
        return list(range(len(datasets))), f"{_BY_NAMES}, since it has no coordinate"
    if len(known) > 1 and len(set(known.values())) == 1:
        by = f"{_BY_NAMES}, since its coordinate begins alike in all"
    order = sorted(known, key=known.__getitem__, reverse=all(_descends(datasets[i], dim) for i in known))
    return [*order, *(i for i in range(len(datasets)) if i not in known)], by


def _first_values(datasets: Sequence[xr.Dataset], name: Hashable) -> dict[int, Any] | None:
    """The first value of a coordinate by file, if it has any; None where some lack the coordinate or the value."""
    if not all(name in dataset.indexes or (name in dataset.coords and not dataset[name].ndim) for dataset in datasets):
        return None
    known = {
        i: dataset.indexes[name][0] if name in dataset.indexes else values_of(dataset.variables[name])[()]
        for i, dataset in enumerate(datasets)
        if dataset[name].size
    }
    return known if known and not any(pd.isnull(value) for value in known.values()) else None


def _is_own_time(datasets: Sequence[xr.Dataset], name: Hashable) -> bool:
    """Whether each file has another single time under a name."""
    variables = [dataset.variables[name] for dataset in datasets]
    if variables[0].ndim or not (variables[0].dtype.kind == "M" or kind(variables[0]).startswith("dates")):
        return False
    return len({values_of(variable)[()] for variable in variables}) == len(variables)


def _descends(dataset: xr.Dataset, dim: str) -> bool:
    index = dataset.indexes.get(dim)
    return index is not None and len(index) > 1 and bool(index.is_monotonic_decreasing)


def _tell_order(made: xr.Dataset, names: Sequence[str], dim: str, *, matters: bool) -> None:
    """Log that names give the order; record one that differs from that of earlier releases: the source is another."""
    logger.info("data.source: %s.", made.encoding["joined"])
    if list(names) != sorted(names):
        made.encoding["order"] = [Path(name).name for name in names]
    if matters:
        _check_numbers(names, dim)


def _check_numbers(names: Sequence[str], dim: str) -> None:
    """Tell where names say nothing of the order of files along a dim in which it matters, or numbers are left out."""
    found = [re.findall(r"\d+", name) for name in names]
    varying = [column for column in zip(*found, strict=False) if len(set(column)) > 1]
    if not varying:
        logger.warning(
            'data.source: the names of the files (%s, ...) have no numbers that tell their order along "%s". '
            "Give the dim a coordinate, or the files numbers.",
            *(Path(names[0]).name, dim),
        )
    elif len(varying) == 1 and all(len(number) < _DATE for number in varying[0]):
        numbers = sorted({int(number) for number in varying[0]})
        step = int(np.diff(numbers).min()) if len(numbers) > 1 else 1
        lost = sorted({*range(numbers[0], numbers[-1], step)} - {*numbers})
        if lost:
            logger.warning(
                'data.source: the numbers in the names of the files leave out %s: what is joined along "%s" there may '
                "not follow on.",
                *(", ".join(map(str, lost[:_SHOWN])) + (", ..." if len(lost) > _SHOWN else ""), dim),
            )


# --- putting files together ---------------------------------------------------------------------------------------


def _put_together(datasets: list[xr.Dataset], names: list[str], dim: str, named: set[str] | None) -> xr.Dataset:
    """Files in order as one data set along a dim that they have, or that is new."""
    first, lengths = datasets[0], [int(dataset.sizes.get(dim, 1)) for dataset in datasets]
    is_new, variables = dim not in first.dims, dict[Hashable, xr.Variable]()
    for name, variable in first.variables.items():
        parts = [dataset.variables[name] for dataset in datasets]
        is_field = name in first.data_vars
        if dim in variable.dims:
            variables[name] = joined(parts, dim)
        elif name == dim:
            variables[name] = repeated(parts, dim, lengths)
        elif is_new and is_field:
            variables[name] = stacked(parts, dim, lengths)
        elif name in first.indexes or (is_field and named is not None and name not in named):
            variables[name] = variable  # the same by now, or not used
        elif same_in_all(parts, str(name), names, is_field=is_field):
            variables[name] = variable
        else:
            variables[name] = stacked(parts, dim, lengths) if variable.ndim else repeated(parts, dim, lengths)
            variables[name].encoding["each_file"] = True
    made = xr.Dataset(
        {name: variables[name] for name in first.data_vars},
        coords={name: variables[name] for name in first.coords},
        attrs=first.attrs,
    )
    made.encoding["parts"] = [(name, dim, length) for name, length in zip(names, lengths, strict=True)]
    return made
