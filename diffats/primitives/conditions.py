"""Conditions: what samples are generated from, as network input."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np

from diffats.errors import InputError
from diffats.primitives.moments import Moments, NumpyArray
from diffats.primitives.normalisation import divisors


@dataclass(frozen=True)
class ConditionLayout:
    """Names, shapes and statistics of what samples are generated from.

    Attributes
    ----------
    initial, initial_dims
        Shape and dims of the initial slice; None and empty without one.
    fields, field_dims
        Shape of each given field, and its dims where they are known.
    scalars, scalar_log
        Names, and whether the logarithm is taken (positive, and spanning a factor above 100).
    n_labels, label_names
        Classes.
    cycles
        Of scalars that come back, such as the day of the year, and of a climatology: the first number, and how many
        there are until it begins anew. The network gets sine and cosine.
    stats
        By ``"initial"``, ``"field_<name>"``, ``"scalar_<name>"``: mean and standard deviation, each a number, or a
        list along the leading ``"component"`` dim of the initial slice.
    ranges
        By the same names: the lowest and the highest of training, of their ``places``; empty where they were not kept.
    """

    initial: tuple[int, ...] | None = None
    initial_dims: tuple[str, ...] = ()
    fields: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    field_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scalars: tuple[str, ...] = ()
    scalar_log: tuple[bool, ...] = ()
    n_labels: int = 0
    label_names: tuple[str, ...] = ()
    stats: Mapping[str, list[Any]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cycles: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def any(self) -> bool:
        """Whether there is a condition at all."""
        return bool(self.initial is not None or self.fields or self.scalars or self.n_labels)

    @classmethod
    def fit(
        cls,
        raw: Mapping[str, NumpyArray] | Iterable[Mapping[str, NumpyArray]],
        *,
        initial_dims: tuple[str, ...] = (),
        field_dims: Mapping[str, tuple[str, ...]] | None = None,
        label_names: Iterable[str] = (),
        cycles: Mapping[str, tuple[float, float]] | None = None,
    ) -> ConditionLayout:
        """From the raw conditions of the training split.

        Parameters
        ----------
        raw
            ``"initial"`` ``(k, *shape)``, ``"field_<name>"`` ``(k, *shape)``, ``"scalar_<name>"`` ``(k,)``,
            ``"label"`` ``(k,)``: all at once, or several such parts, which are read one at a time.

        Raises
        ------
        InputError
            Where a scalar is not finite.
        """
        cycles = cycles or {}
        fits: dict[str, _Fit] = {}
        for part in [raw] if isinstance(raw, Mapping) else raw:
            for name, values in part.items():
                if name != "label" and not name.startswith("phase_"):  # which only decoding needs
                    by_component = name == "initial" and initial_dims[:1] == ("component",)
                    fits.setdefault(name, _Fit(name, by_component)).add(np.asarray(values))
        names = tuple(label_names)
        scalars = tuple(name.removeprefix("scalar_") for name in fits if name.startswith("scalar_"))
        return cls(
            initial=fits["initial"].shape if "initial" in fits else None,
            initial_dims=tuple(initial_dims) if "initial" in fits else (),
            fields={n.removeprefix("field_"): fit.shape for n, fit in fits.items() if n.startswith("field_")},
            field_dims={name: tuple(dims) for name, dims in (field_dims or {}).items()},
            scalars=scalars,
            scalar_log=tuple(name not in cycles and fits[f"scalar_{name}"].log for name in scalars),
            n_labels=len(names),
            label_names=names,
            stats={name: fit.stats for name, fit in fits.items() if name.removeprefix("scalar_") not in cycles},
            ranges={
                name: fit.range
                for name, fit in fits.items()
                if fit.range is not None and name.removeprefix("scalar_") not in cycles
            },
            cycles={name: (float(first), float(length)) for name, (first, length) in cycles.items()},
        )

    def normalise(self, raw: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """Raw conditions as network input: standardised float32, labels int64; missing values become the mean.

        Scalars that come back become ``(k, 2)``.

        Raises
        ------
        InputError
            Where a condition is missing, has another shape, or a value cannot be taken.
        """
        wanted: dict[str, tuple[int, ...]] = {} if self.initial is None else {"initial": self.initial}
        wanted |= {f"field_{name}": shape for name, shape in self.fields.items()}
        wanted |= {f"scalar_{name}": () for name in self.scalars}
        logs = {f"scalar_{name}": log for name, log in zip(self.scalars, self.scalar_log, strict=True)}
        normal = {n: self._standard(n, _condition(raw, n, s), logs.get(n, False)) for n, s in wanted.items()}
        if self.n_labels:
            normal["label"] = self._labels(_condition(raw, "label", ()))
        return normal

    def places(self, raw: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """The number ``(k,)`` of each raw condition that is held against its range, by name; labels have none.

        Of a scalar its value; of fields their deviation from the training mean: the root mean square over points, in
        training deviations. Missing points count as the mean.
        """
        return {
            name: np.asarray(values, np.float64) if name.startswith("scalar_") else self._deviation(name, values)
            for name, values in raw.items()
            if name in self.ranges
        }

    def _deviation(self, name: str, values: NumpyArray) -> NumpyArray:
        normal = np.nan_to_num(self._normal(name, values.astype(np.float64)))
        return np.asarray(np.sqrt(np.mean(normal**2, axis=tuple(range(1, normal.ndim)))))

    def beyond(self, places: Mapping[str, NumpyArray]) -> dict[str, NumpyArray]:
        """By how much ``places`` leave the range of training, as a share of its width; 0 inside.

        Of a scalar whose logarithm is taken, the width is that of the logarithms. Where training has but one value,
        every other one is infinitely far.

        >>> known = ConditionLayout.fit({"scalar_re": np.array([30.0, 80.0, 130.0])})
        >>> known.beyond(known.places({"scalar_re": np.array([30.0, 100.0, 180.0, 20.0])}))["scalar_re"].tolist()
        [0.0, 0.0, 0.5, 0.1]
        """
        logs = {f"scalar_{name}" for name, log in zip(self.scalars, self.scalar_log, strict=True) if log}
        out = {}
        for name, values in places.items():
            low, high = self.ranges[name]
            if name in logs:  # what is not positive has no logarithm, and is refused where the network's input is made
                low, high, values = math.log(low), math.log(high), np.log(np.where(values > 0, values, low))
            rounding = 1e-6 * max(abs(low), abs(high), high - low)  # conditions come back from text and float32
            excess = np.maximum(np.maximum(low - values, values - high), 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                out[name] = np.where(excess > rounding, excess / (high - low), 0.0)
        return out

    def _standard(self, name: str, values: NumpyArray, log: bool) -> NumpyArray:
        values = values.astype(np.float64)
        if name.startswith("scalar_"):
            if not np.isfinite(values).all() or (log and (values <= 0).any()):
                expected = "positive (its logarithm is taken)" if log else "finite"
                raise InputError(f'condition "{name.removeprefix("scalar_")}" must be {expected}, got {values}.')
            cycle = self.cycles.get(name.removeprefix("scalar_"))
            if cycle is not None:
                angle = 2 * np.pi * (values - cycle[0]) / cycle[1]
                return np.stack([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
            values = np.log(values) if log else values
        return np.nan_to_num(self._normal(name, values), nan=0.0).astype(np.float32)

    def _normal(self, name: str, values: NumpyArray) -> NumpyArray:
        """Centred and scaled values."""
        mean, std = self.stats.get(name, (0.0, 1.0))
        after = (1,) * (values.ndim - 2)
        mean, std = (np.reshape(s, (-1, *after)) if np.ndim(s) else s for s in (mean, std))
        return np.asarray((values - mean) / std)

    def _labels(self, values: NumpyArray) -> NumpyArray:
        labels = values.astype(np.int64)
        if ((labels < 0) | (labels >= self.n_labels)).any() or (labels != values).any():
            known = ", ".join(f"{i}={name}" for i, name in enumerate(self.label_names))
            raise InputError(f"label {values} is none of 0 to {self.n_labels - 1} ({known}).")
        return labels

    def to_dict(self) -> dict[str, Any]:
        """The layout as JSON data; ranges and cycles only where there are some, as earlier releases wrote it."""
        tree = asdict(self)
        for name in ("ranges", "cycles"):
            if not tree[name]:
                del tree[name]
        return cast(dict[str, Any], json.loads(json.dumps(tree)))

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> ConditionLayout:
        """The layout that ``to_dict`` described."""
        initial = tree["initial"]
        return cls(
            initial=None if initial is None else tuple(initial),
            initial_dims=tuple(tree["initial_dims"]),
            fields={name: tuple(shape) for name, shape in tree["fields"].items()},
            field_dims={name: tuple(dims) for name, dims in tree["field_dims"].items()},
            scalars=tuple(tree["scalars"]),
            scalar_log=tuple(tree["scalar_log"]),
            n_labels=int(tree["n_labels"]),
            label_names=tuple(tree["label_names"]),
            stats=dict(tree["stats"]),
            ranges={name: (low, high) for name, (low, high) in tree.get("ranges", {}).items()},
            cycles={name: (float(first), float(length)) for name, (first, length) in tree.get("cycles", {}).items()},
        )


class _Fit:
    """Streaming mean, deviation and range of one condition over samples and points."""

    def __init__(self, name: str, by_component: bool) -> None:
        self.name, self.by_component = name, by_component
        self.shape: tuple[int, ...] = ()
        self.plain, self.logged = Moments(), Moments()
        self.lowest, self.highest = math.inf, -math.inf
        self.origin: NumpyArray | None = None
        self.sums: list[NumpyArray] = []

    @property
    def is_scalar(self) -> bool:
        return self.name.startswith("scalar_")

    def add(self, values: NumpyArray) -> None:
        self.shape = values.shape[1:]
        wide = values.astype(np.float64)
        if self.is_scalar:
            self._add_scalar(wide)
        elif len(wide):
            self._add_field(wide.reshape(len(wide), wide.shape[1] if self.by_component else 1, -1))
        flat = np.moveaxis(wide, 1, -1).reshape(-1, wide.shape[1]) if self.by_component else wide.reshape(-1, 1)
        self.plain.add(flat[np.isfinite(flat).all(axis=1)])

    def _add_scalar(self, values: NumpyArray) -> None:
        if not np.isfinite(values).all():
            raise InputError(f'condition "{self.name.removeprefix("scalar_")}" has values that are not finite.')
        self.lowest, self.highest = min(self.lowest, values.min()), max(self.highest, values.max())
        self.logged.add(np.log(values[values > 0])[:, None])

    def _add_field(self, values: NumpyArray) -> None:
        """Counts, sums and sums of squares ``(3, k, components)``, about a value near the mean, which keeps digits."""
        known = np.isfinite(values)
        if self.origin is None:
            points = np.maximum(known.sum(axis=(0, 2)), 1)
            self.origin = np.where(known, values, 0.0).sum(axis=(0, 2)) / points
        near = np.where(known, values - self.origin[:, None], 0.0)
        self.sums.append(np.stack([known.sum(axis=2), near.sum(axis=2), (near**2).sum(axis=2)]))

    @property
    def log(self) -> bool:
        """Whether the values span decades."""
        return bool(self.lowest > 0 and self.highest > 100 * self.lowest)

    @property
    def stats(self) -> list[Any]:
        moments = self.logged if self.log else self.plain
        if moments.count == 0:
            return [0.0, 1.0]
        std = divisors(np.sqrt(moments.variance), moments.mean)
        if self.by_component:
            return [moments.mean.tolist(), std.tolist()]
        return [float(moments.mean[0]), float(std[0])]

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest value; of fields 0 and the largest deviation, since none is too near the mean."""
        if self.is_scalar:
            return (float(self.lowest), float(self.highest)) if self.highest >= self.lowest else None
        if self.origin is None:
            return None
        mean, std = (np.atleast_1d(part) for part in self.stats)
        count, total, squares = np.concatenate(self.sums, axis=1)
        shift = mean - self.origin
        about = (squares - 2 * shift * total + count * shift**2) / std**2
        found = np.sqrt(np.maximum(about.sum(axis=1), 0.0) / math.prod(self.shape))
        return 0.0, float(found.max())


def _condition(raw: Mapping[str, NumpyArray], name: str, shape: tuple[int, ...]) -> NumpyArray:
    if name not in raw:
        raise InputError(f'condition "{name}" is missing; there are {", ".join(raw) or "none"}.')
    values = np.asarray(raw[name])
    if values.shape[1:] != shape or values.ndim == 0:
        raise InputError(
            f'condition "{name}" has shape {values.shape}, expected (samples, {", ".join(map(str, shape))}).'
        )
    return values
