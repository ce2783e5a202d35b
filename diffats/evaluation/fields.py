"""What is compared: sets of fields, in units in which they can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffats import metrics
from diffats.errors import InputError
from diffats.evaluation.row import Array

_FOLDS, LEAST_FOLDS = 10, 3  # of the jackknife
_BLOCK_BYTES = 2**24  # of the float64 copies made at a time


@dataclass(frozen=True)
class Fields:
    """What an evaluation compares. Samples are in physical units; masked points are NaN in all of them.

    Attributes
    ----------
    modes
        The samples' modes in tensor order, ``"component"`` first where there are several variables.
    train, test, generated, gaussian
        ``(k, n_1, .., n_N)`` each, the same k. ``gaussian`` is decoded from `gaussian_pca` and may be left out.
    mean, scale
        The training mean and scale, broadcastable to a sample. Distances are between ``(x - mean) / scale``.
    reconstruction
        ``(k, n_1, .., n_N)``: ``test`` after encoding and decoding, for the codec's floor.
    z_train, z_test, z_generated, z_gaussian
        ``(n, D)``, ``(k, D)``, ..: normalised primitives, all training samples if possible, for the search of nearest
        training samples. Fields are used where these are left out.
    n_train
        How many training samples there are; the table says so where fewer are searched.
    ensemble
        ``(cases, members, n_1, .., n_N)``: generated under the conditions of the ``truth``.
    truth
        ``(cases, n_1, .., n_N)``: test samples.
    persistence
        ``(cases, n_1, .., n_N)``: the initial slice repeated.
    truth_reconstruction
        ``(cases, n_1, .., n_N)``: ``truth`` after encoding and decoding.
    residual
        Of the equation that the data solve: ``(cases, n_1, .., n_N)`` to ``(cases,)``, with the parameters of each
        case; see `diffats.simulate.residuals`.
    seed
        Of the random directions, and of the training samples for which the nearest others are searched.
    as_sets
        Whether generated samples are a draw of their own, to be compared with the test samples as a set. Forecasts are
        not: they are drawn under the very conditions of the test samples.
    groups, case_groups
        ``(k,)`` and ``(cases,)``: numbers of groups of test samples, and of those of the ``truth``, that may depend on
        each other (windows of one run, say). Left out, each is a group.
    strata
        ``(k,)`` each, of ``"train"``, ``"test"`` and ``"generated"``: which condition a sample belongs to (the number
        of its class, say), where samples are to be compared within conditions, too.
    condition_names
        Names of these conditions, by their numbers.
    gaussian_within
        ``(k, n_1, .., n_N)``: decoded draws of `gaussian_pca` with ``strata``, for those of the generated samples.
    """

    modes: tuple[str, ...]
    train: Array
    test: Array
    generated: Array
    mean: Array
    scale: Array
    gaussian: Array | None = None
    reconstruction: Array | None = None
    z_train: Array | None = None
    z_test: Array | None = None
    z_generated: Array | None = None
    z_gaussian: Array | None = None
    ensemble: Array | None = None
    truth: Array | None = None
    persistence: Array | None = None
    truth_reconstruction: Array | None = None
    residual: Callable[[Array], Array] | None = None
    n_train: int | None = None
    seed: int = 0
    as_sets: bool = True
    groups: Array | None = None
    case_groups: Array | None = None
    strata: Mapping[str, Array] | None = None
    condition_names: Mapping[int, str] | None = None
    gaussian_within: Array | None = None

    def __post_init__(self) -> None:
        shape = self.test.shape
        for name in ("train", "generated", "gaussian", "reconstruction"):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise InputError(
                    f"evaluation compares equal counts: {name} is {array.shape}, test is {shape}. "
                    "Cut all of them to the smallest count."
                )
        if len(shape) != len(self.modes) + 1 or shape[0] < 2:
            raise InputError(f"evaluation needs at least 2 samples of modes {self.modes}, got arrays of shape {shape}.")

    @property
    def sets(self) -> dict[str, Array]:
        """The sets that are compared with the test samples, by the columns of the table."""
        sets = {"value": self.generated, "train_vs_test": self.train}
        return sets if self.gaussian is None else sets | {"gaussian": self.gaussian}

    @property
    def sets_and_codec(self) -> dict[str, Array]:
        """The same and the reconstructed test samples, for metrics that do not pair samples."""
        return self.sets if self.reconstruction is None else self.sets | {"codec": self.reconstruction}

    def folds(self) -> Iterator[tuple[Array, Array, Array | None]]:
        """Which samples stay when a tenth of each set is left out, ten times; groups of test samples stay whole.

        Of the test samples, of the samples of each other set (as many), and of the cases; None where these are too few.
        """
        groups = np.arange(len(self.test)) if self.groups is None else self.groups
        count = min(_FOLDS, len(np.unique(groups)))
        of_test, of_others = metrics.fold_numbers(groups, count), np.arange(len(self.test)) % count
        of_cases = None
        if self.truth is not None:
            by = np.arange(len(self.truth)) if self.case_groups is None else self.case_groups
            of_cases = metrics.fold_numbers(by, count) if len(np.unique(by)) >= count else None
        for fold in range(count):
            test, others = np.flatnonzero(of_test != fold), np.flatnonzero(of_others != fold)
            yield test, np.resize(others, len(test)), None if of_cases is None else np.flatnonzero(of_cases != fold)

    def part(self, test: Array, others: Array, cases: Array | None) -> Fields:
        """Only these samples of each set."""
        rows = dict.fromkeys(("test", "reconstruction", "z_test"), test)
        rows |= dict.fromkeys(("train", "generated", "gaussian", "z_generated", "z_gaussian"), others)
        if cases is not None:
            rows |= dict.fromkeys(("ensemble", "truth", "persistence", "truth_reconstruction"), cases)
        there = {name: getattr(self, name) for name in rows}
        cut: dict[str, Any] = {name: array[rows[name]] for name, array in there.items() if array is not None}
        cut |= {} if cases is not None else {"ensemble": None, "truth": None}
        return replace(self, **cut, groups=None, case_groups=None, strata=None, gaussian_within=None)


def scaled(fields: Fields, x: Array) -> Array:
    """Centred and scaled samples in float32, NaN where masked.

    Centred in float64, block by block: fields far from zero keep their digits, and no whole set is copied twice.
    """
    out = np.empty(x.shape, dtype=np.float32)
    step = max(1, _BLOCK_BYTES * len(x) // max(8 * x.size, 1))
    for start in range(0, len(x), step):
        block = np.asarray(x[start : start + step], dtype=np.float64)
        out[start : start + step] = (block - fields.mean) / fields.scale
    return out


def flat(fields: Fields, x: Array) -> Array:
    """``(k, features)``: centred, scaled, masked points dropped; per-feature root mean square units."""
    flat = scaled(fields, x).reshape(len(x), -1)
    seen = ~np.isnan(fields.test.reshape(len(fields.test), -1)).any(axis=0)
    return flat if seen.all() else flat[:, seen]


def root_features(fields: Fields) -> float:
    """By which distances are divided, so that they do not grow with the sample's size."""
    seen = ~np.isnan(fields.test.reshape(len(fields.test), -1)).any(axis=0)
    return math.sqrt(float(seen.sum()))


