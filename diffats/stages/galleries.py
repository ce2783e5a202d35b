"""The report's pictures of samples: which of them are shown, and of what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats import evaluation, metrics, plots
from diffats.primitives import relative_error
from diffats.stages import fit_normalisation, generate
from diffats.stages.pictures import drawn
from diffats.stages.workspace import Workspace
from diffats.store import STATUS, Version

Array = npt.NDArray[Any]
Rows = dict[str, list[Array | None]]
COLUMNS = 5  # of single pictures
CASES = 4  # of forecasts that are one picture each
FRAMES = 5  # of a forecast in time
VARIABLES = 6
UNLABELLED = ("unlabelled", "unlabeled", "unclassified", "background", "missing", "none", "nodata", "no_data")


@dataclass(frozen=True)
class View:
    """One way to show samples: the picture's ``name``, empty of the first; ``centre`` is subtracted from them."""

    name: str
    painter: plots.Painter
    centre: Any

    def of(self, x: Array | None) -> Any:
        """What is shown of samples."""
        return None if x is None else x - self.centre


def sample_pictures(
    work: Workspace, fields: evaluation.Fields, generated: Version, anchor: Version, *, primitives_searched: Array
) -> tuple[dict[str, bytes], dict[str, str]]:
    """All pictures of samples, and what their captions say beside.

    Parameters
    ----------
    primitives_searched
        Numbers of the training samples whose primitives are ``fields.z_train``.
    """
    shown = list(views(work, fields))
    main = shown[0]
    forecasts = fields.ensemble is not None and work.recipe.makes_forecasts
    if forecasts:
        figures, captions = forecast_pictures(fields, shown)
    else:
        figures, captions = galleries(work, fields, generated, shown, primitives_searched)
    figures["reconstruction"] = reconstruction_figure(fields, main)
    figures["medoid"] = medoid_figure(work, anchor, main)
    return drawn(figures) | film(fields, main, forecasts=forecasts), captions


def views(work: Workspace, fields: evaluation.Fields) -> Iterator[View]:
    """The variable that varies most first, then the others.

    Samples that are centred at each point look like the mean: their anomalies come first, then the fields themselves.
    Where the centre is a climatology, anomalies are from the mean of all training samples, with the seasons in them.
    """
    modes, template = work.recipe.tensor_modes, work.samples.template()
    anomalies = work.recipe.data.center == "point" or bool(work.recipe.data.climatology)
    centre: Any = np.asarray(fields.mean) if anomalies else 0.0
    options: dict[str, Any] = {"template": template, "rgb": work.recipe.report.rgb}
    note = "difference from the training mean" if anomalies else ""
    first = plots.largest_component(fields.test, modes)
    yield View("", plots.Painter.fit(fields.test - centre, modes, component=first, note=note, **options), centre)
    if anomalies:
        yield View("fields", plots.Painter.fit(fields.test, modes, component=first, **options), 0.0)
    names = list(map(str, template.data_vars)) if "component" in modes else []
    for i in [i for i in range(len(names)) if i != first][: VARIABLES - 1]:
        painter = plots.Painter.fit(fields.test - centre, modes, component=i, note=note, **options)
        yield View(f"samples_{names[i]}", painter, centre)


# --- samples as sets ------------------------------------------------------------------------------------------------


def galleries(
    work: Workspace, fields: evaluation.Fields, generated: Version, shown: list[View], searched: Array
) -> tuple[dict[str, Any], dict[str, str]]:
    """Training, test and generated samples, and the training samples nearest to these."""
    figures: dict[str, Any] = {}
    captions: dict[str, str] = {}
    columns, lines = arrangement(shown[0].painter, fields.test[0])
    labels = class_names(work, generated, len(fields.test)) if work.recipe.data.condition.labels else {}
    classes = shown_classes(labels, columns) if labels else []
    each = columns // len(classes) if classes else 0
    columns = each * len(classes) or columns
    chosen = chosen_places(fields, labels, classes, columns, lines)
    rows = gallery_rows(work, fields, chosen, searched)
    headings = [(name.replace("_", " "), each) for name in classes]
    for view in shown:
        name = view.name or "gallery"
        moved = {kind: [view.of(x) for x in samples] for kind, samples in rows.items()}
        figures[name] = plots.gallery(moved, view.painter, columns=columns, headings=headings)
        captions[name] = view.painter.description
    if fields.gaussian is not None:
        reference = [shown[0].of(x) for x in fields.gaussian[: columns * lines]]
        figures["gaussian"] = plots.gallery({"gaussian": reference}, shown[0].painter, columns=columns)
    return figures, captions


