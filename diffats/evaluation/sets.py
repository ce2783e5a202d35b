"""Rows that compare generated samples, as a set, with test samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffats import metrics
from diffats.evaluation.fields import Fields, flat, nearest_training, primitives_of, root_features, scaled
from diffats.evaluation.row import Array, Row, around, count_groups, mean_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEIGHBOURS = 5  #: of a sample, in its neighbourhood
LEAST_IN_STRATUM = 4  #: samples of a condition in each set; rarer conditions are compared together
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


@dataclass(frozen=True)
class Seen:
    """What rows are computed from, sample by sample, so that they can be computed again without some samples.

    ``pairs``: test samples and each set that is compared with them, in the few dimensions that both span; pair by pair,
    so that no column depends on what stands in another. ``powers``: spectra ``(k, frequencies)`` by set and mode.
    ``nearest``: distances ``(k,)`` to the nearest training sample, by set.
    """

    pairs: Mapping[str, tuple[Array, Array]]
    powers: Mapping[str, Mapping[str, Array]]
    nearest: Mapping[str, Array]

    @classmethod
    def of(cls, fields: Fields) -> Seen:
        """Of all samples."""
        pairs = {}
        if fields.as_sets:
            test = flat(fields, fields.test)
            for name, x in fields.sets.items():
                a, b = metrics.embed(test, flat(fields, x))
                pairs[name] = a, b
        sets = {"test": fields.test, **fields.sets_and_codec}
        return cls(pairs, {name: powers_of(fields, x) for name, x in sets.items()}, nearest_training(fields))

    def part(self, test: Array, others: Array) -> Seen:
        """Only these test samples, and of the other sets only those."""
        rows = {name: test if name in ("test", "codec") else others for name in self.powers}
        powers = {name: {m: power[rows[name]] for m, power in each.items()} for name, each in self.powers.items()}
        nearest = {name: each[test if name == "test" else others] for name, each in self.nearest.items()}
        return Seen({name: (a[test], b[others]) for name, (a, b) in self.pairs.items()}, powers, nearest)


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


def codec_rows(fields: Fields) -> dict[str, Row]:
    """The floor: what encoding and decoding alone costs."""
    if fields.reconstruction is None:
        return {}
    anomaly = metrics.relative_l2(fields.reconstruction, fields.test, np.asarray(fields.mean))
    relative = metrics.relative_l2(fields.reconstruction, fields.test)
    return {
        "anomaly_error": Row(
            "Reconstruction, anomaly error",
            "Error of compressing a test sample, relative to its deviation from the training mean: the share of the "
            "variability that is lost. Mean over test samples. The training mean itself scores 1.",
            values={"value": mean_of(anomaly), "training_mean": mean_of(np.where(np.isnan(anomaly), np.nan, 1.0))},
        ),
        "reconstruction_error": Row(
            "Reconstruction, relative error",
            "The same error relative to the sample itself. Flattering where the data are far from zero.",
            values={
                "value": mean_of(relative),
                "training_mean": mean_of(_mean_forecast_error(fields, fields.test)),
            },
        ),
    }


def _mean_forecast_error(fields: Fields, truth: Array) -> Array:
    return metrics.relative_l2(np.broadcast_to(np.asarray(fields.mean), truth.shape), truth)


def _energy_row(fields: Fields, shares: Mapping[str, tuple[float, Array, Array]], label: str, meaning: str) -> Row:
    """A row of energy distances, each with what its samples add to it."""
    values = {name: share[0] for name, share in shares.items()}
    _, of_test, of_model = shares["value"]
    found = {"value": around(values["value"], [(of_test, fields.groups), (of_model, None)], fields.seed)}
    if "gaussian" in shares:  # both have the same test samples
        _, also_test, of_gaussian = shares["gaussian"]
        parts = [(of_test - also_test, fields.groups), (of_model, None), (-of_gaussian, None)]
        found["gaussian"] = around(values["value"] - values["gaussian"], parts, fields.seed)
    groups = count_groups(fields.groups, len(fields.test))
    about: dict[str, Any] = {"unit": "scaled units", "unbiased": True, "groups": groups}
    return Row(label, meaning, values=values, intervals=found, **about)


def within_rows(fields: Fields) -> dict[str, Row]:
    """Whether samples are those of their own condition."""
    if fields.strata is None:
        return {}
    strata = pooled_strata(fields.strata)
    sets, numbers = {"value": fields.generated, "train_vs_test": fields.train}, {"train_vs_test": strata["train"]}
    sets |= {} if fields.gaussian_within is None else {"gaussian": fields.gaussian_within}
    test, scale, shares = flat(fields, fields.test), root_features(fields), {}
    found = np.unique(strata["test"])
    parts: list[dict[str, Any]] = [_condition(fields, strata, int(number)) for number in found]
    for name, x in sets.items():
        a, b = (each / scale for each in metrics.embed(test, flat(fields, x)))
        of_x = numbers.get(name, strata["generated"])
        distance, of_test, of_set, by_condition = metrics.energy_distance_within(a, b, strata["test"], of_x)
        shares[name] = distance, of_test, of_set
        for number, part in zip(found, parts, strict=True):
            part[name] = by_condition[int(number)]
    count = len(found)
    meaning = (
        f"Distance between the clouds of whole samples within each of {count} conditions, weighted by their share of "
        f"the test samples; those with fewer than {LEAST_IN_STRATUM} samples in some set count as one. The Gaussian "
        "has a mean for each condition. 0 for equal distributions."
    )
    row = _energy_row(fields, shares, "Energy distance within conditions", meaning)
    parts.sort(key=lambda part: -int(part["samples"]))
    return {"energy_distance_within": replace(row, parts=parts)}


def _condition(fields: Fields, strata: Mapping[str, Array], number: int) -> dict[str, Any]:
    """The name of a condition, and how many test samples it has."""
    names = fields.condition_names or {}
    whole = len(np.unique(strata["test"])) == 1
    named = names.get(number, "all" if whole else "others" if names else str(number))
    return {"condition": named, "samples": int((strata["test"] == number).sum())}


def pooled_strata(strata: Mapping[str, Array]) -> dict[str, Array]:
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


def classifier_rows(fields: Fields, seen: Seen) -> dict[str, Row]:
    """Distances of the two clouds of samples, and whether a classifier tells them apart."""
    if not fields.as_sets:
        return {}
    scale, shares, judged = root_features(fields), {}, {}
    for name, (a, b) in seen.pairs.items():
        of_test, of_set = metrics.energy_contributions(a / scale, b / scale)
        shares[name] = float(of_test.mean() + of_set.mean()) / 2, of_test, of_set
        judged[name] = metrics.two_sample_hits(a, b, seed=fields.seed)
    meaning = "Distance between the two clouds of whole samples; 0 for equal distributions."
    return {
        "energy_distance": _energy_row(fields, shares, "Energy distance", meaning),
        "two_sample_accuracy": Row(
            "Told apart from test samples",
            "How often a classifier that learnt from other samples knows of which kind a sample is; 0.5: "
            "indistinguishable, 1: always told apart. Samples that overlap each other raise it.",
            better="near 0.5",
            values={name: accuracy for name, (accuracy, _, _) in judged.items()},
            intervals=_accuracy_intervals(fields, judged),
            groups=count_groups(fields.groups, len(fields.test)),
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
    found = {"value": around(accuracy, [(of_test / 2, fields.groups), (of_model / 2, None)], fields.seed)}
    if "gaussian" in judged:
        (own, test, model), (other, also, gaussian) = halves("value"), halves("gaussian")
        parts = [(test - also, fields.groups), (model, None), (-gaussian, None)]
        found["gaussian"] = around(own - other, parts, fields.seed)
    return found


def set_rows(fields: Fields, seen: Seen) -> dict[str, Row]:
    """Other distances, spread, and how far either set covers the other."""
    sliced, spread = {}, {}
    overlaps: dict[str, dict[str, float]] = {name: {} for name in _OVERLAPS}
    features = round(root_features(fields) ** 2)
    for name, (a, b) in seen.pairs.items():
        sliced[name] = metrics.sliced_wasserstein(a, b, seed=fields.seed, features=features)
        spread[name] = _spread(b) / _spread(a) if _spread(a) > 0 else np.nan
        if len(a) > NEIGHBOURS:
            for kind, share in metrics.precision_recall(a, b, k=NEIGHBOURS).items():
                overlaps[kind][name] = share
    return {
        "sliced_wasserstein": Row(
            "Sliced Wasserstein distance",
            "How far samples must be moved to turn one cloud into the other, averaged over random directions.",
            unit="scaled units",
            values=sliced,
        ),
        "spread_ratio": Row(
            "Spread of samples",
            "How much samples differ from each other, relative to test samples; below 1 the model repeats itself.",
            better="near 1",
            values=spread,
        ),
    } | {kind: Row(*_OVERLAPS[kind], better="near 1", values=values) for kind, values in overlaps.items() if values}


def _spread(points: Array) -> float:
    """Root mean squared deviation from the set's own mean."""
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def spectrum_rows(seen: Seen) -> dict[str, Row]:
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
        "spectrum_error": Row(
            "Power spectra, all modes", "Mean of the misfits along the modes.", unit="dB", values=overall
        )
    }
    for mode in reference:
        rows[f"spectrum_error_{mode}"] = Row(
            f"Power spectrum along {mode}",
            f"Typical misfit of the power at each wavelength along {mode}; 3 dB is a factor of two.",
            unit="dB",
            values={name: error[mode] for name, error in errors.items()},
        )
    return rows


