"""The samples of a recipe: what they are, which side of the split they are on, and how to read them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from diffats.attributes import text_values
from diffats.config import Data
from diffats.errors import SourceError
from diffats.primitives import Values
from diffats.sources import opening, origins, parts, splits
from diffats.sources.clock import Clocks
from diffats.sources.conditions import Labels, check_conditions, find_labels, read_labels, read_scalar
from diffats.sources.cuts import Cuts, Grid
from diffats.sources.missing import as_numbers
from diffats.sources.naming import unknown_name
from diffats.sources.reading import read_windows
from diffats.sources.templates import make_template
from diffats.sources.unreadable import values_of

Array = np.ndarray[Any, Any]

_REST = 20  # times as long as a look takes
_looks: dict[str, tuple[str, float]] = {}  # by data section: what was seen, and until when that serves
_RESERVED = ("sample", "split", "status", "core", "decomposed_mode", "aligned_mode")  # names the stores use
_PREFIXES = ("rank", "factor", "component", "spectrum", "batch", "anchor", "score")  # and these, of modes


def open_samples(data: Data, seed: int = 0, boundary: int | None = None, *, fresh: bool = True) -> Samples:
    """The samples that a recipe's ``[data]`` section describes; lazy, and shared within a process.

    Parameters
    ----------
    data
        The section.
    seed
        The recipe's seed; it chooses the test samples.
    boundary
        Where the held-out end began when a growing source was first encoded: `Samples.boundary` of then.
    fresh
        Look now whether the source has changed; else only now and then (`look`).

    Raises
    ------
    SourceError
        Where the source, a variable, a dim, a window or the split cannot work. Only metadata and coordinates are read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "fields.npy")
    >>> np.save(path, np.arange(240.0).reshape(10, 4, 6))
    >>> samples = open_samples(Data(source=str(path), sample_dim="run", modes=["y", "x"]))
    >>> samples.n, samples.sizes, samples.read([3]).shape
    (10, {'y': 4, 'x': 6}, (1, 4, 6))
    """
    # the stamp: a source that was rewritten is opened anew
    resolved = data.model_copy(update={"source": opening.absolute(data.source)})  # workers run in other directories
    text = resolved.model_dump_json()
    return _open(text, seed, boundary, look(resolved, fresh=fresh))


def look(data: Data, *, fresh: bool = True) -> str:
    """What tells cheaply that the source has changed.

    Without ``fresh`` it may be from a moment ago: to look at a URL is a request, and at 10^5 files takes a second, so
    this process looks again only after twenty times as long as it took.
    """
    text, now = data.model_dump_json(), time.monotonic()
    known = _looks.get(text)
    if known is not None and not fresh and now < known[1]:
        return known[0]
    stamp = repr(opening.stamp(data))
    end = time.monotonic()
    _looks[text] = stamp, end + _REST * (end - now)
    return stamp


@lru_cache(maxsize=8)
def _open(text: str, seed: int, boundary: int | None, stamp: str) -> Samples:
    return Samples(Data.model_validate_json(text), seed, boundary)


class Samples:
    """Samples of a source, opened but not read.

    Attributes
    ----------
    data, seed
        What it was opened with, a path made absolute. Pickling keeps only these: a worker opens the source itself.
    dataset
        The lazy source.
    clocks
        The phases of times that the recipe names.
    variables
        Names of the data variables; several are the mode ``component``.
    modes, sizes, dtype
        Of a sample tensor. Floats are at least float32; integers become float32 or float64, as NumPy promotes them.
    n, dropped
        Samples, and windows left out because they touch both sides of the split.
    is_test
        ``(n,)`` bool.
    boundary
        Of a growing source whose end is held out: the entry of the split coordinate where that began; else None.
    starts, position
        ``{windowed dim: (n,)}`` and ``(n,)`` along the dim of samples (None without one).
    grid
        All places of which ``starts`` and ``position`` are those that were not dropped.
    """

    def __init__(self, data: Data, seed: int = 0, boundary: int | None = None) -> None:
        self.data, self.seed, self.boundary = data, seed, boundary
        self.dataset = opening.open_source(data)
        self.variables = _find_variables(self.dataset, data)
        self.clocks = Clocks.find(self.dataset, data)
        self._check_names()
        self._fields = [self._field(name) for name in self.variables]
        self.dtype: np.dtype[Any] = _store_dtype(self._fields)
        component = {"component": len(self.variables)} if len(self.variables) > 1 else {}
        self._windows = {mode: data.windows.size[mode] for mode in data.modes if mode in data.windows.size}
        lengths = {mode: int(self._fields[0].sizes[mode]) for mode in data.modes}
        self._check_windows(lengths)
        self.sizes: dict[str, int] = component | lengths | self._windows
        self.modes = tuple(self.sizes)
        self._check_conditions()
        self.grid = self._grid(lengths)
        self._cuts, self.is_test, self.dropped = self._cut()
        self.n, self.starts, self.position = self._cuts.n, dict(self._cuts.starts), self._cuts.position
        self.clocks.check_climatology(self._cuts, self.is_test)

    def __reduce__(self) -> tuple[Callable[..., Samples], tuple[Data, int, int | None]]:
        return open_samples, (self.data, self.seed, self.boundary)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{mode}={n}" for mode, n in self.sizes.items())
        return f"<Samples {self.n} of ({sizes}) {self.dtype}, {int(self.is_test.sum())} test, {self.dropped} dropped>"

    # -- opening -------------------------------------------------------------------------------------------------

    def _check_names(self) -> None:
        data, condition = self.data, self.data.condition
        wanted = [("data.condition.fields", name) for name in condition.fields]
        wanted += [("data.condition.scalars", name) for name in condition.scalars if name not in self.clocks.known]
        wanted += [("data.condition.labels", condition.labels)] if condition.labels else []
        for key, name in wanted:
            if name not in self.dataset.variables:
                raise unknown_name(key, name, self.dataset.variables, where="the source")
        for key, names in (("data.bounds", data.bounds), ("data.transform", data.transform)):
            for name in names:
                if name not in self.variables:
                    raise unknown_name(key, name, self.variables, where="a sample")
        for name, (low, high) in data.bounds.items():
            kind = self.dataset[name].dtype
            if kind.kind in "iub" and not Values(low, high, kind).exist:
                raise SourceError(
                    f'data.bounds [{low:g}, {high:g}] of "{name}" hold no number of its type, {kind}. Widen them.'
                )
        for mode in data.modes:
            if mode in _reserved(self.variables, data.modes):
                raise SourceError(
                    f'data.modes names "{mode}", a name that the stores use. Rename the dim in the source.'
                )

    def _field(self, name: str) -> xr.DataArray:
        """A data variable, checked, without dims of size one that the recipe leaves out."""
        data, array = self.data, self.dataset[name]
        key = "data.variables" if data.variables else "data.source"
        if array.dtype.kind not in "fiub":
            kind = {"c": "complex", "m": "time differences", "M": "times"}.get(array.dtype.kind, "text or objects")
            raise SourceError(
                f'{key}: "{name}" is {array.dtype} ({kind}), expected real numbers. '
                "Name another variable, or convert it (a complex field: to its real and imaginary parts)."
            )
        wanted = [("data.sample_dim", data.sample_dim)] if data.sample_dim else []
        for what, dim in wanted + [("data.modes", mode) for mode in data.modes]:
            if dim not in array.dims:
                raise unknown_name(what, str(dim), array.dims, where=f'variable "{name}"')
        extra = [dim for dim in array.dims if dim != data.sample_dim and dim not in data.modes]
        for left in extra:
            if array.sizes[left] != 1:
                raise SourceError(
                    f'{key}: "{name}" has dim "{left}" of size {array.sizes[left]}, which is neither '
                    f"data.sample_dim nor a mode ({', '.join(data.modes)}). Add it to data.modes, "
                    "or select one value of it beforehand."
                )
        for axis, size in array.sizes.items():
            if size == 0:
                raise SourceError(f'{key}: "{name}" is empty: dim "{axis}" has size 0. Check data.source.')
        return as_numbers(array.isel(dict.fromkeys(extra, 0)))

    def _check_windows(self, lengths: dict[str, int]) -> None:
        for dim, size in self._windows.items():
            if size > lengths[dim]:
                field = ", ".join(f"{name}={n}" for name, n in lengths.items())
                raise SourceError(
                    f'data.windows.size {size} for dim "{dim}" exceeds its length {lengths[dim]} (field: {field}). '
                    f"Use at most {lengths[dim]}."
                )

    def _check_conditions(self) -> None:
        initial = self.data.condition.initial
        if initial is not None and not -self.sizes[initial.dim] <= initial.index < self.sizes[initial.dim]:
            raise SourceError(
                f'data.condition.initial.index {initial.index} is outside dim "{initial.dim}" of size '
                f"{self.sizes[initial.dim]}. Use 0 to {self.sizes[initial.dim] - 1}."
            )
        check_conditions(self.dataset, self.data, tuple(self._windows), tuple(self.clocks.known))

    def _grid(self, lengths: dict[str, int]) -> Grid:
        data = self.data
        positions = None if data.sample_dim is None else int(self._fields[0].sizes[data.sample_dim])
        stride = {dim: data.windows.stride.get(dim, size) for dim, size in self._windows.items()}
        return Grid(positions, {dim: lengths[dim] for dim in self._windows}, self._windows, stride)

    def _cut(self) -> tuple[Cuts, Array, int]:
        data, grid = self.data, self.grid
        cuts = grid.cuts()
        if cuts.n < 3:
            raise SourceError(
                f"data: {cuts.n} samples come from {data.source}, and at least 3 are needed "
                "(2 to train on, 1 to test). "
                + ("Use smaller windows or strides." if self._windows else "Check data.sample_dim.")
            )
        keep, is_test = self._split(cuts, grid)
        train, test = int((keep & ~is_test).sum()), int((keep & is_test).sum())
        if train < 2 or test < 1:
            raise SourceError(
                f'data.split by "{data.split.by}" leaves {train} training and {test} test samples of {cuts.n} '
                f"({int((~keep).sum())} dropped), and at least 2 and 1 are needed. " + self._more_test_samples()
            )
        return cuts.take(keep), is_test[keep], int((~keep).sum())

    def _more_test_samples(self) -> str:
        """What to do where one side is empty."""
        if self.holds_out != "runs":
            return "Change data.split, or cut more windows."
        share = f", one of {1 / self.data.split.test:.3g} as they come" if self.data.grows else ""
        what = f'Whole entries of "{self.data.sample_dim}" are held out{share}'
        return f'{what}: change data.split.test, or set by = "block" to split within them.'

    def _split(self, cuts: Cuts, grid: Grid) -> tuple[Array, Array]:
        split, grows = self.data.split, self.data.grows
        if split.by == "sample":
            return splits.by_sample(cuts, grid, split, self.seed, grows=grows, groups=self._entry_groups)
        if split.by == "block":
            return splits.by_block(cuts, grid, split, self.seed, grows=grows)
        dim, values, ordered = self._split_coordinate(str(split.coordinate))
        # a held-out end of a windowed dim is long enough for its last window
        least = int(grid.length[dim] - cuts.starts[dim].max()) if dim in grid.size else 1
        if grows and ordered and not split.values and self.boundary is None:
            self.boundary = splits.first_held(values, split, least=least)
        held = splits.held_values(
            values, split, self.seed, ordered=ordered, least=least, boundary=self.boundary, grows=grows
        )
        if dim == self.data.sample_dim:
            self._check_groups(held)
        return splits.by_marks(cuts, dim, held, sample_dim=self.data.sample_dim)

    @cached_property
    def _entry_groups(self) -> Array | None:
        """The group's number of each entry of the dim of samples, in order of appearance; None without groups."""
        name, dim = self.data.split.group, self.data.sample_dim
        if name is None:
            return None
        if name not in self.dataset.variables:
            raise unknown_name("data.split.group", name, self.dataset.variables, where="the source")
        if self.dataset[name].dims != (dim,):
            dims = ", ".join(map(str, self.dataset[name].dims))
            raise SourceError(
                f'data.split.group "{name}" has dims ({dims}), expected data.sample_dim "{dim}". Name another one.'
            )
        return np.asarray(pd.factorize(text_values(self._no_missing("data.split.group", name)))[0], dtype=np.int64)

    def _check_groups(self, held: Array) -> None:
        """Refuse a coordinate along the dim of samples that puts a group on both sides."""
        split, groups = self.data.split, self._entry_groups
        both = 0 if groups is None else len(np.intersect1d(groups[held], groups[~held]))
        if both:
            raise SourceError(
                f'data.split.coordinate "{split.coordinate}" puts {both} groups of "{split.group}" on both sides, '
                'and data.split.group keeps them together. Set by = "sample", or name another coordinate.'
            )

    def _no_missing(self, key: str, name: str) -> Array:
        values = values_of(self.dataset[name])
        values = text_values(values) if values.dtype.kind == "S" else values
        lost = int(pd.isnull(values).sum())
        if lost:
            raise SourceError(
                f'{key} "{name}" is missing for {lost} of {values.size} points. Fill it, or name another one.'
            )
        return values

    @property
    def holds_out(self) -> Literal["samples", "runs", "blocks", "values"]:
        """What is held out: single samples; entries of the dim of samples, with all windows or all of their group;
        blocks of the windowed dims; or values of a coordinate."""
        split, grid = self.data.split, self.grid
        if split.by == "sample" and grid.positions is not None:
            return "runs" if math.prod(grid.counts) > 1 or split.group is not None else "samples"
        if split.by == "sample" and not grid.overlaps:
            return "samples"
        return "values" if split.by == "coordinate" else "blocks"

    def _split_coordinate(self, name: str) -> tuple[str, Array, bool]:
        """The dim of a split coordinate, its values, and whether it orders the dim."""
        cut = [dim for dim in (self.data.sample_dim, *self._windows) if dim is not None]
        if name in self._fields[0].sizes and name not in self.dataset.variables:
            values: Array = np.arange(self._fields[0].sizes[name])
            dims: tuple[Any, ...] = (name,)
        elif name in self.dataset.variables:
            values, dims = self._no_missing("data.split.coordinate", name), self.dataset[name].dims
        else:
            raise unknown_name("data.split.coordinate", name, self.dataset.variables, where="the source")
        if len(dims) != 1 or dims[0] not in cut:
            raise SourceError(
                f'data.split.coordinate "{name}" has dims ({", ".join(map(str, dims))}), expected one of: '
                f"{', '.join(cut)} (the dim of samples, or a windowed dim). Name another coordinate."
            )
        if dims[0] != self.data.sample_dim and name != dims[0]:
            return str(dims[0]), values, False
        if name == dims[0] and name != self.data.sample_dim:
            # along a windowed dim the end of the axis is held out, whatever order its coordinate has
            return name, (values if self.data.split.values else np.arange(len(values))), True
        return str(dims[0]), values, name == dims[0]

    def phases(self, name: str, indices: Sequence[int] | Array) -> Array:
        """The share of the year or day that is over, ``(k, points)``: of each point of the time's mode, or of one."""
        return self.clocks.phases(name, self._places(indices))

    def climatology_phases(self, indices: Sequence[int] | Array) -> Array | None:
        """The phases ``(k, points, cycles)`` by which the centre is a climatology; None where it is none."""
        names = self.data.climatology
        return np.stack([self.phases(name, indices) for name in names], axis=-1) if names else None

    @property
    def transforms(self) -> tuple[str, ...]:
        """For each variable the name of its transform, or ``""``; empty where none has one."""
        chosen = self.data.transform
        return tuple(chosen.get(name, "") for name in self.variables) if chosen else ()

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, indices: Sequence[int] | Array) -> Array:
        """Samples as the source has them, decoded by CF; missing values are NaN.

        Returns
        -------
        ndarray
            ``(k, *sizes)`` in tensor order, of ``dtype``.
        """
        cuts, sample_dim = self._places(indices), self.data.sample_dim
        parts = [
            read_windows(field, cuts, sample_dim=sample_dim, dims=self.data.modes, dtype=self.dtype)
            for field in self._fields
        ]
        return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)

    def conditions(self, indices: Sequence[int] | Array, x: Array) -> dict[str, Array]:
        """The raw conditions of samples ``x`` (k, *sizes).

        Returns
        -------
        dict
            ``"initial"`` (k, modes but the initial one's), ``"field_<name>"`` (k, ...), ``"scalar_<name>"`` (k,)
            float64 (a phase of a time as users count it, at the sample's first point), ``"phase_<name>"`` (k, points)
            float64 of a climatology, ``"label"`` (k,) int64; those that the recipe names.
        """
        condition, sample_dim, cuts = self.data.condition, self.data.sample_dim, self._places(indices)
        raw: dict[str, Array] = {}
        if condition.initial is not None:
            raw["initial"] = np.take(x, condition.initial.index, axis=1 + self.modes.index(condition.initial.dim))
        for name in condition.fields:
            field = as_numbers(self.dataset[name])
            dims = [str(dim) for dim in field.dims if dim != sample_dim]
            dtype = _store_dtype([field])
            raw[f"field_{name}"] = read_windows(field, cuts, sample_dim=sample_dim, dims=dims, dtype=dtype)
        for name in condition.scalars:
            if name in self.clocks.known:
                raw[f"scalar_{name}"] = self.clocks.counts(name, cuts)[:, 0]
            else:
                raw[f"scalar_{name}"] = read_scalar(as_numbers(self.dataset[name]), cuts, sample_dim)
        for name in self.data.climatology:
            raw[f"phase_{name}"] = self.clocks.counts(name, cuts)
        if condition.labels:
            raw["label"] = read_labels(self.dataset[condition.labels], self._labels, cuts, sample_dim)
        return raw

    @property
    def places(self) -> Cuts:
        """Where all samples lie."""
        return self._cuts

    def _places(self, indices: Sequence[int] | Array) -> Cuts:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.n):
            raise IndexError(f"sample indices {chosen.min()} to {chosen.max()}, expected 0 to {self.n - 1}")
        return self._cuts.take(chosen)

    @cached_property
    def _labels(self) -> Labels:
        return find_labels(self.dataset[self.data.condition.labels])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, by code; none without labels."""
        return self._labels.names if self.data.condition.labels else ()

    # -- growing -------------------------------------------------------------------------------------------------

    @property
    def growing_dim(self) -> str:
        """The dim along which new samples come at the end."""
        return self.data.sample_dim or next(iter(self._windows))

    def stamps(self, bounds: Sequence[tuple[int, int]]) -> Array:
        """What changes where something that runs of samples are read from is written anew: ``(k, 16)`` uint8.

        Files of a glob and chunks of a local Zarr store are told apart. Of other sources, such as a single NetCDF file
        or a Zarr store at a URL, any change is one of all samples.

        Parameters
        ----------
        bounds
            First sample of each run and the one after its last.
        """
        condition, dim = self.data.condition, self.growing_dim
        used = [*self.variables, *condition.fields, *filter(None, [condition.labels])]
        used += [name for name in condition.scalars if name not in self.clocks.known]
        used += [clock.coordinate for clock in self.clocks.known.values()]
        first = self.position if dim == self.data.sample_dim else self.starts[dim]
        assert first is not None
        length = self._windows.get(dim, 1)
        ranges = [(int(first[start:stop].min()), int(first[start:stop].max()) + length) for start, stop in bounds]
        return parts.stamps(parts.find_parts(self.dataset, self.data, used, dim), ranges)

    # -- describing ----------------------------------------------------------------------------------------------

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of a sample tensor in ``dtype``."""
        return math.prod(self.sizes.values()) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all samples; windows that overlap count in full."""
        return self.n * self.bytes_per_sample

    def fingerprint(self) -> str:
        """A digest that changes with the source: its metadata, coordinates, and file sizes and times (or snapshot)."""
        return opening.digest(self.dataset, self.data)

    def template(self) -> xr.Dataset:
        """One decoded sample without data: dims, units, coordinates and attributes."""
        source = self.dataset.isel(dict.fromkeys(self._squeezed, 0))
        if self.data.missing == "mask":  # what is missing again after decoding cannot be a whole number
            source = source.assign({name: as_numbers(source[name]) for name in self.variables})
        return make_template(
            source,
            self.variables,
            self.data.modes,
            dtype=self.dtype,
            windows=self._windows,
            sample_dim=self.data.sample_dim,
        )

    @property
    def _squeezed(self) -> list[Any]:
        kept = {self.data.sample_dim, *self.data.modes}
        return [dim for name in self.variables for dim in self.dataset[name].dims if dim not in kept]

    def groups(self, indices: Sequence[int] | Array) -> Array:
        """Numbers of the groups ``(k,)`` in which samples may depend on each other: see `Cuts.groups`."""
        return self._places(np.asarray(indices, dtype=np.int64)).groups(self._entry_groups, divided=self._is_divided)

    @cached_property
    def _is_divided(self) -> bool:
        """Whether some entry along the dim of samples has windows on both sides: parts of it count as independent."""
        if self.position is None or not self.starts:
            return False
        return bool(np.intersect1d(self.position[self.is_test], self.position[~self.is_test]).size)

    def sample_coords(self, indices: Sequence[int] | Array) -> dict[str, xr.Variable]:
        """Coordinates of samples along ``sample``: their number, their side and where they come from.

        See `origins.sample_coords`.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        return origins.sample_coords(self.dataset, self.data, self._places(chosen), chosen, self.is_test[chosen])


