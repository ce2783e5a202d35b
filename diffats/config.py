"""The recipe: the single source of every option.

A recipe is one TOML file. The classes below are its sections; their fields, defaults and descriptions are what the
command line, the JSON schema (``diffats config --schema``) and the documentation show.
"""

from __future__ import annotations

import difflib
import json
import math
import posixpath
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticSerializationError

from diffats.errors import RecipeError, redact

#: What ``generate.sampler`` may be: the names in ``diffats.diffusion.SAMPLERS`` (a test compares them).
Sampler = Literal["ddpm", "ddim", "dpm++", "unipc", "ddim-accelerated", "ddpm-accelerated"]
#: What may decide between candidate and champion: rows of ``diffats.evaluation`` whose smaller value is better.
Metric = Literal[
    "energy_distance", "energy_distance_within", "sliced_wasserstein", "spectrum_error", "relative_l2", "crps"
]
#: What ``diffats simulate`` makes: the modules of ``diffats.simulate`` (a test compares them).
Problem = Literal[
    "burgers_1d", "reaction_diffusion_1d", "burgers_2d", "karman", "moving_digits", "image_patches", "digits"
]
#: What ``data.transform`` may be: the names in ``diffats.primitives.preparing.TRANSFORMS`` (a test compares them).
Transform = Literal["log", "log1p", "sqrt", "cbrt", "asinh"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)
METRICS: tuple[str, ...] = get_args(Metric)

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
# A count that nothing could hold is a slip of the keyboard, and better told here than by what it overflows.
_LARGEST = 2**31 - 1
Count = Annotated[int, Field(le=_LARGEST)]
_SECRET = re.compile(
    r"secret|token|passw|passphrase|\bpass\b|pwd|credential|\bkey\b|_key$|access_key|api_?key|auth|bearer|cookie"
    r"|connection_string|\bsas\b|signature",
    re.IGNORECASE,
)
_LONGEST_NAME = 200  # bytes; file systems take 255, and stores put a prefix before some names


def parse_bytes(text: str) -> int:
    """Bytes in a size such as ``"4GiB"`` or ``"512 MB"``.

    >>> parse_bytes("4GiB")
    4294967296
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f'"{text}" is not a size. Write it like "4GiB".')
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not math.isfinite(size) or size < 1:
        raise ValueError(f'"{text}" is not a positive size.')
    return int(size)


def check_name(name: str) -> str:
    """The name of a dim or variable, if an array of a store may be called by it: it must be no path.

    >>> check_name("t2m")
    't2m'
    """
    if name in ("", ".", "..", "zarr.json") or re.search(r"[/\\]", name) or not name.isprintable():
        raise ValueError(
            f"name {json.dumps(name)} cannot be stored: it is empty, a dot or zarr.json, or holds a slash, a backslash "
            "or a character that cannot be printed. Rename it in the source."
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f'name "{name[:20]}..." has more than {_LONGEST_NAME} bytes. Rename it in the source.')
    return name


Name = Annotated[str, AfterValidator(check_name)]
# JSON has no infinity: stores and workers get "inf".
Bound = Annotated[
    float,
    Field(allow_inf_nan=True),
    PlainSerializer(lambda bound: str(bound) if math.isinf(bound) else bound, when_used="json"),
]


_HTTP_LOGIN = """FSSPEC_HTTP='{"headers": {"Authorization": "Basic ..."}}' for https://"""


