"""Runs and models in MLflow, through a client and run ids: no active run, no global tracking URI."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from diffats.config import Recipe
from diffats.errors import InputError, StoreNotFoundError
from diffats.registry import champions, identity
from diffats.registry.connection import absolute, asking, database_of, make_database, ui_command
from diffats.registry.datasets import StoreSource
from diffats.registry.models import fetch, file_digests, save_pyfunc
from diffats.registry.moving import artifacts_beside, follow
from diffats.registry.notes import owned, signed
from diffats.registry.places import address, run_path, version_path
from diffats.registry.runs import (
    ERROR_TAG,
    MAX_METRICS,
    StageRun,
    dataset_input,
    finish_run,
    log_params,
    measured,
    texts,
)

logger = logging.getLogger("diffats.registry")

RECIPE_TAG = "diffats.recipe_fingerprint"
STAGE_TAG = "diffats.stage"
PARENT_TAG = "mlflow.parentRunId"
VERSIONS_TAG = "mlflow.modelVersions"
DATABASE = "mlflow.db"


def tracking_uri(recipe: Recipe) -> str:
    """MLflow's tracking URI of a recipe: an SQLite file where ``tracking.uri`` is empty.

    Recipes that do not say where their root is, and so lie beside each other in ``runs``, share ``runs/mlflow.db``. A
    root that the recipe names, or that has a database of its own already, has its own.

    Raises
    ------
    InputError
        Where the root is a URL, which holds no database.
    """
    if recipe.tracking.uri:
        return recipe.tracking.uri
    if "://" in recipe.location:
        raise InputError(f'root "{recipe.location}" is a URL and holds no run database. Set tracking.uri.')
    own, shared = _databases(recipe)
    return f"sqlite:///{own if recipe.root or own.is_file() else shared}"


def keeps_its_own(recipe: Recipe) -> str:
    """What to say of a root from before recipes shared a database; empty for all others."""
    own, shared = _databases(recipe)
    if recipe.tracking.uri or recipe.root or not own.is_file():
        return ""
    return (
        f"runs and models of this root are in {own}, as before; recipes without one share {shared} "
        "(tracking.uri says otherwise)"
    )


def _databases(recipe: Recipe) -> tuple[Path, Path]:
    root = Path(recipe.location).absolute()
    return root / DATABASE, root.parent / DATABASE


class Tracker:
    """Runs, data versions and models of one recipe in MLflow.

    Parameters
    ----------
    uri
        MLflow tracking URI. A relative SQLite path is taken from the current directory.
    experiment
        Name of the experiment; created, or restored where it was deleted.
    artifacts
        Where a new experiment keeps its files; by default beside an SQLite database, or where a server puts them.

    Raises
    ------
    TrackingError
        Where the tracker cannot be reached.

    Examples
    --------
    .. code-block:: python

        tracker = Tracker("sqlite:///runs/demo/mlflow.db", "demo")
        parent = tracker.start("demo", params={"train": {"steps": 100}}, fingerprint="ab12")
        with tracker.stage(parent, "train") as run:
            run.log({"loss": 0.5}, step=1)
        tracker.finish(parent)
    """

    def __init__(self, uri: str, experiment: str, *, artifacts: str | None = None) -> None:
        self.uri = absolute(uri)
        self.experiment = experiment
        database = database_of(self.uri)
        if database is not None:
            artifacts = artifacts or str(artifacts_beside(database))
        with asking(self.uri, f'open experiment "{experiment}"'):
            if database is not None:
                make_database(database)
            self.client = MlflowClient(self.uri, self.uri)
            self.experiment_id = _open_experiment(self.client, experiment, artifacts)
            if database is not None:
                follow(database)

    @classmethod
    def for_recipe(cls, recipe: Recipe) -> Self:
        """The tracker that a recipe names, see :func:`tracking_uri`.

        Raises
        ------
        InputError
            Where the root is a URL, which holds no database.
        """
        return cls(tracking_uri(recipe), recipe.name)

    @property
    def ui_command(self) -> str:
        """The exact command that opens the tracker's pages on this machine."""
        return ui_command(self.uri)

    # Runs ------------------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        fingerprint: str | None = None,
        latest: bool = False,
    ) -> str:
        """Open the parent run of a pipeline run: the interrupted one of this recipe, if there is one.

        Parameters
        ----------
        name
            What MLflow's pages call it.
        tags, params
            Nested parameters get dotted names. A continued run has the same tags and keeps the parameters it has.
        fingerprint
            Of the recipe; tagged, and looked for first.
        latest
            Continue the recipe's newest run even where it is finished.

        Returns
        -------
        str
            The run's id.
        """
        run_id = self.reuse(fingerprint, texts(tags or {}), latest=latest) if fingerprint else None
        tags = {**(tags or {}), **({RECIPE_TAG: fingerprint} if fingerprint else {})}
        with asking(self.uri, f'start run "{name}"'):
            if run_id is None:
                run_id = self.client.create_run(self.experiment_id, tags=texts(tags), run_name=name).info.run_id
            elif tags:
                self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in texts(tags).items()])
            log_params(self.client, run_id, params or {})
        return run_id

    def reuse(self, fingerprint: str, tags: Mapping[str, str] | None = None, *, latest: bool = False) -> str | None:
        """Continue the newest unfinished (``latest``: or finished) parent run of a recipe; ``None`` without one.

        It may look unfinished because another process is at work: hold the root's lock.
        """
        with asking(self.uri, "look for an earlier run"):
            for run in self._runs({RECIPE_TAG: fingerprint, **(tags or {})}):
                if (latest or run.info.status != "FINISHED") and PARENT_TAG not in run.data.tags:
                    self.client.update_run(run.info.run_id, status="RUNNING")
                    return str(run.info.run_id)
        return None

    def finish(self, run_id: str, status: str = "FINISHED") -> None:
        """Close a run. A tracker that is away is logged, not raised: the work is done."""
        finish_run(self.client, self.uri, run_id, status)

    def discard_if_empty(self, run_id: str) -> None:
        """Remove a finished parent run under which no stage had anything to do."""
        with asking(self.uri, f"look at run {run_id}"):
            if not self._runs({PARENT_TAG: run_id}):
                self.client.delete_run(run_id)

    def stage(self, parent_id: str, stage: str, *, started: int | None = None) -> StageRun:
        """The child run of a stage, as a context manager; an interrupted one is continued.

        ``started`` is when the stage began, in milliseconds since 1970; now where left out.
        """
        with asking(self.uri, f'start stage "{stage}"'):
            for run in self._runs({PARENT_TAG: parent_id, STAGE_TAG: stage}):
                self.client.update_run(run.info.run_id, status="RUNNING")
                if ERROR_TAG in run.data.tags:
                    self.client.delete_tag(run.info.run_id, ERROR_TAG)
                return StageRun(self.client, self.uri, run.info, stage, parent_id)
            tags = {PARENT_TAG: parent_id, STAGE_TAG: stage}
            run = self.client.create_run(self.experiment_id, start_time=started, tags=tags, run_name=stage)
        return StageRun(self.client, self.uri, run.info, stage, parent_id)

    def log(self, run_id: str, metrics: Sequence[tuple[Mapping[str, float], int]]) -> None:
        """Record numbers, each set with its step, as metrics of a run."""
        batch = [metric for numbers, step in metrics for metric in measured(numbers, step)]
        with asking(self.uri, f"record metrics of run {run_id}"):
            for start in range(0, len(batch), MAX_METRICS):
                self.client.log_batch(run_id, metrics=batch[start : start + MAX_METRICS])

    def dataset(
        self,
        run_id: str,
        name: str,
        location: str,
        group: str | None,
        snapshot: str | None,
        digest: str,
        context: str,
        **about: Mapping[str, Any],
    ) -> None:
        """Record a version of a store as input of a run, once; see :meth:`StageRun.dataset`."""
        given = dataset_input(StoreSource(location, group, snapshot, digest), name, context, **about)
        with asking(self.uri, f"record data set {name}"):
            self.client.log_inputs(run_id, datasets=[given])

    def _runs(self, tags: Mapping[str, str]) -> Sequence[Run]:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        return self.client.search_runs(
            [self.experiment_id], query, ViewType.ACTIVE_ONLY, max_results=50, order_by=["attributes.start_time DESC"]
        )

    # Models ----------------------------------------------------------------------------------------------------------

    def register(self, bundle: Path, name: str, run_id: str, digests: Mapping[str, str] | None = None) -> str:
        """Register a bundle as a new version of a model, with alias ``candidate``.

        Parameters
        ----------
        bundle
            Directory of ``bundle.json`` and safetensors files; copied into the experiment's artifacts.
        name
            Of the registered model.
        run_id
            The run that made it.
        digests
            What it was made from, by name: data version, anchor, recipe, evaluation. They go into a file of the model,
            and shortened into one tag.

        Returns
        -------
        str
            The version.

        Raises
        ------
        StoreNotFoundError
            Where there is no bundle.
        """
        if not (bundle / "bundle.json").is_file():
            raise StoreNotFoundError(f"{bundle}: no bundle.json here. Train a model first.")
        with asking(self.uri, f'register model "{name}"'):
            model_id, source, tag = self._log_model(bundle, name, run_id, digests or {})
            self._ensure_model(name)
            tags = {identity.IDENTITY_TAG: tag}
            made = self.client.create_model_version(name, source, run_id, tags, model_id=model_id)
            versions = json.dumps([{"name": name, "version": str(made.version)}])
            self.client.set_logged_model_tags(model_id, {VERSIONS_TAG: versions})  # the pages link the two by it
            self.client.set_registered_model_alias(name, "candidate", made.version)
        return str(made.version)

    def _log_model(self, bundle: Path, name: str, run_id: str, digests: Mapping[str, str]) -> tuple[str, str, str]:
        """Keep the model's files; its id, its location and the tag that identifies it."""
        plain = re.sub(r"[/:.%\"']", "-", name)  # not allowed in a logged model's name
        model = self.client.create_logged_model(self.experiment_id, plain, run_id, model_type="generative")
        status = LoggedModelStatus.FAILED
        try:
            with tempfile.TemporaryDirectory() as directory:
                folder = Path(directory) / "model"
                description = Model(
                    artifact_path=model.artifact_location,
                    run_id=run_id,
                    model_id=model.model_id,
                    model_uuid=model.model_id,
                )
                save_pyfunc(bundle, folder, metadata=digests, description=description)
                tag = identity.write(folder, digests, file_digests(folder))
                self.client.log_model_artifacts(model.model_id, str(folder))
            status = LoggedModelStatus.READY
        finally:
            self.client.finalize_logged_model(model.model_id, status)
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id), str(model.artifact_location), tag

    def _ensure_model(self, name: str) -> None:
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def find(self, name: str, digests: Mapping[str, str]) -> str | None:
        """The newest version of a model that has all these digests; ``None`` where there is none.

        A stage that was interrupted after registering uses it to not register again.
        """
        wanted = identity.shortened(digests).items()
        with asking(self.uri, f'look for model "{name}"'):
            versions = self.client.search_model_versions(f"name = '{name}'", order_by=["creation_timestamp DESC"])
        return next((str(v.version) for v in versions if wanted <= identity.of(v.tags).items()), None)

    def alias(self, name: str, alias: str) -> str | None:
        """The version of a model that has an alias; ``None`` where no version, or no such model, has it."""
        with asking(self.uri, f'read aliases of model "{name}"'):
            try:
                aliases = self.client.get_registered_model(name).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None
        version = aliases.get(alias)
        return None if version is None else str(version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Move an alias to a version."""
        with asking(self.uri, f'set alias "{alias}" of model "{name}"'):
            self.client.set_registered_model_alias(name, alias, version)

    def made_by(self, name: str, version: str) -> str:
        """Where the tracker's pages show the run that made a version, see `places`."""
        with asking(self.uri, f'read version {version} of model "{name}"'):
            run_id = self.client.get_model_version(name, version).run_id
        return run_path(self.experiment_id, str(run_id))

    def pages(self, name: str, run_id: str | None) -> dict[str, str]:
        """Addresses of what a person looks for, by name: the report and the page of a run, and the model.

        Those of a database are where :func:`ui_command` shows it.
        """
        found = {}
        with asking(self.uri, "look for pages"):
            if run_id is not None:
                path = run_path(self.experiment_id, run_id)
                files = [file.path for file in self.client.list_artifacts(run_id)]
                shown = [f"{path}/artifacts/{file}" for file in files if file.endswith(".html")]
                found = ({"Report": shown[0]} if shown else {}) | {"Run": path}
            champion = self.alias(name, "champion") or self.alias(name, "candidate")
        found |= {} if champion is None else {"Model": version_path(name, champion)}
        return {what: address(self.uri, path) for what, path in found.items()}

    def overview(self, name: str) -> dict[str, str]:
        """Addresses of the pages to begin with: the champion, if there is one, and the runs."""
        champion = self.alias(name, "champion")
        found = {} if champion is None else {"Champion": version_path(name, champion)}
        found |= {"Runs": f"experiments/{self.experiment_id}/runs"}
        return {what: address(self.uri, path) for what, path in found.items()}

    def describe_version(self, name: str, version: str, text: str, tags: Mapping[str, str]) -> None:
        """Set what a person reads on a version's page; a text that a person has written stays."""
        with asking(self.uri, f'describe version {version} of model "{name}"'):
            if owned(self.client.get_model_version(name, version).description):
                self.client.update_model_version(name, version, signed(text))
            for key, value in texts(tags).items():
                self.client.set_model_version_tag(name, version, key, value)

    def tell_champion(self, name: str, version: str, numbers: Mapping[str, float]) -> None:
        """Note a decision about a version, and say on the pages who is champion now; see `champions`."""
        with asking(self.uri, f'tell the champion of model "{name}"'):
            champions.tell(self.client, self.experiment_id, name, version, numbers)

    def download(self, uri: str, destination: Path | None = None) -> Path:
        """The bundle directory of a registered model; see :func:`download`."""
        with asking(self.uri, f"read {uri}"):
            return fetch(self.client, self.uri, uri, destination)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        logger.warning('experiment "%s" had been deleted and was restored', name)
    return str(found.experiment_id)
