"""The report artifact: what a flow run made, as Markdown on its page in Prefect."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    changed = not all(result.skipped for result in results)
    pages = stages.pages(recipe, parent_run if changed else None)
    sections = [
        f"# {recipe.name}",
        *verdict(made),
        *links(made, pages, changed=changed),
        *pictures(results),
        metric_table(made.get("metrics", {})),
        "## Stages",
        stage_table(results),
        stage_list(results),
    ]
    text = "\n\n".join(section for section in sections if section)
    create_markdown_artifact(text, artifact_key("report", recipe.name), f"What was made of {recipe.name}")


def verdict(made: Mapping[str, Any]) -> list[str]:
    """Which version the model is, and why it is champion or not."""
    model = made.get("model")
    if not isinstance(model, dict):
        return []
    alias = f", {model['alias']}" if model["alias"] else ""
    return [f"**{cell(model['name'])} version {model['version']}{alias}.** {cell(model['verdict'])}."]


def publish_drift(recipe: Recipe) -> None:
    """Put on the flow run's page whether new samples are like the first ones; nothing where there are none."""
    if not recipe.data.grows:
        return
    from diffats.stages import Workspace, report

    growths, drawn = report.newest_drift(Workspace(recipe))
    if not growths:
        return
    shown = [drift_section(recipe, growths[-1]), *images(drawn.items())]
    earlier = [growth for growth in growths[:-1] if growth["alarms"]]
    if earlier:
        shown.append("Earlier alarms: samples " + ", ".join(f"{g['first']} to {g['stop'] - 1}" for g in earlier) + ".")
    text = "\n\n".join([f"# New samples of {recipe.name}", *shown])
    create_markdown_artifact(text, artifact_key("drift", recipe.name), "Whether new samples are like the first ones")


def drift_section(recipe: Recipe, growth: dict[str, Any]) -> str:
    """One growth: what was compared, each statistic, and what the recipe makes of it."""
    limits, alarms = recipe.drift, growth["alarms"]
    rows = ["| statistic | median before | median now | effect | p | |", "|---|---:|---:|---:|---:|---|"]
    for name, row in growth["statistics"].items():
        cells = [number(row[column]) for column in ("before", "new", "effect", "p")]
        rows.append(f"| {cell(name)} | {' | '.join(cells)} | {'**alarm**' if name in alarms else ''} |")
    verdict = "New anchors are needed: `diffats decompose RECIPE.toml --restart`." if alarms else "They are alike."
    test = (
        f"Samples {growth['first']} to {growth['stop'] - 1} ({growth['samples']} against {growth['reference']} of the "
        "first version) by the test of Mann and Whitney with Holm's correction. The effect is the probability that a "
        f"new sample is the more unusual one. An alarm needs an effect of {limits.effect:g} and comes with a chance of "
        f"at most {limits.false_alarm:g} about a growth whose samples are alike."
    )
    return "\n\n".join([verdict, test, "\n".join(rows)])


def stage_table(results: Sequence[StageResult]) -> str:
    """One row a stage, narrow enough for every window."""
    rows = ["| stage | made | failed | seconds |", "|---|---|---:|---:|"]
    for result in results:
        made = "was there" if result.skipped else "now"
        rows.append(f"| {result.stage} | {made} | {result.failed} | {result.seconds:.1f} |")
    return "\n".join(rows)


def stage_list(results: Sequence[StageResult]) -> str:
    """What each stage tells, as a list: a table would be cut."""
    return "\n".join(f"- **{result.stage}**: {cell(result.summary)}" for result in results)


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


def links(made: Mapping[str, Any], pages: Mapping[str, str], *, changed: bool) -> list[str]:
    """Where the things are: report, model and run as links into MLflow's pages, and their places on disk."""
    version = f"version {code(made['version'])}" if "version" in made else "which this flow does not change"
    lines = []
    if pages:
        local = not str(made.get("tracking_uri", "http")).startswith("http")
        when = ", while `make mlflow-ui` runs, or the command that the flow printed" if local else ""
        shown = " · ".join(f"[{name}]({url})" for name, url in pages.items())  # addresses are longer than a column
        lines.append(f"- In MLflow{when}: {shown}")
    if not changed:
        lines.append("- MLflow: no new run, everything was there")
    if "report" in made:
        lines.append(f"- Report on disk: {code(made['report'])}")
    lines.append(f"- Store: {code(made['store'])}, {version}")
    return ["\n".join(lines)]


def pictures(results: Sequence[StageResult]) -> list[str]:
    """The stages' small pictures."""
    return images(picture for result in results for picture in result.pictures.items())


def images(named: Iterable[tuple[str, bytes]]) -> list[str]:
    """Small pictures as data URIs: Prefect's image artifacts take addresses only."""
    sections, size = [], 0
    for title, png in named:
        if len(png) <= MAX_PICTURE and size + len(png) <= MAX_PICTURES:
            size += len(png)
            uri = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
            sections.append(f"![{cell(title)}]({uri})\n\n*{cell(title)}*")
    return sections


def cell(text: str) -> str:
    """Text that stays inside a cell of a table, and is neither HTML nor a link, whatever names from data are in it.

    >>> cell("a | <b> [c](d)")
    'a \\\\| &lt;b&gt; \\\\[c\\\\](d)'
    """
    return re.sub(r"([|\[\]`])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def code(text: object) -> str:
    """Text as code, which ends where it ends.

    >>> code("a`b")
    "`a'b`"
    """
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def number(value: object) -> str:
    """A figure for people; empty where there is none."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""