def _no_login(place: str, instead: str = _HTTP_LOGIN) -> str:
    """A path or URL, if it holds no user or password; it is not repeated in the message."""
    if any("@" in link.partition("://")[2].partition("/")[0] for link in place.split("::")):
        raise ValueError(
            f"the URL holds a user or password. Remove it, and set credentials in the environment ({instead})."
        )
    return place


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change."""

    # What was given is not shown: chained tracebacks would print a password.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Windows(Section):
    """Windows cut from long dimensions; each window is a sample."""

    size: dict[str, Count] = Field(default_factory=dict, description="window length by dimension, in grid points")
    stride: dict[str, Count] = Field(default_factory=dict, description="step between windows; the size where left out")

    @model_validator(mode="after")
    def _positive(self) -> Windows:
        for key, sizes in (("size", self.size), ("stride", self.stride)):
            for dim, n in sizes.items():
                if n < 1:
                    raise ValueError(f'{key} {n} for dim "{dim}" is not positive. Use at least 1.')
        for dim in self.stride:
            if dim not in self.size:
                raise ValueError(f'stride names dim "{dim}" but size does not. Add its size or remove the stride.')
        return self


class Split(Section):
    """How samples are divided into a training and a test part: no point of a test sample is in a training sample."""

    test: float = Field(0.1, gt=0, lt=1, description="share held out")
    by: Literal["sample", "block", "coordinate"] = Field(
        "sample",
        description="what is held out: entries of sample_dim, each with all its windows (without one: windows, in "
        "blocks where they overlap); blocks of the windowed dims, the same in every entry of sample_dim; or values "
        "of a coordinate",
    )
    block: dict[str, Count] = Field(
        default_factory=dict, description="block length by windowed dim; twice the window where left out"
    )
    gap: dict[str, Count] = Field(
        default_factory=dict,
        description="by block: points by windowed dim that lie between training windows and held-out blocks at least",
    )
    coordinate: str | None = Field(None, description="by coordinate: its name; a share of its values is held out")
    values: list[float | str] = Field(default_factory=list, description="by coordinate: the values to hold out")
    group: str | None = Field(
        None, description="coordinate along sample_dim: entries with one value, such as clips of a film, stay together"
    )

    @field_validator("group")
    @classmethod
    def _empty_is_none(cls, name: str | None) -> str | None:
        return name or None

    @model_validator(mode="after")
    def _coordinate_named(self) -> Split:
        if self.by == "coordinate" and self.coordinate is None:
            raise ValueError('by = "coordinate" needs the coordinate\'s name. Set data.split.coordinate.')
        return self


class Initial(Section):
    """A slice of the sample that is given; the sample, this slice included, is generated to follow it."""

    dim: str
    index: Annotated[Count, Field(ge=-_LARGEST)] = 0


class Condition(Section):
    """What a sample is generated from. Nothing here: unconditional."""

    initial: Initial | None = Field(None, description="a slice of each sample, e.g. the first time step")
    fields: list[Name] = Field(default_factory=list, description="other variables, given in full")
    scalars: list[Name] = Field(default_factory=list, description="variables or coordinates, one number a sample")
    labels: str | None = Field(None, description="variable or coordinate with a class; majority class in a window")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of training samples that see no condition, for guidance")

    @property
    def any(self) -> bool:
        """Whether generation is conditional."""
        return bool(self.initial or self.fields or self.scalars or self.labels)


#: Of a coordinate of times, ``"time.dayofyear"`` and so on: what comes back every year or day.
PHASES = ("dayofyear", "month", "hour")


def is_phase(name: str) -> bool:
    """Whether a name asks for a phase of a coordinate of times.

    >>> is_phase("time.dayofyear"), is_phase("time"), is_phase("time.year")
    (True, False, False)
    """
    coordinate, _, part = name.rpartition(".")
    return bool(coordinate) and part in PHASES


class By(Section):
    """A number for each point along some dims, or a climatology by the phase of times."""

    by: list[str] = Field(description='modes; for the centre also phases of a time, "time.dayofyear"', min_length=1)

    @field_validator("by", mode="before")
    @classmethod
    def _one_is_a_list(cls, by: object) -> object:
        return [by] if isinstance(by, str) else by

    @property
    def phases(self) -> list[str]:
        """The phases among the names, by which a climatology is."""
        return [name for name in self.by if is_phase(name)]


class Data(Section):
    """Where the raw fields are and what a sample is."""

    source: Annotated[str, AfterValidator(lambda source: _no_login(source))] = Field(
        description='"builtin:NAME", a path, a glob, or an fsspec URL'
    )
    variables: list[Name] = Field(
        default_factory=list, description="several become a component mode; the only one where empty"
    )
    modes: list[Name] = Field(description="the sample's dims, in tensor order", min_length=1)
    sample_dim: str | None = Field(None, description="an existing dim of samples; none where windows cut them")
    group: str | None = Field(
        None, description="group inside a NetCDF, Zarr or Icechunk source; keys of GRIB, such as typeOfLevel=surface"
    )
    engine: str | None = Field(None, description="xarray engine; guessed from the source where left out")
    concat_dim: str | None = Field(
        None, description="dim along which a glob's files are joined, or a new one; by coordinates if none"
    )
    storage_options: dict[str, str | int | bool] = Field(
        default_factory=dict, description="passed to fsspec; credentials belong in the environment"
    )
    center: Literal["none", "variable", "point"] | By = Field(
        "variable", description="subtract the training mean of; { by = [...] }: along modes, or a climatology"
    )
    scale: Literal["none", "variable"] | By = Field(
        "variable", description="divide by the training standard deviation of; { by = [...] }: along modes"
    )
    transform: dict[Name, Transform] = Field(
        default_factory=dict, description="by variable: what the model sees of it; undone in what is generated"
    )
    bounds: dict[Name, tuple[Bound, Bound]] = Field(
        default_factory=dict, description="least and largest value by variable (inf: none), kept in what is generated"
    )
    missing: Literal["fail", "mask"] = Field("fail", description='"mask": a mask equal in all samples is handled')
    max_failed: float = Field(0.01, ge=0, le=1, description="share of bad samples (at least one) that is tolerated")
    grows: bool = Field(False, description="new samples come at the end: only they are encoded, as the first ones were")
    version: str | None = Field(None, description="of a source that grows: tag or id of the earlier version to work on")
    windows: Windows = Windows()
    split: Split = Split()
    condition: Condition = Condition()

    @property
    def climatology(self) -> list[str]:
        """The phases of times by which the centre is a climatology; none where it is none."""
        return self.center.phases if isinstance(self.center, By) else []

    @field_validator("sample_dim", "group", "engine", "concat_dim", "version")
    @classmethod
    def _empty_is_none(cls, name: str | None) -> str | None:
        return name or None  # what --set data.sample_dim= means

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for key, value in options.items():
            if _SECRET.search(key):
                raise ValueError(f'"{key}" looks like a credential. Remove it and set it in the environment.')
            if isinstance(value, str):
                _no_login(value)
        return options

    @field_validator("bounds")
    @classmethod
    def _in_order(cls, bounds: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in bounds.items():
            if not low < high:
                raise ValueError(
                    f'bounds [{low:g}, {high:g}] of "{name}" hold no number. Write [LOW, HIGH], inf for none.'
                )
        return bounds

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        twice = {mode for mode in self.modes if self.modes.count(mode) > 1}
        if twice:
            raise ValueError(f'mode "{twice.pop()}" is named twice in data.modes. Name each dim once.')
        if self.sample_dim is None and not self.windows.size:
            raise ValueError("nothing makes samples. Set data.sample_dim, or data.windows.size to cut windows.")
        if self.sample_dim in self.modes:
            raise ValueError(f'data.sample_dim "{self.sample_dim}" is also a mode. A dim is either samples or a mode.')
        for key, option in (("center", self.center), ("scale", self.scale)):
            if isinstance(option, By):
                self._check_by(key, option)
        for dim in self.windows.size:
            if dim not in self.modes:
                raise ValueError(f'windows cut dim "{dim}", which data.modes does not name. Add it to data.modes.')
        initial = self.condition.initial
        if initial is not None and initial.dim not in self.modes:
            raise ValueError(f'data.condition.initial.dim "{initial.dim}" is no mode ({", ".join(self.modes)}).')
        if self.version is not None and not self.grows:
            raise ValueError("version names an earlier version of a source that grows. Set data.grows, or remove it.")
        if self.split.by == "block" and not self.windows.size:
            raise ValueError('by = "block" holds out blocks of windowed dims. Set data.windows.size, or by = "sample".')
        self._check_gap()
        if self.split.group is not None and self.sample_dim is None:
            raise ValueError("split.group keeps entries of data.sample_dim together, and there is none. Remove it.")
        return self

    def _check_gap(self) -> None:
        if not any(self.split.gap.values()):
            return
        if self.split.by != "block":
            raise ValueError('split.gap keeps training windows away from held-out blocks. Set split.by = "block".')
        if self.grows:
            raise ValueError(
                "split.gap would drop known training samples where a later block is held out. Remove it, or data.grows."
            )
        for dim in self.split.gap:
            if dim not in self.windows.size:
                windowed = ", ".join(self.windows.size)
                raise ValueError(f'split.gap names "{dim}", along which no windows are cut ({windowed}).')

    def _check_by(self, key: str, option: By) -> None:
        modes = ", ".join(self.modes)
        if len(set(option.by)) < len(option.by):
            raise ValueError(f"data.{key}.by names a mode twice. Name each once.")
        if option.phases and (key == "scale" or len(option.phases) < len(option.by)):
            raise ValueError(
                f'data.{key}.by names "{option.phases[0]}": only data.center can be by the phase of a time, and is by '
                f"point then. Name modes ({modes}), or such phases alone in data.center.by."
            )
        for name in option.by:
            if name not in self.modes and not option.phases:
                raise ValueError(
                    f'data.{key}.by names "{name}", which is no mode ({modes}). Name some of them; '
                    "variables have numbers of their own anyway."
                )


class Simulate(Section):
    """Data of the field, which ``diffats simulate`` makes and writes to ``data.source``."""

    problem: Problem = Field(description="which equation or images")
    sizes: dict[str, Annotated[Count, Field(ge=1)]] = Field(
        default_factory=dict, description="grid points and frames by dim, as stored; the photographs have their own"
    )
    count: Count = Field(1000, ge=4, description="trajectories")
    clips: Count = Field(1, ge=1, description="karman: samples cut one after the other from a trajectory")
    strips: Count = Field(1, ge=1, description="image_patches: strips over which the held-out columns are spread")
    seed: int = Field(0, ge=0, lt=2**32, description="of the data; the recipe's own seed is that of the model")
    test: float = Field(0.1, gt=0, lt=1, description="share of the trajectories (digits, columns) that is held out")
    held_out: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="range of a parameter, ends included, that training never sees"
    )


class Primitive(Section):
    """Which primitive a sample becomes."""

    kind: Literal["tgp", "mgp"] = Field("tgp", description="tensor (Tucker) or matrix (patch-SVD) primitive")
    patch: dict[str, Annotated[Count, Field(ge=1)]] = Field(
        default_factory=dict, description="mgp: patch length by mode"
    )
    rank: Count | None = Field(None, ge=1, description="mgp: columns kept of each patch matrix")


class Decompose(Section):
    """Tucker decomposition (tgp only)."""

    ranks: dict[str, Count] = Field(default_factory=dict, description="rank by mode; a mode left out is not decomposed")
    tolerance: float | None = Field(
        None, gt=0, lt=1, description="root mean square of the anomaly error, for which the smallest ranks are found"
    )
    rank_quantile: float = Field(
        1.0, gt=0, le=1, description="share of the pilot samples, those with the smallest errors, that tolerance is of"
    )
    method: Literal["sthosvd", "hooi"] = Field("sthosvd", description="hooi refines the ST-HOSVD start")

    @field_validator("ranks")
    @classmethod
    def _positive(cls, ranks: dict[str, int]) -> dict[str, int]:
        for mode, rank in ranks.items():
            if rank < 1:
                raise ValueError(f'rank {rank} for mode "{mode}" is not positive. Use at least 1.')
        return ranks


class Anchor(Section):
    """What each mode's factors are aligned to."""

    strategy: Literal["medoid", "random", "index", "mean"] = "medoid"
    index: Count | None = Field(None, ge=0, description='"index": the sample whose factors are the anchors')


