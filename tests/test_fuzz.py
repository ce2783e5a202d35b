"""Random recipes and random data sets: each gives a correct result or one of our errors, with a fix."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bad_inputs
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tiny_runs import small_recipe

from diffats import stages
from diffats.compute import open_cluster
from diffats.config import Compute, Recipe, load_recipe, parse_recipe
from diffats.errors import InputError, RecipeError, TooManyFailedError
from diffats.primitives import FieldScaling, Layout, decode
from diffats.sources import open_samples
from diffats.store import STATUS, Store

#: How many times as many examples as by default; `FUZZ=50 pytest tests/test_fuzz.py` looks for more.
FACTOR = int(os.environ.get("FUZZ", "1"))
SCHEMA = Recipe.model_json_schema()
WORKING: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "u.nc", "modes": ["y", "x"], "sample_dim": "run"},
    "decompose": {"ranks": {"y": 2, "x": 2}},
}


def examples(count: int, factor: int = FACTOR) -> Any:
    return settings(
        max_examples=count * factor,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


# --- recipes ----------------------------------------------------------------------------------------------------

words = st.sampled_from(
    ["", "y", "x", "run", "component", "../u", "a b", "<script>", "é", "\u2028", "\x00", "-1", "nan"]
)
texts = words | st.text(st.characters(exclude_categories=()), max_size=12)  # lone surrogates, too
numbers = st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63), 10**30]) | st.integers(-3, 300)
floats = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-320, 1e308, 0.5]) | st.floats()
moments = st.sampled_from([dt.datetime(2000, 1, 1), dt.date(1, 1, 1), dt.time(1)])
scalars = st.booleans() | numbers | floats | texts | moments
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a part of the recipes' JSON schema describes, bounds and patterns aside."""
    if "$ref" in schema:
        return of_schema(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*map(of_schema, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        fields = {name: of_schema(field) for name, field in schema["properties"].items()}
        return st.fixed_dictionaries({}, optional=fields)
    if kind == "object":
        inner = schema.get("additionalProperties")
        return st.dictionaries(words, of_schema(inner if isinstance(inner, dict) else {}), max_size=3)
    if kind == "array":
        return st.lists(of_schema(schema.get("items", {})), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        "string": texts,
        "integer": st.integers(-1, 20),
        "number": st.floats(-0.5, 2),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple.get(kind, anything)


def merged(base: Any, other: Any) -> Any:
    if isinstance(base, dict) and isinstance(other, dict):
        return {key: merged(base.get(key), other.get(key, base.get(key))) for key in {**base, **other}}
    return base if other is None else other


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """A recipe that works, with parts from the schema put in, and up to two places broken."""
    tree = merged(copy.deepcopy(WORKING), draw(of_schema(SCHEMA))) if draw(st.booleans()) else copy.deepcopy(WORKING)
    for _ in range(draw(st.integers(0, 2))):
        node: Any = tree
        while isinstance(node, dict) and node and draw(st.booleans()):
            inner = [value for value in node.values() if isinstance(value, dict)]
            if not inner:
                break
            node = draw(st.sampled_from(inner))
        key = draw(st.sampled_from(sorted(node)) | texts) if node else draw(texts)
        if draw(st.booleans()):
            node.pop(key, None)
        else:
            node[key] = draw(anything)
    return without_none(tree)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value if inner is not None] if isinstance(value, list) else value


def toml(value: Any) -> str:
    """One line of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value > 2**64 else str(value)
    return value.isoformat() if isinstance(value, dt.date | dt.time) else repr(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=True).replace("\x7f", "\\u007f") if text.isascii() else f'"{_plain(text)}"'


def _plain(text: str) -> str:
    return "".join(f"\\U{ord(c):08x}" for c in text if not 0xD800 <= ord(c) < 0xE000)


def document(tree: dict[str, Any]) -> str:
    return "".join(f"{_quoted(key)} = {toml(value)}\n" for key, value in tree.items())


def accepted_or_refused(make: Callable[[], Recipe]) -> None:
    try:
        recipe = make()
    except RecipeError as error:
        message = str(error)
        assert message.startswith(("recipe", "override", "/"))
        assert len(message) < 4000
        return
    again = parse_recipe(json.loads(recipe.model_dump_json()))  # what workers and stores get
    assert again == recipe


@examples(150)
@given(trees())
def test_a_tree_is_a_recipe_or_refused(tree: dict[str, Any]) -> None:
    accepted_or_refused(lambda: parse_recipe(tree))


@examples(100)
@given(trees(), st.data())
def test_a_file_is_a_recipe_or_refused(tree: dict[str, Any], data: st.DataObject) -> None:
    content = document(tree).encode()
    if data.draw(st.booleans()):  # damaged on the way
        at = data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 9)) :]
    overrides = data.draw(st.lists(st.builds("{}={}".format, keys, anything.map(toml) | texts) | texts, max_size=2))
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        Path(file.name).write_bytes(content)
        accepted_or_refused(lambda: load_recipe(file.name, overrides))


keys = st.sampled_from(
    ["name", "data.source", "data.modes", "decompose.ranks.y", "train.lr", "seed", "data", "a.b", "."]
)


@pytest.mark.slow
@examples(4000)
@given(trees())
def test_many_trees(tree: dict[str, Any]) -> None:
    accepted_or_refused(lambda: parse_recipe(tree))


# --- data sets --------------------------------------------------------------------------------------------------

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-40, 3e38, -3e38, 1e30, 9.969209968386869e36, 1e300, 1e-310]
DTYPES = ["f4", "f8", ">f4", ">f8", "f2", "i1", "u1", "i2", ">i2", "u2", "i4", "i8", "u8", "?"]
FORMATS = ["npy", "npz", "npz packed", "nc", "zarr2", "zarr3"]


@st.composite
def fields(draw: st.DrawFn, n_modes: int) -> np.ndarray:
    """Samples ``(n, ...)``: noise of some size, with special values, bad samples and structure put in."""
    n = draw(st.sampled_from([2, 5, 9, 12, 12, 15]))
    sizes = [draw(st.sampled_from([1, 3, 4, 4, 5, 6])) for _ in range(n_modes)]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(n, *sizes)) * draw(
        st.sampled_from([1, 1, 1, 0, 1e-6, 1e-40, 1e-200, 1e5, 1e15, 1e30, 1e37, 1e120])
    )
    x += draw(st.sampled_from([0, 0, 1, 1e6, 1e30]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        where = tuple(draw(st.sampled_from([slice(None), slice(0, 1), slice(-1, None), 0])) for _ in x.shape)
        x[where] = draw(st.sampled_from(SPECIAL) | st.floats())
    dtype = draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.astype(dtype)


def save(directory: Path, data: xr.Dataset, kind: str, encoding: dict[str, Any]) -> Path:
    path = directory / f"u.{kind.split()[0]}"
    if kind == "npy":
        np.save(path, data["u"].values)
    elif kind.startswith("npz"):
        saved = np.savez_compressed if "packed" in kind else np.savez
        saved(path, **{str(name): array.values for name, array in data.variables.items()})
    elif kind == "nc":
        data.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    else:
        data.to_zarr(path, zarr_format=int(kind[-1]), consolidated=False, encoding=encoding)
    return path


@st.composite
def sections(draw: st.DrawFn, n_modes: int) -> dict[str, Any]:
    """What a recipe says about such data, sensible or not."""
    modes = ["a", "b", "c"][:n_modes]
    size = draw(st.sampled_from([{}, {}, {}, {"a": 2}, {"b": 3}, {"a": 2, "b": 2}]))
    size = {dim: n for dim, n in size.items() if dim in modes}
    data: dict[str, Any] = {
        "modes": draw(st.permutations(modes)),
        "sample_dim": draw(st.sampled_from(["n", "n", None] if size else ["n"])),
        "center": draw(st.sampled_from(["none", "variable", "point"])),
        "scale": draw(st.sampled_from(["none", "variable"])),
        "missing": draw(st.sampled_from(["fail", "mask"])),
        "max_failed": draw(st.sampled_from([0.01, 0.3, 1.0, 1.0])),
        "windows": {"size": size, "stride": {dim: draw(st.integers(1, 3)) for dim in size if draw(st.booleans())}},
        "split": {
            "test": draw(st.sampled_from([0.2, 0.4])),
            "by": draw(st.sampled_from(["sample"] * 6 + ["block", "coordinate"])),
        },
    }
    if data["split"]["by"] == "coordinate":
        data["split"]["coordinate"] = draw(st.sampled_from(["n", "a", "scalar"]))
    condition = draw(st.sampled_from(["none", "none", "initial", "scalar", "label"]))
    if condition == "initial":
        data["condition"] = {"initial": {"dim": "a", "index": draw(st.integers(-1, 2))}}
    elif condition != "none":
        data["condition"] = {"scalars": ["scalar"]} if condition == "scalar" else {"labels": "scalar"}
    tree: dict[str, Any] = {"data": data, "compute": {"shard_samples": draw(st.sampled_from([1, 2, 7]))}}
    how = draw(st.sampled_from(["ranks", "ranks", "ranks", "tolerance", "mgp"]))
    if how == "mgp":
        tree["primitive"] = {"kind": "mgp", "patch": {"a": draw(st.integers(1, 2))}, "rank": draw(st.integers(1, 2))}
    elif how == "tolerance":
        tree["decompose"] = {"tolerance": draw(st.sampled_from([1e-9, 0.01, 0.5]))}
    else:
        chosen = modes if draw(st.booleans()) else modes[:2]
        tree["decompose"] = {"ranks": dict.fromkeys(chosen, draw(st.sampled_from([1, 1, 2, 3])))}
        tree["decompose"]["method"] = draw(st.sampled_from(["sthosvd", "sthosvd", "hooi"]))
    tree["anchor"] = {"strategy": draw(st.sampled_from(["medoid", "random", "mean"]))}
    return tree


@st.composite
def problems(draw: st.DrawFn) -> tuple[xr.Dataset, str, dict[str, Any], dict[str, Any]]:
    n_modes = draw(st.sampled_from([2, 2, 3]))
    x = draw(fields(n_modes))
    kind = draw(st.sampled_from(FORMATS))
    if x.dtype.byteorder == ">" and kind.startswith("zarr"):
        x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype == "f2" and kind == "nc":
        x = x.astype("f4")
    dims = ("n", *"abc"[:n_modes])
    data = xr.Dataset({"u": (dims, x), "scalar": ("n", draw(scalars_of(len(x))))})
    if draw(st.booleans()):
        data = data.assign_coords(
            {dim: np.arange(data.sizes[dim]) * draw(st.sampled_from([1.0, 0.0, -1.0, np.nan])) for dim in dims}
        )
    tree = draw(sections(n_modes))
    if kind.startswith("np") and draw(st.booleans()):
        tree["data"]["modes"] = list(dims[1:])  # as array order has them
    if kind == "npy" and draw(st.booleans()):
        tree["data"].pop("condition", None)
    encoding: dict[str, Any] = {}
    if kind == "nc" and x.dtype.kind == "f" and draw(st.booleans()):
        encoding = {"u": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -1}}
    if kind.startswith("zarr") and draw(st.booleans()):
        encoding = {"u": {"chunks": tuple(draw(st.integers(1, size)) for size in x.shape)}}
    return data, kind, encoding, tree


def scalars_of(n: int) -> st.SearchStrategy[np.ndarray]:
    value = st.sampled_from([0.0, 1.0, 2.0, 1e-3, 1e300, -1.0])
    odd = st.sampled_from([[], [], [math.nan], [math.inf]])
    return st.builds(lambda many, few: np.array((few + many)[:n]), st.lists(value, min_size=n, max_size=n), odd)


STAGES = ("decompose", "select_anchor", "align", "fit_normalisation")


def right_or_refused(problem: tuple[xr.Dataset, str, dict[str, Any], dict[str, Any]]) -> str:
    """Run the stages up to the normalisation, and check what they made, or what they said."""
    data, kind, encoding, tree = problem
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # writing is the test's own
            source = save(directory, data, kind, encoding)
        section = {"source": str(source), "variables": ["u"], **tree["data"]}
        try:
            recipe = small_recipe(directory / "root", section, **{k: v for k, v in tree.items() if k != "data"})
            for stage in STAGES:
                stages.run(stage, recipe)
        except (InputError, TooManyFailedError) as error:
            if not re.search(FIXES, str(error)):
                raise AssertionError("an error without a fix") from error
            return f"refused: {re.sub(r'[^a-z ]', '', str(error).replace(folder, ''))[:60]}"
        work = stages.Workspace(recipe)
        check(work.store, recipe)
    return "made"


FIXES = (
    r"Use |Set |Raise|raise |Check|Change|Choose|Add |Remove|Mend|Name |Fill|Give |Lower|lower|Take |Rename|Correct|"
    r"Copy |Write |Run |or set|Convert|convert|Did you mean"
)


def check(store: Store, recipe: Recipe) -> None:
    """All that is stored of good samples is finite, and decodes to the raw samples with the errors that are stored."""
    groups = {name: store.latest(name) for name in ("tucker", "primitives", "scaling", "anchor", "normalisation")}
    data = {name: version.dataset().load() for name, version in groups.items() if version is not None}
    good = np.flatnonzero(data["tucker"]["status"].values == STATUS["ok"])
    assert good.size
    bad_inputs.check_finite(data, good)
    x = open_samples(recipe.data, recipe.seed).read(good)
    assert groups["primitives"] is not None
    layout = Layout.from_dict(groups["primitives"].attrs["layout"])
    for name, variable in data["normalisation"].variables.items():
        assert np.isfinite(variable.values).all(), name
        assert not str(name).startswith("scale_") or (variable.values > 0).all()
    wide = {s.name: data["primitives"][s.name].values[good].astype("f8") for s in layout.streams}
    scaling = FieldScaling.from_arrays({str(n): v.values for n, v in data["scaling"].items() if n != "training_mean"})
    xhat = scaling.undo(decode(wide, layout))
    known = ~np.isnan(x)
    assert (np.isnan(xhat) == ~known).all()
    axes = tuple(range(1, x.ndim))
    unit = np.abs(np.where(known, x, 0)).max(axis=axes, keepdims=True).astype("f8")
    a, b = (np.where(known, part, 0) / unit for part in (x.astype("f8"), xhat))
    lost, size = (np.sqrt((part**2).sum(axis=axes)) for part in (a - b, a))
    stored = data["tucker"]["relative_error"].values[good]
    # what was subtracted may be far larger than the sample, whose digits are then lost
    # the factors' departure from orthonormality, which shows in float64 only
    eps = (100 if x.dtype == np.float32 else 1000) * np.finfo(x.dtype).eps
    largest = np.abs(np.where(known, (np.abs(scaling.mean) + scaling.scale) / unit, 0)).max(axis=axes) + np.abs(b).max(
        axis=axes
    )
    tiny = 1e-43 / unit.reshape(-1) if x.dtype == np.float32 else 0
    assert (np.abs(stored - lost / size) <= 0.01 * stored + eps * largest + tiny).all(), (stored, lost / size)


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    with open_cluster(Compute(workers=1, device="cpu")):
        yield


@pytest.mark.usefixtures("workers")
@examples(30)
@given(problems())
def test_a_data_set_is_encoded_right_or_refused(problem: Any) -> None:
    event(right_or_refused(problem))


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
@examples(600)
@given(problems())
def test_many_data_sets(problem: Any) -> None:
    event(right_or_refused(problem))
