"""Generated samples against real ones, next to references in the same units, counts and estimators.

Every number of a model stands beside two others: training samples against test samples (how far apart two honest draws
of these data are), and a Gaussian fitted to the same primitives (what a model without a network reaches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import metrics
from diffats.errors import InputError

Array = npt.NDArray[Any]
Metrics = dict[str, dict[str, Any]]
#: The model, and beside it honest data, a simple model, the codec's floor, trivial forecasts and the truth itself.
COLUMNS = ("value", "train_vs_test", "gaussian", "codec", "persistence", "training_mean", "truth")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEIGHBOURS = 5  #: of a sample, in its neighbourhood
LEAST_GROUPS = 8  #: of test samples, from which on intervals are trusted
LEAST_IN_STRATUM = 4  #: samples of a condition in each set; rarer conditions are compared together
_FOLDS, _LEAST_FOLDS = 10, 3  # of the jackknife
INTERVAL = 0.9  #: share of the truth that the central interval of a calibrated ensemble holds
ESTIMATORS = (
    "Test samples on one side of every distance, equally many samples on the other. Energy distance: U-statistic (zero "
    "on average for equal distributions, may be slightly negative). Sliced Wasserstein: 2048 directions, one seed for "
    "all columns, biased upwards alike in all columns. Told apart: gradient boosting on principal scores, five-fold "
    "cross-validated; chance alone moves it by about 0.35 over the root of the count. Precision, recall, density and "
    "coverage: neighbourhoods of the 5 nearest. CRPS, spread and intervals: fair, so that they do not depend on the "
    "number of members."
)
_SPECTRAL = (
    "band",
    "bands",
    "channel",
    "channels",
    "wavelength",
    "frequency",
    "level",
    "lev",
    "depth",
    "height",
    "plev",
)
_OVERLAPS = {
    "precision": (
        "Precision",
        f"Share of samples within the {NEIGHBOURS} nearest neighbours' reach of a test sample: how many are plausible.",
    ),
    "recall": (
        "Recall",
        "Share of test samples within such a reach of a sample: how much of the variety is there.",
    ),
    "density": (
        "Density",
        f"How many test samples reach a sample, over {NEIGHBOURS}: precision that outliers sway less.",
    ),
    "coverage": (
        "Coverage",
        "Share of test samples that reach any sample: recall that outliers sway less.",
    ),
}
_OF_CODEC = ("anomaly_error", "reconstruction_error")
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


@dataclass(frozen=True)
class _Row:
    """What a reader must know of a metric; ``values`` by column."""

    label: str
    meaning: str
    better: str = "lower"
    unit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    unbiased: bool = False  # an estimate of what cannot be below zero, which may itself be
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        numbers = {column: _number(self.values.get(column)) for column in COLUMNS}
        about = {"better": self.better, "unit": self.unit, "label": self.label, "meaning": self.meaning}
        intervals = {column: list(interval) for column, interval in self.intervals.items()}
        return numbers | about | {"unbiased": self.unbiased, "intervals": intervals, "groups": self.groups}


def _number(value: float | None) -> float | None:
    """A JSON number: NaN and infinity are null."""
    return float(value) if value is not None and np.isfinite(value) else None


# --- reference model ----------------------------------------------------------------------------------------------


def gaussian_within(z_train: Array, strata: Array, wanted: Array, *, seed: int = 0) -> Array:
    """Draw from Gaussians with a mean for each condition and one covariance, that of the deviations from these means.

    Parameters
    ----------
    z_train
        ``(n, D)`` normalised primitives of the training samples.
    strata
        ``(n,)``: the number of each one's condition.
    wanted
        ``(k,)``: the conditions of the samples to be drawn. One that no training sample has gets the mean of all.
    seed
        Of the draw.

    Returns
    -------
    array
        ``(k, D)``.

    Examples
    --------
    >>> import numpy as np
    >>> strata = np.repeat([0, 1], 500)
    >>> z = np.random.default_rng(0).normal(size=(1000, 2)) + 9 * strata[:, None]
    >>> gaussian_within(z, strata, np.array([1] * 500)).mean(axis=0).round().tolist()
    [9.0, 9.0]
    """
    everywhere = z_train.mean(axis=0, dtype=np.float64)
    means = {stratum: z_train[strata == stratum].mean(axis=0, dtype=np.float64) for stratum in np.unique(strata)}
    deviations = (z_train - np.stack([means[stratum] for stratum in strata])).astype(z_train.dtype)
    own = np.stack([means.get(stratum, everywhere) for stratum in wanted])
    return np.asarray(own + gaussian_pca(deviations, len(wanted), seed=seed), dtype=z_train.dtype)


def gaussian_pca(z_train: Array, count: int, *, seed: int = 0, components: int | None = None) -> Array:
    """Draw from a Gaussian fitted to the primitives by principal components: the model to beat.

    With all components (the default) the covariance is the empirical one, and no decomposition is needed: for centred
    rows Z and standard normal e, ``e^T Z / sqrt(n - 1)`` has the covariance ``Z^T Z / (n - 1)`` exactly.

    Parameters
    ----------
    z_train
        ``(n, D)`` normalised primitives of the training samples.
    count
        How many samples to draw.
    seed
        Of the draw.
    components
        Keep only this many leading components.

    Returns
    -------
    array
        ``(count, D)`` of ``z_train``'s dtype.

    Examples
    --------
    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=(500, 2)) * [3.0, 1.0]
    >>> gaussian_pca(z, 4000).std(axis=0).round().tolist()
    [3.0, 1.0]
    """
    if z_train.ndim != 2 or len(z_train) < 2:
        raise InputError(f"a Gaussian needs at least 2 training primitives (n, D), got {z_train.shape}.")
    rng = np.random.default_rng(seed)
    mean = z_train.mean(axis=0, dtype=np.float64)
    if components is None or components >= min(len(z_train) - 1, z_train.shape[1]):
        weights = rng.standard_normal((count, len(z_train)))
        deviations = weights @ z_train - weights.sum(axis=1, keepdims=True) * mean
        return np.asarray(mean + deviations / np.sqrt(len(z_train) - 1), dtype=z_train.dtype)
    from sklearn.decomposition import PCA

    fit = PCA(components, random_state=seed).fit(z_train)
    scores = rng.standard_normal((count, components)) * np.sqrt(fit.explained_variance_)
    return np.asarray(mean + scores @ fit.components_, dtype=z_train.dtype)


# --- the table ----------------------------------------------------------------------------------------------------


def profile_mode(modes: Sequence[str], sizes: Mapping[str, int]) -> str:
    """The mode along which profiles are shown: a spectral or vertical one by name, else time, else the longest.

    >>> profile_mode(("y", "x", "band"), {"y": 16, "x": 16, "band": 200})
    'band'
    >>> profile_mode(("component", "row", "column"), {"component": 2, "row": 8, "column": 9})
    'column'
    """
    candidates = [mode for mode in modes if mode != "component"] or list(modes)
    for mode in candidates:
        if mode.lower() in _SPECTRAL:
            return mode
    for mode in candidates:
        if mode.lower() in ("time", "t"):
            return mode
    return max(candidates, key=lambda mode: sizes[mode])


def evaluate(fields: Fields) -> Metrics:
    """All metrics that the fields allow, by name.

    Returns
    -------
    dict
        JSON-able, ``{name: {*COLUMNS, "better", "unit", "label", "meaning", "unbiased", "intervals", "groups"}}``; a
        number is None where it does not apply. "codec" is the test samples after encoding and decoding: the floor of
        every model on these primitives. ``better`` is "lower", "near 1", "near 0.9" or "near 0.5". ``intervals`` are of
        90 %, by the bootstrap over ``groups`` groups of test samples: of the model's own number, and of its difference
        to each reference, for what may decide.
    """
    seen = _Seen.of(fields)
    rows = _codec_rows(fields) | _within_rows(fields) | _classifier_rows(fields, seen)
    rows |= _with_intervals(fields, seen) | _forecast_rows(fields)
    return {name: row.to_dict() for name, row in rows.items()}


@dataclass(frozen=True)
class _Seen:
    """What rows are computed from, sample by sample, so that they can be computed again without some samples.

    ``pairs``: test samples and each set that is compared with them, in the few dimensions that both span; pair by pair,
    so that no column depends on what stands in another. ``powers``: spectra ``(k, frequencies)`` by set and mode.
    """

    pairs: Mapping[str, tuple[Array, Array]]
    powers: Mapping[str, Mapping[str, Array]]

    @classmethod
    def of(cls, fields: Fields) -> _Seen:
        pairs = {}
        if fields.as_sets:
            test = _flat(fields, fields.test)
            for name, x in fields.sets.items():
                a, b = metrics.embed(test, _flat(fields, x))
                pairs[name] = a, b
        sets = {"test": fields.test, **fields.sets_and_codec}
        return cls(pairs, {name: _powers(fields, x) for name, x in sets.items()})

    def part(self, test: Array, others: Array) -> _Seen:
        """Only these test samples, and of the other sets only those."""
        rows = {name: test if name in ("test", "codec") else others for name in self.powers}
        powers = {name: {m: power[rows[name]] for m, power in each.items()} for name, each in self.powers.items()}
        return _Seen({name: (a[test], b[others]) for name, (a, b) in self.pairs.items()}, powers)


def _repeated_rows(fields: Fields, seen: _Seen) -> dict[str, _Row]:
    """Rows that are quick to compute: their intervals are from computing them again without some samples."""
    rows = _set_rows(fields, seen) if fields.as_sets else {}
    return rows | _spectrum_rows(seen) | _profile_rows(fields) | _novelty_rows(fields) | _pooled_rows(fields)


def _with_intervals(fields: Fields, seen: _Seen) -> dict[str, _Row]:
    """Rows with intervals by the jackknife, of the model's number and of its differences to the references."""
    rows, replicates = _repeated_rows(fields, seen), []
    groups = _count_groups(fields.groups, len(fields.test))
    if min(groups, len(fields.test) - 1) >= _LEAST_FOLDS:
        for test, others, cases in fields.folds():
            replicates.append(_repeated_rows(fields.part(test, others, cases), seen.part(test, others)))
    cases_count = 0 if fields.truth is None else _count_groups(fields.case_groups, len(fields.truth))
    return {
        name: replace(
            row,
            groups=cases_count if name.endswith("_pooled") else groups,
            intervals=_jackknifed(row, [each.get(name) for each in replicates]),
        )
        for name, row in rows.items()
    }