class Align(Section):
    """Which modes are aligned; the others are absorbed into the core."""

    modes: list[str] = Field(default_factory=list, description="at least two decomposed modes; all where empty")
    min_overlap: float = Field(0.05, ge=0, le=1, description="warn where a sample's smallest overlap is below")


class Normalise(Section):
    """In which coordinates primitives are noised."""

    coordinates: Literal["stream", "spectral"] = Field(
        "spectral", description="principal axes along a stream's points and a scale for each number, or one scale"
    )
    beta: float = Field(
        0.5, ge=0, le=1, description="spectral: the power of its deviation by which a number is divided; 1: all alike"
    )
    floor: float = Field(1e-5, gt=0, lt=1, description="spectral: least deviation, as a share of a stream's largest")


class Drift(Section):
    """Whether samples that a growing source got are still like the first ones."""

    false_alarm: float = Field(0.01, gt=0, lt=1, description="chance of an alarm about new samples that are alike")
    effect: float = Field(
        0.65, ge=0.5, lt=1, description="alarm only above this chance that a new sample is the more unusual one"
    )
    action: Literal["ask", "warn"] = Field("ask", description='on an alarm: "ask" for new anchors and stop, or "warn"')


class Model(Section):
    """The denoiser: a DiT (adaLN-Zero) over the primitive's streams."""

    width: Count = Field(128, ge=8)
    depth: Count = Field(4, ge=1)
    heads: Count = Field(4, ge=1)
    core_patch: Count = Field(1, ge=1, description="slices of the core that share one token")
    factor_tokens: Count = Field(
        4, ge=1, description="at most this many tokens for one factor, of some rank columns each"
    )

    @model_validator(mode="after")
    def _divides(self) -> Model:
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}. "
                f"Use width {max(1, self.width // self.heads) * self.heads}, or other heads."
            )
        return self


