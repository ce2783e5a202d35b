"""The pictures of the report, drawn from what the stages stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffats import distributions, evaluation, plots
from diffats.bundle import Bundle
from diffats.stages import decompose, drift
from diffats.stages.workspace import Workspace
from diffats.store import STATUS, Version

SHOWN = 256  # samples behind a plot of many samples


def drawn(figures: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG bytes of the figures that there are."""
    return {name: plots.png(figure) for name, figure in figures.items() if figure is not None}


def data_pictures(work: Workspace, tucker: Version, primitives: Version, anchor: Version) -> dict[str, bytes]:
    """Energy against rank, alignment, overlaps and the anchors."""
    layout = decompose.current_layout(work, tucker)
    forms, aligned, chosen = tucker.dataset(), primitives.dataset(), anchor.dataset()
    status = forms["status"].values
    good = np.flatnonzero(status == STATUS["ok"])[:SHOWN]
    spectra = {mode: forms[f"spectrum_{mode}"].isel(sample=good).values for mode in layout.ranks}
    figures: dict[str, Any] = {"scree": plots.scree(spectra, dict(layout.ranks))}
    for mode in layout.aligned:
        figures[f"factors_{mode}"] = plots.factors_before_after(
            forms[f"factor_{mode}"].isel(sample=good).values,
            aligned[f"factor_{mode}"].isel(sample=good).values,
            chosen[f"anchor_{mode}"].values,
            mode,
        )
    every = status == STATUS["ok"]
    overlaps = {mode: aligned["overlap"].values[every, axis][:, None] for axis, mode in enumerate(layout.aligned)}
    figures["overlaps"] = plots.overlap_histograms(overlaps, minimum=work.recipe.align.min_overlap)
    figures["anchors"] = plots.anchors({mode: chosen[f"anchor_{mode}"].values for mode in layout.aligned})
    return drawn(figures)


def drift_picture(drifted: Version | None) -> dict[str, bytes]:
    """The newest samples of a source that has grown against its first ones."""
    if drifted is None or not drifted.attrs["growths"]:
        return {}
    return drawn({"drift": plots.drift(*drift.compared(drifted))})


def model_pictures(work: Workspace, fields: evaluation.Fields, unit: str) -> dict[str, bytes]:
    """Profiles, spectra and distances to the training samples."""
    modes = work.recipe.tensor_modes
    sets = {"test": fields.test, "generated": fields.generated}
    if fields.gaussian is not None:
        sets["gaussian"] = fields.gaussian
    profile = evaluation.profile_mode(modes, work.samples.sizes)
    coordinate = work.samples.template().coords.get(profile)
    numeric = coordinate is not None and coordinate.dtype.kind in "fiu"
    return drawn(
        {
            "profiles": plots.spectra_bands(
                sets,
                1 + modes.index(profile),
                profile,
                coordinate=coordinate.values if coordinate is not None and numeric else None,
                unit=unit,
                label=profile,
            ),
            "power_spectra": plots.power_spectra({name: x - fields.mean for name, x in sets.items()}, modes),
            "quantiles": plots.quantiles(value_sets(fields), unit=unit),
            "nearest": plots.nearest_training(evaluation.nearest_training(fields)),
        }
    )


def value_sets(fields: evaluation.Fields) -> dict[str, Any]:
    """The sets whose values are compared, ``(k, *sizes)``: of several variables, each in its own scale."""
    sets = {"test": fields.test, "generated": fields.generated, "train": fields.train}
    if fields.gaussian is not None:
        sets["gaussian"] = fields.gaussian
    return {name: x / fields.scale for name, x in sets.items()} if "component" in fields.modes else sets


def distribution_captions(fields: evaluation.Fields) -> dict[str, str]:
    """What the pictures of values and of spectra show, in words."""
    sets = {"test": fields.test, "generated": fields.generated, "train": fields.train}
    rough = distributions.roughness({name: x - fields.mean for name, x in sets.items()}, fields.modes)
    values = value_sets(fields)
    scaled = " Each variable is divided by its scale." if "component" in fields.modes else ""
    tails = distributions.tails_sentence(values["test"], values["generated"])
    return {"quantiles": f"{tails}{scaled}", "power_spectra": distributions.roughness_sentence(rough)}


def deviations_picture(model: Bundle, fields: evaluation.Fields) -> dict[str, bytes]:
    """How much real and generated primitives vary along each axis on which the model's coordinates turn them."""
    panels: dict[str, dict[str, Any]] = {}
    for stream in model.layout.streams:
        known = model.normalisation.coordinates.get(stream.name)
        if known is None:
            continue
        sets = {"test": fields.z_test, "generated": fields.z_generated}
        turned = {
            kind: known.turn(model.layout.unflatten(z)[stream.name].astype(np.float64)) for kind, z in sets.items()
        }
        for axis in known.bases:
            others = tuple(other for other in range(len(stream.dims) + 1) if other != axis + 1)
            title = f"{'core' if stream.mode is None else 'factor'} along {stream.dims[axis]}"
            panels[title] = {kind: np.sqrt(np.mean(values**2, axis=others)) for kind, values in turned.items()}
    return drawn({"deviations": plots.deviations(panels)}) if panels else {}
