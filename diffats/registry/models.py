"""Bundles as MLflow models: how they are saved, and found again."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec

from diffats.bundle import Bundle, load, public_name
from diffats.digests import file_digest
from diffats.errors import InputError, IntegrityError, StoreNotFoundError
from diffats.registry import identity
from diffats.registry.connection import absolute, asking, database_of
from diffats.registry.moving import located
from diffats.registry.pyfunc import LIMITS

logger = logging.getLogger("diffats.registry")

MLFLOW_META = "registered_model_meta"  # written by MLflow where it downloads a model
MODEL_CODE = Path(__file__).with_name("pyfunc.py")
PINNED = ("diffats", "torch", "numpy", "xarray", "safetensors", "diffusers", "mlflow")
# Says what settings there are. It has no inputs: MLflow would make a table of all that is given, and refuse a count.
SIGNATURE = ModelSignature(
    params=ParamSchema(
        [
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("steps", DataType.long, None),
            ParamSpec("guidance", DataType.double, None),
            ParamSpec("impose", DataType.boolean, None),
            ParamSpec("max_extrapolation", DataType.double, None),
            ParamSpec("output", DataType.string, None),
        ]
    )
)


def save_pyfunc(
    bundle: Path, destination: Path, *, metadata: Mapping[str, str] | None = None, description: Model | None = None
) -> None:
    """Write a bundle as an MLflow model: our code file, the bundle's files, pinned requirements, no pickle."""
    mlflow.pyfunc.save_model(
        destination,
        python_model=str(MODEL_CODE),
        artifacts={"bundle": str(bundle)},
        signature=SIGNATURE,
        input_example=(example(load(bundle, device="cpu")), {"seed": 0}),
        pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in PINNED],
        model_config=dict(LIMITS),
        metadata=dict(metadata or {}),
        mlflow_model=description,
    )


def example(model: Bundle) -> dict[str, list[Any]]:
    """A request that works: two samples of the first training sample's label and scalars."""
    columns: dict[str, list[Any]] = {"count": [2]}
    if model.conditions.n_labels:
        columns["label"] = [model.label_names[int(model.examples["label"][0])]]
    scalars = [name for name in model.examples if name.startswith("scalar_")]
    columns |= {public_name(name): [float(model.examples[name][0])] for name in scalars}
    return columns


def download(uri: str, tracking_uri: str = "", destination: Path | None = None) -> Path:
    """The bundle directory of a registered model, copied here if it is not local.

    Parameters
    ----------
    uri
        ``"models:/NAME@ALIAS"`` or ``"models:/NAME/VERSION"``.
    tracking_uri
        The tracker that holds it; ``MLFLOW_TRACKING_URI`` where left out.
    destination
        Where to copy it; a local model is not copied where left out, others go to a temporary directory.

    Raises
    ------
    InputError
        Where the URI is of another form.
    StoreNotFoundError
        Where there is no such tracker, model, alias or version.
    IntegrityError
        Where the files are not those that were registered.
    TrackingError
        Where the tracker cannot be reached.
    """
    tracking = absolute(tracking_uri or mlflow.get_tracking_uri())
    database = database_of(tracking)
    if database is not None and not database.is_file():  # a look must not create one
        raise StoreNotFoundError(
            f"{uri}: no MLflow database at {database}. Set MLFLOW_TRACKING_URI to the tracker that holds the model, "
            "for example sqlite:///runs/NAME/mlflow.db."
        )
    with asking(tracking, f"read {uri}"):
        return fetch(MlflowClient(tracking, tracking), tracking, uri, destination)


def data_digests(name: str, tracking_uri: str) -> set[str]:
    """Short digests of the primitives that the versions of a model were trained on; none without a tracker.

    Raises
    ------
    TrackingError
        Where the tracker cannot be reached.
    """
    tracking = absolute(tracking_uri)
    database = database_of(tracking)
    if database is not None and not database.is_file():  # a look must not create one
        return set()
    with asking(tracking, f'look for versions of model "{name}"'):
        versions = MlflowClient(tracking, tracking).search_model_versions(f"name = '{name}'", max_results=10000)
    known = [identity.of(version.tags) for version in versions]
    return {digests[identity.DATA] for digests in known if identity.DATA in digests}


def fetch(client: MlflowClient, tracking: str, uri: str, destination: Path | None) -> Path:
    """See :func:`download`."""
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise InputError(f'"{uri}" is no model URI. Write models:/NAME@ALIAS or models:/NAME/VERSION.')
    name, alias, version = match.groups()
    try:
        registered = client.get_registered_model(name)
        version = version or registered.aliases.get(alias)
        if version is None:
            known = ", ".join(sorted(registered.aliases)) or "none"
            raise StoreNotFoundError(f'{uri}: model "{name}" has no alias "{alias}". Its aliases: {known}.')
        source = client.get_model_version_download_uri(name, str(version))
        tags = client.get_model_version(name, str(version)).tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none"
        raise StoreNotFoundError(f"{uri}: not registered at {tracking}. Models there: {known}.") from error
    database = database_of(tracking)
    if database is not None:
        source = located(source, database, uri)
    local = mlflow.artifacts.download_artifacts(
        artifact_uri=source,
        dst_path=None if destination is None else str(destination),
        tracking_uri=tracking,
        registry_uri=tracking,
    )
    check_files(Path(local), tags, uri)
    return bundle_of(Path(local), uri)


def bundle_of(folder: Path, uri: str) -> Path:
    """The bundle in the folder of a model."""
    try:
        path = Path(folder, Model.load(folder).flavors["python_function"]["artifacts"]["bundle"]["path"]).resolve()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IntegrityError(f"{uri}: {folder} is no model of diffats ({error!r}). Register one.") from error
    if not path.is_relative_to(folder.resolve()):
        raise IntegrityError(f"{uri}: its bundle lies outside of it, at {path}. Register the model again.")
    return path


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def check_files(folder: Path, tags: Mapping[str, str], uri: str) -> None:
    """Refuse a model whose files are not those that were registered.

    Parameters
    ----------
    folder
        Of the model.
    tags
        Of its version, which tell the digest of the file that holds the digests of all others. Versions of earlier
        releases hold these themselves, or none.
    uri
        For messages.

    Raises
    ------
    IntegrityError
        Which names the file.
    """
    if identity.IDENTITY_TAG not in tags and identity.FILES_TAG not in tags:
        logger.warning("%s was registered without digests, by an earlier release: its files are not compared.", uri)
        return
    found = file_digests(folder)
    if identity.IDENTITY_TAG in tags:
        expected = {identity.IDENTITY_FILE: identity.of(tags).get("file", "")}
        _compare(expected, {name: digest for name, digest in found.items() if name in expected}, folder, uri)
        expected |= json.loads((folder / identity.IDENTITY_FILE).read_text(encoding="utf-8"))["files"]
    else:
        expected = json.loads(tags[identity.FILES_TAG])
    _compare(expected, found, folder, uri)


def _compare(wanted: Mapping[str, str], found: Mapping[str, str], folder: Path, uri: str) -> None:
    """Refuse files that are missing, changed or new; what MLflow writes where it downloads a model is none of them."""
    for name in sorted(wanted.keys() | found.keys() - {MLFLOW_META}):
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "was not registered" if name not in wanted else "has changed"
            raise IntegrityError(
                f"{uri}: file {name} {what} since this version was registered. Restore {folder}, or register again."
            )
