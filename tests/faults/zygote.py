"""A process that has imported what takes long and forks for each command, so that hundreds can be killed in minutes.

It forks before any thread or cluster starts. A forked process then does what ``diffats VERB RECIPE`` does from its
first line on: the same ``main``, with its handlers of signals and its way to end.

Requests come as lines of JSON on standard input, and each is answered by one line on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TESTS = Path(__file__).parents[1]
# Not Icechunk, nor our own modules, which import it: release 2 starts threads of its own as it is imported, for which a
# forked process would wait for ever.
LIBRARIES = (
    "torch",
    "xarray",
    "zarr",
    "distributed",
    "mlflow.pyfunc",
    "diffusers",
    "accelerate",
    "matplotlib.pyplot",
    "h5netcdf",
)


def import_everything() -> None:
    """What takes longest to import; with one thread, since pools of threads do not survive a fork."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    for name in LIBRARIES:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()


def run_child(request: dict[str, Any]) -> None:
    """Become a command: in a session of its own, so that whatever it leaves behind can be found."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    sys.path.insert(0, str(TESTS / "faults"))
    for name in request["changes"]:
        getattr(importlib.import_module("changes"), name)()
    from diffats.cli import main

    sys.argv = ["diffats", *request["arguments"]]
    main()


def serve() -> None:
    """Fork and wait as asked."""
    import_everything()
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif "system" in request:
            answer = subprocess.run(request["system"], check=False, stdout=sys.stderr).returncode
        else:
            answer = os.fork()
            if answer == 0:
                try:
                    run_child(request)
                except BaseException:  # noqa: BLE001  (it must not go on as a second zygote)
                    traceback.print_exc()
                finally:
                    os._exit(70)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    serve()
