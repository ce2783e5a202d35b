"""How good generated samples are: diffusion on aligned primitives against other methods, at equal network operations.

``python -m benchmarks.quality`` runs every task, method and seed of the plan, each in a process of one thread, two at
a time; a run that is already there is not repeated, and one that was stopped continues. Then it writes
``benchmarks/quality.json`` and ``docs/quality.md``. Every run is in MLflow (``runs/quality/mlflow.db``).

What is equal for all methods of a task: the training samples, centring and scaling, the conditions, the denoiser's
width and depth, and the number of floating point operations of the network in training (its steps follow from
them), the sampler and its number of network calls, the test samples and the code that measures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import quality_report
from benchmarks.common import machine_line
from benchmarks.quality_report import RECIPES, rows_of
from diffats.errors import DiffatsError

Array = npt.NDArray[Any]
log = logging.getLogger("benchmarks.quality")

ROOT = Path("runs/quality")
RESULT, EXAMPLES = "result.json", "examples.npz"
JSON = Path(__file__).parent / "quality.json"
DOCS = Path(__file__).parent.parent / "docs"
VERSION = 2  # of what a run measures; raise it when results change

TASKS = ("burgers_1d", "reaction_diffusion_1d", "burgers_2d", "karman", "moving_digits", "image_patches")
UNCONDITIONAL = ("moving_digits", "image_patches")
LEAD = ("burgers_2d", "moving_digits")  # one conditional, one unconditional
SEEDS = 3
MEASURED = ("evaluate.members=20",)  # 90 % intervals need 19
PLAIN = ("normalise.coordinates=stream", "train.calibrate=false")  # one scale for a stream, and the guess as it is
SAMPLERS = ("ddpm", "ddpm-accelerated", "ddim", "ddim-accelerated", "dpm++", "unipc")
CALLS = (5, 10, 20, 50, 250)
CASES = 16  # test conditions with an ensemble each
DRAWS = 5  # without conditions: metrics are means over so many draws of as many samples as there are to compare with
UNTRAINED = ("gaussian of primitives", "gaussian of fields")
OPERATOR = "neural operator"  # of conditional tasks
SEEDED = ("ours", "no alignment", "random anchor", "global basis", *UNTRAINED, OPERATOR)  # all seeds on leading tasks
METHODS = (
    *("ours", "no alignment", "random anchor", "random rotations", "global basis", "average-pooled", "raw fields"),
    *UNTRAINED,
    OPERATOR,
)


@dataclass(frozen=True)
class Run:
    """One measurement: a method on a task with a seed; ``changes`` are overrides of the recipe.

    ``validate``: scored on a part of the training samples that is kept from training, for choosing settings.
    """

    task: str
    method: str
    seed: int
    changes: tuple[str, ...] = ()
    validate: bool = False

    @cached_property
    def directory(self) -> Path:
        """Where its results are; found once, so that a recipe that is edited meanwhile changes nothing."""
        return self._place()

    @cached_property
    def training(self) -> Path:
        """Where its network is trained, which runs share that only sample or score it in another way."""
        return self._place(leave_out=("generate", "evaluate", "train.calibrate")) / "training"

    def _place(self, leave_out: tuple[str, ...] = ()) -> Path:
        from diffats.config import load_recipe, portable

        recipe = portable(load_recipe(RECIPES / f"{self.task}.toml", self.changes))
        for option in leave_out:
            section, _, key = option.partition(".")
            (recipe[section] if key else recipe).pop(key or section, None)
        digest = hashlib.sha256(json.dumps([VERSION, recipe], sort_keys=True).encode()).hexdigest()[:8]
        part = "-validation" if self.validate else ""
        return ROOT / self.task / f"{self.method.replace(' ', '-')}-{self.seed}-{digest}{part}"

    @property
    def _note(self) -> Path:
        return self.training / "finished.json"

    @property
    def is_trained(self) -> bool:
        """Whether its network is there."""
        return self._note.is_file()

    @property
    def calibrated(self) -> Path:
        """Is there once its network is calibrated."""
        return self.training / "calibrated"

    def note_training(self, seconds: float, heldout_loss: float) -> None:
        """Keep that its network is there, and what it took in processor seconds."""
        self._note.write_text(json.dumps({"seconds": seconds, "heldout_loss": heldout_loss}), encoding="utf-8")

    def noted_training(self) -> dict[str, float]:
        """What ``note_training`` kept."""
        found: dict[str, float] = json.loads(self._note.read_text(encoding="utf-8"))
        return found

    @property
    def result(self) -> dict[str, Any] | None:
        """What it measured, where it is done."""
        path = self.directory / RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --- one run, in a process of its own -----------------------------------------------------------------------------


class Task:
    """The data of a task in memory, as every method gets them."""

    def __init__(self, run: Run) -> None:
        from diffats.config import load_recipe
        from diffats.primitives import FieldScaling, Layout, Moments
        from diffats.sources import open_samples

        place = RECIPES / f"{run.task}.toml"
        self.recipe = load_recipe(place, [f"seed={run.seed}", "compute.device=cpu", *run.changes])
        samples = open_samples(self.recipe.data, 0)
        self.modes = self.recipe.tensor_modes
        self.is_test = np.asarray(samples.is_test)
        every = np.arange(samples.n)
        self.fields = samples.read(every)
        self.given = self.raw_conditions = samples.conditions(every, self.fields)
        coordinates = {name: coord.values for name, coord in samples.sample_coords(every).items()}
        if run.validate:
            self._take_validation(coordinates)
        moments = Moments()
        for start in range(0, samples.n, 64):
            block = slice(start, start + 64)
            moments.add(self.fields[block][~self.is_test[block]])
        center, scale = self.recipe.axes_of(self.recipe.data.center), self.recipe.axes_of(self.recipe.data.scale)
        self.scaling = FieldScaling.fit(moments, center, scale, component="component" in self.modes)
        self.training_mean = moments.mean
        self.layout = Layout.from_recipe(self.recipe, dict(zip(self.modes, self.fields.shape[1:], strict=True)))
        self._fit_conditions()

    def _take_validation(self, coordinates: Mapping[str, Array]) -> None:
        """Let samples that resemble the test samples take their place, and forget those."""
        part = validation_part(coordinates, self.given, self.is_test, self.modes, self.fields.shape[1:])
        kept = ~self.is_test & (part >= 0)
        self.is_test = part[kept] == 1
        self.fields = self.fields[kept]
        self.given = self.raw_conditions = {name: values[kept] for name, values in self.given.items()}

    def _fit_conditions(self) -> None:
        from diffats.primitives import ConditionLayout

        known = {name: values[~self.is_test] for name, values in self.raw_conditions.items()}
        self.conditions = ConditionLayout.fit(known, initial_dims=self.initial_dims)

    def replace_initial(self, initial: Array) -> None:
        """Give the network the initial states in another form."""
        self.raw_conditions = self.raw_conditions | {"initial": initial}
        self._fit_conditions()

    @property
    def initial_dims(self) -> tuple[str, ...]:
        """Of the initial state."""
        initial = self.recipe.data.condition.initial
        return tuple(mode for mode in self.modes if initial is not None and mode != initial.dim)

    @cached_property
    def scaled(self) -> Array:
        """All samples centred and scaled, float32."""
        out = np.empty(self.fields.shape, np.float32)
        for start in range(0, len(out), 64):
            out[start : start + 64] = self.scaling.apply(self.fields[start : start + 64])
        return out

    @property
    def train(self) -> Array:
        """Numbers of the training samples."""
        return np.flatnonzero(~self.is_test)

    @property
    def test(self) -> Array:
        """Numbers of the test samples, in a fixed random order."""
        return np.random.default_rng(0).permutation(np.flatnonzero(self.is_test))

    def physical(self, x: Array) -> Array:
        """Centred and scaled fields in physical units."""
        out = np.empty(x.shape, np.float32)
        for start in range(0, len(x), 64):
            out[start : start + 64] = self.scaling.undo(x[start : start + 64].astype(np.float32, copy=True))
        return out


def validation_part(
    coordinates: Mapping[str, Array],
    given: Mapping[str, Array],
    is_test: Array,
    modes: Sequence[str],
    sizes: Sequence[int],
) -> Array:
    """Which samples to train on (0), to choose settings by (1), and to leave out (-1), ``(n,)``.

    As for the test samples, whole trajectories are kept, a tenth of them, and a narrow range of the first parameter;
    of windows of pictures, those at the right of the training samples, none of which shares a pixel with training.
    """
    part = np.zeros(len(is_test), np.int64)
    if "x_start" in coordinates:
        start, width = coordinates["x_start"], sizes[modes.index("x")]
        border = int(np.quantile(start[~is_test], 0.85))
        part[start > border - width] = -1
        part[start >= border] = 1
        return part
    trajectory = coordinates.get("trajectory", np.arange(len(is_test)))
    others = np.unique(trajectory[~is_test])
    part[np.isin(trajectory, np.random.default_rng(0).permutation(others)[: max(1, len(others) // 10)])] = 1
    parameters = [values for name, values in given.items() if name.startswith("scalar_")]
    if parameters:
        low, high = np.quantile(parameters[0][~is_test], [0.27, 0.35], method="nearest")
        part[(parameters[0] >= low) & (parameters[0] <= high)] = 1
    return part


def flops_of_call(layout: Any, conditions: Any, model: Any) -> int:
    """Floating point operations of the network for one sample, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from diffats.models import Denoiser

    with torch.device("meta"):
        network = Denoiser(layout, conditions, model)
        shapes: dict[str, tuple[int, ...]] = {} if conditions.initial is None else {"initial": conditions.initial}
        shapes |= {f"scalar_{name}": () for name in conditions.scalars}
        cond = {name: torch.empty(1, *shape) for name, shape in shapes.items()}
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, layout.numbers), torch.zeros(1, dtype=torch.long), cond)
    return int(counter.get_total_flops())


