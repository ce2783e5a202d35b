"""Runs, data versions and models in MLflow: the only place of diffats that imports it.

Importing this package also teaches :func:`mlflow.data.get_source` to read our data sets back.
"""

import logging
import os
import warnings

# Before the first import of mlflow, which reads some of these then. A user's own setting wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else files of the caller's directory go into the model
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the default, 7, waits minutes; we keep and retry

from diffats.messages import MESSAGES

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=MESSAGES["type hints"].pattern, category=UserWarning)
    import mlflow.pyfunc  # noqa: F401  it warns of its own type hints

from diffats.registry.connection import TrackingError, ui_command
from diffats.registry.datasets import StoreDataset, StoreSource
from diffats.registry.models import data_digests, download
from diffats.registry.runs import StageRun, soon
from diffats.registry.tracker import RECIPE_TAG, STAGE_TAG, Tracker, keeps_its_own, tracking_uri

# Otherwise each new database is announced, and each error that is raised is printed too, with its traceback.
logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)
# And each registration tells that it validates its example.
logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)

__all__ = [
    "RECIPE_TAG",
    "STAGE_TAG",
    "StageRun",
    "StoreDataset",
    "StoreSource",
    "Tracker",
    "TrackingError",
    "data_digests",
    "download",
    "keeps_its_own",
    "soon",
    "tracking_uri",
    "ui_command",
]
