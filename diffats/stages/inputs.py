"""Versions of data as the tracker records them: where, which content, and what a person asks of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xarray as xr

from diffats.page import sizes_text
from diffats.stages import evaluate, fit_normalisation, train
from diffats.stages.workspace import StageResult, Workspace
from diffats.store import STATUS, Version


def read(work: Workspace, stage: str) -> list[dict[str, Any]]:
    """The data that a stage reads: what a model was trained on, and the samples by which it was judged."""
    if stage in ("train", "register"):
        return [raw(work), group(work, fit_normalisation.require_primitives(work), work.store_location)]
    if stage == "evaluate":
        generated = evaluate.require_samples(work, train.require_bundle(work))
        return [group(work, generated, work.samples_location)]
    return []


def made(work: Workspace, result: StageResult) -> list[dict[str, Any]]:
    """The data that a stage wrote, and the raw data that came in."""
    name = {"decompose": "tucker", "align": "primitives", "generate": "samples"}.get(result.stage)
    if name is None:
        return []
    store = work.generated if name == "samples" else work.store
    written = group(work, Version(store, name, result.version), result.location)
    return [raw(work), written] if name == "tucker" else [written]


def raw(work: Workspace) -> dict[str, Any]:
    """The raw data: one sample's variables and dims, and how many samples there are."""
    identity = {"location": str(work.portable["data"]["source"]), "snapshot": None, "digest": work.source_digest}
    name = f"{work.recipe.name}-raw"
    if work.recipe.data.version is not None:  # as they were then: the source may hold others by now
        return {"name": name, "context": "raw", "group": None, **identity}
    samples, template = work.samples, work.samples.template()
    facts = {
        "samples": samples.n,
        "training samples": int((~samples.is_test).sum()),
        "test samples": int(samples.is_test.sum()),
        "one sample": sizes_text(samples.sizes),
        "source": identity["location"],
        **{key: str(template.attrs[key]) for key in ("title", "license") if key in template.attrs},
    }
    about = {"schema": schema(template), "facts": facts}
    return {"name": name, "context": "raw", "group": None, **identity, **about}


def group(work: Workspace, version: Version, location: str) -> dict[str, Any]:
    """A version of a group in a store."""
    dataset = version.dataset(indexes=False)
    facts: dict[str, Any] = {"snapshot": version.snapshot, "sizes": {str(dim): n for dim, n in dataset.sizes.items()}}
    if "status" in dataset:
        status = dataset["status"].values
        facts |= {"samples": len(status), "left out": int((status != STATUS["ok"]).sum())}
    return {
        "name": f"{work.recipe.name}-{version.group}",
        "location": location,
        "group": version.group,
        "snapshot": version.snapshot,
        "digest": version.digest,
        "context": version.group,
        "schema": schema(dataset),
        "facts": facts,
    }


def schema(dataset: xr.Dataset) -> dict[str, str]:
    """Type, dims, sizes and unit of every variable, coordinates last.

    >>> schema(xr.Dataset({"t": (("y", "x"), [[0.0, 1.0]], {"units": "K"})}, {"x": [1, 2]}))
    {'t': 'float64 (y 1, x 2) in K', 'x': 'int64 (x 2), coordinate'}
    """
    return {
        str(name): _described(variable) + ", coordinate" * (name in dataset.coords)
        for kind in (dataset.data_vars, dataset.coords)
        for name, variable in kind.items()
    }


def _described(variable: xr.DataArray) -> str:
    sizes: Mapping[Any, int] = variable.sizes
    shape = f" ({', '.join(f'{dim} {size}' for dim, size in sizes.items())})" if sizes else ""
    unit = str(variable.attrs.get("units", ""))
    return f"{variable.dtype}{shape}" + (f" in {unit}" if unit not in ("", "1") else "")