def measure(run: Run) -> dict[str, Any]:
    """Train, sample and measure; what is there already is kept."""
    if (done := run.result) is not None:
        return done
    started = time.perf_counter()
    task = Task(run)
    run.directory.mkdir(parents=True, exist_ok=True)
    if run.method in UNTRAINED:
        sampled, facts = _gaussian(run, task)
    elif run.method == OPERATOR:
        sampled, facts = _operator(run, task)
    else:
        sampled, facts = _diffusion(run, task)
    metrics = _measured(task, sampled)
    done = {
        "run": asdict(run),
        "metrics": metrics,
        "facts": facts | {"seconds": round(time.perf_counter() - started, 1)},
    }
    _keep_examples(run, task, sampled)
    partial = run.directory / f"{RESULT}.partial"
    partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
    os.replace(partial, run.directory / RESULT)
    return done


@dataclass(frozen=True)
class Sampled:
    """What a method made, in physical units.

    Attributes
    ----------
    generated
        ``(k, *sizes)``: as many as test samples, under their conditions; without conditions ``(DRAWS * k, *sizes)``.
    ensemble
        ``(cases, members, *sizes)`` under the conditions of the first test samples; None without conditions.
    codec
        Writes the samples of these indices as the method does, and back; None where a method has no such form.
    """

    generated: Array
    ensemble: Array | None
    codec: Callable[[Array], Array] | None


