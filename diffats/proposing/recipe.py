"""The recipe that suits a source, put together from what its metadata and some samples show."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xarray as xr

from diffats.config import Recipe, parse_recipe
from diffats.errors import InputError
from diffats.primitives import Layout
from diffats.proposing.conditions import Beside, find_beside
from diffats.proposing.dims import meaning_of, seasons
from diffats.proposing.draft import Draft
from diffats.proposing.fields import Fields, find_fields, listed_others
from diffats.proposing.opened import Opened, open_unknown
from diffats.proposing.ranks import OVERLAP, Choice, choose
from diffats.proposing.samples import Sampling, choose_samples
from diffats.proposing.values import Seen, look_at
from diffats.sources.gaps import repeated_extremes, repeated_in_words
from diffats.stages import Workspace, decompose, plan
from diffats.stages.plan import size as bytes_in_words

log = logging.getLogger("diffats.init")

_SAMPLES = 64  # that are read
_TOKENS, _PATCH_TOKENS = 16, 64  # of a core, and of one whose tokens are patches
_EPOCHS, _EPOCHS_GIVEN = 100, 50  # passes over the training samples; and where fields are given, which teach more
_STEPS = (300, 3000)
_HIGH_ERROR = 0.3
_YEARS = 2.0  # from which on a season can be told from a year
_LOW_OVERLAP = 0.2  # below which a draft says so
_SHORT_MODE = 4  # the network makes no tokens along a mode as short as this


@dataclass(frozen=True)
class Proposal:
    """A recipe, and why it is as it is.

    Attributes
    ----------
    recipe
        As it was checked.
    text
        TOML with comments.
    guesses
        By key: ``key``, ``value`` and ``why``.
    counts
        In words: how many samples, and of which sizes.
    """

    recipe: Recipe
    text: str
    guesses: list[dict[str, Any]]
    counts: str


def propose(source: str, given: Mapping[str, Any]) -> Proposal:
    """Look at a source, and put together a recipe for it.

    Parameters
    ----------
    source
        As for ``data.source``.
    given
        Keys of the recipe as nested mappings, which are taken as they are.

    Raises
    ------
    InputError
        Where the source cannot be opened, holds no fields or no samples, or what is given does not fit.
    """
    draft = _begin(source, given)
    data = dict(given.get("data") or {})
    opened = open_unknown(source, data)
    fields = find_fields(opened.dataset, source, list(data.get("variables") or []))
    sampling = choose_samples(opened.dataset, fields.sizes, data, beside=len(fields.names))
    beside = find_beside(opened.dataset, fields.names, sampling)
    _put_data(draft, opened, fields, sampling)
    _put_beside(draft, beside, fields, sampling)
    seen = _read(draft, opened.dataset)
    _put_values(draft, seen)
    choice = _choose_ranks(draft, seen)
    _put_training(draft, choice)
    return _checked(draft, source)


def write(proposal: Proposal, path: str | Path) -> None:
    """Write a recipe to a new file.

    Raises
    ------
    InputError
        Where there is a file of this name already, or none can be made.
    """
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(proposal.text)
    except FileExistsError as error:
        raise exists(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Give another file with -o.") from error


def exists(path: str | Path) -> InputError:
    """The error for a recipe that is there already."""
    return InputError(f"{path} exists, and init overwrites nothing. Give another file with -o, or take it away.")


def name_of(source: str) -> str:
    """A name for a recipe, from its source.

    >>> [name_of(s) for s in ("runs/data/waves.zarr", "ocean/*.nc", "s3://bucket/t2m_2000.nc", "builtin:pines", "???")]
    ['waves', 'ocean', 't2m_2000', 'pines', 'data']
    """
    plain = re.split(r"[?#](?=\w+=)", source.removeprefix("builtin:").partition("://")[2] or source)[0]
    for part in reversed(PurePosixPath(plain.removeprefix("builtin:")).parts):
        stem = re.sub(r"\.(nc4?|zarr|h5|hdf5?|npy|npz|icechunk|grib2?|png|jpe?g|tiff?)$", "", part, flags=re.IGNORECASE)
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split(r"[*?\[]", stem)[0]).strip("-._")
        if words and re.match(r"[A-Za-z0-9]", words):
            return words[:100]
    return "data"


def _begin(source: str, given: Mapping[str, Any]) -> Draft:
    draft = Draft()
    draft.put("name", str(given.get("name") or name_of(source)))
    for key in ("seed", "root", "store"):
        if key in given:
            draft.put(key, given[key], "as given")
    draft.put("data.source", source)
    _put_given(draft, {key: value for key, value in given.items() if isinstance(value, Mapping)}, "")
    return draft


def _put_given(draft: Draft, tree: Mapping[str, Any], prefix: str) -> None:
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted in (
            "data.windows",
            "data.split",
            "data.condition",
            *Recipe.model_fields,
        ):
            _put_given(draft, value, f"{dotted}.")
        else:
            draft.put(dotted, value, "as given")


# --- metadata -----------------------------------------------------------------------------------------------------


def _put_data(draft: Draft, opened: Opened, fields: Fields, sampling: Sampling) -> None:
    how = dict(opened.how)
    if opened.along == "sample" and sampling.sample_dim != "sample":
        how["concat_dim"] = "sample"
    for key, value in how.items():
        draft.put(f"data.{key}", value, opened.notes.get(key, ""))
    array = opened.dataset[fields.names[0]]
    modes = sampling.modes
    if "modes" in opened.notes:  # arrays: every axis has to be named
        modes = tuple(str(dim) for dim in array.dims if dim != sampling.sample_dim)
    together = "put together along a first mode, component" if len(fields.names) > 1 else ""
    draft.put("data.variables", list(fields.names), together or "the only field" if not fields.others else together)
    if opened.beside:
        draft.say("data", opened.beside)
    draft.put("data.modes", list(modes), opened.notes.get("modes", "the dims of one sample, in order"))
    if sampling.sample_dim:
        draft.put("data.sample_dim", sampling.sample_dim, sampling.notes.get("sample_dim", ""))
    grown = sampling.sample_dim or next(iter(sampling.size), None)
    if opened.files > 1 and opened.along == grown and meaning_of(opened.dataset, grown) == "time":
        note = f"{opened.files} files along {grown}: when more come, only these are encoded"
        draft.put("data.grows", True, note)
    _say_seasons(draft, opened.dataset, grown)
    if sampling.size:
        draft.put("data.windows.size", sampling.size)
        if sampling.stride:
            draft.put("data.windows.stride", sampling.stride)
        draft.note("data.windows", sampling.notes.get("windows", ""))


def _say_seasons(draft: Draft, dataset: xr.Dataset, time: str | None) -> None:
    """How the season can be taken out, and told to the model, where there are years of it."""
    years = seasons(dataset, time) if time is not None else 0.0
    if years < _YEARS or "center" in draft.get("data"):
        return
    phase = f"{time}.dayofyear"
    draft.say(
        "data",
        f'There are {years:.1f} years. center = {{ by = "{phase}" }} subtracts the season instead of one mean, and '
        f'condition.scalars = ["{phase}"] tells the model which it is.',
    )


def _put_beside(draft: Draft, beside: Beside, fields: Fields, sampling: Sampling) -> None:
    split = beside.split or sampling.split
    note = beside.notes.get("split") or sampling.notes.get("split", "")
    if not {"by", "coordinate", "values"}.intersection(draft.get("data.split") or {}):
        if draft.get("data.grows") and "gap" in split:  # a later block would take known samples away
            split, note = {key: value for key, value in split.items() if key != "gap"}, note.partition(", and one")[0]
        for key, value in split.items():
            draft.put(f"data.split.{key}", value)
        draft.note("data.split", note)
    for key in ("initial", "labels", "scalars"):
        value = getattr(beside, key)
        if value:
            draft.put(f"data.condition.{key}", value, beside.notes.get(key, ""))
    used = {beside.labels, *beside.scalars, split.get("coordinate")}
    others = {name: what for name, what in fields.others.items() if name not in used}
    if others:
        draft.say("data", f"Not taken as fields: {listed_others(others)}.")
    for key, names in beside.unused.items():
        section = "data.condition" if draft.get("data.condition") else "data"
        draft.say(section, f"Could also be given, as condition.{key}: {', '.join(names)}.")


# --- values -------------------------------------------------------------------------------------------------------


def _read(draft: Draft, dataset: xr.Dataset) -> Seen:
    """Some training samples, and what they show."""
    work = Workspace(_provisional(draft))
    indices = decompose.training_choice(work, _SAMPLES)
    log.info(
        "reading %d of %d samples, %s",
        len(indices),
        work.samples.n,
        bytes_in_words(len(indices) * work.samples.bytes_per_sample),
    )
    initial = draft.get("data.condition.initial") or {}
    fixed = [initial["dim"]] if "dim" in initial else []
    windowed, fields = list(draft.get("data.windows.size") or ()), work.samples.variables
    x = work.samples.read(indices)
    for text in repeated_in_words(repeated_extremes(x, fields), x.size // len(fields)):
        log.warning(text)
        draft.say("data", f"{text}.")
    return look_at(x, work.samples.sizes, dataset, windowed=windowed, fixed=fixed, names=fields)


def _provisional(draft: Draft) -> Recipe:
    """A recipe with these data and any decomposition."""
    data = draft.tree["data"]
    kept = {key: value for key, value in draft.tree.items() if not isinstance(value, Mapping)}
    some: dict[str, Any] = {"decompose": {"tolerance": 0.5}}
    if len(data["modes"]) + (len(data["variables"]) > 1) < 2:
        some = {"primitive": {"kind": "mgp", "patch": {data["modes"][0]: 1}, "rank": 1}}
    return parse_recipe({**kept, "data": data, **some})


def _put_values(draft: Draft, seen: Seen) -> None:
    if seen.mask is not None:
        draft.put("data.missing", "mask", seen.notes["missing"])
    draft.put("data.center", seen.center, seen.notes.get("center", ""))
    if seen.bad:
        share = min(0.9, math.ceil(200 * seen.bad + 1) / 100)
        note = f"{seen.bad:.0%} of the samples that were read are missing, infinite or zero throughout: left out"
        draft.put("data.max_failed", share, note)
    if seen.shift:
        draft.put("train.shift", list(seen.shift), seen.notes["shift"])
    elif "shift" in seen.notes:
        draft.say("train", f"{seen.notes['shift']}.")


# --- ranks and training -------------------------------------------------------------------------------------------


def _choose_ranks(draft: Draft, seen: Seen) -> Layout | None:
    """Put the ranks into the draft; those that are given stay."""
    if draft.get("decompose") or draft.get("primitive"):
        return None
    work = Workspace(_provisional(draft))
    phases = work.samples.climatology_phases(decompose.training_choice(work, _SAMPLES)[seen.usable])
    moments = decompose.no_moments(work.samples)
    moments.add(seen.x, phases)
    scaling, training_mean = decompose.fitted_scaling(work, moments)
    fields = np.asarray(scaling.apply(seen.x, phases), dtype=seen.x.dtype)
    anomalies = decompose.deviations(fields, phases, scaling, training_mean)
    fields, anomalies = (_shifted(each, seen.shift, work.samples.sizes) for each in (fields, anomalies))
    choice = choose(fields, anomalies, work.samples.sizes, keep=_kept(draft, work.samples.sizes))
    if choice is None:
        sizes = ", ".join(f"{mode} {n}" for mode, n in work.samples.sizes.items())
        raise InputError(f"samples of {sizes} are too small to be compressed. Use longer windows, or more modes.")
    _put_layout(draft, choice)
    return choice.layout


def _kept(draft: Draft, sizes: Mapping[str, int]) -> list[str]:
    """Modes of which one stays whole: of a forecast a place, where the given slice can be put in; else any long one."""
    long = [mode for mode, n in sizes.items() if n > _SHORT_MODE and mode != "component"]
    initial = draft.get("data.condition.initial")
    if initial:
        return [mode for mode in long if mode != initial["dim"]]
    return long if len(long) > 2 else []


def _shifted(x: Any, modes: tuple[str, ...], sizes: Mapping[str, int]) -> Any:
    """Samples at random shifts, as they are trained on; equal ones at every call."""
    rng, axes = np.random.default_rng(0), [list(sizes).index(mode) for mode in modes]
    if not axes:
        return x
    return np.stack([np.roll(each, [int(rng.integers(each.shape[axis])) for axis in axes], axes) for each in x])


def _put_layout(draft: Draft, choice: Choice) -> None:
    layout = choice.layout
    fewer = f"{layout.compression:.0f}" if layout.compression >= 10 else f"{layout.compression:.1f}"
    note = (
        f"{fewer}x fewer numbers, anomaly error about {choice.error:.2f}, median smallest overlap with the anchor "
        f"{choice.overlap:.2f}"
    )
    if layout.kind == "mgp":
        draft.put("primitive.kind", "mgp")
        draft.put("primitive.patch", dict(layout.patch))
        draft.put("primitive.rank", layout.ranks["pixel"])
        draft.note("primitive", note)
    else:
        kept = [mode for mode in layout.modes if mode not in layout.aligned]
        stay = f"; {', '.join(kept)} stay{'s' if len(kept) == 1 else ''} whole in the core" if kept else ""
        draft.put("decompose.ranks", dict(layout.ranks), note + stay)
    section = "primitive" if layout.kind == "mgp" else "decompose"
    if choice.error > _HIGH_ERROR:
        draft.say(section, f"The anomaly error of {choice.error:.0%} is high: these samples are hardly compressible.")
    if choice.overlap < OVERLAP:
        draft.say(section, "The overlap is small: samples of these data have little in common for factors to align to.")
    elif choice.overlap < _LOW_OVERLAP:
        draft.say(section, "The overlap is low. If generated samples look blotched, lower ranks are worth a try.")


def _put_training(draft: Draft, layout: Layout | None) -> None:
    patch = 1 if layout is None else core_patch(layout)
    if patch > 1:
        draft.put("model.core_patch", patch, "neighbouring slices of the core in one token")
    recipe = _recipe(draft)
    samples = Workspace(recipe).samples
    train = int((~samples.is_test).sum())
    given = recipe.makes_forecasts
    wanted = (_EPOCHS_GIVEN if given else _EPOCHS) * train / recipe.train.batch
    steps = int(min(max(math.ceil(wanted / 100) * 100, _STEPS[0]), _STEPS[1]))
    passes = steps * recipe.train.batch / train
    shown = f"{passes:.0f} passes" if passes >= 2 else f"{passes:.1f} of a pass"
    draft.put(
        "train.steps", steps, f"about {shown} over the {train} training samples; more steps continue the training"
    )
    if not given:
        draft.put(
            "train.weighting",
            "stream",
            "every stream of numbers counts alike: as good or better where no field is given",
        )


def core_patch(layout: Layout) -> int:
    """Slices of the core in one token, so that it has about 16 tokens; or 64 of patches, which fit best one by one.

    >>> core_patch(Layout("tgp", ("time", "y"), {"time": 50, "y": 64}, {"time": 5}, ("time",)))
    4
    """
    if layout.kind == "mgp":
        return math.ceil(layout.working_sizes["patch"] / _PATCH_TOKENS)
    kept = [mode for mode in layout.modes if mode not in layout.aligned]
    last = layout.sizes[kept[-1]] if kept else max(layout.ranks.values())
    return math.ceil(last / _TOKENS)


# --- the end ------------------------------------------------------------------------------------------------------


def _recipe(draft: Draft) -> Recipe:
    return parse_recipe(draft.tree)


def _checked(draft: Draft, source: str) -> Proposal:
    """The recipe, if `diffats plan` takes it."""
    order = list(Recipe.model_fields)
    draft.tree = dict(sorted(draft.tree.items(), key=lambda item: order.index(item[0])))
    recipe = _recipe(draft)
    made = plan.plan(Workspace(recipe))
    for caution in made["cautions"]:
        draft.say("data.split", caution)
    dropped = f", {made['dropped']} between these left out" if made["dropped"] else ""
    sizes = ", ".join(f"{mode} {n}" for mode, n in made["sizes"].items())
    counts = f"{made['samples']} samples of {sizes}: {made['train']} to train on, {made['test']} to test{dropped}"
    head = [
        f"Written by `diffats init {source}`. {counts}.",
        "Each comment says why; change what does not suit. `diffats config --schema` explains every option.",
    ]
    return Proposal(recipe, draft.to_toml(head), draft.guesses(), counts)
