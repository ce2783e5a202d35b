"""Pictures: every function returns a matplotlib `Figure`, without pyplot; `png` makes bytes of it."""

from diffats.plots.curves import (
    anchors,
    deviations,
    drift,
    factors_before_after,
    nearest_training,
    overlap_histograms,
    power_spectra,
    quantiles,
    scorecard,
    scree,
    spectra_bands,
    training_curves,
)
from diffats.plots.fields import forecast, gallery, medoid, reconstruction_panels
from diffats.plots.forecasts import error_in_time, plume, time_mode
from diffats.plots.motion import film
from diffats.plots.painter import Painter, largest_component
from diffats.plots.style import COLOURS, NAMES, png

__all__ = [
    "COLOURS",
    "NAMES",
    "Painter",
    "anchors",
    "deviations",
    "drift",
    "error_in_time",
    "factors_before_after",
    "film",
    "forecast",
    "gallery",
    "largest_component",
    "medoid",
    "nearest_training",
    "overlap_histograms",
    "png",
    "plume",
    "power_spectra",
    "quantiles",
    "reconstruction_panels",
    "scorecard",
    "scree",
    "spectra_bands",
    "time_mode",
    "training_curves",
]
