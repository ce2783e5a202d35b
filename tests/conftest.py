"""What every test shares: an environment that is the same everywhere, and reaches nobody."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import tempfile

import distributed  # noqa: F401  (sets its logger up)

import flows
from diffats import environment

# pytest gives its handlers to loggers that do not propagate, and Dask silences the handlers of its own.
for logger in [
    logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(("bokeh", "distributed"))
]:
    logger.handlers.clear()
    logger.propagate = True
# A shell's background jobs ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Set before any test module imports what reads it.
os.environ.update(environment.SETTINGS | flows.SETTINGS)
os.environ["MPLBACKEND"] = "Agg"
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # tests share cores, and threads of one operation would wait for each other
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
    os.environ.pop(name, None)
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="diffats-prefect-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
