"""A model that travels: a directory of ``bundle.json`` and safetensors files, usable without any store or server.

It holds the denoiser's averaged weights, the anchors, the normalisation, the training mean and scale of the fields,
the coordinates of a sample, and some training conditions to draw from.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import xarray as xr
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from diffats import grids, sources
from diffats.config import Recipe, completed, names_later, parse_recipe, prepares_fields
from diffats.digests import file_digest, is_signed, signed
from diffats.disk import replace_folder, replace_text
from diffats.errors import InputError, IntegrityError, StoreNotFoundError
from diffats.given import Expected, as_array, check_range, known_points
from diffats.imposing import Imposing
from diffats.primitives import (
    HARMONICS,
    ConditionLayout,
    FieldScaling,
    Layout,
    Normalisation,
    Stream,
    Values,
    basis_shapes,
    decode,
    encode,
    nearest_possible,
    outside_domain,
    transformed,
    turned_axes,
)
from diffats.requirements import require

# 5 and 6 are of recipes that name options which earlier releases do not know: 6 of how numbers are prepared.
PLAIN_FORMAT, LATER_FORMAT, FORMAT = 4, 5, 6
MAX_SAMPLES, MAX_SEED, MAX_GUIDANCE = 100_000, 2**63, 1e3
MAX_SIZE = 2**31  # points along a mode
MAX_DESCRIPTION = 2**26  # bytes of bundle.json, most of which are coordinates
ARRAYS, WEIGHTS, CALIBRATION = "arrays.safetensors", "weights.safetensors", "calibration.safetensors"
LATEST = "LATEST"  # file beside the bundles of a root: the one that a recipe asked for last
Array = npt.NDArray[Any]


def save(
    destination: Path,
    *,
    recipe: Mapping[str, Any],
    layout: Layout,
    conditions: ConditionLayout,
    scaling: FieldScaling,
    anchors: Mapping[str, Array],
    normalisation: Normalisation,
    template: str,
    label_names: list[str],
    examples: Mapping[str, Array],
    weights: Path,
    provenance: Mapping[str, Any],
    calibration: Path | None = None,
    condition_dims: Mapping[str, list[str]] | None = None,
    condition_units: Mapping[str, str] | None = None,
    measure_imposing: Callable[[Bundle], Imposing | None] | None = None,
) -> Path:
    """Write a bundle; it appears at ``destination`` whole or not at all.

    Parameters
    ----------
    examples
        Raw training conditions, one row each, from which unconditioned calls of :meth:`Bundle.sample` draw.
    weights
        The safetensors file of the denoiser's averaged weights.
    calibration
        That of the calibrated output, where there is one.
    condition_dims
        Dims of the conditions that are fields, without that of samples.
    condition_units
        Their units, where they are known.
    measure_imposing
        Finds with the finished model how its samples are to be corrected by a given initial slice.
    """
    arrays = {f"scaling.{name}": value for name, value in scaling.to_arrays().items()}
    arrays |= {f"anchors.{mode}": anchor for mode, anchor in anchors.items()}
    arrays |= {f"normalisation.{name}": value for name, value in normalisation.to_arrays().items()}
    arrays |= {f"examples.{name}": value for name, value in examples.items()}
    with replace_folder(destination) as partial:
        shutil.copyfile(weights, partial / WEIGHTS)
        if calibration is not None:
            shutil.copyfile(calibration, partial / CALIBRATION)
        try:
            save_file({name: np.array(value, order="C") for name, value in arrays.items()}, partial / ARRAYS)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{partial / ARRAYS} cannot be written ({error})") from error
        shutil.copymode(partial / WEIGHTS, partial / ARRAYS)  # safetensors closes its files to everybody else
        description = {
            "format": format_of(recipe, conditions.to_dict()),
            "release": importlib.metadata.version("diffats"),
            "files": {path.name: file_digest(path) for path in sorted(partial.iterdir())},
            "recipe": dict(recipe),
            "layout": layout.to_dict(),
            "conditions": conditions.to_dict(),
            "template": template,
            "label_names": label_names,
            "condition_dims": dict(condition_dims or {}),
            "condition_units": dict(condition_units or {}),
            "provenance": dict(provenance),
        }
        imposing = None if measure_imposing is None else measure_imposing(Bundle(partial, description, arrays))
        description |= {} if imposing is None else {"imposing": imposing.to_dict()}
        (partial / "bundle.json").write_text(as_stored(description), encoding="utf-8")
    return destination


def format_of(recipe: Mapping[str, Any], conditions: Mapping[str, Any]) -> int:
    """The number of the oldest format that says all of a portable recipe and of a layout of conditions."""
    if prepares_fields(recipe) or "cycles" in conditions:
        return FORMAT
    return LATER_FORMAT if names_later(recipe) else PLAIN_FORMAT


def ask_for(directory: Path, recipe: Mapping[str, Any], recipe_fingerprint: str) -> None:
    """Have a stored bundle stand for its root, with the sampling options of the recipe that asks for it.

    Options that do not change the training, such as ``generate.steps``, may have changed since; what is served is then
    what is generated and evaluated now. Writes only what differs, each file whole or not at all.

    Parameters
    ----------
    directory
        The bundle, under ``<root>/bundles``.
    recipe
        The portable recipe whose model this is.
    recipe_fingerprint
        Its digest, for the bundle's provenance.

    Raises
    ------
    IntegrityError
        Where the bundle is damaged.
    """
    try:
        description = _read_description(directory)
    except _DAMAGE as error:
        raise IntegrityError(f"{directory}: damaged bundle ({error}).") from error
    provenance = {**description["provenance"], "recipe_fingerprint": recipe_fingerprint}
    wanted = {**description, "recipe": dict(recipe), "provenance": provenance}
    wanted["format"] = format_of(recipe, description["conditions"])
    if wanted != description:
        replace_text(directory / "bundle.json", as_stored(wanted))
    latest_file = directory.parent / LATEST
    if not latest_file.is_file() or latest_file.read_text(encoding="utf-8") != directory.name:
        replace_text(latest_file, directory.name)


def as_stored(description: Mapping[str, Any]) -> str:
    """A description as ``bundle.json`` has it: with its own digest."""
    return json.dumps({**description, "digest": signed(description)["digest"]}, indent=1)


def latest(root: Path) -> Path | None:
    """The bundle under a root that a recipe asked for last, the newest one where that is not known."""
    found = [file.parent for file in root.glob("bundles/[!.]*/bundle.json")]
    asked = root / "bundles" / LATEST
    name = asked.read_text(encoding="utf-8") if asked.is_file() else ""
    newest = sorted(found, key=lambda directory: (directory / "bundle.json").stat().st_mtime_ns)
    return next((directory for directory in found if directory.name == name), newest[-1] if newest else None)


def load(path: str | Path, *, device: str = "auto") -> Bundle:
    """Open a bundle, or the one under a recipe's root that was trained or used last.

    Parameters
    ----------
    path
        A bundle's directory, or a root.
    device
        Where the network runs: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.

    Raises
    ------
    StoreNotFoundError
        Where there is no bundle.
    IntegrityError
        Where it is not of a format that this version reads, a file does not match its digest, or its parts do not fit
        together: sizes are compared before anything of their size is allocated.
    """
    path = Path(path)
    directory = path if (path / "bundle.json").is_file() else latest(path)
    if directory is None:
        raise StoreNotFoundError(f"{path}: no trained model here. Train one with `diffats train RECIPE.toml`.")
    try:
        description = _read_description(directory)
        model = Bundle(directory, description, load_file(directory / ARRAYS), device=device)
        problem = next(_misfits(model), None)
    except IntegrityError:
        raise
    except _DAMAGE as error:
        raise IntegrityError(
            f"{directory}: damaged bundle, or one of a later release ({type(error).__name__}: {error}). "
            "Copy it again, load it with the release that wrote it, or train again."
        ) from error
    if problem is not None:
        raise IntegrityError(f"{directory}: the parts of this bundle do not fit together: {problem}. Train again.")
    return model


# What wrong JSON, wrong shapes and wrong names in a bundle raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, MemoryError, SafetensorError)


def _read_description(directory: Path) -> dict[str, Any]:
    """``bundle.json``, if this version can read it, and it and the other files match their digests."""
    file = directory / "bundle.json"
    if file.stat().st_size > MAX_DESCRIPTION:
        raise IntegrityError(f"{file}: {file.stat().st_size} bytes, at most {MAX_DESCRIPTION} are read.")
    description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if description.get("format") not in (PLAIN_FORMAT, LATER_FORMAT, FORMAT):
        raise IntegrityError(
            f"{directory}: bundle of format {description.get('format')}, this version reads {PLAIN_FORMAT} to "
            f"{FORMAT}. "
            f"Load it with the version that wrote it (diffats {description.get('release', 'of another number')})."
        )
    if "files" in description and not is_signed(description):  # earlier bundles have neither
        raise IntegrityError(f"{file} of this bundle does not match its digest. Copy it again, or train again.")
    for name, expected in description.get("files", {}).items():
        if name in (ARRAYS, WEIGHTS, CALIBRATION) and file_digest(directory / name) != expected:
            raise IntegrityError(f"{directory / name} of this bundle does not match its digest. Copy it again.")
    description.pop("digest", None)
    return description


def _misfits(model: Bundle) -> Iterator[str]:
    """What in a bundle contradicts its layout; nothing is allocated."""
    layout, streams = model.layout, _stream_shapes(model.layout.streams)
    sizes = dict(layout.sizes)
    numbers = [*sizes.values(), *layout.ranks.values(), *layout.patch.values()]
    if not all(isinstance(number, int) and 0 < number <= MAX_SIZE for number in numbers):
        yield f"sizes and ranks {numbers} are not all whole numbers from 1 to {MAX_SIZE}"
    fields = {str(name): variable.shape for name, variable in model.template.data_vars.items()}
    several = len(fields) > 1
    one = tuple(sizes[mode] for mode in layout.modes[several:])
    scaling, normal = model.scaling, model.normalisation
    yield from _differing("modes", list(layout.modes), list(model.recipe.tensor_modes))
    yield from _differing("kind", layout.kind, model.recipe.primitive.kind)
    yield from _differing("variables", fields, dict.fromkeys(fields, one) or "one at least")
    whole = [values.whole.kind for values in model.values if values.whole is not None]
    yield from _differing("types of whole numbers", [kind for kind in whole if kind not in "iub"], [])
    yield from _differing("components", layout.sizes.get("component", 1) if several else 1, len(fields))
    yield from _differing("anchors", _shapes(model.anchors), layout.anchor_shapes)
    yield from _differing("means", _shapes(normal.mean), streams)
    yield from _differing("examples", {name: value.shape[1:] for name, value in model.examples.items()}, _given(model))
    yield from _differing("rows of examples", len({len(value) for value in model.examples.values()}) <= 1, True)
    yield from _differing("labels", len(model.label_names), model.conditions.n_labels)
    codes = model.examples.get("label", np.zeros(0))
    yield from _differing("labels that exist", bool(((codes >= 0) & (codes < len(model.label_names))).all()), True)
    for name, value in (("mean", scaling.mean), ("scale", scaling.scale), ("mask", scaling.mask)):
        if value is not None:
            full = tuple(sizes.values())
            yield from _differing(f"{name} of fields", np.broadcast_shapes(value.shape, full), full)
    chosen = model.recipe.data.transform
    wanted = tuple(chosen.get(name, "") for name in fields) if chosen else ()
    yield from _differing("transforms", scaling.transforms, wanted)
    yield from _climatology_misfits(model)
    yield from _coordinate_misfits(model)
    yield from _differing("calibrated", model.is_calibrated, model.recipe.train.calibrate)
    yield from _imposing_misfits(model)
    finite = all(
        bool(np.isfinite(x).all())
        for x in (scaling.mean, scaling.scale, *model.anchors.values(), *normal.to_arrays().values())
    )
    yield from _differing("all numbers finite", finite, True)


def _imposing_misfits(model: Bundle) -> Iterator[str]:
    known = model.imposing
    if known is not None:
        shapes = [(rows, tuple(model.layout.sizes.values())[known.axis - 1]) for rows in (1, len(model.template))]
        yield from _differing("shape of shares", known.shares.shape in shapes, True)
        yield from _differing("off", known.off is None or _is_real(known.off), True)
        yield from _differing("shares from 0 to 1", bool(((known.shares >= 0) & (known.shares <= 1)).all()), True)


def _climatology_misfits(model: Bundle) -> Iterator[str]:
    known, names = model.scaling.climatology, model.recipe.data.climatology
    yield from _differing("climatology", known is not None, bool(names))
    if known is not None:
        sizes = tuple(1 if axis == known.axis else n for axis, n in enumerate(model.layout.sizes.values()))
        got = known.coefficients.shape
        yield from _differing("harmonics", got, (2 * HARMONICS * len(names), *sizes))
        yield from _differing("cycles", [name for name in names if name not in model.conditions.cycles], [])
        yield from _differing(
            "all numbers of the climatology finite", bool(np.isfinite(known.coefficients).all()), True
        )


def _coordinate_misfits(model: Bundle) -> Iterator[str]:
    known = model.normalisation.coordinates
    yield from _differing("coordinates", bool(known), model.recipe.normalise.coordinates == "spectral")
    if known:
        streams = [stream for stream in model.layout.streams if turned_axes(stream)]
        bases = {name: {axis: basis.shape for axis, basis in each.bases.items()} for name, each in known.items()}
        yield from _differing(
            "deviations", _shapes({n: c.deviation for n, c in known.items()}), _stream_shapes(streams)
        )
        yield from _differing("bases", bases, {stream.name: basis_shapes(stream) for stream in streams})
        yield from _differing("deviations above 0", all((c.deviation > 0).all() for c in known.values()), True)
        yield from _differing("powers from 0 to 1", all(0 <= c.beta <= 1 for c in known.values()), True)


def _stream_shapes(streams: Iterable[Stream]) -> dict[str, tuple[int, ...]]:
    return {stream.name: stream.shape for stream in streams}


def _differing(what: str, got: object, expected: object) -> Iterator[str]:
    if got != expected:
        yield f"{what}: {got}, expected {expected}"


def _shapes(arrays: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in arrays.items()}


def _given(model: Bundle) -> dict[str, tuple[int, ...]]:
    """Shape of each condition of one sample, by its stored name."""
    conditions = model.conditions
    shapes: dict[str, tuple[int, ...]] = {} if conditions.initial is None else {"initial": conditions.initial}
    shapes |= {f"field_{name}": shape for name, shape in conditions.fields.items()}
    shapes |= {f"scalar_{name}": () for name in conditions.scalars}
    points = 1 if model.time_mode is None else model.layout.sizes[model.time_mode]
    shapes |= {f"phase_{name}": (points,) for name in model.recipe.data.climatology}
    return shapes | ({"label": ()} if conditions.n_labels else {})


class Bundle:
    """A trained generative model of fields: encode, decode, sample.

    Attributes
    ----------
    recipe, layout, conditions, provenance
        What it was made from, how its primitives are laid out, what it can be conditioned on, and where it comes from.
    """

    def __init__(
        self, directory: Path, description: Mapping[str, Any], arrays: Mapping[str, Array], *, device: str = "auto"
    ) -> None:
        self.directory, self.device = directory, device
        self.recipe: Recipe = parse_recipe(completed(description["recipe"]), where=str(directory))
        self.layout = Layout.from_dict(description["layout"])
        self.conditions = ConditionLayout.from_dict(description["conditions"])
        self.template: xr.Dataset = sources.template_from_json(description["template"])
        self.label_names: list[str] = description["label_names"]
        self.condition_dims: dict[str, list[str]] = description["condition_dims"]
        self.condition_units: dict[str, str] = description.get("condition_units", {})
        self.provenance: dict[str, Any] = description["provenance"]
        self.scaling = FieldScaling.from_arrays(_part(arrays, "scaling"))
        self.anchors = _part(arrays, "anchors")
        self.normalisation = Normalisation.from_arrays(_part(arrays, "normalisation"))
        self.examples = _part(arrays, "examples")
        self.is_calibrated = CALIBRATION in description.get("files", ())
        self._measured_imposing: dict[str, Any] | None = description.get("imposing")

    @cached_property
    def imposing(self) -> Imposing | None:
        """How a given initial slice is imposed; the slice alone where no shares of others were measured."""
        initial = self.recipe.data.condition.initial
        if initial is None:
            return None
        axis, sizes = 1 + self.layout.modes.index(initial.dim), tuple(self.layout.sizes.values())
        if self._measured_imposing is None:
            return Imposing.alone(axis, initial.index, sizes)
        return Imposing.from_dict(self._measured_imposing, axis, initial.index, sizes)

    @cached_property
    def denoiser(self) -> Any:
        """The trained network, on its device."""
        require("sampling from a model", "serve")
        from diffats.generation import load_denoiser

        weights = self.directory / WEIGHTS
        return load_denoiser(
            weights, self.layout, self.conditions, self.recipe.model, self.normalisation, device=self.device
        )

    @cached_property
    def network(self) -> Any:
        """What samples are drawn with: the trained network, its output calibrated where the model has that."""
        if not self.recipe.train.calibrate:
            return self.denoiser
        from diffats.calibration import load_calibrated

        file = self.directory / CALIBRATION
        return load_calibrated(file, self.denoiser, self.layout, self.recipe, device=self.device)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{mode}={n}" for mode, n in self.layout.sizes.items())
        conditions = ", ".join(dict.fromkeys(map(public_name, self.examples))) or "none"
        return f"<diffats model {self.recipe.name!r}: samples ({sizes}), conditions: {conditions}, {self.directory}>"

    def encode(self, ds: xr.Dataset) -> xr.Dataset:
        """Aligned primitives of fields.

        Parameters
        ----------
        ds
            Dataset with the recipe's variables over its modes, and over ``sample`` or one other dim of samples.

        Returns
        -------
        xr.Dataset
            One variable per stream, and ``overlap_<mode>``, over ``sample``, with the samples' own coordinates.

        Raises
        ------
        InputError
            Where a variable is missing, a dim, size, unit or grid is another, or values are missing outside the model's
            mask. The same grid in another order (latitudes from the other end) is put in the model's order.
        """
        x, coords = self._stack(ds)
        if not np.isfinite(x if self.scaling.mask is None else np.where(self.scaling.mask, 0, x)).all():
            raise InputError("fields to encode hold NaN or infinite values outside the model's mask. Fill them first.")
        outside = outside_domain(x, self.scaling.transforms, list(self.template.data_vars))
        if outside is not None:
            raise InputError(
                f"sample {outside[0]} cannot be encoded: {outside[1]} in another recipe, or mend the fields."
            )
        times = self._times(ds, len(x))
        scaled = self.scaling.apply(x, self.phases(times))
        streams, overlaps = encode(scaled, self.anchors, self.layout, self.recipe.decompose.method)
        data: dict[str, Any] = {s.name: (("sample", *s.dims), streams[s.name]) for s in self.layout.streams}
        for mode, overlap in overlaps.items():
            data[f"overlap_{mode}"] = ("sample", overlap.min(axis=tuple(range(1, overlap.ndim))))
        dims = {dim for stream in self.layout.streams for dim in stream.dims}
        known = {str(k): c.variable for k, c in self.template.coords.items() if k in dims and c.dims == (k,)}
        return xr.Dataset(data, coords=known | coords | self.condition_variables(times))

    def decode(self, primitives: xr.Dataset) -> xr.Dataset:
        """Fields in physical units from primitives, with the coordinates of a sample and those along ``sample``."""
        streams = {}
        for stream in self.layout.streams:
            if stream.name not in primitives:
                names = ", ".join(s.name for s in self.layout.streams)
                raise InputError(f'primitives have no variable "{stream.name}". Expected {names}.')
            streams[stream.name] = primitives[stream.name].transpose("sample", *stream.dims).values
        along = {str(n): c.variable for n, c in primitives.coords.items() if c.dims == ("sample",)}
        times = self._times(primitives, len(streams["core"]))
        along |= {name: xr.Variable(*variable) for name, variable in self.condition_variables(times).items()}
        return sources.decoded_dataset(self.fields(streams, times), self.template, along)

    def _times(self, ds: xr.Dataset, k: int) -> dict[str, Array]:
        """Raw phases ``(k, points)`` of the times of samples, of which a climatology is; nothing without one."""
        out = {}
        for name in self.recipe.data.climatology:
            known = [key for key in (clock_name(name), f"condition_phase_{name}") if key in ds.variables]
            found = ds[known[0]] if known else sources.counted_times(ds, name, self.conditions.cycles[name])
            if found is None:
                raise InputError(
                    f'the model subtracts a climatology by "{name}", and this data set says no times: it has neither '
                    f'"{clock_name(name)}" nor dates "{name.rpartition(".")[0]}". Add one of them.'
                )
            mode = self.time_mode
            if mode is not None and mode in found.dims:
                windowed = mode in self.recipe.data.windows.size
                found = grids.in_order(found, mode, self.template, offsets=windowed, what=f'times "{found.name}"')
                found = found.transpose(..., mode)
            points = 1 if mode is None else self.layout.sizes[mode]
            try:
                out[f"phase_{name}"] = np.broadcast_to(found.values.reshape(-1, points), (k, points))
            except ValueError as error:
                shape = ", ".join(f"{dim}={n}" for dim, n in found.sizes.items())
                raise InputError(
                    f'times "{found.name}" have shape ({shape}), expected {k} samples of {points}.'
                ) from error
        return out

    @property
    def time_mode(self) -> str | None:
        """The mode along which the times of a climatology run; None where a sample has one time."""
        axis = None if self.scaling.climatology is None else self.scaling.climatology.axis
        return None if axis is None else self.layout.modes[axis]

    def phases(self, raw: Mapping[str, Array]) -> Array | None:
        """The phases ``(k, points, cycles)`` in raw conditions, by which the centre is a climatology; else None."""
        names = self.recipe.data.climatology
        shares = [(raw[f"phase_{n}"] - self.conditions.cycles[n][0]) / self.conditions.cycles[n][1] for n in names]
        points = 1 if self.time_mode is None else self.layout.sizes[self.time_mode]
        return np.stack([share.reshape(-1, points) for share in shares], axis=-1) if names else None

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        conditions: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        impose: bool | None = None,
        max_extrapolation: float | None = None,
        max_seconds: float | None = None,
    ) -> xr.Dataset:
        """Generate fields.

        Parameters
        ----------
        n
            How many.
        seed
            Sample ``i`` depends on ``seed`` and ``i`` only.
        conditions
            By name ("label", a scalar's or field's name, "initial"), one value for all or one per sample. A label is
            its name, or its number in ``label_names`` where names are no numbers. A phase of a time
            ("time.dayofyear") is a number, a date, or a text such as "2001-07-19". Fields are xarray objects on the
            model's grid, with dims in any order, points in any order and the model's units, and one dim more where each
            sample has its own (the initial state an ``xr.Dataset`` where it has several variables; a time dim of length
            one may stay), or NumPy arrays in tensor order. Left out: drawn from the training conditions, all of a
            sample from the same one.
        steps, guidance, sampler, impose
            As in the recipe where left out. With ``impose``, the initial slice of each sample becomes the given one,
            exactly, and what was changed there is added to the other slices, too, times the share of it that told their
            errors best on training samples; the attribute ``initial_slice`` says how much that is.
        max_extrapolation
            How far a condition may lie outside of its range in training, in widths of this range: 0 refuses whatever is
            outside. As in the recipe where left out, and where that says nothing there is only a warning. A field's
            place in the range is its root-mean-square deviation from the training mean.
        max_seconds
            Gives up after so many, before the next call of the network; never where left out.

        Returns
        -------
        xr.Dataset
            The recipe's variables over ``sample`` and its modes, in physical units, and the conditions.

        Raises
        ------
        InputError
            Where a number or a condition cannot be used; the message says what was expected.
        TimeLimitError
            Where ``max_seconds`` have passed.
        """
        deadline = None if max_seconds is None else time.monotonic() + max_seconds
        _check_request(n, seed, steps, guidance)
        if max_extrapolation is not None and not (_is_real(max_extrapolation) and max_extrapolation >= 0):
            raise InputError(
                f"max_extrapolation {_brief(max_extrapolation)} is no number of 0 or more. 0.1 is a tenth."
            )
        raw = self.condition_rows(n, seed, conditions)
        self.check_range(self.conditions.places(raw), max_extrapolation)
        streams = self.generate(
            np.arange(n), seed, raw, steps=steps, guidance=guidance, sampler=sampler, deadline=deadline
        )
        imposed = self.to_impose(raw, impose)
        fields = sources.decoded_dataset(self.fields(streams, raw, imposed), self.template)
        fields.attrs |= {} if imposed is None else {"initial_slice": self.imposing_described}
        clocks = [clock_name(name) for name in self.recipe.data.climatology]
        return fields.assign(self.condition_variables(raw)).set_coords(clocks)

    def generate(
        self,
        indices: Array,
        seed: int,
        raw: Mapping[str, Array],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        deadline: float | None = None,
    ) -> dict[str, Array]:
        """Generated streams ``{name: (k, *shape)}`` of samples ``indices`` under raw conditions, one row each."""
        require("sampling from a model", "serve")
        from diffats.diffusion import Diffusion
        from diffats.generation import generate

        settings = self.recipe.generate
        guidance = settings.guidance if guidance is None else guidance
        if self.conditions.any and guidance != 1 and self.recipe.data.condition.dropout == 0:
            raise InputError(
                f"guidance {guidance:g}: this model has never seen samples without their conditions. "
                "Use guidance 1, or train with data.condition.dropout above 0."
            )
        z = generate(
            self.network,
            self.layout,
            Diffusion(self.recipe.diffusion),
            [int(i) for i in indices],
            seed,
            cond=self.conditions.normalise(dict(raw)) if self.conditions.any else None,
            steps=settings.steps if steps is None else steps,
            sampler=settings.sampler if sampler is None else sampler,
            guidance=guidance,
            batch=settings.batch,
            device=self.device,
            deadline=deadline,
        )
        return {k: np.asarray(v) for k, v in self.normalisation.undo(self.layout.unflatten(z)).items()}

    def fields(
        self, streams: Mapping[str, Array], raw: Mapping[str, Array] | None = None, initial: Array | None = None
    ) -> Array:
        """Fields ``(k, *sizes)`` in physical units of streams, within what values can be; masked points are NaN.

        With a climatology, the ``raw`` conditions of the samples say at which times they are. ``initial`` are slices
        that are imposed on them, from ``to_impose``; none where left out.
        """
        fields = np.asarray(self.scaling.undo(decode(dict(streams), self.layout), self.phases(raw or {})))
        if initial is not None and self.imposing is not None:
            names = (
                self.scaling.transforms
            )  # corrections are added to what the model sees: sums of those have an inverse
            imposed = self.imposing.impose(transformed(fields, names), transformed(initial, names))
            fields = self.imposing.place(transformed(imposed, names, inverse=True), initial)
        return nearest_possible(fields, self.values)

    def to_impose(self, raw: Mapping[str, Array], impose: bool | None = None) -> Array | None:
        """The given initial slices ``(k, ...)`` of raw conditions where they are to be imposed, else None."""
        wanted = self.recipe.imposes if impose is None else bool(impose)
        return raw.get("initial") if wanted else None

    @property
    def imposing_described(self) -> str:
        """What imposing the initial slice does, in words; empty where there is none."""
        initial = self.recipe.data.condition.initial
        return "" if initial is None or self.imposing is None else self.imposing.described(initial.dim)

    def check_range(self, places: Mapping[str, Array], max_extrapolation: float | None = None) -> None:
        """Warn of conditions outside of the range of training, and refuse those too far outside.

        Parameters
        ----------
        places
            Of conditions, from ``conditions.places``.
        max_extrapolation
            In widths of the range; the recipe's where left out.

        Raises
        ------
        InputError
            Where one is further outside.
        """
        limit = self.recipe.generate.max_extrapolation if max_extrapolation is None else max_extrapolation
        check_range(self.conditions, places, limit)

    @property
    def values(self) -> list[Values]:
        """Which values each variable can have: within the recipe's bounds, whole numbers where the source's are."""
        bounds = self.recipe.data.bounds
        return [
            Values(*bounds.get(str(name), (-math.inf, math.inf)), variable.encoding.get("dtype"))
            for name, variable in self.template.data_vars.items()
        ]

    def condition_rows(self, n: int, seed: int, conditions: Mapping[str, Any] | None) -> dict[str, Array]:
        """Raw conditions of ``n`` samples, one row each: as given, or drawn from the training conditions."""
        given = dict(conditions or {})
        names: dict[str, list[str]] = {}
        for name in self.examples:
            names.setdefault(public_name(name), []).append(name)
        unknown = [name for name in given if name not in names]
        if unknown:
            known = ", ".join(names) or "none, it is unconditional"
            raise InputError(f'unknown condition "{unknown[0]}". The model\'s conditions: {known}.')
        complete = given.keys() >= names.keys() and not self.recipe.data.climatology
        out = {} if complete else self.drawn_conditions(np.arange(n), seed)
        for public, stored in names.items():
            for name in stored if public in given else ():
                out[name] = self._given(name, given[public], n, out.get(name))
        return {name: out[name] for name in self.examples}

    def drawn_conditions(self, indices: Array, seed: int) -> dict[str, Array]:
        """Raw training conditions for samples ``indices``; sample ``i`` depends on ``seed`` and ``i`` only."""
        if not self.examples:
            return {}
        count = len(next(iter(self.examples.values())))
        rows = [int(np.random.default_rng([seed, int(i)]).integers(count)) for i in indices]
        return {name: examples[rows] for name, examples in self.examples.items()}

    def _given(self, name: str, given: Any, n: int, drawn: Array | None = None) -> Array:
        examples, public = self.examples[name], public_name(name)
        if name.startswith("phase_"):  # of the first point; the others follow as in the training sample that was drawn
            assert drawn is not None
            first, length = self.conditions.cycles[public]
            start = self._checked(name, given, n, examples[:, 0])
            return first + (drawn - drawn[:, :1] + start[:, None] - first) % length
        return self._checked(name, given, n, examples)

    def _checked(self, name: str, given: Any, n: int, examples: Array) -> Array:
        """What was given for a condition, one row a sample, in the shape and type of its examples."""
        public = public_name(name)
        if isinstance(given, xr.DataArray | xr.Dataset) and self.condition_dims.get(name):
            given = as_array(given, self._expected(name), n)
        try:
            if public in self.conditions.cycles:
                given = sources.counted(given, public, self.conditions.cycles[public])
            value: Array = self._codes(given) if name == "label" else np.asarray(given, examples.dtype, "C")
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f'condition "{public}" is no number or array of numbers: {error}.') from error
        shape = (n, *examples.shape[1:])
        if value.shape in (examples.shape[1:], (1, *examples.shape[1:])):
            value = np.broadcast_to(value, shape)
        if value.shape != shape:
            raise InputError(f'condition "{public}" has shape {value.shape}, expected {shape} or {shape[1:]}.')
        return known_points(public, value, examples) if value.dtype.kind == "f" else value

    def _expected(self, name: str) -> Expected:
        """What a condition must be like that comes as an xarray object."""
        dims, shape = self.condition_dims[name], self.examples[name].shape[1:]
        sizes = {dim: size for dim, size in zip(dims, shape, strict=True) if dim != "component"}
        windowed, initial = frozenset(self.recipe.data.windows.size), self.recipe.data.condition.initial
        if name != "initial" or initial is None:
            units: dict[str, object] = {public_name(name): self.condition_units.get(name)}
            return Expected(public_name(name), sizes, units, self.template, windowed)
        units = {str(variable): each.attrs.get("units") for variable, each in self.template.data_vars.items()}
        return Expected("initial", sizes, units, self.template, windowed, gone=initial.dim)

    def _codes(self, given: Any) -> Array:
        """Class numbers of labels given by name or number."""
        codes: dict[str, int] = {name: code for code, name in enumerate(self.label_names)}
        by_number = {} if any(_is_number(name) for name in codes) else {str(c): c for c in codes.values()}
        found = []
        for label in np.asarray(given, dtype=object).ravel():
            text = f"{label:g}" if isinstance(label, float | np.floating) else str(label)
            code = codes.get(text, by_number.get(text))
            if code is None:
                raise InputError(f'label "{text[:80]}" is unknown. Known: {", ".join(self.label_names)}.')
            found.append(code)
        return np.asarray(found, dtype=np.int64).reshape(np.shape(given))

    def condition_variables(self, raw: Mapping[str, Array]) -> dict[str, Any]:
        """Conditions as variables of a dataset of samples; labels by name."""
        out: dict[str, Any] = {}
        for name, value in raw.items():
            public = public_name(name)
            if name == "label":
                value = np.asarray(self.label_names, dtype=object)[value]
            if name.startswith("phase_"):
                mode = self.time_mode
                text = {"long_name": f"{public} of the climatology"}
                one = value[:, 0] if mode is None and value.ndim > 1 else value
                out[clock_name(public)] = (("sample",) if mode is None else ("sample", mode), one, text)
                continue
            out[f"condition_{public}"] = (("sample", *self._dims(name, value.shape[1:])), value)
        return out

    def _dims(self, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Dims of a condition; names of its own where a sample has a dim of the same name and another size."""
        sizes = {**{str(dim): n for dim, n in self.template.sizes.items()}, **self.layout.sizes}
        dims = tuple(self.condition_dims.get(name, ()))
        if len(dims) == len(shape) and all(sizes.get(dim, n) == n for dim, n in zip(dims, shape, strict=True)):
            return dims
        return tuple(f"{public_name(name)}_{axis}" for axis in range(len(shape)))

    def _stack(self, ds: xr.Dataset) -> tuple[Array, dict[str, xr.Variable]]:
        """Samples ``(k, *sizes)`` of a dataset, and the coordinates along their dim."""
        names, coords = [str(name) for name in self.template.data_vars], {}
        if not isinstance(ds, xr.Dataset):
            raise InputError(f"expected an xarray.Dataset with {', '.join(names)}, got {type(ds).__name__}.")
        arrays = []
        for name in names:
            if name not in ds:
                raise InputError(f'dataset has no variable "{name}". Expected {", ".join(names)}.')
            grids.check_units(ds[name], self.template[name].attrs.get("units"), what=f'variable "{name}"')
            array = self._samples_first(ds[name])
            for mode in self.recipe.data.modes:
                array = grids.in_order(
                    array,
                    mode,
                    self.template,
                    offsets=mode in self.recipe.data.windows.size,
                    what=f'variable "{name}"',
                )
            coords = {str(n): c.variable for n, c in array.coords.items() if c.dims == ("sample",)}
            arrays.append(array.values)
        if len({array.shape for array in arrays}) > 1:
            raise InputError(f"variables {', '.join(names)} have shapes {[array.shape for array in arrays]}, not one.")
        x = np.stack(arrays, axis=1) if len(arrays) > 1 else arrays[0]
        if x.shape[1:] != tuple(self.layout.sizes.values()):
            raise InputError(f"samples have sizes {x.shape[1:]}, the model was made for {dict(self.layout.sizes)}.")
        return np.asarray(x, dtype=np.result_type(x.dtype, np.float32)), coords

    def _samples_first(self, array: xr.DataArray) -> xr.DataArray:
        """A variable over ``sample`` and the modes; other dims of size one are left out."""
        modes = self.recipe.data.modes
        extra = [dim for dim in array.dims if dim not in modes]
        known = [dim for dim in ("sample", self.recipe.data.sample_dim) if dim in extra]
        long = [dim for dim in extra if array.sizes[dim] > 1]
        over = (known or long or extra)[:1]
        if set(modes) - set(array.dims) or set(long) - set(over):
            raise InputError(
                f'variable "{array.name}" has dims {array.dims}, expected {", ".join(modes)} and one dim of samples.'
            )
        array = array.isel({dim: 0 for dim in extra if dim not in over}, drop=True)
        if not over:
            array = array.expand_dims("sample")
        elif over != ["sample"]:
            named = array.drop_vars("sample", errors="ignore").to_dataset(name="fields")
            array = named.rename_dims({over[0]: "sample"})["fields"]  # its coordinate keeps its name
        return array.transpose("sample", *modes)