def _jackknifed(row: _Row, replicates: Sequence[_Row | None]) -> dict[str, tuple[float, float]]:
    found = {}
    for column in ("value", *REFERENCES):
        estimate, *each = [_advance(one, column) for one in (row, *replicates)]
        if estimate is not None and each and None not in each:
            low, high = metrics.jackknife_interval(np.array(each), level=INTERVAL)
            found[column] = estimate + low, estimate + high
    return found


def _advance(row: _Row | None, column: str) -> float | None:
    """The model's number, or how much farther from the ideal it is than a reference."""
    if row is None:
        return None
    table = row.to_dict()
    own, other = distance_from_ideal(table), distance_from_ideal(table, column)
    if column == "value" or own is None or other is None:
        return table["value"] if column == "value" else None
    return own - other


def distance_from_ideal(metric: Mapping[str, Any], column: str = "value") -> float | None:
    """How far a column of a metric is from the best it could be; smaller is better whatever ``better`` says.

    >>> distance_from_ideal({"value": 0.75, "better": "near 0.5"})
    0.25
    """
    number: float | None = metric.get(column)
    if number is None:
        return None
    if metric["better"] == "near 1":  # a ratio: half is as far as double
        return abs(float(np.log(max(number, 1e-12))))
    if metric["better"].startswith("near "):
        return abs(number - float(metric["better"].removeprefix("near ")))
    return float(number)