def powers_of(fields: Fields, x: Array) -> dict[str, Array]:
    """Power spectra of samples along each mode that is long enough; masked points count as the training mean."""
    filled = np.nan_to_num(scaled(fields, x), copy=False, nan=0.0)
    return {
        mode: metrics.sample_spectra(filled, axis)[1]
        for axis, mode in enumerate(fields.modes, start=1)
        if mode != "component" and x.shape[axis] >= metrics.LEAST_SPECTRUM
    }


def profile_rows(fields: Fields) -> dict[str, Row]:
    """Mean and quantiles along the profile mode, relative to the test samples' standard deviation.

    Masked points are left out, and so is an index at which all of them are.
    """
    sizes = dict(zip(fields.modes, fields.test.shape[1:], strict=True))
    mode = profile_mode(fields.modes, sizes)
    axis = fields.modes.index(mode) + 1
    test = scaled(fields, fields.test)
    mean, level = metrics.band_statistics(test, axis, QUANTILES)
    deviation = float(np.nanstd(test, dtype=np.float64)) or 1.0
    means, levels = {}, {}
    for name, x in fields.sets_and_codec.items():
        own_mean, own_level = metrics.band_statistics(scaled(fields, x), axis, QUANTILES)
        means[name] = math.sqrt(mean_of((own_mean - mean) ** 2)) / deviation
        levels[name] = mean_of(np.abs(own_level - level)) / deviation
    return {
        "profile_mean_error": Row(
            f"Mean along {mode}",
            f"Misfit of the mean at each {mode}, in standard deviations of the test samples.",
            values=means,
        ),
        "profile_quantile_error": Row(
            f"Quantiles along {mode}",
            f"Misfit of the 5, 25, 50, 75 and 95 % quantiles at each {mode}, in the same unit.",
            values=levels,
        ),
    }


def novelty_rows(fields: Fields, seen: Seen) -> dict[str, Row]:
    """Whether the model copies its training samples."""
    median = {name: float(np.median(distances)) for name, distances in seen.nearest.items()}
    columns = {"generated": "value", "train": "train_vs_test", "gaussian": "gaussian"}
    values = {columns[name]: m / median["test"] for name, m in median.items() if name != "test" and median["test"] > 0}
    z_train = primitives_of(fields).get("train")
    searched = len(fields.train if z_train is None else z_train)
    label, meaning = "Distance to the nearest training sample", ""
    if fields.n_train is not None and searched < fields.n_train:
        label = f"Distance to the nearest of {searched} training samples"
        meaning = f" Only {searched} of the {fields.n_train} training samples are searched; copies of others go unseen."
    return {
        "nearest_training_ratio": Row(
            label,
            "Relative to that of test samples: near 0 the model copies, near 1 its samples are as new as unseen data. "
            "The train column is each training sample against the other training samples." + meaning,
            better="near 1",
            values=values,
        )
    }