def arrangement(painter: plots.Painter, sample: Array) -> tuple[int, int]:
    """How many samples of a kind stand side by side, and in how many lines."""
    slices, height, width = painter.paint(sample).shape[:3]
    columns = COLUMNS if height > 0.7 * width else 3
    columns = {1: columns, 2: 3}.get(slices, 2)
    return columns, 2 if height < 1.2 * width else 1


def class_names(work: Workspace, generated: Version, k: int) -> dict[str, Array]:
    """``(k,)`` names of classes of the samples that are compared, by kind."""
    stored, names = fit_normalisation.require_primitives(work).dataset(), np.asarray(work.samples.label_names, object)
    labels = {
        split: names[stored["condition_label"].values[generate.truth_indices(work, k, split)]]
        for split in ("train", "test")
    }
    dataset = generated.dataset()
    good = np.flatnonzero(dataset["status"].values == STATUS["ok"])[:k]
    return labels | {"generated": dataset["condition_label"].values[good]}


def shown_classes(labels: Mapping[str, Array], most: int) -> list[str]:
    """The classes with most samples that all kinds have, and the unlabelled last.

    >>> names = np.array(["oats", "corn", "corn", "unlabelled", "unlabelled", "unlabelled"], object)
    >>> shown_classes({"train": names, "test": names, "generated": names[1:]}, 3)
    ['corn', 'unlabelled']
    """
    common = set.intersection(*(set(names) for names in labels.values()))
    found, counts = np.unique(np.concatenate(list(labels.values())).astype(str), return_counts=True)
    ranked = [str(name) for name in found[np.argsort(-counts, kind="stable")] if name in common]
    apart = [name for name in ranked if name.lower() in UNLABELLED][:1]
    return [*[name for name in ranked if name.lower() not in UNLABELLED][: most - len(apart)], *apart]


def chosen_places(
    fields: evaluation.Fields, labels: Mapping[str, Array], classes: list[str], columns: int, lines: int
) -> dict[str, list[int | None]]:
    """Which sample of each kind stands where, line by line; None where a class has no more.

    Neighbouring windows look alike, so the real ones are taken at random.
    """
    k = len(fields.test)
    spread = np.random.default_rng(fields.seed).permutation(k).tolist()
    orders: dict[str, list[int]] = {"train": spread, "test": spread, "generated": list(range(k))}
    if not classes:
        return {kind: list(order[: columns * lines]) for kind, order in orders.items()}
    each = columns // len(classes)
    chosen: dict[str, list[int | None]] = {kind: [] for kind in orders}
    for kind, order in orders.items():
        found = {name: [i for i in order if labels[kind][i] == name] for name in classes}
        for line in range(lines):
            for name in classes:
                places = found[name][line * each : (line + 1) * each]
                chosen[kind] += [*places, *[None] * (each - len(places))]
    return chosen


def gallery_rows(
    work: Workspace, fields: evaluation.Fields, chosen: Mapping[str, list[int | None]], searched: Array
) -> Rows:
    """The samples at each place, by kind, with the training samples nearest to the generated ones."""
    sets = {"train": fields.train, "test": fields.test, "generated": fields.generated}
    rows: Rows = {kind: [None if i is None else sets[kind][i] for i in places] for kind, places in chosen.items()}
    nearest = searched[evaluation.nearest_to_generated(fields)]
    rows["nearest"] = [None if i is None else work.samples.read([nearest[i]])[0] for i in chosen["generated"]]
    return rows


# --- forecasts ------------------------------------------------------------------------------------------------------


