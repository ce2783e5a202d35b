"""Versions of stores as MLflow data sets: where, which group, which snapshot, which content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import xarray as xr
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import register_dataset_source

from diffats.errors import InputError
from diffats.store import Store, Version
from diffats.store.opening import described

DIGEST_LENGTH = 12  # MLflow shows the digest beside the name and keeps at most 36; the source holds it whole


class StoreSource(DatasetSource):
    """One version of a group in a store, or raw data that has no versions.

    Parameters
    ----------
    location
        Directory or URL of an Icechunk repository; for raw data, the recipe's ``data.source``.
    group
        Group in it.
    snapshot
        Icechunk snapshot id; ``None`` for raw data.
    digest
        Content digest.

    Examples
    --------
    >>> source = StoreSource("runs/a/store", group="primitives", snapshot="1CECHNKREP0F1RSTCMT0", digest="ab12")
    >>> StoreSource.from_json(source.to_json()) == source
    True
    """

    def __init__(self, location: str, group: str | None = None, snapshot: str | None = None, digest: str = "") -> None:
        self.location = location
        self.group = group
        self.snapshot = snapshot
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreSource) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in self.to_dict().items())
        return f"StoreSource({fields})"

    @staticmethod
    def _get_source_type() -> str:
        return "diffats_store"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        # Always made explicitly: True would print "can be interpreted in multiple ways" for any local path.
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> StoreSource:
        raise InputError(f"{raw_source!r} does not name a group and a snapshot. Make a StoreSource with both.")

    def load(self) -> xr.Dataset:
        """Open exactly this version, lazily.

        Raises
        ------
        InputError
            For raw data: only its recipe says how to open it.
        """
        if self.snapshot is None:
            raise InputError(
                f"{self.location} is raw data without a snapshot. Open it with its recipe: "
                'diffats.sources.open_samples(load_recipe("RECIPE.toml").data).'
            )
        return described(Version(Store.open(self.location), self.group or "", self.snapshot))

    def to_dict(self) -> dict[str, Any]:
        """The source as plain data."""
        return {"location": self.location, "group": self.group, "snapshot": self.snapshot, "digest": self.digest}

    @classmethod
    def from_dict(cls, source_dict: Mapping[str, Any]) -> StoreSource:
        """The source that :meth:`to_dict` described."""
        return cls(
            source_dict["location"],
            group=source_dict.get("group"),
            snapshot=source_dict.get("snapshot"),
            digest=source_dict.get("digest", ""),
        )


class StoreDataset(Dataset):
    """A named version of a store, for :meth:`mlflow.MlflowClient.log_inputs`.

    Parameters
    ----------
    source
        Which version.
    name
        What MLflow's pages call it.
    schema
        What each variable is, in words; MLflow's page shows a row for each.
    facts
        Numbers shown with it, such as samples and sizes.
    """

    def __init__(
        self,
        source: StoreSource,
        name: str,
        *,
        schema: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._columns = [{"name": name, "type": text} for name, text in (schema or {}).items()]
        self._facts = dict(facts or {})
        super().__init__(source, name=name, digest=source.digest[:DIGEST_LENGTH] or None)

    def _compute_digest(self) -> str:
        return "unknown"

    @property
    def profile(self) -> dict[str, Any]:
        """Numbers shown with it."""
        return self._facts

    @property
    def schema(self) -> Any:
        """The variables as columns, the one kind of schema that MLflow's page shows; None where none is known."""
        return {"mlflow_colspec": self._columns} if self._columns else None

    def to_dict(self) -> dict[str, str]:
        """The data set as MLflow keeps it."""
        schema = {"schema": json.dumps(self.schema)} if self._columns else {}
        return {**super().to_dict(), "profile": json.dumps(self._facts), **schema}


register_dataset_source(cast(Any, StoreSource))  # the class, where MLflow's hint says an instance
