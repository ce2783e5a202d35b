"""Which version of a model is champion, why, and which ones were: on the model's page, its experiment's and in a run.

The run has the numbers of every decision, with the version as step: MLflow draws them as curves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.entities.model_registry import ModelVersion

from diffats.registry.notes import NOTE_TAG, owned, signed
from diffats.registry.places import link, run_path, version_path
from diffats.registry.runs import measured

CHAMPIONS_TAG = "diffats.champions"
RUN_NAME = "champion history"
METRIC_TAG = "diffats.metric."  # of earlier releases
MOST = 25  # versions in the table


def tell(client: MlflowClient, experiment: str, name: str, version: str, numbers: Mapping[str, float]) -> None:
    """Note a decision, and say everywhere who is champion now.

    Parameters
    ----------
    experiment
        Id of the model's experiment.
    name, version
        The model and the version that was judged.
    numbers
        What the decision rests on, by name.
    """
    versions = sorted(
        client.search_model_versions(f"name = '{name}'", max_results=1000), key=lambda each: -int(each.version)
    )
    champion = client.get_registered_model(name).aliases.get("champion")
    run_id = _history(client, experiment, name, versions)
    client.log_batch(run_id, metrics=measured(numbers, int(version)))
    client.set_tag(run_id, NOTE_TAG, signed(_table(name, versions, champion)))
    now = next((each for each in versions if str(each.version) == str(champion)), None)
    history = link("All versions and champions", run_path(experiment, run_id))
    told = signed(f"{_champion(experiment, name, now)}\n\n{history}")
    if owned(client.get_registered_model(name).description):
        client.update_registered_model(name, description=told)
    if owned(client.get_experiment(experiment).tags.get(NOTE_TAG)):
        client.set_experiment_tag(experiment, NOTE_TAG, told)


def _history(client: MlflowClient, experiment: str, name: str, versions: Sequence[ModelVersion]) -> str:
    """The run that holds the history; one that is made anew begins with what earlier releases noted."""
    query = f"tags.`{CHAMPIONS_TAG}` = '{name}'"
    found = client.search_runs([experiment], query, ViewType.ACTIVE_ONLY, max_results=1)
    if found:
        return str(found[0].info.run_id)
    run_id = str(client.create_run(experiment, tags={CHAMPIONS_TAG: name}, run_name=RUN_NAME).info.run_id)
    for each in versions:
        noted = {tag.removeprefix(METRIC_TAG): value for tag, value in each.tags.items() if tag.startswith(METRIC_TAG)}
        client.log_batch(run_id, metrics=measured(_numbers(noted), int(each.version)))
    client.set_terminated(run_id)
    return run_id


def _numbers(noted: Mapping[str, str]) -> dict[str, float]:
    """Metrics that earlier releases kept as tags; what is no number is left out."""
    found = {}
    for metric, text in noted.items():
        try:
            found[f"candidate/{metric}"] = float(text)
        except ValueError:
            continue
    return found


def _champion(experiment: str, name: str, version: ModelVersion | None) -> str:
    """The champion, why, and where its data, curves and report are."""
    if version is None:
        return f"**{name} has no champion yet**: no version beats its references. The newest is `@candidate`."
    why = version.tags.get("verdict", "registered by an earlier release")
    made = f"Its data, curves and report: {link('the run that made it', run_path(experiment, str(version.run_id)))}."
    load = f'Load it: `diffats.load("models:/{name}@champion").sample(8)`.'
    return "\n\n".join([f"**Champion: {_link(name, version)}** ({why}).", made, load])


def _link(name: str, version: ModelVersion) -> str:
    return link(f"{name} version {version.version}", version_path(name, str(version.version)))


def _table(name: str, versions: Sequence[ModelVersion], champion: Any) -> str:
    """The newest versions, each with its headline and why it became champion or not."""
    rows = ["| version | registered | headline | when it was registered |", "|---|---|---|---|"]
    for each in versions[:MOST]:
        day = datetime.fromtimestamp(each.creation_timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        now = " **champion**" if str(each.version) == str(champion) else ""
        cells = [_link(name, each) + now, day, each.tags.get("headline", ""), each.tags.get("verdict", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    about = (
        "Under Model metrics the step is the version: `candidate/` is what a version reached when it was registered, "
        "`champion/` what the champion reached then on the same test samples; smaller is better."
    )
    return "\n\n".join([f"Champions of **{name}**", "\n".join(rows), about])
