"""Where MLflow's pages show something: paths, and links from any of its pages."""

from __future__ import annotations

from urllib.parse import quote

from diffats.errors import redact
from diffats.registry.connection import PORT, is_server

WORKFLOW = "workflowType=machine_learning"  # else MLflow shows the menus of language models


def run_path(experiment_id: str, run_id: str) -> str:
    """Of a run; ``/artifacts/NAME`` behind it is a file of it."""
    return f"experiments/{experiment_id}/runs/{run_id}"


def version_path(name: str, version: str) -> str:
    """Of a model version.

    >>> version_path("a b", "2")
    'models/a%20b/versions/2'
    """
    return f"models/{quote(name, safe='')}/versions/{version}"


def address(uri: str, path: str) -> str:
    """The address of a page: at the server, or where a database is shown on this machine.

    >>> address("sqlite:///mlflow.db", "models")
    'http://127.0.0.1:5000/#/models?workflowType=machine_learning'
    """
    base = redact(uri).rstrip("/") if is_server(uri) else f"http://127.0.0.1:{PORT}"
    return f"{base}/#/{path}?{WORKFLOW}"


def link(text: str, path: str) -> str:
    """A link in Markdown.

    >>> link("the run", run_path("1", "ab"))
    '[the run](#/experiments/1/runs/ab?workflowType=machine_learning)'
    """
    return f"[{text}](#/{path}?{WORKFLOW})"
