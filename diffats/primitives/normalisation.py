"""The two normalisations: of fields before the decomposition, of streams after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, to_device

from diffats.errors import InputError
from diffats.primitives.climatology import Climatology
from diffats.primitives.coordinates import Coordinates, Products
from diffats.primitives.layout import Streams
from diffats.primitives.moments import Moments
from diffats.primitives.preparing import TRANSFORMS, FieldMoments, transformed
from diffats.spectrum import Array, like

NumpyArray = np.ndarray[Any, Any]


def divisors(spread: NumpyArray, values: NumpyArray) -> NumpyArray:
    """What to divide by: the spread, or 1 where it is no more than the rounding of the values around which it is.

    >>> divisors(np.array([2.0, 1e-14]), np.array([5.0, 300.0])).tolist()
    [2.0, 1.0]
    """
    noise = 1e-13 * np.nanmax(np.abs(values), initial=0.0)
    return np.where(spread > noise, spread, 1.0)


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Centred streams of unit scale: an elementwise mean, one scale per stream, and coordinates where there are any.

    One scale for a whole stream keeps near-empty trailing columns as small as they are. Coordinates give each number
    more of the scale that it has by itself; the loss weighs it down again by as much.

    Attributes
    ----------
    mean
        By stream: its shape.
    scale
        By stream: root mean square deviation over samples and elements; 1 for a constant stream.
    coordinates
        By stream; none of a stream that stays as it is.
    """

    mean: Mapping[str, NumpyArray]
    scale: Mapping[str, float]
    coordinates: Mapping[str, Coordinates] = field(default_factory=dict)

    @classmethod
    def fit(cls, moments: Mapping[str, Moments]) -> Normalisation:
        """From the moments of each stream over the training split.

        Raises
        ------
        InputError
            Where a stream has no samples.
        """
        for name, seen in moments.items():
            if seen.count == 0:
                raise InputError(f'stream "{name}" has no training samples to fit a normalisation to.')
        mean = {name: seen.mean for name, seen in moments.items()}
        spread = {name: np.sqrt(np.mean(seen.variance)) for name, seen in moments.items()}
        return cls(mean, {name: float(divisors(spread[name], mean[name])) for name in moments})

    @classmethod
    def on_principal_axes(cls, products: Mapping[str, Products]) -> Normalisation:
        """From a first pass over the training split: streams on their principal axes, all numbers with one scale."""
        plain = cls.fit({name: seen.moments for name, seen in products.items()})
        bases = {n: {axis: seen.basis(axis) for axis in seen.axes} for n, seen in products.items() if seen.axes}
        ones = {name: np.ones(plain.mean[name].shape) for name in bases}
        return replace(plain, coordinates={name: Coordinates(bases[name], ones[name], 0.0) for name in bases})

    def with_deviations(self, moments: Mapping[str, Moments], *, beta: float, floor: float) -> Normalisation:
        """From a second pass, whose moments are of what this one makes of the streams: each number with its own."""
        fitted = {
            name: Coordinates.fit(known.bases, moments[name].variance, beta=beta, floor=floor)
            for name, known in self.coordinates.items()
        }
        return replace(self, coordinates=fitted)

    @property
    def plain(self) -> Normalisation:
        """The same without coordinates: what distances between primitives are measured in, whatever a model sees."""
        return replace(self, coordinates={})

    def unit(self, name: str) -> Any:
        """How much of a stream's own numbers 1 is: a number, or an array of the stream's shape."""
        known = self.coordinates.get(name)
        return self.scale[name] if known is None else self.scale[name] * known.divisor

    def apply(self, streams: Streams) -> dict[str, Array]:
        """Centre and scale streams ``{name: (k, *shape)}``, and take them to their coordinates."""
        out = {n: part - like(self._known(n), part) for n, part in streams.items()}
        for name, part in out.items():
            part /= self.scale[name]  # in place, as below: memory that is new costs more than the arithmetic
        return out | {n: known.apply(out[n]) for n, known in self.coordinates.items() if n in out}

    def undo(self, streams: Streams) -> dict[str, Array]:
        """The inverse of ``apply``."""
        back = {n: known.undo(streams[n]) for n, known in self.coordinates.items() if n in streams}
        out = {n: part * self.scale[n] for n, part in {**streams, **back}.items()}
        for name, part in out.items():
            part += like(self._known(name), part)
        return out

    def _known(self, name: str) -> NumpyArray:
        if name not in self.mean:
            raise InputError(f'stream "{name}" has no normalisation; there are {", ".join(self.mean)}.')
        return self.mean[name]

    def to_arrays(self) -> dict[str, NumpyArray]:
        """Arrays ``mean_<stream>``, ``scale_<stream>``; of coordinates ``deviation_``, ``beta_``, ``basis<k>_``."""
        out = {f"mean_{name}": np.asarray(mean) for name, mean in self.mean.items()}
        out |= {f"scale_{name}": np.asarray(scale, np.float64) for name, scale in self.scale.items()}
        for name, known in self.coordinates.items():
            out |= {f"deviation_{name}": known.deviation, f"beta_{name}": np.asarray(known.beta, np.float64)}
            out |= {f"basis{axis}_{name}": basis for axis, basis in known.bases.items()}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Normalisation:
        """The normalisation that ``to_arrays`` described."""
        names = [key.removeprefix("mean_") for key in arrays if key.startswith("mean_")]
        mean = {name: np.asarray(arrays[f"mean_{name}"], np.float64) for name in names}
        scale = {name: float(arrays[f"scale_{name}"]) for name in names}
        return cls(mean, scale, {n: _coordinates(arrays, n) for n in names if f"deviation_{n}" in arrays})


