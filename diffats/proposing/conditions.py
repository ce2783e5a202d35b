"""What lies beside the fields: classes and numbers to generate from, and what tells which samples belong together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import check_name
from diffats.proposing.dims import meaning_of
from diffats.proposing.samples import Sampling

Array = np.ndarray[Any, Any]

_MOST_CLASSES, _LEAST_A_CLASS = 50, 5
_FEW_INTEGERS = 20
_MOST_SCALARS = 4
_READ = 10**7  # values of a variable beside the fields that are looked at
_HELD = {"held_out", "heldout", "split", "subset", "partition", "fold", "is_test", "holdout", "set"}
_OF_TEST = ("test", "val", "valid", "validation", "testing", "eval", "holdout", "held_out")
_NO_CONDITION = re.compile(
    r"(^|[^a-z])(id|ids|idx|index|number|no|key|seed|file|filename|path|name|names|uuid|hash|member|sample|run|clip)"
    r"([^a-z]|$)"
)
_COUNTED = ("number of the", "index of", "identifier", "file name")  # long names of what only names a sample
_TOGETHER = re.compile(
    r"(^|[^a-z])(trajectory|traj|run|simulation|sim|case|subject|patient|film|video|clip|event|scene|group|member)"
    r"([^a-z]|$)"
)


@dataclass
class Beside:
    """What the sections ``[data.condition]`` and ``[data.split]`` say of variables beside the fields.

    Attributes
    ----------
    labels, scalars, initial
        Conditions.
    unused
        By condition's key: names that could be given as well.
    split
        What replaces the split by samples; None where nothing does.
    notes
        By key: why.
    """

    labels: str | None = None
    scalars: list[str] = field(default_factory=list)
    initial: dict[str, Any] | None = None
    unused: dict[str, list[str]] = field(default_factory=dict)
    split: dict[str, Any] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def _add(self, key: str, name: str) -> None:
        self.unused.setdefault(key, []).append(name)


def find_beside(dataset: xr.Dataset, fields: Sequence[str], sampling: Sampling) -> Beside:
    """Choose conditions and a split from the one-dimensional variables and the classes of a source."""
    found = Beside()
    beside = list(_candidates(dataset, fields, sampling))
    for array in sorted(beside, key=lambda array: str(array.name).lower() not in _HELD):  # what the source says, first
        name, values = str(array.name), np.asarray(array.values)
        if name.lower() in _HELD:
            _take_split(found, name, values, array)
        elif array.dims == (sampling.sample_dim,):
            _take_along_samples(found, name, values, array)
        elif "flag_meanings" in array.attrs or "flag_values" in array.attrs:
            _take_labels(
                found, name, len(np.unique(values)), "classes on the grid; the majority of a window is its class"
            )
    times = [mode for mode in sampling.modes if meaning_of(dataset, mode) == "time"]
    if sampling.sample_dim is not None and times and dataset.sizes[times[0]] > 2:
        found.initial = {"dim": times[0], "index": 0}
        found.notes["initial"] = (
            f"the first {times[0]} is given, and forecasts are generated; without it, whole new samples"
        )
    return found


def _candidates(dataset: xr.Dataset, fields: Sequence[str], sampling: Sampling) -> Iterator[xr.DataArray]:
    """Variables and coordinates along the dim of samples or windowed dims only, in the source's order."""
    moving = {dim for dim in (sampling.sample_dim, *sampling.size) if dim is not None}
    for name in map(str, dataset.variables):
        array = dataset[name]
        if name in fields or name in array.dims or not array.dims or array.size > _READ or not _can_be_named(name):
            continue
        if set(map(str, array.dims)) <= moving and array.dtype.kind in "fiubOUST":
            yield array


def _can_be_named(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def _take_split(found: Beside, name: str, values: Array, array: xr.DataArray) -> None:
    """A variable that says which samples are held out."""
    if found.split is not None or array.ndim != 1:
        return
    distinct = sorted({str(v) if values.dtype.kind in "OUST" else float(v) for v in values if v == v}, key=str)
    if values.dtype.kind in "OUST":
        held: list[Any] = [value for value in distinct if str(value).lower().startswith(_OF_TEST)]
    else:
        held = [int(value) if value == int(value) else value for value in distinct if value != 0]
    if held and len(held) < len(distinct):
        found.split = {"by": "coordinate", "coordinate": name, "values": held}
        found.notes["split"] = f"the source says in {name} which samples are held out"


def _take_along_samples(found: Beside, name: str, values: Array, array: xr.DataArray) -> None:
    text = values.dtype.kind in "OUST"
    if not text and not np.isfinite(values.astype(np.float64)).all():
        found._add("scalars", f"{name} (missing for some samples)")
        return
    distinct = len({str(value) for value in values}) if text else len(np.unique(values))
    counted = str(array.attrs.get("long_name", "")).lower().startswith(_COUNTED)
    if distinct < 2:
        return
    if _TOGETHER.search(name.lower()) and distinct < len(values):
        _take_together(found, name, distinct)
    elif counted or _NO_CONDITION.search(name.lower()) or _counts_up(values) or (text and distinct == len(values)):
        return  # it names or counts the samples
    elif text or values.dtype.kind == "b" or (values.dtype.kind in "iu" and distinct <= _FEW_INTEGERS):
        if distinct > _MOST_CLASSES or distinct * _LEAST_A_CLASS > len(values):
            found._add("labels", name)
        else:
            _take_labels(found, name, distinct, f"{distinct} classes")
    elif len(found.scalars) >= _MOST_SCALARS:
        found._add("scalars", name)
    else:
        found.scalars.append(name)
        found.notes["scalars"] = "a number that varies from sample to sample; take out what should not be given"


def _take_labels(found: Beside, name: str, count: int, note: str) -> None:
    if found.labels is None and 2 <= count <= _MOST_CLASSES:
        found.labels, found.notes["labels"] = name, note
    else:
        found._add("labels", name)


def _take_together(found: Beside, name: str, distinct: int) -> None:
    if found.split is None and distinct >= 5:
        found.split = {"test": 0.2, "group": name}
        found.notes["split"] = f"samples with one {name} stay on one side"


def _counts_up(values: Array) -> bool:
    """Whether numbers only count the samples."""
    return values.dtype.kind in "iu" and len(values) > 2 and bool((np.diff(values.astype(np.int64)) == 1).all())
