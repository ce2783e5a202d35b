"""A model that travels: a directory of ``bundle.json`` and safetensors files, usable without any store or server.

It holds the denoiser's averaged weights, the anchors, the normalisation, the training mean and scale of the fields,
the coordinates of a sample, and some training conditions to draw from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from safetensors.numpy import load_file, save_file

from diffats import sources
from diffats.config import Recipe, parse_recipe
from diffats.errors import InputError, IntegrityError, StoreNotFoundError
from diffats.primitives import ConditionLayout, FieldScaling, Layout, Normalisation, decode, encode, retract

FORMAT = 1
MAX_SAMPLES = 100_000
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
) -> Path:
    """Write a bundle; it appears at ``destination`` whole or not at all.

    Parameters
    ----------
    examples
        Raw training conditions, one row each, from which unconditioned calls of :meth:`Bundle.sample` draw.
    weights
        The safetensors file of the denoiser's averaged weights.
    """
    partial = destination.with_name(destination.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copyfile(weights, partial / "weights.safetensors")
    arrays = {f"scaling.{name}": value for name, value in scaling.to_arrays().items()}
    arrays |= {f"anchors.{mode}": anchor for mode, anchor in anchors.items()}
    arrays |= {f"normalisation.{name}": value for name, value in normalisation.to_arrays().items()}
    arrays |= {f"examples.{name}": value for name, value in examples.items()}
    save_file({name: np.array(value, order="C") for name, value in arrays.items()}, partial / "arrays.safetensors")
    description = {
        "format": FORMAT,
        "recipe": dict(recipe),
        "layout": layout.to_dict(),
        "conditions": conditions.to_dict(),
        "template": template,
        "label_names": label_names,
        "provenance": dict(provenance),
    }
    (partial / "bundle.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(partial, destination)
    return destination


def load(path: str | Path) -> Bundle:
    """Open a bundle, or the newest one under a recipe's root.

    Raises
    ------
    StoreNotFoundError
        Where there is no bundle.
    IntegrityError
        Where it is not of a format that this version reads.
    """
    path = Path(path)
    directory = path
    if not (path / "bundle.json").is_file():
        found = sorted(path.glob("bundles/*/bundle.json"), key=lambda file: file.stat().st_mtime_ns)
        if not found:
            raise StoreNotFoundError(f"{path}: no trained model here. Train one with `diffats train RECIPE.toml`.")
        directory = found[-1].parent
    description = json.loads((directory / "bundle.json").read_text(encoding="utf-8"))
    if description.get("format") != FORMAT:
        raise IntegrityError(
            f"{directory}: bundle of format {description.get('format')}, this version reads {FORMAT}. "
            "Load it with the version that wrote it."
        )
    return Bundle(directory, description)


class Bundle:
    """A trained generative model of fields: encode, decode, sample.

    Attributes
    ----------
    recipe, layout, conditions, provenance
        What it was made from, how its primitives are laid out, what it can be conditioned on, and where it comes from.
    """

    def __init__(self, directory: Path, description: Mapping[str, Any]) -> None:
        self.directory = directory
        self.recipe: Recipe = parse_recipe(description["recipe"], where=str(directory))
        self.layout = Layout.from_dict(description["layout"])
        self.conditions = ConditionLayout.from_dict(description["conditions"])
        self.template: xr.Dataset = sources.template_from_json(description["template"])
        self.label_names: list[str] = description["label_names"]
        self.provenance: dict[str, Any] = description["provenance"]
        arrays = load_file(directory / "arrays.safetensors")
        self.scaling = FieldScaling.from_arrays(_part(arrays, "scaling"))
        self.anchors = _part(arrays, "anchors")
        self.normalisation = Normalisation.from_arrays(_part(arrays, "normalisation"))
        self.examples = _part(arrays, "examples")

    @cached_property
    def denoiser(self) -> Any:
        """The trained network, on the best device here."""
        from diffats.generation import load_denoiser

        weights = self.directory / "weights.safetensors"
        return load_denoiser(weights, self.layout, self.conditions, self.recipe.model)

    def encode(self, ds: xr.Dataset) -> xr.Dataset:
        """Aligned primitives of fields.

        Parameters
        ----------
        ds
            Dataset with the recipe's variables over its modes, and over ``sample`` or one other dim of samples.

        Returns
        -------
        xr.Dataset
            One variable per stream, and ``overlap_<mode>``, over ``sample``.
        """
        x = self._stack(ds)
        streams, overlaps = encode(self.scaling.apply(x), self.anchors, self.layout, self.recipe.decompose.method)
        data: dict[str, Any] = {s.name: (("sample", *s.dims), streams[s.name]) for s in self.layout.streams}
        for mode, overlap in overlaps.items():
            smallest = overlap.reshape(len(x), -1).min(axis=1)
            data[f"overlap_{mode}"] = ("sample", smallest)
        return xr.Dataset(data)

    def decode(self, primitives: xr.Dataset) -> xr.Dataset:
        """Fields in physical units, with the coordinates of a sample, from primitives."""
        streams = {}
        for stream in self.layout.streams:
            if stream.name not in primitives:
                names = ", ".join(s.name for s in self.layout.streams)
                raise InputError(f'primitives have no variable "{stream.name}". Expected {names}.')
            streams[stream.name] = primitives[stream.name].transpose("sample", *stream.dims).values
        return self._fields(streams)

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        conditions: Mapping[str, Any] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
    ) -> xr.Dataset:
        """Generate fields.

        Parameters
        ----------
        n
            How many.
        seed
            Sample ``i`` depends on ``seed`` and ``i`` only.
        conditions
            By name ("label", a scalar's or field's name, "initial"), one value for all or one per sample. A label may
            be its name or its code. Left out: drawn from the training conditions.
        steps, guidance, sampler
            As in the recipe where left out.

        Returns
        -------
        xr.Dataset
            The recipe's variables over ``sample`` and its modes, in physical units, and the conditions.
        """
        if not 1 <= n <= MAX_SAMPLES:
            raise InputError(f"cannot generate {n} samples at once. Ask for 1 to {MAX_SAMPLES}.")
        raw = self.condition_rows(n, seed, conditions)
        streams = self.generate(np.arange(n), seed, raw, steps=steps, guidance=guidance, sampler=sampler)
        return self._fields(streams).assign(self.condition_variables(raw))

    def generate(
        self,
        indices: Array,
        seed: int,
        raw: Mapping[str, Array],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
    ) -> dict[str, Array]:
        """Generated streams ``{name: (k, *shape)}`` of samples ``indices`` under raw conditions, one row each."""
        from diffats.diffusion import Diffusion
        from diffats.generation import generate

        settings = self.recipe.generate
        z = generate(
            self.denoiser,
            self.layout,
            Diffusion(self.recipe.diffusion),
            [int(i) for i in indices],
            seed,
            cond=self.conditions.normalise(dict(raw)) if raw else None,
            steps=steps or settings.steps,
            sampler=sampler or settings.sampler,
            guidance=settings.guidance if guidance is None else guidance,
            batch=settings.batch,
        )
        streams = {k: np.asarray(v) for k, v in self.normalisation.undo(self.layout.unflatten(z)).items()}
        return retract(streams, self.layout) if settings.retract else streams

    def fields(self, streams: Mapping[str, Array]) -> Array:
        """Fields ``(k, *sizes)`` in physical units of streams; masked points are NaN."""
        return np.asarray(self.scaling.undo(decode(dict(streams), self.layout)))

    def condition_rows(self, n: int, seed: int, conditions: Mapping[str, Any] | None) -> dict[str, Array]:
        """Raw conditions of ``n`` samples, one row each: as given, or drawn from the training conditions."""
        given = dict(conditions or {})
        count = len(next(iter(self.examples.values()))) if self.examples else 0
        rows = [int(np.random.default_rng([seed, i]).integers(count)) for i in range(n)] if count else []
        out = {}
        for name, examples in self.examples.items():
            public = public_name(name)
            out[name] = self._given(name, given.pop(public), examples, n) if public in given else examples[rows]
        if given:
            names = ", ".join(public_name(name) for name in self.examples) or "none, it is unconditional"
            raise InputError(f'unknown condition "{next(iter(given))}". The model\'s conditions: {names}.')
        return out

    def _given(self, name: str, given: Any, examples: Array, n: int) -> Array:
        if name == "label":
            codes = {text: code for code, text in enumerate(self.label_names)}
            given = np.asarray([codes.get(v, v) for v in np.atleast_1d(np.asarray(given, dtype=object))])
            wrong = [v for v in given.ravel() if not isinstance(v, int | np.integer) or not 0 <= v < len(codes)]
            if wrong:
                raise InputError(f'label "{wrong[0]}" is unknown. Known: {", ".join(self.label_names)}.')
        value: Array = np.asarray(given, dtype=examples.dtype)
        shape = (n, *examples.shape[1:])
        if value.shape == (1, *examples.shape[1:]) or value.shape == examples.shape[1:]:
            value = np.broadcast_to(value, shape)
        if value.shape != shape:
            raise InputError(f'condition "{public_name(name)}" has shape {value.shape}, expected {shape}.')
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f'condition "{public_name(name)}" holds NaN or infinite values. Give finite numbers.')
        return value

    def condition_variables(self, raw: Mapping[str, Array]) -> dict[str, Any]:
        """Conditions as variables of a dataset of samples; labels by name."""
        out: dict[str, Any] = {}
        for name, value in raw.items():
            dims = ("sample", *(f"{public_name(name)}_{axis}" for axis in range(value.ndim - 1)))
            public = public_name(name)
            if name == "label":
                value = np.asarray(self.label_names, dtype=object)[value]
            out[f"condition_{public}"] = (dims, value)
        return out

    def _stack(self, ds: xr.Dataset) -> Array:
        modes = list(self.recipe.data.modes)
        arrays = []
        for name in self.template.data_vars:
            if name not in ds:
                raise InputError(f'dataset has no variable "{name}". Expected {", ".join(map(str, self.template.data_vars))}.')
            array = ds[name]
            extra = [dim for dim in array.dims if dim not in modes]
            if len(extra) > 1 or len(array.dims) - len(extra) < len(modes):
                raise InputError(f'variable "{name}" has dims {array.dims}, expected one of samples and {modes}.')
            array = array if extra else array.expand_dims("sample")
            arrays.append(array.transpose(*(extra or ["sample"]), *modes).values)
        x = np.stack(arrays, axis=1) if "component" in self.recipe.tensor_modes else arrays[0]
        expected = tuple(self.layout.sizes.values())
        if x.shape[1:] != expected:
            raise InputError(f"samples have sizes {x.shape[1:]}, the model was made for {dict(self.layout.sizes)}.")
        return np.asarray(x, dtype=np.result_type(x.dtype, np.float32))

    def _fields(self, streams: Mapping[str, Array]) -> xr.Dataset:
        return sources.decoded_dataset(self.fields(streams), self.template)


def public_name(name: str) -> str:
    """The name a user gives to a stored condition.

    >>> public_name("scalar_nu"), public_name("label")
    ('nu', 'label')
    """
    return name.removeprefix("scalar_").removeprefix("field_")


def _part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(prefix + ".")}