def _reserved(variables: Sequence[str], modes: Sequence[str]) -> set[str]:
    """Names of modes that would meet dims and variables of the stores."""
    own = {f"{prefix}_{mode}" for prefix in _PREFIXES for mode in modes}
    return {*_RESERVED, *own, *(f"{mode}_one" for mode in modes), *(["component"] if len(variables) > 1 else [])}


def _store_dtype(arrays: Sequence[xr.DataArray]) -> np.dtype[Any]:
    dtype = np.result_type(np.float32, *(array.dtype for array in arrays))
    return dtype if dtype.itemsize <= 8 else np.dtype(np.float64)


def _find_variables(dataset: xr.Dataset, data: Data) -> tuple[str, ...]:
    for name in data.variables:
        if name not in dataset.variables:
            raise unknown_name("data.variables", name, dataset.data_vars, where="the source")
    if data.variables:
        if len(set(data.variables)) < len(data.variables):
            raise SourceError("data.variables names a variable twice. Name each once.")
        return tuple(data.variables)
    if not dataset.data_vars:
        raise SourceError(f"data.source {data.source} has no variables. Check data.source and data.group.")
    condition = data.condition
    taken = {*condition.fields, *condition.scalars, condition.labels}
    dims = {*data.modes, *([data.sample_dim] if data.sample_dim else [])}
    rest = [str(name) for name in dataset.data_vars if name not in taken]
    fitting = [name for name in rest if dims <= set(dataset[name].dims)]
    if len(fitting) == 1:
        return (fitting[0],)
    if fitting:
        raise SourceError(
            f"data.source has {len(fitting)} variables with dims {', '.join(sorted(dims))}: {', '.join(fitting)}. "
            "Set data.variables."
        )
    if len(rest) == 1:
        return (rest[0],)  # what it lacks is said when its dims are checked
    shown = "; ".join(f"{name} ({', '.join(map(str, dataset[name].dims))})" for name in rest[:8])
    raise SourceError(
        f"data.source has no variable with all of dims {', '.join(sorted(dims))}. It has: {shown}. Check data.modes."
    )
