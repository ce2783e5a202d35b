"""Generated samples against real ones, next to references in the same units, counts and estimators.

Every number of a model stands beside two others: training samples against test samples (how far apart two honest draws
of these data are), and a Gaussian fitted to the same primitives (what a model without a network reaches).

``fields`` holds what is compared, ``sets`` and ``forecasts`` the rows, ``table`` puts them together with their
intervals, ``verdicts`` puts a row into words, and ``gaussian`` is the model to beat.
"""

from diffats.evaluation.fields import Fields, nearest_to_generated, nearest_training
from diffats.evaluation.gaussian import gaussian_pca, gaussian_within
from diffats.evaluation.row import COLUMNS, INTERVAL, Metrics
from diffats.evaluation.sets import profile_mode
from diffats.evaluation.table import ESTIMATORS, evaluate
from diffats.evaluation.verdicts import (
    LEAST_GROUPS,
    OF_CODEC,
    REFERENCES,
    beats,
    compared,
    comparison,
    deciding_rows,
    distance_from_ideal,
    more_samples,
    tally,
    verdict,
    within,
    written,
)

__all__ = [
    "COLUMNS",
    "ESTIMATORS",
    "INTERVAL",
    "LEAST_GROUPS",
    "OF_CODEC",
    "REFERENCES",
    "Fields",
    "Metrics",
    "beats",
    "compared",
    "comparison",
    "deciding_rows",
    "distance_from_ideal",
    "evaluate",
    "gaussian_pca",
    "gaussian_within",
    "more_samples",
    "nearest_to_generated",
    "nearest_training",
    "profile_mode",
    "tally",
    "verdict",
    "within",
    "written",
]