def beats(metric: Mapping[str, Any], reference: str = "gaussian") -> bool | None:
    """Whether the model is better than a reference column; None where one of the two is missing.

    >>> beats({"value": 1.0, "gaussian": 2.0, "better": "lower"})
    True
    """
    own, other = distance_from_ideal(metric), distance_from_ideal(metric, reference)
    return None if own is None or other is None else own < other


def written(metric: Mapping[str, Any], column: str, number: Callable[[Any], str] = "{:.4g}".format) -> str:
    """A column of a metric as text; a distance whose estimate fell below zero is zero, as far as it can tell.

    >>> written({"value": -0.013, "unbiased": True}, "value"), written({"value": -0.013}, "value")
    ('0, within its noise', '-0.013')
    """
    value = metric.get(column)
    below = metric.get("unbiased") and value is not None and value < 0
    return "0, within its noise" if below else number(value)


def within(label: str) -> str:
    """A label within a sentence: abbreviations keep their capitals.

    >>> within("Energy distance"), within("CRPS")
    ('energy distance', 'CRPS')
    """
    return label if label[:2].isupper() else label[0].lower() + label[1:]


#: What a model is held against: a simple model without a network, and forecasts that need none.
REFERENCES = {
    "gaussian": "the Gaussian reference",
    "persistence": "persistence",
    "training_mean": "the training mean",
}


