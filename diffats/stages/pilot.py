"""The pilot: what ranks would do, from a few training samples; and how long training and generation will take."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffats.errors import InputError
from diffats.medoid import LARGEST_MODE, mean_anchor, medoid, projection_sum
from diffats.primitives import (
    ConditionLayout,
    FieldScaling,
    Layout,
    RankErrors,
    affordable,
    align,
    decompose,
    find_ranks,
    relative_error,
)
from diffats.procrustes import align_to_anchor
from diffats.requirements import require
from diffats.sources.gaps import repeated_extremes
from diffats.spectrum import leading
from diffats.stages import align as align_stage
from diffats.stages import decompose as decompose_stage
from diffats.stages import fit_normalisation
from diffats.stages.workspace import Workspace, find_store
from diffats.store import STATUS

Array = npt.NDArray[Any]
log = logging.getLogger("diffats.plan")

#: Errors for which the pilot looks for the smallest primitive; and those of other choices of aligned modes.
TARGETS, FEW_TARGETS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01), (0.3, 0.1)
#: Ranks at which overlaps with the anchor are measured, as far as a mode has them.
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_ALIGNABLE = 512  # points of a mode up to which aligning it is tried
# Classes of a label, which only all labels would tell; the time does not depend on their number.
_LABELS = 16


@dataclass(frozen=True)
class Pilot:
    """What ranks would do.

    Attributes
    ----------
    rows
        The recipe's own ranks (``choice`` "recipe"), then for each target error the ranks of the fewest numbers that
        reach it, with the recipe's aligned modes and then with other ones. Errors and overlaps in a row are measured,
        by decomposing and aligning ``samples`` samples as the stages would.
    overlaps
        By mode that could be aligned, and rank: the median over samples of the smallest cosine to the anchor.
    """

    rows: list[dict[str, Any]]
    overlaps: dict[str, dict[int, float]]

    def first_below(self, limit: float) -> dict[str, int]:
        """The first rank of each mode at which the overlap is below ``limit``; modes without one are left out."""
        below = {mode: [rank for rank, value in by.items() if value < limit] for mode, by in self.overlaps.items()}
        return {mode: ranks[0] for mode, ranks in below.items() if ranks}


def pilot(work: Workspace, targets: Iterable[float] = TARGETS) -> Pilot:
    """Error, numbers and overlap with the anchor against ranks, on at most 256 training samples read now.

    Parameters
    ----------
    targets
        Errors as ``decompose.tolerance`` means them.
    """
    look = _Look.at(work)
    layout = look.layout(work)
    rows = [look.row("recipe", layout)]
    rows += look.smallest(layout, RankErrors.measure(*look.cut(layout, layout.aligned), layout), targets)
    modes = alignable(layout)
    others = other_sets(layout, modes)
    if others:
        errors = RankErrors.measure(*look.cut(layout, modes), layout, modes)
        for aligned in others:
            other = dataclasses.replace(layout, aligned=aligned, ranks=dict.fromkeys(aligned, 1))
            rows += look.smallest(other, errors, FEW_TARGETS)
    return Pilot(rows, look.overlaps(layout, modes))


def alignable(layout: Layout) -> tuple[str, ...]:
    """Modes that a pilot tries to align: the recipe's, and of a tensor primitive others of moderate length."""
    if layout.kind == "mgp":
        return layout.aligned
    sizes = layout.working_sizes
    fits = {mode for mode in layout.working_modes if 1 < sizes[mode] <= min(_ALIGNABLE, LARGEST_MODE)}
    return tuple(mode for mode in layout.working_modes if mode in fits or mode in layout.aligned)


def other_sets(layout: Layout, modes: Sequence[str]) -> list[tuple[str, ...]]:
    """Choices of at least two aligned modes that the recipe has not made; the largest first.

    >>> layout = Layout("tgp", ("t", "y", "x"), {"t": 5, "y": 8, "x": 9}, {"y": 2, "x": 2}, ("y", "x"))
    >>> other_sets(layout, ("t", "y", "x"))
    [('t', 'y', 'x'), ('t', 'y'), ('t', 'x')]
    """
    if layout.kind == "mgp":
        return []
    sets = (chosen for count in range(len(modes), 1, -1) for chosen in itertools.combinations(modes, count))
    return [chosen for chosen in sets if set(chosen) != set(layout.aligned)]


