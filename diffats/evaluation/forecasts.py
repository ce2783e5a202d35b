"""Rows of conditional recipes: ensembles against the truth, beside trivial forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from diffats import metrics
from diffats.evaluation.fields import Fields
from diffats.evaluation.row import INTERVAL, Array, Row, around, count_groups, mean_of
from diffats.evaluation.verdicts import REFERENCES


def forecast_rows(fields: Fields) -> dict[str, Row]:
    """Conditional recipes: the ensemble against the truth, beside trivial predictors and the codec's floor."""
    if fields.ensemble is None or fields.truth is None:
        return {}
    single = _single_forecasts(fields, fields.truth)
    rows = _forecast_error_rows(fields, fields.ensemble, fields.truth, single)
    rows |= _calibration_rows(fields, fields.ensemble, fields.truth, single)
    return rows | _residual_rows(fields, fields.ensemble, fields.truth, single)


def _forecast_error_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, Row]:
    """Relative L2 of the ensemble's mean and of its members, as a mean over cases."""
    rows = {}
    for name, (label, what, predictions) in _predictions(ensemble).items():
        columns = {"value": predictions} | {column: [x] for column, x in single.items()}
        errors = {
            column: np.stack([metrics.relative_l2(x, truth) for x in xs]).mean(axis=0) for column, xs in columns.items()
        }
        rows[name] = Row(
            f"{label}, relative L2",
            f"Error of {what}, under a test sample's condition, relative to the sample. Mean over test samples.",
            values={column: mean_of(each) for column, each in errors.items()},
            intervals=_paired_intervals(fields, errors),
            groups=count_groups(fields.case_groups, len(truth)),
        )
    return rows


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
            found[column] = around(float(difference.mean()), [(difference, groups)], fields.seed)
    return found


def _predictions(ensemble: Array) -> dict[str, tuple[str, str, list[Array]]]:
    """What an ensemble predicts, by the row of its error: label, words, and fields ``(cases, n_1, .., n_N)``."""
    return {
        "relative_l2": ("Forecast", "the mean of the generated ensemble", [ensemble.mean(axis=1)]),
        "member_relative_l2": ("One member", "single generated samples, on average", _members(ensemble)),
    }


def pooled_rows(fields: Fields) -> dict[str, Row]:
    """The same errors over all cases together."""
    if fields.ensemble is None or fields.truth is None:
        return {}
    rows, truth, single = {}, fields.truth, _single_forecasts(fields, fields.truth)
    for name, (label, _, predictions) in _predictions(fields.ensemble).items():
        columns = {"value": predictions} | {column: [x] for column, x in single.items()}
        rows[f"{name}_pooled"] = Row(
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


def _calibration_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, Row]:
    """The ensemble as a probability forecast."""
    members = ensemble.shape[1]
    score = {
        column: metrics.crps(x, truth, scale=fields.scale)
        for column, x in {"value": ensemble, **{column: x[:, None] for column, x in single.items()}}.items()
    }
    rows = {
        "crps": Row(
            "Forecast, CRPS",
            "Score of the ensemble as a probability forecast; equals the mean absolute error for a single forecast.",
            unit="scaled units",
            values={column: float(np.mean(each)) for column, each in score.items()},
            intervals=_paired_intervals(fields, score),
            groups=count_groups(fields.case_groups, len(truth)),
        )
    }
    if members < 2:
        return rows
    few = f" With {members} members, fewer than 19, it cannot be far below." if members < 19 else ""
    return rows | {
        "spread_skill": Row(
            "Forecast, spread over error",
            "How much the members of an ensemble differ, relative to the error of their mean; 1 is calibrated, below 1 "
            "the forecast is too sure of itself.",
            better="near 1",
            values={"value": metrics.spread_skill(ensemble, truth, scale=fields.scale)},
        ),
        "interval_coverage": Row(
            "Forecast, 90 % intervals",
            "Share of the truth within the ensemble's central 90 % interval; a calibrated ensemble has 0.9, whatever "
            "its number of members." + few,
            better="near 0.9",
            values={"value": float(np.mean(metrics.interval_coverage(ensemble, truth, level=INTERVAL)))},
        ),
    }


def _residual_rows(fields: Fields, ensemble: Array, truth: Array, single: Mapping[str, Array]) -> dict[str, Row]:
    """Whether generated fields solve the equation that the data solve."""
    if fields.residual is None:
        return {}
    residuals = {"value": np.stack([fields.residual(x) for x in _members(ensemble)]), "truth": fields.residual(truth)}
    residuals |= {"codec": fields.residual(single["codec"])} if "codec" in single else {}
    return {
        "pde_residual": Row(
            "Residual of the equation",
            "What single generated samples leave of the equation that the data solve, averaged over smooth windows, "
            "relative to its terms: 1 for unrelated terms. The truth leaves what its grid cannot show.",
            values={column: mean_of(x) for column, x in residuals.items()},
        )
    }