class Diffusion(Section):
    """The noising process and what the network predicts."""

    target: Literal["eps", "x0", "v"] = "x0"
    schedule: Literal["linear", "cosine"] = "cosine"
    noise_steps: Count = Field(1000, ge=2, description="discrete noise levels in training")
    log_snr_shift: float = Field(
        0.0, ge=-2, le=2, description="added to the logarithm of signal over noise at each level: above 0, less noise"
    )


class Train(Section):
    """Optimisation. More ``steps`` continue a finished training."""

    steps: Count = Field(2000, ge=1)
    batch: Count = Field(32, ge=1)
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon of the blocks' matrices, adamw of the rest; or adamw of all, with an lr of about 1e-3"
    )
    lr: float = Field(1e-2, gt=0)
    warmup: Count = Field(100, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights")
    clip: float = Field(1.0, gt=0, description="gradient norm limit")
    shift: list[str] = Field(
        default_factory=list,
        description="modes along which fields wrap around: every sample is trained on at random shifts along them",
    )
    weighting: Literal["field", "stream"] = Field(
        "field", description="loss: the field's error to first order, or the mean over streams of each one's error"
    )
    calibrate: bool = Field(
        True, description="after training, combine each number of the network's guess with the noisy one as fits best"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="whose weights: the last step's, or of the lowest loss on a tenth of the training samples"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: what is faster here for this network; bfloat16 only where the device has it"
    )
    checkpoint_every: Count = Field(250, ge=1, description="steps between checkpoints")
    log_every: Count = Field(25, ge=1, description="steps between logged metrics")


# Options of training that change when things are written or what is done afterwards, not what is learned.
NOT_LEARNED = ("steps", "checkpoint_every", "log_every", "calibrate")


class Generate(Section):
    """How many samples to draw, and how."""

    count: Count = Field(64, ge=1)
    steps: Count = Field(10, ge=1, description="network calls for a sample")
    sampler: Sampler = "dpm++"
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale; 1 is none")
    batch: Count = Field(64, ge=1, description="samples per network call")
    impose: bool = Field(
        True, description="a given initial slice replaces the generated one, and corrects the others by their share"
    )
    max_extrapolation: float | None = Field(
        None, ge=0, description="refuse conditions further outside of training's range, in its widths; else warn only"
    )


class Evaluate(Section):
    """What decides between candidate and champion."""

    metric: Literal["auto", Metric] = Field(
        "auto",
        description="auto: crps of forecasts (where fields are given), energy_distance_within conditions where labels "
        "or scalars are, else energy_distance",
    )
    members: Count = Field(8, ge=2, description="ensemble members per condition, for conditional recipes")
    samples: Count = Field(256, ge=2, description="at most this many samples of each kind are compared")


class Report(Section):
    """How the page shows samples; nothing else depends on it."""

    rgb: list[float] = Field(
        default_factory=list,
        description="red, green, blue: three values of the spectral mode's coordinate, or indices where it has none",
    )

    @field_validator("rgb")
    @classmethod
    def _three(cls, rgb: list[float]) -> list[float]:
        if len(rgb) not in (0, 3):
            raise ValueError(f"{len(rgb)} bands are no colour. Give three, for red, green and blue.")
        return rgb


class Tracking(Section):
    """Where MLflow keeps runs and models."""

    uri: str = Field(
        "", description="MLflow tracking URI; empty: runs/mlflow.db, or mlflow.db under a root that is given"
    )

    @field_validator("uri")
    @classmethod
    def _no_server_login(cls, uri: str) -> str:
        if re.match("(postgresql|mysql|mssql|sqlite)[+:]", uri):
            return uri  # databases have no other way; it is shown nowhere
        return _no_login(uri, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


class Compute(Section):
    """Where the work runs."""

    scheduler: str = Field("local", description='"local", or the address of a Dask scheduler, "tcp://host:8786"')
    workers: Count = Field(2, ge=1, description="local workers, one BLAS thread each")
    processes: bool = Field(False, description="local workers as processes instead of threads")
    memory: str = Field("4GiB", description="per worker")
    shard_samples: Count | None = Field(None, ge=1, description="samples per shard; from the sample's size if left out")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Count | None = Field(
        None, ge=1, description="of the CPU, for training; if left out, what is fastest for this network now"
    )

    @field_validator("memory")
    @classmethod
    def _readable(cls, memory: str) -> str:
        parse_bytes(memory)
        return memory

    @field_validator("scheduler")
    @classmethod
    def _address(cls, scheduler: str) -> str:
        if scheduler != "local" and "://" not in scheduler:
            raise ValueError(f'"{scheduler}" is neither "local" nor an address such as "tcp://host:8786".')
        return scheduler

    @property
    def memory_bytes(self) -> int:
        """The memory limit of one worker, in bytes."""
        return parse_bytes(self.memory)


class Recipe(Section):
    """One complete description of a data set, its primitives and its model."""

    name: str = Field(description="names the store, the MLflow experiment and the registered model", max_length=100)
    seed: int = Field(0, ge=0, lt=2**32)
    root: str = Field("", description="where stores, checkpoints and reports go; runs/NAME where left out")
    store: str = Field(
        "", description="where Icechunk repositories go: a directory or s3://, gs://, az:// URL; in root if left out"
    )
    data: Data
    simulate: Simulate | None = Field(None, description="how to make data.source; left out where there are data")
    primitive: Primitive = Primitive()
    decompose: Decompose = Decompose()
    anchor: Anchor = Anchor()
    align: Align = Align()
    normalise: Normalise = Normalise()
    drift: Drift = Drift()
    model: Model = Model()
    diffusion: Diffusion = Diffusion()
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f'"{name}" may hold letters, digits, ".", "_" and "-" only, and starts with a letter or digit.'
            )
        return name

    @field_validator("store")
    @classmethod
    def _place_for_repositories(cls, store: str) -> str:
        scheme, separator, rest = store.partition("://")
        bucket = rest.partition("/")[0]
        if not separator:
            return store
        if "@" in bucket or re.search("[?#]", rest):  # and is not repeated in the message
            raise ValueError(
                "the URL holds a user, password or query. Remove it, and set credentials in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)."
            )
        if scheme not in ("s3", "gs", "az") or not bucket:
            raise ValueError(f'"{store}" is neither a directory nor a URL such as "s3://bucket/prefix".')
        return store.rstrip("/")

    @model_validator(mode="after")
    def _simulated_place(self) -> Recipe:
        source = self.data.source
        if self.simulate is not None and (
            source.startswith("builtin:") or "://" in source or re.search("[*?[]", source)
        ):
            raise ValueError(
                f'data.source "{source}" is where [simulate] writes to, and must be a local path such as '
                '"runs/data/waves.zarr". Change it, or remove the section.'
            )
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> Recipe:
        if self.primitive.kind == "tgp":
            self._check_tgp()
        else:
            self._check_mgp()
        metric, condition = self.evaluate.metric, self.data.condition
        if metric in ("relative_l2", "crps") and not (condition.initial or condition.fields or condition.scalars):
            raise ValueError(
                f'evaluate.metric "{metric}" compares with the truth of a condition, and there is none. '
                "Set data.condition.initial, fields or scalars, or use energy_distance."
            )
        if metric == "energy_distance_within" and not (condition.scalars or condition.labels):
            raise ValueError(
                'evaluate.metric "energy_distance_within" compares samples of equal labels or scalars, and there are '
                "none. Set data.condition.labels or scalars, or use energy_distance."
            )
        if self.generate.steps > self.diffusion.noise_steps:
            raise ValueError(
                f"generate.steps {self.generate.steps} exceeds diffusion.noise_steps {self.diffusion.noise_steps}. "
                f"Use at most {self.diffusion.noise_steps}."
            )
        if self.anchor.strategy == "index" and self.anchor.index is None:
            raise ValueError('anchor.strategy "index" needs anchor.index, the number of the sample.')
        given = condition.initial or condition.fields or condition.scalars or condition.labels
        if given and condition.dropout == 0 and self.generate.guidance != 1:
            raise ValueError(
                f"generate.guidance {self.generate.guidance:g} needs a model that has also seen samples without their "
                "conditions. Set data.condition.dropout above 0, such as 0.1, or guidance = 1."
            )
        self._check_shift()
        return self

    def _check_shift(self) -> None:
        data, initial = self.data, self.data.condition.initial
        possible = [mode for mode in data.modes if self.primitive.kind == "tgp" or mode in self.primitive.patch]
        for mode in self.train.shift:
            if mode not in possible:
                raise ValueError(f'train.shift names "{mode}"; it can be some of {", ".join(possible)}.')
            if mode in data.windows.size:
                raise ValueError(f'train.shift names "{mode}", which is cut into windows: their ends do not meet.')
            if initial is not None and mode == initial.dim:
                raise ValueError(f'train.shift names "{mode}", along which data.condition.initial is taken. Remove it.')
        fixed = {"data.center": data.center, "data.scale": data.scale}
        tied = [
            key
            for key, option in fixed.items()
            if isinstance(option, By) and (option.phases or set(option.by) & set(self.train.shift))
        ]
        options = [f"{key}.by" for key in tied]
        options += ['data.center = "point"'] if data.center == "point" else []
        options += ['data.missing = "mask"'] if data.missing == "mask" else []
        if self.train.shift and options:
            raise ValueError(
                f"train.shift moves fields, and {options[0]} belongs to fixed points. Use one of them only."
            )

    def _check_tgp(self) -> None:
        given = [key for key in ("patch", "rank") if getattr(self.primitive, key)]
        if given:
            raise ValueError(f'primitive.{given[0]} is for kind = "mgp". Remove it, or set primitive.kind = "mgp".')
        ranks, tolerance = self.decompose.ranks, self.decompose.tolerance
        if ranks and tolerance is not None:
            raise ValueError(
                "decompose has both ranks and a tolerance. Remove one of them; on the command line, "
                "--set 'decompose.ranks={}' clears the ranks."
            )
        if not ranks and tolerance is None:
            raise ValueError(
                "decompose has neither ranks nor a tolerance. Set decompose.ranks, such as "
                f"{{ {self.data.modes[0]} = 4 }}, or decompose.tolerance, such as 0.05."
            )
        known = self.tensor_modes
        for section, modes in (("decompose.ranks", list(ranks)), ("align.modes", self.align.modes)):
            for mode in modes:
                if mode not in known:
                    raise ValueError(f'{section} names "{mode}", which is no mode ({", ".join(known)}).')
        if len(set(self.align.modes)) < len(self.align.modes):
            raise ValueError("align.modes names a mode twice.")
        for mode in self.align.modes:
            if ranks and mode not in ranks:
                raise ValueError(f'align.modes names "{mode}", which has no rank. Add it to decompose.ranks.')
        if len(self.aligned_modes) < 2:
            raise ValueError(
                f"a tensor primitive aligns at least two modes, got {len(self.aligned_modes)} "
                f'({", ".join(self.aligned_modes)}). Add ranks or align.modes, or use primitive.kind = "mgp".'
            )

    def _check_mgp(self) -> None:
        if not self.primitive.patch or self.primitive.rank is None:
            raise ValueError('primitive.kind "mgp" needs primitive.patch and primitive.rank.')
        for mode in self.primitive.patch:
            if mode not in self.data.modes:
                raise ValueError(f'primitive.patch names "{mode}", which is no mode ({", ".join(self.data.modes)}).')
        if self.decompose.ranks or self.decompose.tolerance is not None or self.align.modes:
            raise ValueError('decompose and align are for kind = "tgp"; for "mgp" set primitive.patch and rank.')

    @property
    def tensor_modes(self) -> tuple[str, ...]:
        """The modes of a sample tensor: ``data.modes``, after ``"component"`` where there are several variables."""
        return (("component",) if len(self.data.variables) > 1 else ()) + tuple(self.data.modes)

    def axes_of(self, option: str | By) -> str | list[int]:
        """A choice of ``data.center`` or ``data.scale`` with the axes of a sample in place of the names of modes."""
        if isinstance(option, By):
            return "point" if option.phases else [self.tensor_modes.index(mode) for mode in option.by]
        return option

    @property
    def aligned_modes(self) -> tuple[str, ...]:
        """The aligned modes of a tensor primitive, in tensor order."""
        chosen = self.align.modes or self.decompose.ranks or self.data.modes
        return tuple(mode for mode in self.tensor_modes if mode in chosen)

    @property
    def makes_forecasts(self) -> bool:
        """Whether fields are given (an initial state, say), of which generated samples are forecasts."""
        return bool(self.data.condition.initial or self.data.condition.fields)

    @property
    def imposes(self) -> bool:
        """Whether generated samples get the initial slice that is given."""
        return self.generate.impose and self.data.condition.initial is not None

    @property
    def deciding_metric(self) -> Metric:
        """What decides between candidate and champion, and what reports begin with."""
        if self.evaluate.metric != "auto":
            return self.evaluate.metric
        if self.makes_forecasts:
            return "crps"
        return "energy_distance_within" if self.data.condition.any else "energy_distance"

    @property
    def location(self) -> str:
        """Where everything of this recipe is kept."""
        return self.root or f"runs/{self.name}"


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    path
        A TOML file.
    overrides
        ``"section.key=value"`` each; the value is TOML, or a plain string.

    Raises
    ------
    RecipeError
        Where the file cannot be read, is not TOML, or breaks a rule; the message names the key and the fix.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows' editors write a byte order mark
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path that holds a null
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
        raise RecipeError(f"recipe {path}: {reason}. Give the path of a TOML file.") from error
    try:
        tree = _toml(text)
    except ValueError as error:
        raise RecipeError(f"recipe {path} is not TOML: {str(error).rstrip('.')}. Mend this line.") from error
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, where=str(path))