def finite_rows(streams: Mapping[str, Array]) -> npt.NDArray[np.bool_]:
    """Which samples ``(k,)`` are finite in every stream."""
    rows = [np.isfinite(value).all(axis=tuple(range(1, value.ndim))) for value in streams.values()]
    return np.asarray(np.all(rows, axis=0))


def _check_request(n: object, seed: object, steps: object, guidance: Any) -> None:
    if not _is_whole(n) or not 1 <= n <= MAX_SAMPLES:
        raise InputError(f"cannot generate {_brief(n)} samples at once. Ask for 1 to {MAX_SAMPLES}.")
    if not _is_whole(seed) or not 0 <= seed < MAX_SEED:
        raise InputError(f"seed {_brief(seed)} is no whole number from 0 to {MAX_SEED - 1}. Use another one.")
    if steps is not None and not _is_whole(steps):
        raise InputError(f"steps {_brief(steps)} is no whole number. Use 1 or more.")
    if guidance is not None and not (_is_real(guidance) and 0 <= guidance <= MAX_GUIDANCE):
        raise InputError(f"guidance {_brief(guidance)} is no number from 0 to {MAX_GUIDANCE}. 1 is none.")


def _brief(value: object) -> str:
    return str(value)[:40] if not isinstance(value, int) or abs(value) < 10**40 else "of more than 40 digits"


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def public_name(name: str) -> str:
    """The name a user gives to a stored condition.

    >>> public_name("scalar_nu"), public_name("label")
    ('nu', 'label')
    """
    return name.removeprefix("scalar_").removeprefix("field_").removeprefix("phase_")


def clock_name(name: str) -> str:
    """The coordinate along samples that says of which phase their climatology is.

    >>> clock_name("time.dayofyear")
    'time_dayofyear'
    """
    return name.replace(".", "_")


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(prefix + ".")}