def _coordinates(arrays: Mapping[str, Any], name: str) -> Coordinates:
    deviation = np.asarray(arrays[f"deviation_{name}"], np.float64)
    keys = {axis: f"basis{axis}_{name}" for axis in range(deviation.ndim)}
    bases = {axis: np.asarray(arrays[key], np.float64) for axis, key in keys.items() if key in arrays}
    return Coordinates(bases, deviation, float(arrays[f"beta_{name}"]))


@dataclass(frozen=True, eq=False)
class FieldScaling:
    """Physical fields to the transformed, centred and scaled fields that are decomposed, and back.

    Attributes
    ----------
    mean, scale
        Broadcastable to a sample, of transformed fields.
    mask
        True where values are missing in every sample, of a sample's shape; None where none are.
    transforms
        For each variable a name of `TRANSFORMS`, or ``""``; empty where all stay as they are.
    spread
        With transforms: what the scale would be of fields that are not transformed.
    climatology
        What else is subtracted, by the phase of the year or day; None where nothing is.

    >>> scaling = FieldScaling(np.array([10.0, 10.0]), np.array(2.0), np.array([False, True]))
    >>> scaling.apply(np.array([[14.0, np.nan]])).tolist(), scaling.undo(np.array([[2.0, 0.0]])).tolist()
    ([[2.0, 0.0]], [[14.0, nan]])
    """

    mean: NumpyArray
    scale: NumpyArray
    mask: NumpyArray | None = None
    transforms: tuple[str, ...] = ()
    spread: NumpyArray | None = None
    climatology: Climatology | None = None

    @property
    def unit(self) -> NumpyArray:
        """The scale in physical units, in which differences of fields are measured."""
        return self.scale if self.spread is None else self.spread

    @classmethod
    def of_fields(
        cls,
        moments: FieldMoments,
        center: str | Sequence[int] = "variable",
        scale: str | Sequence[int] = "variable",
        *,
        component: bool = False,
    ) -> FieldScaling:
        """From the moments of the raw training samples and, where they are transformed, of these: see `fit`."""
        if moments.cyclic is None:
            fitted = cls.fit(moments.prepared, center, scale, component=component)
        else:
            left, climatology = moments.cyclic.fit()
            mask = np.isnan(moments.raw.mean)
            if (np.isnan(left.mean) != mask).any():
                raise InputError(
                    "points are missing at some times of a sample only, and a climatology is of all times."
                )
            fitted = replace(
                cls.fit(left, "point", scale, component=component),
                mask=mask if mask.any() else None,
                climatology=climatology,
            )
        if not moments.transforms:
            return fitted
        spread = cls.fit(moments.raw, center, scale, component=component).scale
        return replace(fitted, transforms=moments.transforms, spread=spread)

    @classmethod
    def fit(
        cls,
        moments: Moments,
        center: str | Sequence[int] = "variable",
        scale: str | Sequence[int] = "variable",
        *,
        component: bool = False,
    ) -> FieldScaling:
        """From the moments of the training samples.

        Parameters
        ----------
        moments
            Over samples ``(k, *sizes)``; an element that was NaN is masked.
        center
            ``"point"``: the mean field; ``"variable"``: one number per variable; ``"none"``: 0; axes of a sample: one
            for each point along them (and variable).
        scale
            ``"variable"``: root mean square deviation of each variable from what is subtracted (from its mean, with
            ``center="none"``); ``"none"``: 1; axes of a sample: one for each point along them (and variable).
        component
            Whether the first mode holds the variables.

        Raises
        ------
        InputError
            Where there are no training samples, or all elements of a variable are missing.
        """
        if moments.count == 0:
            raise InputError("no good training sample to fit centring and scaling to.")
        mask = np.isnan(moments.mean)
        if mask.all(axis=tuple(range(int(component), mask.ndim))).any():
            raise InputError("every value of a variable is missing in the training samples. Remove this variable.")

        def averaged(values: NumpyArray, kept: Sequence[int] | str) -> NumpyArray:
            """Over all points but those along the kept axes; 0 where all of them are missing."""
            axes = tuple(axis for axis in range(int(component), mask.ndim) if isinstance(kept, str) or axis not in kept)
            points = np.maximum(np.sum(~mask, axis=axes, keepdims=True), 1)
            return np.asarray(np.sum(np.where(mask, 0.0, values), axis=axes, keepdims=True) / points)

        about = moments.mean if center == "point" else averaged(moments.mean, scale if center == "none" else center)
        subtracted = np.zeros_like(averaged(mask, "variable")) if center == "none" else about
        spread = np.sqrt(averaged(moments.variance + (moments.mean - about) ** 2, scale))
        divisor = np.ones_like(spread) if scale == "none" else divisors(spread, about)
        return cls(np.where(np.isnan(subtracted), 0.0, subtracted), divisor, mask if mask.any() else None)

    def apply(self, x: Array, phases: NumpyArray | None = None) -> Array:
        """Transform, centre and scale samples ``(k, *sizes)``; masked points become 0.

        With a climatology, phases are those ``(k, points, cycles)`` of the samples' times.
        """
        scaled = transformed(x, self.transforms) - like(self.mean, x)
        if self.climatology is not None:
            scaled -= self._at(phases, x)
        scaled /= like(self.scale, x)
        return self._filled(scaled, 0.0)

    def undo(self, x: Array, phases: NumpyArray | None = None) -> Array:
        """The inverse of ``apply``; masked points become NaN."""
        physical = x * like(self.scale, x)
        if self.climatology is not None:
            physical += self._at(phases, x)
        physical += like(self.mean, x)
        return self._filled(transformed(physical, self.transforms, inverse=True), np.nan)

    def _at(self, phases: NumpyArray | None, x: Array) -> Array:
        assert self.climatology is not None
        if phases is None:
            raise InputError("a climatology is subtracted from these fields, so that their times must be known.")
        return like(self.climatology.at(phases, np.float32 if x.dtype.itemsize <= 4 else np.float64), x)

    def _filled(self, x: Array, value: float) -> Array:
        if self.mask is not None:
            x[:, to_device(array_namespace(x).asarray(self.mask), device(x))] = value
        return x

    def to_arrays(self) -> dict[str, NumpyArray]:
        """Mean, scale and what else there is; transforms by their place in `TRANSFORMS`, -1 for none."""
        out = {"mean": self.mean, "scale": self.scale} | ({} if self.mask is None else {"mask": self.mask})
        if self.transforms:
            places = [list(TRANSFORMS).index(name) if name else -1 for name in self.transforms]
            out["transforms"] = np.asarray(places, np.int64)
        if self.climatology is not None:
            axis = self.climatology.axis
            out |= {"climatology": self.climatology.coefficients, "time_axis": np.asarray(-1 if axis is None else axis)}
        return out | ({} if self.spread is None else {"spread": self.spread})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> FieldScaling:
        """The scaling that ``to_arrays`` described."""
        mask = np.asarray(arrays["mask"], bool) if "mask" in arrays else None
        names = ("", *TRANSFORMS)
        return cls(
            np.asarray(arrays["mean"], np.float64),
            np.asarray(arrays["scale"], np.float64),
            mask,
            tuple(names[int(place) + 1] for place in arrays.get("transforms", ())),
            np.asarray(arrays["spread"], np.float64) if "spread" in arrays else None,
            _climatology(arrays),
        )


def _climatology(arrays: Mapping[str, Any]) -> Climatology | None:
    if "climatology" not in arrays:
        return None
    axis = int(arrays["time_axis"])
    return Climatology(np.asarray(arrays["climatology"], np.float64), None if axis < 0 else axis)