def forecast_pictures(fields: evaluation.Fields, shown: list[View]) -> tuple[dict[str, Any], dict[str, str]]:
    """A forecast beside its truth, at a few points, and its error in time."""
    truth, ensemble = fields.truth, fields.ensemble
    assert truth is not None
    assert ensemble is not None
    order, errors = ranked_cases(truth, ensemble)
    middle = int(order[len(order) // 2])
    figures: dict[str, Any] = {}
    captions: dict[str, str] = {}
    for view in shown:
        name, painter = view.name or "forecast", view.painter
        cases = [middle]
        if painter.sliced:
            size = len(painter.coordinates[painter.sliced].values)
            painter = painter.at(np.linspace(0, size - 1, min(FRAMES, size)).round().astype(int).tolist())
        else:
            cases = order[np.linspace(0, len(order) - 1, min(CASES, len(order))).round().astype(int)].tolist()
        figures[name] = plots.forecast(view.of(truth[cases]), view.of(ensemble[cases]), painter)
        which = "The case with the median error," if painter.sliced else "From the best case to the worst: errors"
        captions[name] = f"{which} {', '.join(f'{100 * errors[case]:.3g} %' for case in cases)}. {painter.description}"
    main = shown[0]
    still = None if fields.persistence is None else main.of(fields.persistence[middle])
    figures["plume"] = plots.plume(main.of(truth[middle]), main.of(ensemble[middle]), main.painter, persistence=still)
    if mode := plots.time_mode(main.painter):
        references = {"persistence": fields.persistence, "codec": fields.truth_reconstruction}
        there = {name: x for name, x in references.items() if x is not None}
        time = main.painter.coordinates[mode]
        figures["error_in_time"] = plots.error_in_time(truth, ensemble, fields.modes, time, there)
    return figures, captions


def ranked_cases(truth: Array, ensemble: Array) -> tuple[Array, Array]:
    """Cases from the smallest error of the ensemble's mean to the largest, and these errors."""
    errors = metrics.relative_l2(ensemble.mean(axis=1), truth)
    return np.argsort(errors), errors


# --- all kinds ------------------------------------------------------------------------------------------------------


def film(fields: evaluation.Fields, main: View, *, forecasts: bool) -> dict[str, bytes]:
    """Samples in motion, where they have a time that is not drawn as a side of the picture."""
    painter = main.painter
    if not painter.sliced or painter.sliced != plots.time_mode(painter):
        return {}
    if forecasts:
        assert fields.truth is not None
        assert fields.ensemble is not None
        order, _ = ranked_cases(fields.truth, fields.ensemble)
        cases = order[[len(order) // 4, len(order) // 2, 3 * len(order) // 4]]
        rows = {"truth": fields.truth[cases], "forecast": fields.ensemble[cases, 0]}
    else:
        spread = np.random.default_rng(fields.seed).permutation(len(fields.test))
        rows = {"test": fields.test[spread[:3]], "generated": fields.generated[:3]}
    return {"film": plots.film({kind: list(main.of(x)) for kind, x in rows.items()}, painter)}


def reconstruction_figure(fields: evaluation.Fields, main: View) -> Any:
    """Best, median and worst test sample beside what its primitive decodes to."""
    assert fields.reconstruction is not None
    errors = relative_error(fields.test, fields.reconstruction, fields.mean)
    order = np.argsort(errors)
    picks = [int(order[0]), int(order[len(order) // 2]), int(order[-1])]
    labels = [f"{name}: {100 * errors[i]:.3g} %" for name, i in zip(("best", "median", "worst"), picks, strict=True)]
    original, reconstruction = main.of(fields.test[picks]), main.of(fields.reconstruction[picks])
    return plots.reconstruction_panels(original, reconstruction, main.painter, labels=labels)


def medoid_figure(work: Workspace, anchor: Version, main: View) -> Any:
    """The sample that the first aligned mode is aligned to; None where the anchor is no sample's."""
    dataset, chosen = anchor.dataset(), anchor.attrs["chosen"]
    mode, picks = next(iter(chosen.items()))
    if picks[0] < 0:
        return None
    values = dataset[f"score_{mode}"].values[:, 0]
    usable = np.isfinite(values)
    sample = main.of(work.samples.read(np.array([picks[0]])))[0]
    scores = {mode: values[usable] / usable.sum()}
    return plots.medoid(sample, scores, int(usable[: picks[0]].sum()), main.painter)
