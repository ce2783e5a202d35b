"""Prefect flows: in which order the stages run. Each is also a command: ``python -m flows.end_to_end RECIPE.toml``.

Prefect reads its settings when it is first imported, so they are set here, before any flow imports it. What the user's
environment or Prefect profile already says wins over them.
"""

import os

from diffats import openmp
from diffats.requirements import require

require("a flow", "train", "track", "flows")

SETTINGS = {
    # The private server of a flow that is run as a command takes 10 to 30 s to start; the default limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Nothing is reported to anybody.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    **openmp.SETTINGS,
    # The library's log is part of a run's log, except for lines from threads that belong to no run.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "diffats",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
