"""Pictures: every function returns a matplotlib `Figure`, without pyplot; `png` makes bytes of it."""

from diffats.plots.curves import (
    COLOURS,
    NAMES,
    anchors,
    deviations,
    drift,
    factors_before_after,
    nearest_training,
    overlap_histograms,
    png,
    power_spectra,
    quantiles,
    scorecard,
    scree,
    spectra_bands,
    training_curves,
)
from diffats.plots.fields import Painter, gallery, medoid, reconstruction_panels

__all__ = [
    "COLOURS",
    "NAMES",
    "Painter",
    "anchors",
    "deviations",
    "drift",
    "factors_before_after",
    "gallery",
    "medoid",
    "nearest_training",
    "overlap_histograms",
    "png",
    "power_spectra",
    "quantiles",
    "reconstruction_panels",
    "scorecard",
    "scree",
    "spectra_bands",
    "training_curves",
]
