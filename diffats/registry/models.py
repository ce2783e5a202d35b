"""Bundles as MLflow models: how they are saved, and found again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import DataType, ParamSchema, ParamSpec

from diffats.errors import InputError, StoreNotFoundError
from diffats.registry.connection import absolute, asking, database_of, shown

MODEL_CODE = Path(__file__).with_name("pyfunc.py")
PINNED = ("diffats", "torch", "numpy", "xarray", "safetensors", "diffusers", "mlflow")
MAX_COUNT = 1024  # samples a call; a caller may raise it when loading the model
SIGNATURE = ModelSignature(
    params=ParamSchema(
        [
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("steps", DataType.long, None),
            ParamSpec("guidance", DataType.double, None),
            ParamSpec("output", DataType.string, "xarray"),
        ]
    )
)


def save_pyfunc(
    bundle: Path, destination: Path, *, metadata: Mapping[str, str] | None = None, description: Model | None = None
) -> None:
    """Write a bundle as an MLflow model: our code file, the bundle's files, pinned requirements, no pickle."""
    with warnings.catch_warnings():
        # An input example would be run through the model's checks; the signature says all there is.
        warnings.filterwarnings("ignore", message=".*An input example was not provided", category=UserWarning)
        mlflow.pyfunc.save_model(
            destination,
            python_model=str(MODEL_CODE),
            artifacts={"bundle": str(bundle)},
            signature=SIGNATURE,
            pip_requirements=[f"{name}=={installed_version(name).partition('+')[0]}" for name in PINNED],
            model_config={"max_count": MAX_COUNT},
            metadata=dict(metadata or {}),
            mlflow_model=description,
        )


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
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none"
        raise StoreNotFoundError(f"{uri}: not registered at {shown(tracking)}. Models there: {known}.") from error
    local = mlflow.artifacts.download_artifacts(
        artifact_uri=source,
        dst_path=None if destination is None else str(destination),
        tracking_uri=tracking,
        registry_uri=tracking,
    )
    flavour = Model.load(local).flavors["python_function"]
    return Path(local, flavour["artifacts"]["bundle"]["path"])