def _toml(text: str) -> dict[str, Any]:
    """The mapping that TOML text stands for; ValueError where it is none."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("brackets are nested too deep") from error


def parse_recipe(tree: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Check a recipe given as nested mappings.

    >>> parse_recipe({"name": "a", "data": {"source": "x.zarr", "modes": ["y", "x"], "sample_dim": "time"},
    ...               "decompose": {"rank": {"y": 4}}})
    Traceback (most recent call last):
    ...
    diffats.errors.RecipeError: recipe: unknown key "decompose.rank". The nearest known key is "decompose.ranks".
    """
    try:
        made = Recipe.model_validate(tree)
        made.model_dump_json()  # as workers and stores get it
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors() if not _of_other_member(problem)]
        raise RecipeError(f"{where}: " + "\n  ".join(dict.fromkeys(problems))) from error
    except (PydanticSerializationError, UnicodeEncodeError) as error:  # bytes of a command line that are no text
        reason = str(error).rpartition("codec ")[2]
        raise RecipeError(f"{where}: a text in it is not UTF-8 ({reason}). Write it anew.") from error
    return made


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one key of a recipe as nested mappings, by ``"section.key=value"``.

    Raises
    ------
    RecipeError
        Where it has another form.

    >>> tree = {"name": "a"}
    >>> apply_override(tree, "data.windows.size={ time = 4 }")
    >>> tree
    {'name': 'a', 'data': {'windows': {'size': {'time': 4}}}}
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f'override "{override}" is not of the form section.key=value.')
    try:
        parsed = _toml(f"value = {text}")
    except ValueError:
        parsed = {}
    value = parsed["value"] if parsed.keys() == {"value"} else text.strip()  # a second line is no part of a value
    *sections, last = key.strip().split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise RecipeError(f'override "{override}": "{section}" is a value, not a section.')
    node[last] = value


