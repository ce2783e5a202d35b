"""The report artifact: what a flow run made, as Markdown on its page in Prefect."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact

from diffats.config import Recipe

if TYPE_CHECKING:
    from diffats.stages import StageResult

MAX_PICTURE = 200_000  # bytes; Prefect keeps artifacts in its database
MAX_PICTURES = 800_000


def artifact_key(kind: str, name: str) -> str:
    """A key as Prefect allows it.

    >>> artifact_key("report", "ERA5_t2m.v2")
    'report-era5-t2m-v2'
    """
    return re.sub("[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")


def publish(recipe: Recipe, results: Sequence[StageResult], parent_run: str) -> None:
    """Put the report on the flow run's page."""
    from diffats import stages

    made = stages.summary(recipe, results)
    sections = [
        f"# {recipe.name}",
        stage_table(results),
        *links(made, None if all(result.skipped for result in results) else parent_run),
        metric_table(made.get("metrics", {})),
        *pictures(results),
    ]
    text = "\n\n".join(section for section in sections if section)
    create_markdown_artifact(text, artifact_key("report", recipe.name), f"What was made of {recipe.name}")


def stage_table(results: Sequence[StageResult]) -> str:
    """One row a stage."""
    rows = ["| stage | result | failed | seconds |", "|---|---|---:|---:|"]
    for result in results:
        text = "already there: " * result.skipped + cell(result.summary)
        rows.append(f"| {result.stage} | {text} | {result.failed} | {result.seconds:.1f} |")
    return "\n".join(rows)


def metric_table(metrics: dict[str, dict[str, object]]) -> str:
    """Each metric next to its references; empty where there are none."""
    columns = [name for name in ("value", "train_vs_test", "gaussian") if any(name in row for row in metrics.values())]
    if not columns:
        return ""
    rows = ["| metric | " + " | ".join(columns).replace("_", " ") + " | better |", "|---" * (len(columns) + 2) + "|"]
    for name, row in metrics.items():
        cells = [number(row.get(column)) for column in columns]
        rows.append(
            f"| {cell(str(row.get('label', name)))} | {' | '.join(cells)} | {cell(str(row.get('better', '')))} |"
        )
    return "\n".join(rows)


def links(made: dict[str, object], parent_run: str | None) -> list[str]:
    """Where the things are: store version, report, model, MLflow run."""
    version = f"version `{made['version']}`" if "version" in made else "which this flow does not change"
    lines = [f"- Store: `{made['store']}`, {version}"]
    if "report" in made:
        lines.append(f"- Report: `{made['report']}`")
    model = made.get("model")
    if isinstance(model, dict):
        lines.append(f"- Model: `{model['uri']}`, version {model['version']}")
    tracker = str(made.get("tracking_uri", ""))
    if parent_run is None:
        lines.append("- MLflow: no new run, everything was there")
    elif tracker.startswith("http"):
        lines.append(f"- MLflow: [run {parent_run}]({tracker.rstrip('/')}/#/runs/{parent_run})")
    else:
        lines.append(
            f"- MLflow: run `{parent_run}`, kept in `{tracker}`" if tracker else f"- MLflow: run `{parent_run}`"
        )
    return ["\n".join(lines)]


def pictures(results: Sequence[StageResult]) -> list[str]:
    """The stages' small pictures as data URIs: Prefect's image artifacts take addresses only."""
    sections, size = [], 0
    for result in results:
        for title, png in result.pictures.items():
            if len(png) <= MAX_PICTURE and size + len(png) <= MAX_PICTURES:
                size += len(png)
                sections.append(
                    f"![{title}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})\n\n*{title}*"
                )
    return sections


def cell(text: str) -> str:
    """Text that stays inside a cell of a table.

    >>> cell("a | b")
    'a \\\\| b'
    """
    return " ".join(text.split()).replace("|", "\\|")


def number(value: object) -> str:
    """A figure for people; empty where there is none."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""