@dataclass(frozen=True)
class _Look:
    """The samples that a pilot reads: ``(k, *sizes)`` raw, prepared for the decomposition, and their anomalies.

    Where there is a climatology, also the phases of their times.
    """

    samples: Array
    phases: Array | None
    fields: Array
    anomalies: Array
    scaling: FieldScaling
    training_mean: Array
    strategy: str

    @classmethod
    def at(cls, work: Workspace) -> _Look:
        x, phases = _usable(work)
        _say_outside(work, x)
        moments = decompose_stage.no_moments(work.samples)
        moments.add(x, phases)
        scaling, training_mean = decompose_stage.fitted_scaling(work, moments)
        fields = np.asarray(scaling.apply(x, phases), dtype=x.dtype)
        anomalies = decompose_stage.deviations(fields, phases, scaling, training_mean)
        return cls(x, phases, fields, anomalies, scaling, training_mean, work.recipe.anchor.strategy)

    def layout(self, work: Workspace) -> Layout:
        """The recipe's, with the ranks that its tolerance finds."""
        tolerance = work.recipe.decompose.tolerance
        ranks = find_ranks(self.fields, self.anomalies, work.recipe) if tolerance is not None else None
        return Layout.from_recipe(work.recipe, work.samples.sizes, ranks)

    def cut(self, layout: Layout, modes: Sequence[str]) -> tuple[Array, Array]:
        """Fields and anomalies of as many samples as a few seconds suffice for."""
        few = affordable(len(self.samples), layout, modes)
        return self.fields[few], self.anomalies[few]

    def smallest(self, layout: Layout, errors: RankErrors, targets: Iterable[float]) -> list[dict[str, Any]]:
        """A row for each target that compresses; of targets with the same ranks, the smallest."""
        found: dict[tuple[int, ...], tuple[float, Layout]] = {}
        for target in sorted(targets, reverse=True):
            ranks = errors.smallest(target, layout.aligned)
            smaller = dataclasses.replace(layout, ranks=ranks) if ranks is not None else layout
            if ranks is not None and smaller.numbers < layout.raw_numbers:
                found[tuple(ranks.values())] = target, smaller
        return [self.row(f"error <= {target:g}", smaller) for target, smaller in found.values()]

    def row(self, choice: str, layout: Layout) -> dict[str, Any]:
        few = affordable(len(self.samples), layout)
        x, phases = self.samples[few], None if self.phases is None else self.phases[few]
        forms, tucker = decompose(self.fields[few], layout)
        restored = self.scaling.undo(layout.restore(tucker.to_tensor()), phases)
        anomaly = relative_error(x, restored, self.training_mean)
        picked = {mode: find_anchor(forms[f"factor_{mode}"], self.strategy) for mode in layout.aligned}
        _, cosines = align(forms, {mode: anchor for mode, (anchor, _) in picked.items()}, layout)
        return {
            "choice": choice,
            "aligned": list(layout.aligned),
            "ranks": dict(layout.ranks),
            "numbers": layout.numbers,
            "compression": layout.compression,
            "relative_error": float(relative_error(x, restored).mean()),
            "anomaly_error": float(anomaly.mean()),
            "anomaly_error_max": float(anomaly.max()),
            "overlap": {mode: _typical(cosines[mode], others) for mode, (_, others) in picked.items()},
            "samples": len(x),
        }

    def overlaps(self, layout: Layout, modes: Sequence[str]) -> dict[str, dict[int, float]]:
        """Median smallest cosine to the anchor by mode and rank; of the leading vectors of each mode's unfolding."""
        tensors = layout.arrange(self.cut(layout, modes)[0])
        count = len(layout.working_modes)
        flat = tensors.reshape(-1, *tensors.shape[-count:]).astype(np.float64)
        found: dict[str, dict[int, float]] = {}
        for mode in modes:
            axis = layout.working_modes.index(mode)
            most = min(layout.working_sizes[mode], flat[0].size // layout.working_sizes[mode])
            U = leading(flat, axis)[0]
            U = U.reshape(*tensors.shape[:-count], *U.shape[1:])
            found[mode] = {}
            for rank in (rank for rank in RANKS if rank <= most):
                found[mode][rank] = typical_overlap(U[..., :rank], self.strategy)
        return found


def find_anchor(U: Array, strategy: str = "medoid") -> tuple[Array, Array]:
    """The anchor of factors ``(k, .., n, r)``, ``(.., n, r)``; and which samples it is not, ``(k, ..)``.

    The mean with that strategy, else the medoid.
    """
    flat = U.reshape(len(U), -1, *U.shape[-2:])
    others = np.ones(flat.shape[:2], bool)
    if strategy == "mean":
        anchors = mean_anchor(projection_sum(flat), flat.shape[-1])
    else:
        picks = [medoid(flat[:, batch]) for batch in range(flat.shape[1])]
        others[picks, np.arange(len(picks))] = False
        anchors = flat[picks, np.arange(len(picks))]
    return np.asarray(anchors).reshape(U.shape[1:]), others.reshape(U.shape[:-2])


def typical_overlap(U: Array, strategy: str = "medoid") -> float:
    """Median over samples of the smallest cosine of factors ``(k, .., n, r)`` to their anchor.

    >>> typical_overlap(np.tile(np.eye(4)[:, :2], (5, 1, 1)))
    1.0
    """
    anchor, others = find_anchor(U, strategy)
    return _typical(align_to_anchor(U, anchor)[1], others)


def _typical(cosines: Array, others: Array) -> float:
    """The median of the smallest cosines ``(k, .., r)``, without those of the anchor itself."""
    smallest = cosines[..., -1][others]
    return float(np.median(smallest)) if smallest.size else 1.0


def _usable(work: Workspace) -> tuple[Array, Array | None]:
    x = work.samples.read(decompose_stage.pilot_indices(work))
    decompose_stage.say_repeated(repeated_extremes(x, work.samples.variables), x.size, work.samples)
    mask = decompose_stage.find_mask(work)
    good = decompose_stage.status_of(x, mask) == STATUS["ok"]
    if good.sum() < 2:
        share = 1 - np.isfinite(x).mean()
        raise InputError(
            f"{work.recipe.data.source}: the pilot read {len(x)} samples and {int(good.sum())} are usable ({share:.1%} "
            'of the values are missing or infinite), 2 are needed. Mend the source, or set data.missing = "mask" if '
            "the same points are missing in every sample."
        )
    indices = decompose_stage.pilot_indices(work)[good]
    decompose_stage.check_domain(work.samples, indices, x[good])
    return np.asarray(x[good]), work.samples.climatology_phases(indices)


def _say_outside(work: Workspace, x: Array) -> None:
    """Warn of bounds that data themselves do not keep."""
    names = work.samples.variables
    for name, (low, high) in work.recipe.data.bounds.items():
        part = x[:, names.index(name)] if len(names) > 1 else x
        outside = float(((part < low) | (part > high)).mean())
        if outside:
            log.warning(
                'data.bounds [%g, %g] of "%s": %.2g %% of the pilot\'s values are outside (%g to %g). Generated ones '
                "will not be; widen the bounds unless the data are wrong there",
                *(low, high, name, 100 * outside, np.nanmin(part), np.nanmax(part)),
            )


# --- how long the rest takes --------------------------------------------------------------------------------------


def times(work: Workspace, ranks: Mapping[str, int]) -> dict[str, Any]:
    """How long training and generation will take on this machine, from a few steps of the recipe's network.

    Parameters
    ----------
    ranks
        By mode: those of the recipe's row of the pilot.

    Returns
    -------
    dict
        ``device``; ``train_steps``, of which ``train_done`` are done, ``seconds_per_step`` and ``train_seconds`` for
        those that are left and the calibration; ``generate_samples`` and ``generate_seconds`` for the network's calls
        of all of them.
        Empty, with a warning, where the device is another machine's or torch is not installed.
    """
    recipe = work.recipe
    layout = Layout.from_recipe(recipe, work.samples.sizes, ranks)
    dims = decompose_stage.condition_dims(work)
    try:
        require("timing a training", "train")
        from diffats import timing

        data = timing.random_primitives(layout, _condition_shapes(work, dims), recipe, dims)
        measured = timing.measure(data, recipe)
    except InputError as error:
        log.warning("training and generation were not timed: %s", error)
        return {}
    steps, done = recipe.train.steps, training_steps_done(work)
    return {
        "device": measured.device,
        "train_steps": steps,
        "train_done": done,
        "seconds_per_step": measured.step,
        "train_seconds": (steps - done) * measured.step + (0.0 if _is_there(work) else measured.calibration),
        "generate_samples": recipe.generate.count,
        "generate_seconds": recipe.generate.count * measured.sample,
    }


def _condition_shapes(work: Workspace, dims: Mapping[str, Sequence[str]]) -> ConditionLayout:
    """What samples are generated from, from metadata alone."""
    condition, samples = work.recipe.data.condition, work.samples
    sizes = {str(dim): n for dim, n in samples.dataset.sizes.items()} | dict(samples.sizes)
    shapes = {name: tuple(sizes[dim] for dim in each) for name, each in dims.items()}
    names = {name: f"field_{name}" for name in condition.fields}
    return ConditionLayout(
        initial=shapes.get("initial"),
        initial_dims=tuple(dims.get("initial", ())),
        fields={name: shapes[key] for name, key in names.items()},
        field_dims={name: tuple(dims[key]) for name, key in names.items()},
        scalars=tuple(condition.scalars),
        scalar_log=(False,) * len(condition.scalars),
        cycles=samples.clocks.cycles,
        n_labels=_LABELS if condition.labels else 0,
    )


def _is_there(work: Workspace) -> bool:
    """Whether this recipe's model is finished."""
    from diffats.stages import train

    return find_store(work.store_location) is not None and train.find_bundle(work) is not None


def training_steps_done(work: Workspace) -> int:
    """Training steps of this recipe that are done."""
    from diffats.stages import train

    if find_store(work.store_location) is None:
        return 0
    primitives, normalisation = align_stage.primitives_version(work), fit_normalisation.normalisation_version(work)
    if primitives is None or normalisation is None or not normalisation.complete:
        return 0
    if train.find_bundle(work):
        return work.recipe.train.steps
    identity = train.model_fingerprint(work, primitives, normalisation)
    return min(work.recipe.train.steps, train.steps_done(train.training_directory(work, identity)))