def _explain(problem: Any) -> str:
    """One mistake in words: the key, what is expected, what was given, the fix."""
    path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(_UNION_MEMBERS))
    kind, given = problem["type"], _shown(problem.get("input"), secret="storage_options" in problem["loc"])
    if kind == "extra_forbidden":
        return f'unknown key "{path}". The nearest known key is "{_nearest(path)}".'
    if kind == "missing":
        return f'"{path}" is required{_described(path)}. Add it to the recipe.'
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path}: {message}" if path else message
    if kind in _SECTION_ERRORS and any(key.startswith(f"{path}.") for key in known_keys()):
        return f'"{path}" is a section, got {given}. Put keys below [{path}], or set one with {path}.KEY = VALUE.'
    expected = _EXPECTED.get(kind) or message.removeprefix("Input should be ").replace("'", '"')
    expected = f"a number {expected}" if kind.startswith(("greater_than", "less_than")) else expected
    return f'"{path}": expected {expected}, got {given}{_described(path)}.'


def _of_other_member(problem: Any) -> bool:
    """Whether a mistake is that a word is no table or a table no word, where either would do."""
    if problem["type"] == "literal_error":
        return isinstance(problem["input"], dict) and any(str(part).startswith("literal[") for part in problem["loc"])
    return problem["type"] in _SECTION_ERRORS and problem["loc"][-1] == By.__name__