def comparison(metric: Mapping[str, Any], reference: str) -> str | None:
    """How the model compares with a reference: "better", "worse", "not distinguishable" or "too few test samples".

    Where the metric has an interval of the difference, that decides, and fewer than 8 groups of test samples are too
    few to tell; else the numbers alone. None where one of them is missing.

    >>> metric = {"value": 1.0, "persistence": 1.5, "better": "lower", "groups": 40}
    >>> comparison(metric, "persistence")
    'better'
    >>> comparison(metric | {"intervals": {"persistence": [-1.2, 0.2]}}, "persistence")
    'not distinguishable'
    """
    is_better, interval = beats(metric, reference), metric.get("intervals", {}).get(reference)
    if is_better is None:
        return None
    groups = metric.get("groups")
    if groups is not None and groups < LEAST_GROUPS:
        return "too few test samples"
    if interval is None:
        return "better" if is_better else "worse"
    return "better" if interval[1] < 0 else "worse" if interval[0] > 0 else "not distinguishable"


def more_samples(metric: Mapping[str, Any], reference: str) -> float | None:
    """About how many times as many test samples would tell the model from a reference; None where equal."""
    low, high = metric["intervals"][reference]
    own, other = distance_from_ideal(metric), distance_from_ideal(metric, reference)
    if own is None or other is None or own == other:
        return None
    return float(((high - low) / 2 / (own - other)) ** 2)


def deciding_rows(table: Mapping[str, Mapping[str, Any]], deciding: str) -> list[Mapping[str, Any]]:
    """The metric that decides and, beside the CRPS, the error of the ensemble's mean, where they are there.

    An ensemble of any samples of the data has a lower CRPS than their mean, which is a single forecast: only the error
    of its own mean tells whether it forecasts.
    """
    names = (deciding, "relative_l2") if deciding == "crps" else (deciding,)
    return [table[name] for name in names if table.get(name, {}).get("value") is not None]


def compared(metric: Mapping[str, Any]) -> dict[str, str]:
    """How the model compares with each reference that a metric has, see `comparison`.

    >>> compared({"value": 1.0, "persistence": 2.0, "training_mean": 0.5, "better": "lower"})
    {'persistence': 'better', 'training_mean': 'worse'}
    """
    found = {reference: comparison(metric, reference) for reference in REFERENCES}
    return {reference: word for reference, word in found.items() if word is not None}


_WORDS = {
    "better": "beats",
    "not distinguishable": "is not distinguishable from",
    "too few test samples": "has too few test samples to tell it from",
    "worse": "does not beat",
}


def verdict(metric: Mapping[str, Any]) -> str:
    """How the model compares with the references of a metric, in words; empty where it has none.

    >>> verdict({"value": 1.0, "persistence": 2.0, "training_mean": 0.5, "better": "lower"})
    'beats persistence, but does not beat the training mean'
    """
    found = compared(metric)
    parts = []
    for word, phrase in _WORDS.items():
        names = [REFERENCES[reference] for reference, each in found.items() if each == word]
        if names:
            parts.append(f"{phrase} {(' and ' if word != 'worse' else ' or ').join(names)}")
    return ", but ".join(parts)