def _sizes_of_comparison(task: Task) -> tuple[int, int, int]:
    """Samples of each kind, cases with an ensemble, and members of each."""
    k = min(len(task.test), task.recipe.evaluate.samples)
    if not task.conditions.any:
        return k, 0, 0
    return k, min(CASES, k), task.recipe.evaluate.members


def _wanted(task: Task) -> tuple[Array, Array]:
    """Test samples whose conditions are used, one for each sample to be drawn, and numbers of these samples."""
    k, cases, members = _sizes_of_comparison(task)
    if not cases:
        return np.tile(task.test[:k], DRAWS), np.arange(DRAWS * k)
    sources = np.concatenate([task.test[:k], np.repeat(task.test[:cases], max(members - 1, 0))])
    return sources, np.arange(len(sources))


def _codec(task: Task, made: Any, streams: Mapping[str, Array]) -> Callable[[Array], Array]:
    """`Sampled.codec` of a representation whose streams of all samples are these."""

    def back(samples: Array) -> Array:
        return task.physical(made.decode({name: values[samples] for name, values in streams.items()}))

    return back


def _arranged(task: Task, fields: Array, codec: Callable[[Array], Array] | None) -> Sampled:
    """Samples drawn for ``_wanted``: the first of each case is one of the ``generated``."""
    k, cases, members = _sizes_of_comparison(task)
    if not cases:
        return Sampled(fields, None, codec)
    others = fields[k:].reshape(cases, members - 1, *fields.shape[1:])
    return Sampled(fields[:k], np.concatenate([fields[:cases, None], others], axis=1), codec)


@dataclass(frozen=True)
class Trained:
    """A method's network, trained.

    Attributes
    ----------
    made, streams
        The method, and what it makes of all samples.
    recipe
        With the steps that the method has.
    data, network
        What the network was trained on, and the network, calibrated where the recipe says so.
    flops
        Operations of a call.
    """

    made: Any
    streams: Mapping[str, Array]
    recipe: Any
    data: Any
    network: Any
    flops: int