def _shown(value: Any, *, secret: bool = False) -> str:
    """A value as JSON, as far as there is room; only its type where it may be a credential."""
    if secret:
        return f"a {type(value).__name__}"
    try:
        return redact(json.dumps(value, default=str))[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits; brackets in brackets
        return f"a {type(value).__name__} of excessive size"


# The members of unions that pydantic adds to a place, and its names for values of a wrong type.
_UNION_MEMBERS = ("float", "str", "int", "bool", "literal[", "By")
_SECTION_ERRORS = ("model_type", "model_attributes_type", "dict_type")
_WHOLE = "a whole number"
_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text in quotes",
    "list_type": "a list in brackets, texts in quotes",
    "too_short": "at least one entry",
    "string_too_long": "a shorter text",
    **dict.fromkeys(_SECTION_ERRORS, "a table of keys, { mode = value }"),
}


def _described(path: str) -> str:
    """A key's description and default, in brackets, where it has them."""
    section: Any = Recipe
    *sections, last = path.split(".")
    for name in sections:
        section = _section_of(section, name)
        if section is None:
            return ""
    field = section.model_fields.get(last)
    if field is None:
        return ""
    plain = isinstance(field.default, (bool, int, float, str)) and field.default != ""
    notes = [field.description] if field.description else []
    notes += [f"default {json.dumps(field.default)}"] if plain else []
    return f" ({'; '.join(notes)})" if notes else ""


def _section_of(section: type[BaseModel], name: str) -> type[Section] | None:
    """The class of a section's subsection, None where that is a value."""
    field = section.model_fields.get(name)
    parts = (field.annotation, *getattr(field.annotation, "__args__", ())) if field is not None else ()
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


def _nearest(path: str) -> str:
    """The known key that an unknown one most likely stands for: misspelt in its section, or in another section."""
    keys = known_keys()
    section, _, last = path.rpartition(".")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    close = difflib.get_close_matches(path, siblings, n=1, cutoff=0.75)
    moved = [key for key in keys if key.rpartition(".")[2] == last]
    return (close or moved or difflib.get_close_matches(path, keys, n=1, cutoff=0.0))[0]