def primitives_of(fields: Fields) -> dict[str, Array]:
    """The sets of primitives, where all that must be compared are given."""
    given = {name: getattr(fields, f"z_{name}") for name in ("train", "test", "generated", "gaussian")}
    there = {name: array for name, array in given.items() if array is not None}
    return there if {"train", "test", "generated"} <= there.keys() else {}


def _search_sets(fields: Fields) -> dict[str, Array]:
    if primitives := primitives_of(fields):
        return primitives
    arrays = {"train": fields.train, "test": fields.test, "generated": fields.generated, "gaussian": fields.gaussian}
    present = {name: array for name, array in arrays.items() if array is not None}
    return dict(zip(present, metrics.embed(*(flat(fields, x) for x in present.values())), strict=True))


def nearest_training(fields: Fields) -> dict[str, Array]:
    """Distances to the nearest training sample, ``(k,)`` each: of generated, test and (leaving itself out) training.

    Measured between normalised primitives where given, else between centred and scaled fields. The training samples
    whose distances are taken are drawn at random: in their own order, the first ones may be one corner of a scene.
    """
    sets = _search_sets(fields)
    train = sets["train"][np.random.default_rng(fields.seed).permutation(len(sets["train"]))]
    distances = {
        "generated": metrics.nearest_distances(sets["generated"], train),
        "test": metrics.nearest_distances(sets["test"], train),
        "train": metrics.nearest_distances(train[: len(sets["test"])], train, leave_one_out=True),
    }
    if "gaussian" in sets:
        distances["gaussian"] = metrics.nearest_distances(sets["gaussian"], train)
    return distances


def nearest_to_generated(fields: Fields) -> Array:
    """The row ``(k,)`` of the training sample that is nearest to each generated one, as `nearest_training` measures.

    It is one of ``z_train`` where primitives are given, else one of ``train``.
    """
    sets = _search_sets(fields)
    return metrics.nearest_rows(sets["generated"], sets["train"])