def trained(run: Run, task: Task) -> Trained:
    """Train a method's network, or take it from an earlier run."""
    from benchmarks.quality_methods import REPRESENTATIONS
    from diffats.calibration import load_calibrated
    from diffats.generation import load_denoiser
    from diffats.training import CALIBRATION, WEIGHTS, train

    x = task.scaled
    made = REPRESENTATIONS[run.method](x[task.train], task.recipe, task.layout, run.seed)
    ours = flops_of_call(task.layout, task.conditions, task.recipe.model)
    recipe = task.recipe
    if made.initial is not None and "initial" in task.raw_conditions:
        task.replace_initial(made.initial(task.raw_conditions["initial"]))
    if made.layout is not task.layout:  # its tokens are patches already
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"core_patch": 1})})
    flops = flops_of_call(made.layout, task.conditions, recipe.model)
    steps = max(1, round(recipe.train.steps * ours / flops))
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
    streams = made.encode(x)
    data = _primitive_set(task, made, streams, run.seed)
    if not run.is_trained:
        shutil.rmtree(run.training, ignore_errors=True)  # a run that was stopped begins anew: its seconds count
        plain = recipe.model_copy(update={"train": recipe.train.model_copy(update={"calibrate": False})})
        began = time.process_time()  # of a shared machine, wall time says little
        done = train(data, plain, run.training, device="cpu", progress=_progress(run))
        run.note_training(time.process_time() - began, done.heldout_loss)
    network: Any = load_denoiser(
        run.training / WEIGHTS, made.layout, task.conditions, recipe.model, data.normalisation, device="cpu"
    )
    if recipe.train.calibrate:
        if not run.calibrated.exists():
            train(data, recipe, run.training, device="cpu")  # nothing else is left to do
            run.calibrated.touch()
        network = load_calibrated(run.training / CALIBRATION, network, made.layout, recipe, device="cpu")
    return Trained(made, streams, recipe, data, network, flops)


def _diffusion(run: Run, task: Task) -> tuple[Sampled, dict[str, Any]]:
    from benchmarks import quality_analysis
    from diffats.diffusion import Diffusion
    from diffats.generation import generate

    model = trained(run, task)
    made, recipe, normalisation, training = model.made, model.recipe, model.data.normalisation, run.noted_training()
    sources, numbers = _wanted(task)
    cond = task.conditions.normalise({n: v[sources] for n, v in task.raw_conditions.items()})
    began, options = time.process_time(), recipe.generate
    z = generate(
        model.network,
        made.layout,
        Diffusion(recipe.diffusion),
        numbers.tolist(),
        run.seed,
        cond=cond,
        steps=options.steps,
        sampler=options.sampler,
        guidance=options.guidance,
        batch=options.batch,
        device="cpu",
    )
    seconds = time.process_time() - began
    x, drawn = task.scaled, made.decode(normalisation.undo(made.layout.unflatten(z)))
    fields = task.physical(drawn)
    k, _, _ = _sizes_of_comparison(task)
    numbers_of_all = made.layout.flatten(normalisation.plain.apply(model.streams))
    facts = {
        "numbers": made.numbers,
        "flops_per_call": model.flops,
        "steps": recipe.train.steps,
        "train_seconds": round(training["seconds"], 3),
        "heldout_loss": training["heldout_loss"],
        "network_calls": options.steps,
        "seconds_per_sample": seconds / len(numbers),
        **quality_analysis.facts(made, x, numbers_of_all, task.train, recipe.decompose.method),
    }
    if task.conditions.any:
        facts |= quality_analysis.errors_and_overlaps(made, x[task.test[:k]], drawn[:k], recipe.decompose.method)
    return _arranged(task, fields, _codec(task, made, model.streams)), facts


def _primitive_set(task: Task, made: Any, streams: Mapping[str, Array], seed: int) -> Any:
    """What a method's denoiser is trained on."""
    import xarray as xr

    from benchmarks.quality_methods import AugmentedSet, ShiftedArrays, TokenLayout
    from diffats.loader import PrimitiveSet
    from diffats.primitives import Shifts

    data: dict[str, Any] = {s.name: (("sample", *s.dims), streams[s.name]) for s in made.layout.streams}
    for name, values in task.raw_conditions.items():
        data[name] = (("sample", *(f"{name}_{axis}" for axis in range(1, values.ndim))), values)
    split = np.where(task.is_test, "test", "train").astype(object)
    dataset = xr.Dataset(data, coords={"split": ("sample", split)})
    arguments = (dataset, made.layout, _normalisation(task, made, streams, seed), task.conditions)
    modes = tuple(task.recipe.train.shift)
    dims = {"initial": task.initial_dims}
    if modes and isinstance(made.layout, TokenLayout):
        return ShiftedArrays(arguments, made, Shifts(task.layout, modes, None, dims), task.scaled, task.given)
    shifts = Shifts(made.layout, modes, made.anchors, dims) if modes else None
    if made.augment is None:
        return PrimitiveSet(*arguments, shard=64, shifts=shifts)
    return AugmentedSet(arguments, made.augment, shifts)