def known_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key a recipe may have."""
    keys = []
    for name in section.model_fields:
        keys.append(prefix + name)
        part = _section_of(section, name)
        keys += known_keys(part, f"{prefix}{name}.") if part is not None else []
    return keys


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data for stores and trackers: no root or store, no place on this machine, no password.

    How the report shows samples is left out, too: no result depends on it.

    The source loses what ``portable_place`` takes away, and so do places among the storage options. Options that came
    later are left out where they change nothing, so that a recipe without them stays what it was; the metric is the one
    that decides.
    """
    tree = described(recipe)
    tree["generate"] = {**tree["generate"], "impose": recipe.imposes}
    tree = as_before(tree)
    del tree["report"]
    tree["evaluate"] = {**tree["evaluate"], "metric": recipe.deciding_metric}
    return tree


def described(recipe: Recipe) -> dict[str, Any]:
    """The same with all options."""
    tree = recipe.model_dump(mode="json", exclude={"root", "store", "tracking", "compute"})
    if recipe.simulate is None:
        del tree["simulate"]
    data = tree["data"]
    data["source"] = portable_place(recipe.data.source)
    data["storage_options"] = {
        key: portable_place(value) if isinstance(value, str) else value
        for key, value in recipe.data.storage_options.items()
    }
    return tree


def given(recipe: Recipe) -> dict[str, Any]:
    """The options that a recipe names, without places and passwords, as in ``described``.

    >>> recipe = parse_recipe({"name": "a", "data": {"source": "/home/ann/x.zarr", "modes": ["y", "x"],
    ...                        "sample_dim": "time"}, "decompose": {"ranks": {"y": 4, "x": 4}}, "root": "/home/ann"})
    >>> given(recipe)["data"], "root" in given(recipe)
    ({'source': 'x.zarr', 'modes': ['y', 'x'], 'sample_dim': 'time'}, False)
    """
    named = recipe.model_dump(mode="json", exclude_unset=True, exclude={"root", "store", "tracking", "compute"})
    whole = described(recipe)
    named["data"] |= {key: whole["data"][key] for key in ("source", "storage_options") if key in named["data"]}
    return named


# Options that came later, each with the value that stands for what was done before.
_PREPARING: tuple[tuple[str, str, Any], ...] = (("data", "bounds", {}), ("data", "transform", {}))
_LATER: tuple[tuple[str, str, Any], ...] = (
    ("normalise", "coordinates", "stream"),
    ("train", "calibrate", False),
    ("train", "keep", "last"),
    ("diffusion", "log_snr_shift", 0.0),
    ("generate", "impose", False),
    ("generate", "max_extrapolation", None),
    *_PREPARING,
)


def names_later(tree: Mapping[str, Any]) -> bool:
    """Whether a portable recipe names an option that earlier releases do not know."""
    split = tree.get("data", {}).get("split", {})
    return (
        split.get("group") is not None
        or bool(split.get("gap"))
        or any(key in tree.get(section, {}) for section, key, _ in _LATER)
    )


def prepares_fields(tree: Mapping[str, Any]) -> bool:
    """Whether it names those of them that say how numbers are prepared, which came last."""
    data = tree.get("data", {})
    named = any(key in tree.get(section, {}) for section, key, _ in _PREPARING)
    return named or any(isinstance(data.get(key), Mapping) for key in ("center", "scale"))


def as_before(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data without later options where they change nothing: what identities are made of.

    >>> as_before({"normalise": {"coordinates": "stream", "beta": 0.5}, "train": {"steps": 9, "calibrate": False}})
    {'train': {'steps': 9}}
    """
    out = dict(tree)
    for section, key, value in _LATER:
        part = out.get(section, {})
        if key in part and part[key] == value:
            out[section] = {} if section == "normalise" else _without(part, key)
    for key in ("group", "gap"):
        if key in (split := out.get("data", {}).get("split", {})) and not split[key]:
            out["data"] = {**out["data"], "split": _without(split, key)}
    return {section: part for section, part in out.items() if section != "normalise" or part}


def _without(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != key}


def completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as it was stored, with what was done where it does not name a later option.

    >>> completed({"train": {"steps": 9}})["train"]
    {'keep': 'last', 'calibrate': False, 'steps': 9}
    """
    out = dict(tree)
    for section, key, value in _LATER:
        out[section] = {key: value, **out.get(section, {})}
    return out


def portable_place(place: str) -> str:
    """A path or URL (chained ones, too) without what is this machine's or this user's.

    URLs lose user, password, query and fragment; of local paths that are absolute, begin with ``~`` or lead out of the
    working directory only the last name stays, for ``file://`` too. Relative paths stay as they are.

    >>> portable_place("https://ann:secret@host/u.zarr?token=1"), portable_place("data/u.nc")
    ('https://host/u.zarr', 'data/u.nc')
    >>> [portable_place(place) for place in ("/home/ann/u.nc", "~/u.nc", "../u.nc", "file:///home/ann/u.nc")]
    ['u.nc', 'u.nc', 'u.nc', 'u.nc']
    """
    return "::".join(_portable_link(link) for link in place.split("::"))


def _portable_link(link: str) -> str:
    scheme, separator, rest = link.partition("://")
    if not separator:
        scheme, rest = "file", link
    if link.startswith("builtin:"):
        return link
    if scheme in ("file", "local"):
        path = posixpath.normpath(rest)
        outside = bool(separator) or path.startswith(("~", "..")) or PurePosixPath(path).is_absolute()
        return PurePosixPath(path).name if outside or Path(rest).is_absolute() else link
    authority, slash, path = rest.partition("/")
    bare = authority.rpartition("@")[2] + slash + path
    return f"{scheme}://{re.split('[?#]', bare)[0]}"