def tally(table: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Whether the model is better than all references of a metric, by name; what compression alone costs is aside."""
    found = {name: compared(metric) for name, metric in table.items() if name not in _OF_CODEC}
    return {name: {*each.values()} == {"better"} for name, each in found.items() if each}


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


def _scaled(fields: Fields, x: Array) -> Array:
    """Centred and scaled samples in float32, NaN where masked.

    Centred in float64, block by block: fields far from zero keep their digits, and no whole set is copied twice.
    """
    out = np.empty(x.shape, dtype=np.float32)
    step = max(1, _BLOCK_BYTES * len(x) // max(8 * x.size, 1))
    for start in range(0, len(x), step):
        block = np.asarray(x[start : start + step], dtype=np.float64)
        out[start : start + step] = (block - fields.mean) / fields.scale
    return out


def _flat(fields: Fields, x: Array) -> Array:
    """``(k, features)``: centred, scaled, masked points dropped; per-feature root mean square units."""
    flat = _scaled(fields, x).reshape(len(x), -1)
    seen = ~np.isnan(fields.test.reshape(len(fields.test), -1)).any(axis=0)
    return flat if seen.all() else flat[:, seen]


def _primitives(fields: Fields) -> dict[str, Array]:
    """The sets of primitives, where all that must be compared are given."""
    given = {name: getattr(fields, f"z_{name}") for name in ("train", "test", "generated", "gaussian")}
    there = {name: array for name, array in given.items() if array is not None}
    return there if {"train", "test", "generated"} <= there.keys() else {}


def _search_sets(fields: Fields) -> dict[str, Array]:
    if primitives := _primitives(fields):
        return primitives
    arrays = {"train": fields.train, "test": fields.test, "generated": fields.generated, "gaussian": fields.gaussian}
    present = {name: array for name, array in arrays.items() if array is not None}
    return dict(zip(present, metrics.embed(*(_flat(fields, x) for x in present.values())), strict=True))


def _codec_rows(fields: Fields) -> dict[str, _Row]:
    """The floor: what encoding and decoding alone costs."""
    if fields.reconstruction is None:
        return {}
    anomaly = metrics.relative_l2(fields.reconstruction, fields.test, np.asarray(fields.mean))
    relative = metrics.relative_l2(fields.reconstruction, fields.test)
    return {
        "anomaly_error": _Row(
            "Reconstruction, anomaly error",
            "Error of compressing a test sample, relative to its deviation from the training mean: the share of the "
            "variability that is lost. Mean over test samples. The training mean itself scores 1.",
            values={"value": _mean_of(anomaly), "training_mean": _mean_of(np.where(np.isnan(anomaly), np.nan, 1.0))},
        ),
        "reconstruction_error": _Row(
            "Reconstruction, relative error",
            "The same error relative to the sample itself. Flattering where the data are far from zero.",
            values={
                "value": _mean_of(relative),
                "training_mean": _mean_of(_mean_forecast_error(fields, fields.test)),
            },
        ),
    }


def _mean_of(values: Array) -> float:
    """The mean of the numbers there are: equal samples have no error relative to their deviation. NaN without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _mean_forecast_error(fields: Fields, truth: Array) -> Array:
    return metrics.relative_l2(np.broadcast_to(np.asarray(fields.mean), truth.shape), truth)


def _root_features(fields: Fields) -> float:
    """By which distances are divided, so that they do not grow with the sample's size."""
    seen = ~np.isnan(fields.test.reshape(len(fields.test), -1)).any(axis=0)
    return math.sqrt(float(seen.sum()))


def _energy_row(fields: Fields, shares: Mapping[str, tuple[float, Array, Array]], label: str, meaning: str) -> _Row:
    """A row of energy distances, each with what its samples add to it."""
    values = {name: share[0] for name, share in shares.items()}
    _, of_test, of_model = shares["value"]
    found = {"value": _around(values["value"], [(of_test, fields.groups), (of_model, None)], fields.seed)}
    if "gaussian" in shares:  # both have the same test samples
        _, also_test, of_gaussian = shares["gaussian"]
        parts = [(of_test - also_test, fields.groups), (of_model, None), (-of_gaussian, None)]
        found["gaussian"] = _around(values["value"] - values["gaussian"], parts, fields.seed)
    groups = _count_groups(fields.groups, len(fields.test))
    about: dict[str, Any] = {"unit": "scaled units", "unbiased": True, "groups": groups}
    return _Row(label, meaning, values=values, intervals=found, **about)


def _within_rows(fields: Fields) -> dict[str, _Row]:
    """Whether samples are those of their own condition."""
    if fields.strata is None:
        return {}
    strata = _pooled_strata(fields.strata)
    sets, numbers = {"value": fields.generated, "train_vs_test": fields.train}, {"train_vs_test": strata["train"]}
    sets |= {} if fields.gaussian_within is None else {"gaussian": fields.gaussian_within}
    test, scale, shares = _flat(fields, fields.test), _root_features(fields), {}
    for name, x in sets.items():
        a, b = metrics.embed(test, _flat(fields, x))
        of_x = numbers.get(name, strata["generated"])
        shares[name] = metrics.energy_distance_within(a / scale, b / scale, strata["test"], of_x)
    count = len(np.unique(strata["test"]))
    meaning = (
        f"Distance between the clouds of whole samples within each of {count} conditions, weighted by their share of "
        f"the test samples; those with fewer than {LEAST_IN_STRATUM} samples in some set count as one. The Gaussian "
        "has a mean for each condition. 0 for equal distributions."
    )
    return {"energy_distance_within": _energy_row(fields, shares, "Energy distance within conditions", meaning)}


def _pooled_strata(strata: Mapping[str, Array]) -> dict[str, Array]:
    """Numbers of strata, with all that are rare in some set as one; all as one where even these are too few."""
    numbers = np.unique(np.concatenate([*strata.values()]))
    counts = {stratum: [int((each == stratum).sum()) for each in strata.values()] for stratum in numbers}
    common = [stratum for stratum, each in counts.items() if min(each) >= LEAST_IN_STRATUM]
    rest = int(numbers.max()) + 1
    pooled = {name: np.where(np.isin(each, common), each, rest) for name, each in strata.items()}
    left = [int((each == rest).sum()) for each in pooled.values()]
    if max(left) > 0 and min(left) < 2:
        return {name: np.zeros(len(each), dtype=int) for name, each in strata.items()}
    return pooled


def _classifier_rows(fields: Fields, seen: _Seen) -> dict[str, _Row]:
    """Distances of the two clouds of samples, and whether a classifier tells them apart."""
    if not fields.as_sets:
        return {}
    scale, shares, judged = _root_features(fields), {}, {}
    for name, (a, b) in seen.pairs.items():
        distance = metrics.energy_distance(a / scale, b / scale)
        shares[name] = (distance, *metrics.energy_contributions(a / scale, b / scale))
        judged[name] = metrics.two_sample_hits(a, b, seed=fields.seed)
    meaning = "Distance between the two clouds of whole samples; 0 for equal distributions."
    return {
        "energy_distance": _energy_row(fields, shares, "Energy distance", meaning),
        "two_sample_accuracy": _Row(
            "Told apart from test samples",
            "How often a classifier that learnt from other samples knows of which kind a sample is; 0.5: "
            "indistinguishable, 1: always told apart. Samples that overlap each other raise it.",
            better="near 0.5",
            values={name: accuracy for name, (accuracy, _, _) in judged.items()},
            intervals=_accuracy_intervals(fields, judged),
            groups=_count_groups(fields.groups, len(fields.test)),
        ),
    }


def _accuracy_intervals(
    fields: Fields, judged: Mapping[str, tuple[float, Array, Array]]
) -> dict[str, tuple[float, float]]:
    """Of the accuracy, and of how much farther it is from a half than the Gaussian's."""

    def halves(name: str) -> tuple[float, Array, Array]:
        accuracy, of_test, of_set = judged[name]
        sign = 1.0 if accuracy >= 0.5 else -1.0
        return abs(accuracy - 0.5), sign * of_test / 2, sign * of_set / 2

    accuracy, of_test, of_model = judged["value"]
    found = {"value": _around(accuracy, [(of_test / 2, fields.groups), (of_model / 2, None)], fields.seed)}
    if "gaussian" in judged:
        (own, test, model), (other, also, gaussian) = halves("value"), halves("gaussian")
        parts = [(test - also, fields.groups), (model, None), (-gaussian, None)]
        found["gaussian"] = _around(own - other, parts, fields.seed)
    return found


def _set_rows(fields: Fields, seen: _Seen) -> dict[str, _Row]:
    """Other distances, spread, and how far either set covers the other."""
    sliced, spread = {}, {}
    overlaps: dict[str, dict[str, float]] = {name: {} for name in _OVERLAPS}
    features = round(_root_features(fields) ** 2)
    for name, (a, b) in seen.pairs.items():
        sliced[name] = metrics.sliced_wasserstein(a, b, seed=fields.seed, features=features)
        spread[name] = _spread(b) / _spread(a) if _spread(a) > 0 else np.nan
        if len(a) > NEIGHBOURS:
            for kind, share in metrics.precision_recall(a, b, k=NEIGHBOURS).items():
                overlaps[kind][name] = share
    return {
        "sliced_wasserstein": _Row(
            "Sliced Wasserstein distance",
            "How far samples must be moved to turn one cloud into the other, averaged over random directions.",
            unit="scaled units",
            values=sliced,
        ),
        "spread_ratio": _Row(
            "Spread of samples",
            "How much samples differ from each other, relative to test samples; below 1 the model repeats itself.",
            better="near 1",
            values=spread,
        ),
    } | {kind: _Row(*_OVERLAPS[kind], better="near 1", values=values) for kind, values in overlaps.items() if values}


def _around(estimate: float, parts: Sequence[tuple[Array, Array | None]], seed: int) -> tuple[float, float]:
    low, high = metrics.bootstrap_interval(parts, level=INTERVAL, seed=seed)
    return estimate + low, estimate + high


def _count_groups(groups: Array | None, samples: int) -> int:
    return samples if groups is None else len(np.unique(groups))


def _paired_intervals(fields: Fields, cases: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Of a mean over cases, and of its difference to each reference on the same cases; ``(cases,)`` by column."""
    known = ~np.isnan(np.stack([*cases.values()])).any(axis=0)
    if not known.any():
        return {}
    groups = None if fields.case_groups is None else fields.case_groups[known]
    own, found = cases["value"][known], {}
    for column, values in cases.items():
        if column == "value" or column in REFERENCES:
            difference = own if column == "value" else own - values[known]
            found[column] = _around(float(difference.mean()), [(difference, groups)], fields.seed)
    return found


def _spread(points: Array) -> float:
    """Root mean squared deviation from the set's own mean."""
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _spectrum_rows(seen: _Seen) -> dict[str, _Row]:
    """Misfit of the power spectrum along each mode that is long enough."""
    powers = {name: {m: each.mean(axis=0) for m, each in by.items()} for name, by in seen.powers.items()}
    reference = powers.pop("test")
    if not reference:
        return {}
    errors = {
        name: {mode: metrics.spectrum_error(by[mode], reference[mode]) for mode in reference}
        for name, by in powers.items()
    }
    overall = {name: float(np.mean(list(error.values()))) for name, error in errors.items()}
    rows = {
        "spectrum_error": _Row(
            "Power spectra, all modes", "Mean of the misfits along the modes.", unit="dB", values=overall
        )
    }
    for mode in reference:
        rows[f"spectrum_error_{mode}"] = _Row(
            f"Power spectrum along {mode}",
            f"Typical misfit of the power at each wavelength along {mode}; 3 dB is a factor of two.",
            unit="dB",
            values={name: error[mode] for name, error in errors.items()},
        )
    return rows


def _powers(fields: Fields, x: Array) -> dict[str, Array]:
    """Power spectra of samples along each mode that is long enough; masked points count as the training mean."""
    filled = np.nan_to_num(_scaled(fields, x), copy=False, nan=0.0)
    return {
        mode: metrics.sample_spectra(filled, axis)[1]
        for axis, mode in enumerate(fields.modes, start=1)
        if mode != "component" and x.shape[axis] >= metrics.LEAST_SPECTRUM
    }


def _profile_rows(fields: Fields) -> dict[str, _Row]:
    """Mean and quantiles along the profile mode, relative to the test samples' standard deviation.

    Masked points are left out, and so is an index at which all of them are.
    """
    sizes = dict(zip(fields.modes, fields.test.shape[1:], strict=True))
    mode = profile_mode(fields.modes, sizes)
    axis = fields.modes.index(mode) + 1
    test = _scaled(fields, fields.test)
    mean, level = metrics.band_statistics(test, axis, QUANTILES)
    deviation = float(np.nanstd(test, dtype=np.float64)) or 1.0
    means, levels = {}, {}
    for name, x in fields.sets_and_codec.items():
        own_mean, own_level = metrics.band_statistics(_scaled(fields, x), axis, QUANTILES)
        means[name] = math.sqrt(_mean_of((own_mean - mean) ** 2)) / deviation
        levels[name] = _mean_of(np.abs(own_level - level)) / deviation
    return {
        "profile_mean_error": _Row(
            f"Mean along {mode}",
            f"Misfit of the mean at each {mode}, in standard deviations of the test samples.",
            values=means,
        ),
        "profile_quantile_error": _Row(
            f"Quantiles along {mode}",
            f"Misfit of the 5, 25, 50, 75 and 95 % quantiles at each {mode}, in the same unit.",
            values=levels,
        ),
    }


def _novelty_rows(fields: Fields) -> dict[str, _Row]:
    """Whether the model copies its training samples."""
    median = {name: float(np.median(distances)) for name, distances in nearest_training(fields).items()}
    columns = {"generated": "value", "train": "train_vs_test", "gaussian": "gaussian"}
    values = {columns[name]: m / median["test"] for name, m in median.items() if name != "test" and median["test"] > 0}
    z_train = _primitives(fields).get("train")
    searched = len(fields.train if z_train is None else z_train)
    label, meaning = "Distance to the nearest training sample", ""
    if fields.n_train is not None and searched < fields.n_train:
        label = f"Distance to the nearest of {searched} training samples"
        meaning = f" Only {searched} of the {fields.n_train} training samples are searched; copies of others go unseen."
    return {
        "nearest_training_ratio": _Row(
            label,
            "Relative to that of test samples: near 0 the model copies, near 1 its samples are as new as unseen data. "
            "The train column is each training sample against the other training samples." + meaning,
            better="near 1",
            values=values,
        )
    }


def _forecast_rows(fields: Fields) -> dict[str, _Row]:
    """Conditional recipes: the ensemble against the truth, beside trivial predictors and the codec's floor."""
    if fields.ensemble is None or fields.truth is None:
        return {}
    single = _single_forecasts(fields, fields.truth)
    rows = _forecast_error_rows(fields, fields.ensemble, fields.truth, single)
    rows |= _calibration_rows(fields, fields.ensemble, fields.truth, single)
    return rows | _residual_rows(fields, fields.ensemble, fields.truth, single)


def _forecast_error_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, _Row]:
    """Relative L2 of the ensemble's mean and of its members, as a mean over cases."""
    rows = {}
    for name, (label, what, predictions) in _predictions(ensemble).items():
        columns = {"value": predictions} | {column: [x] for column, x in single.items()}
        errors = {
            column: np.stack([metrics.relative_l2(x, truth) for x in xs]).mean(axis=0) for column, xs in columns.items()
        }
        rows[name] = _Row(
            f"{label}, relative L2",
            f"Error of {what}, under a test sample's condition, relative to the sample. Mean over test samples.",
            values={column: _mean_of(each) for column, each in errors.items()},
            intervals=_paired_intervals(fields, errors),
            groups=_count_groups(fields.case_groups, len(truth)),
        )
    return rows


def _predictions(ensemble: Array) -> dict[str, tuple[str, str, list[Array]]]:
    """What an ensemble predicts, by the row of its error: label, words, and fields ``(cases, n_1, .., n_N)``."""
    return {
        "relative_l2": ("Forecast", "the mean of the generated ensemble", [ensemble.mean(axis=1)]),
        "member_relative_l2": ("One member", "single generated samples, on average", _members(ensemble)),
    }


def _pooled_rows(fields: Fields) -> dict[str, _Row]:
    """The same errors over all cases together."""
    if fields.ensemble is None or fields.truth is None:
        return {}
    rows, truth, single = {}, fields.truth, _single_forecasts(fields, fields.truth)
    for name, (label, _, predictions) in _predictions(fields.ensemble).items():
        columns = {"value": predictions} | {column: [x] for column, x in single.items()}
        rows[f"{name}_pooled"] = _Row(
            f"{label}, pooled relative L2",
            "The same error over all test samples together, relative to all of them: small samples do not rule it.",
            values={column: _pooled_error(xs, truth) for column, xs in columns.items()},
        )
    return rows


def _single_forecasts(fields: Fields, truth: Array) -> dict[str, Array]:
    """Forecasts that are no ensemble, ``(cases, n_1, .., n_N)`` each, by column."""
    single = {"training_mean": np.broadcast_to(np.asarray(fields.mean), truth.shape)}
    single |= {} if fields.persistence is None else {"persistence": fields.persistence}
    return single | ({} if fields.truth_reconstruction is None else {"codec": fields.truth_reconstruction})


def _members(ensemble: Array) -> list[Array]:
    return [ensemble[:, i] for i in range(ensemble.shape[1])]


def _pooled_error(predictions: Sequence[Array], truth: Array) -> float:
    """Of several predictions of one truth, as if they were one."""
    return math.sqrt(np.mean([metrics.pooled_relative_l2(x, truth) ** 2 for x in predictions]))


def _calibration_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, _Row]:
    """The ensemble as a probability forecast."""
    members = ensemble.shape[1]
    score = {
        column: metrics.crps(x, truth, scale=fields.scale)
        for column, x in {"value": ensemble, **{column: x[:, None] for column, x in single.items()}}.items()
    }
    rows = {
        "crps": _Row(
            "Forecast, CRPS",
            "Score of the ensemble as a probability forecast; equals the mean absolute error for a single forecast.",
            unit="scaled units",
            values={column: float(np.mean(each)) for column, each in score.items()},
            intervals=_paired_intervals(fields, score),
            groups=_count_groups(fields.case_groups, len(truth)),
        )
    }
    if members < 2:
        return rows
    few = f" With {members} members, fewer than 19, it cannot be far below." if members < 19 else ""
    return rows | {
        "spread_skill": _Row(
            "Forecast, spread over error",
            "How much the members of an ensemble differ, relative to the error of their mean; 1 is calibrated, below 1 "
            "the forecast is too sure of itself.",
            better="near 1",
            values={"value": metrics.spread_skill(ensemble, truth, scale=fields.scale)},
        ),
        "interval_coverage": _Row(
            "Forecast, 90 % intervals",
            "Share of the truth within the ensemble's central 90 % interval; a calibrated ensemble has 0.9, whatever "
            "its number of members." + few,
            better="near 0.9",
            values={"value": float(np.mean(metrics.interval_coverage(ensemble, truth, level=INTERVAL)))},
        ),
    }


def _residual_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, _Row]:
    """Whether generated fields solve the equation that the data solve."""
    if fields.residual is None:
        return {}
    residuals = {"value": np.stack([fields.residual(x) for x in _members(ensemble)]), "truth": fields.residual(truth)}
    residuals |= {"codec": fields.residual(single["codec"])} if "codec" in single else {}
    return {
        "pde_residual": _Row(
            "Residual of the equation",
            "What single generated samples leave of the equation that the data solve, averaged over smooth windows, "
            "relative to its terms: 1 for unrelated terms. The truth leaves what its grid cannot show.",
            values={column: _mean_of(x) for column, x in residuals.items()},
        )
    }