def _normalisation(task: Task, made: Any, streams: Mapping[str, Array], seed: int) -> Any:
    """Of a method's streams, over the training samples."""
    from benchmarks.quality_methods import TokenLayout
    from diffats.primitives import Moments, Normalisation, Products, Shifts, turned_axes

    chosen, modes = task.recipe.normalise, tuple(task.recipe.train.shift)
    turned_and_shifted = modes and chosen.coordinates == "spectral" and not isinstance(made.layout, TokenLayout)
    shifts = Shifts(made.layout, modes, made.anchors) if turned_and_shifted else None

    def over(statistics: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        for start in range(0, len(task.train), 64):
            rows = task.train[start : start + 64]
            part = {name: values[rows] for name, values in streams.items()}
            part = part if shifts is None else shifts.apply(part, shifts.draw(len(rows), rng))
            for name, values in change(made.augment(part, rng) if made.augment else part).items():
                statistics[name].add(values)
        return statistics

    if chosen.coordinates == "stream":
        return Normalisation.fit(over({name: Moments() for name in streams}, lambda part: part))
    products = {s.name: Products(turned_axes(s)) for s in made.layout.streams}
    turned = Normalisation.on_principal_axes(over(products, lambda part: part))

    def wide(part: Mapping[str, Array]) -> dict[str, Array]:
        return turned.apply({name: part[name].astype(np.float64) for name in turned.coordinates})

    moments = over({name: Moments() for name in turned.coordinates}, wide)
    return turned.with_deviations(moments, beta=chosen.beta, floor=chosen.floor)


def _progress(run: Run) -> Any:
    shown = [time.monotonic()]

    def progress(done: int, total: int) -> None:
        if time.monotonic() - shown[0] > 30:
            shown[0] = time.monotonic()
            print(f"{run.task}, {run.method}, seed {run.seed}: step {done} of {total}", file=sys.stderr, flush=True)

    return progress


def _gaussian(run: Run, task: Task) -> tuple[Sampled, dict[str, Any]]:
    """A Gaussian with the training samples' moments, given the conditions where there are any."""
    from benchmarks.quality_methods import REPRESENTATIONS, conditional_gaussian
    from diffats.evaluation import gaussian_pca
    from diffats.primitives import Moments, Normalisation

    x, codec = task.scaled, None
    sources, numbers = _wanted(task)
    if run.method == "gaussian of primitives":
        made = REPRESENTATIONS["ours"](x[task.train], task.recipe, task.layout, run.seed)
        streams = made.encode(x)
        moments = {name: Moments() for name in streams}
        for name, values in streams.items():
            moments[name].add(values[task.train])
        normalisation = Normalisation.fit(moments)
        z = np.asarray(made.layout.flatten(normalisation.apply(streams)))
        codec = _codec(task, made, streams)
    else:
        z = x.reshape(len(x), -1)
    if task.conditions.any:
        cond = task.conditions.normalise(task.raw_conditions)
        states = np.concatenate([v.reshape(len(x), -1) for v in cond.values() if v.ndim > 1], axis=1)
        scalars = np.stack([v for v in cond.values() if v.ndim == 1], axis=1)
        wanted = states[sources], scalars[sources]
        drawn = conditional_gaussian(states[task.train], scalars[task.train], z[task.train], wanted, seed=run.seed)
    else:
        drawn = gaussian_pca(z[task.train], len(numbers), seed=run.seed)
    if run.method == "gaussian of primitives":
        fields = task.physical(made.decode(normalisation.undo(made.layout.unflatten(drawn.astype(np.float32)))))
    else:
        fields = task.physical(drawn.reshape(-1, *x.shape[1:]))
    return _arranged(task, fields, codec), {"numbers": z.shape[1]}


def _operator(run: Run, task: Task) -> tuple[Sampled, dict[str, Any]]:
    """A Fourier neural operator, trained for as long as ours with the same seed was."""
    from benchmarks import neural_operator

    ours = replace(run, method="ours").result
    if ours is None:
        raise SystemExit(f"{run.task}: the neural operator gets the time that ours took. Run ours first.")
    initial = task.recipe.data.condition.initial
    assert initial is not None
    cond = task.conditions.normalise(task.raw_conditions)
    scalars = np.stack([cond[f"scalar_{name}"] for name in task.conditions.scalars], axis=1)
    began = time.process_time()
    trained = neural_operator.train(
        task.fields[task.train],
        task.raw_conditions["initial"][task.train],
        scalars[task.train],
        modes=task.modes,
        time_axis=task.modes.index(initial.dim),
        seed=run.seed,
        seconds=ours["facts"]["train_seconds"],
        clock=time.process_time,
    )
    seconds, (k, cases, _) = time.process_time() - began, _sizes_of_comparison(task)
    test = task.test[:k]
    began = time.process_time()
    fields = np.asarray(trained.predict(task.raw_conditions["initial"][test], scalars[test]))
    facts = {"train_seconds": round(seconds, 1), "seconds_per_sample": (time.process_time() - began) / k}
    return Sampled(fields, fields[:cases, None], None), facts | {"network_calls": 1}


def _measured(task: Task, sampled: Sampled) -> dict[str, Any]:
    """All metrics of `diffats.evaluation`."""
    from diffats import evaluation

    k, cases, _ = _sizes_of_comparison(task)
    test = task.test[:k]
    reconstruction = None if sampled.codec is None else sampled.codec(test)
    more: dict[str, Any] = {}
    if sampled.ensemble is not None:
        more = {"ensemble": sampled.ensemble, **_truth(task, test[:cases])}
        if reconstruction is not None:
            more["truth_reconstruction"] = reconstruction[:cases]
    draws = []
    for number, start in enumerate(range(0, len(sampled.generated), k)):
        chosen = np.sort(np.random.default_rng(1 + number).permutation(task.train)[:k])
        fields = evaluation.Fields(
            modes=task.modes,
            train=task.fields[chosen],
            test=task.fields[test],
            generated=sampled.generated[start : start + k],
            mean=np.asarray(task.training_mean),
            scale=np.asarray(task.scaling.scale),
            reconstruction=reconstruction,
            n_train=len(task.train),
            **more,
        )
        draws.append(evaluation.evaluate(fields))
        if sampled.ensemble is None and sampled.codec is not None:
            _add_codec(draws[-1], evaluation.evaluate(replace(fields, generated=sampled.codec(chosen))))
    return _mean_of_draws(draws)


def _add_codec(metrics: Mapping[str, dict[str, Any]], of_codec: Mapping[str, Mapping[str, Any]]) -> None:
    """What a perfect model of a method's numbers reaches: the training samples, written so, against the test samples.

    Test samples written so are too near to the test samples themselves to tell, and training samples have no distance
    to the nearest of them.
    """
    for name in (set(of_codec) & set(quality_report.UNCONDITIONAL)) - {"nearest_training_ratio"}:
        if metrics[name]["codec"] is None:  # spectra have theirs
            metrics[name]["codec"] = of_codec[name]["value"]


def _truth(task: Task, cases: Array) -> dict[str, Any]:
    """What generated ensembles are compared with: the truth, persistence, and the equation where there is one."""
    from diffats.simulate import residuals

    truth = task.fields[cases]
    found: dict[str, Any] = {"truth": truth}
    initial = task.recipe.data.condition.initial
    if initial is not None:
        axis = 1 + task.modes.index(initial.dim)
        found["persistence"] = np.broadcast_to(truth.take([initial.index], axis=axis), truth.shape)
    simulated = task.recipe.simulate
    if simulated is not None and simulated.problem in residuals.EQUATIONS:
        names = residuals.EQUATIONS[simulated.problem].parameters
        parameters = {name: task.given[f"scalar_{name}"][cases] for name in names}
        found["residual"] = partial(residuals.residual, simulated.problem, parameters=parameters)
    return found


def _mean_of_draws(draws: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Metrics whose numbers are means over draws."""

    def mean(metric: str, column: str, first: Any) -> Any:
        return float(np.mean([draw[metric][column] for draw in draws])) if isinstance(first, float) else first

    return {
        metric: {column: mean(metric, column, first) for column, first in columns.items()}
        for metric, columns in draws[0].items()
    }


def _keep_examples(run: Run, task: Task, sampled: Sampled) -> None:
    """A few samples for the gallery, and their truth."""
    few = 8
    arrays = {"generated": sampled.generated[:few], "test": task.fields[task.test[:few]]}
    partial = run.directory / "examples.partial.npz"
    np.savez(partial, generated=arrays["generated"], test=arrays["test"])
    os.replace(partial, run.directory / EXAMPLES)


# --- many runs ----------------------------------------------------------------------------------------------------


def _one_thread() -> None:
    """Before torch is imported: a run has one thread, so that two go side by side."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _measure_alone(run: Run) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    return measure(run)


def make_data(tasks: Sequence[str]) -> None:
    """Simulate what is not there yet."""
    from diffats.config import load_recipe
    from diffats.simulate import simulate

    for task in tasks:
        made = simulate(load_recipe(RECIPES / f"{task}.toml"))
        if not made.skipped:
            print(f"{task}: {made.total} samples made", flush=True)


def run_all(runs: Sequence[Run], jobs: int) -> list[str]:
    """Measure what is not there yet, and keep it in MLflow; what failed is returned."""
    failed: list[str] = []
    missing = [run for run in runs if run.result is None]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} are there", flush=True)
    _one_thread()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        first = [run for run in missing if run.method != OPERATOR]
        for part in (first, [run for run in missing if run.method == OPERATOR]):  # it gets the time that ours took
            futures = {pool.submit(_measure_alone, run): run for run in part}
            for future in as_completed(futures):
                name = f"{futures[future].task}, {futures[future].method}, seed {futures[future].seed}"
                try:
                    print(f"{name} {list(futures[future].changes)}: {_line(future.result())}", flush=True)
                except (DiffatsError, ArithmeticError, np.linalg.LinAlgError) as error:
                    failed.append(name)
                    print(f"{name} failed: {error}", flush=True)
    track(runs)
    return failed


def track(runs: Sequence[Run]) -> None:
    """Every finished run in MLflow, once."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{ROOT.resolve() / 'mlflow.db'}")
    mlflow.set_experiment("quality")
    known = set(mlflow.search_runs(search_all_experiments=True, output_format="pandas").get("tags.directory", ()))
    for run in runs:
        done, name = run.result, str(run.directory.relative_to(ROOT))
        if done is None or name in known:
            continue
        with mlflow.start_run(run_name=name, tags={"directory": name, "task": run.task, "method": run.method}):
            mlflow.log_params({"task": run.task, "method": run.method, "seed": run.seed, "changes": str(run.changes)})
            rows = [row for row in rows_of(done) if row.method == run.method]
            mlflow.log_metrics({row.metric: row.value for row in rows})


def _line(done: Mapping[str, Any]) -> str:
    names = ("relative_l2", "crps", "energy_distance", "sliced_wasserstein", "two_sample_accuracy", "spectrum_error")
    metrics = done["metrics"]
    parts = [f"{name} {metrics[name]['value']:.4g}" for name in names if metrics.get(name, {}).get("value") is not None]
    return ", ".join(parts) + f"; {done['facts']['seconds']:.0f} s"


def plan(
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    changes: tuple[str, ...] = (),
    validate: bool = False,
) -> Iterator[Run]:
    """The runs, leading tasks first; the neural operator where there are conditions."""
    for task in sorted(tasks, key=lambda t: t not in LEAD):
        conditional = task not in UNCONDITIONAL
        for seed in seeds:
            for method in methods:
                if method != OPERATOR or conditional:
                    yield Run(task, method, seed, changes, validate)


def sampling_plan(tasks: Sequence[str], samplers: Sequence[str] = SAMPLERS) -> Iterator[Run]:
    """Ours, sampled in other ways by the network of seed 0."""
    for task in tasks:
        for sampler in samplers:
            for calls in CALLS:
                options = (f"generate.sampler={sampler}", f"generate.steps={calls}")
                yield Run(task, "ours", 0, ("evaluate.members=4", *options))


def plain_plan(tasks: Sequence[str]) -> Iterator[Run]:
    """What coordinates and calibration do for each method: the trained ones without either, seed 0.

    Tokens that are patches have no axes of points, so nothing is turned: only their calibration is left out.
    """
    from benchmarks.quality_methods import PATCHED

    for task in sorted(tasks, key=lambda t: t not in LEAD):
        for method in METHODS:
            if method not in (*UNTRAINED, OPERATOR):
                yield Run(task, method, 0, (*MEASURED, *(PLAIN[1:] if method in PATCHED else PLAIN)))


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", dest="changes", action="append", default=[], help="override of the recipes")
    parser.add_argument("--validate", action="store_true", help="score on a part of the training samples, kept from it")
    instead = "instead: ours by each sampler, or these, with 5 to 250 calls"
    parser.add_argument("--samplers", nargs="*", choices=SAMPLERS, help=instead)
    parser.add_argument("--plain", action="store_true", help="instead: each method in streams and not calibrated")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    changes = (*MEASURED, *options.changes)
    if (options.plain or options.samplers is not None) and (options.changes or options.validate):
        parser.error("--samplers and --plain take the recipes as they are: leave out --set and --validate.")
    if options.plain and options.samplers is not None:
        parser.error("--samplers and --plain are two measurements: ask for one of them.")
    runs = list(plan(options.tasks, options.methods, options.seeds, changes, options.validate))
    if options.samplers is not None:
        missing = [task for task in options.tasks if not Run(task, "ours", 0, MEASURED).is_trained]
        if missing:
            parser.error(f"{missing[0]}: --samplers needs the network of `--methods ours --seeds 0`. Run that first.")
        runs = list(sampling_plan(options.tasks, options.samplers or SAMPLERS))
    if options.plain:
        runs = list(plain_plan(options.tasks))
    make_data(list(dict.fromkeys(run.task for run in runs)))
    failed = run_all(runs, options.jobs)
    if not (options.changes or options.validate):
        write_results()
    if failed:
        sys.exit(f"{len(failed)} runs failed: {'; '.join(failed)}. The others are kept; run again to repeat these.")


def _settings(task: str) -> str:
    """Digest of what a task's rows are measured with: its recipe, and how many samples are compared."""
    place = Run(task, "ours", 0, MEASURED).directory.name
    return hashlib.sha256(json.dumps([place, DRAWS, CASES]).encode()).hexdigest()[:8]


def merged(
    earlier: Sequence[quality_report.Row],
    earlier_settings: Mapping[str, str],
    found: Sequence[quality_report.Row],
    settings: Mapping[str, str],
) -> list[quality_report.Row]:
    """Rows found here, and earlier ones of other runs that were measured in the same way, each once.

    Leading tasks first, and methods as they are planned.
    """
    measured = {(row.task, row.method, row.seed) for row in found}
    kept = [row for row in earlier if earlier_settings.get(row.task) == settings[row.task]]
    every = [row for row in kept if (row.task, row.method, row.seed) not in measured] + list(found)
    together = {(row.task, row.method, row.seed, row.metric): row for row in every}.values()
    order = sorted(settings, key=lambda task: task not in LEAD)
    return sorted(together, key=lambda row: (order.index(row.task), _place_of(row.method)))


def _place_of(method: str) -> tuple[int, bool]:
    """Of a method among others, before what was measured with it: its codec, or references; other samplers last."""
    if method.startswith("ours, "):
        return len(METHODS) + SAMPLERS.index(method.split()[1]), False
    if quality_report.is_plain(method):
        return len(METHODS) + len(SAMPLERS) + METHODS.index(quality_report.with_all(method)), False
    planned = method.removeprefix("codec of ")
    planned = planned if planned in METHODS else "ours"
    return METHODS.index(planned), method != planned


def write_results() -> None:
    """``benchmarks/quality.json`` from what it holds and what was measured here; ``docs/quality.md`` from it."""
    found: list[quality_report.Row] = []
    examples: dict[str, dict[str, Path]] = {}
    for run in plan(TASKS, METHODS, range(SEEDS), MEASURED):
        if (done := run.result) is not None:
            found += rows_of(done)
            if run.seed == 0:
                examples.setdefault(run.task, {})[run.method] = run.directory / EXAMPLES
    for run in sampling_plan(TASKS):
        if (done := run.result) is not None:
            sampler, calls = (option.partition("=")[2] for option in run.changes[-2:])
            own = [row for row in rows_of(done) if row.method == "ours"]
            found += [replace(row, method=f"ours, {sampler} at {calls}") for row in own]
    for run in plain_plan(TASKS):
        if (done := run.result) is not None:
            own = [row for row in rows_of(done) if row.method == run.method]
            found += [replace(row, method=quality_report.plain(run.method)) for row in own]
    kept = json.loads(JSON.read_text(encoding="utf-8")) if JSON.is_file() else {"rows": [], "machines": []}
    settings = {task: _settings(task) for task in TASKS}
    rows = merged([quality_report.Row(*row) for row in kept["rows"]], kept.get("settings", settings), found, settings)
    machines = [*kept["machines"], machine_line()] if found else kept["machines"]
    machines = list({line.partition("; threads")[0]: line for line in machines}.values())  # each as last measured
    columns = ["task", "method", "seed", "metric", "value"]
    head = json.dumps({"version": VERSION, "settings": settings, "machines": machines, "columns": columns})
    text = ",\n".join(json.dumps(list(asdict(row).values())) for row in rows)
    JSON.write_text(f'{head[:-1]}, "rows": [\n{text}\n]}}\n', encoding="utf-8")
    planned = len(list(plan(TASKS, METHODS, [0], MEASURED))) + (SEEDS - 1) * len(list(plan(LEAD, SEEDED, [0])))
    quality_report.write(rows, machines, DOCS, examples, planned)


if __name__ == "__main__":
    main()
