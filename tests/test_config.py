"""Recipes: what is accepted, and what the messages say about what is not."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffats.config import (
    METRICS,
    SAMPLERS,
    Recipe,
    known_keys,
    load_recipe,
    parse_bytes,
    parse_recipe,
    portable,
    portable_place,
)
from diffats.errors import InputError, RecipeError

ROOT = Path(__file__).parents[1]


def tree(**sections: Any) -> dict[str, Any]:
    """A recipe that is as small as can be, with some sections replaced."""
    smallest = {
        "name": "a",
        "data": {"source": "a.nc", "modes": ["y", "x"], "sample_dim": "t"},
        "decompose": {"ranks": {"y": 2, "x": 2}},
    }
    return smallest | sections


def data(**keys: Any) -> dict[str, Any]:
    return tree(data=tree()["data"] | keys)


def complaint(recipe: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(recipe, where="a.toml")
    assert str(caught.value).startswith("a.toml: ")
    assert isinstance(caught.value, InputError)
    return str(caught.value).removeprefix("a.toml: ")


# --- what is accepted -------------------------------------------------------------------------------------------


def test_the_smallest_recipe_has_every_default() -> None:
    recipe = parse_recipe(tree())
    assert (recipe.location, recipe.tensor_modes, recipe.aligned_modes) == ("runs/a", ("y", "x"), ("y", "x"))
    assert recipe.train.steps == 2000
    assert not recipe.data.condition.any


def test_several_variables_are_a_mode() -> None:
    recipe = parse_recipe(data(variables=["u", "v"]))
    assert recipe.tensor_modes == ("component", "y", "x")


def test_a_recipe_can_be_written_out_and_read_again() -> None:
    recipe = parse_recipe(tree(align={"modes": ["y", "x"]}))
    assert parse_recipe(json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize("path", sorted((ROOT / "deployments" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_come_along(path: Path) -> None:
    assert load_recipe(path).name


def test_every_key_is_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == {key for key in known_keys() if "." not in key}
    assert "data.condition.initial.dim" in known_keys()
    assert schema["additionalProperties"] is False


# --- overrides --------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.toml"
    path.write_text(
        'name = "a"\n[data]\nsource = "a.nc"\nmodes = ["y", "x"]\nsample_dim = "t"\n[decompose]\ntolerance = 0.1\n'
    )
    return path


def test_overrides_are_toml_or_plain_text(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.steps=3", "data.source=b c.nc", 'data.modes=["x", "y"]', "seed = 4"])
    assert (recipe.train.steps, recipe.data.source, recipe.data.modes, recipe.seed) == (3, "b c.nc", ["x", "y"], 4)


def test_an_empty_override_clears(recipe_file: Path) -> None:
    overrides = ["data.sample_dim=", "data.windows.size={x=4}", "decompose.ranks={}"]
    assert load_recipe(recipe_file, overrides).data.sample_dim is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps", 'override "train.steps" is not of the form section.key=value.'),
        ("=3", 'override "=3" is not of the form section.key=value.'),
        ("name.x=3", 'override "name.x=3": "name" is a value, not a section.'),
    ],
)
def test_overrides_that_are_none(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, [override])
    assert str(caught.value) == message


# --- messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "near"),
    [
        (tree(train={"stepps": 1}), ("train.stepps", "train.steps")),
        (tree(trian={"steps": 1}), ("trian", "train")),
        (tree(tracking={"url": ""}), ("tracking.url", "tracking.uri")),
        (data(windows={"sizes": {}}), ("data.windows.sizes", "data.windows.size")),
        (
            data(condition={"initial": {"dim": "y", "idx": 0}}),
            ("data.condition.initial.idx", "data.condition.initial.index"),
        ),
        (tree(Name="b"), ("Name", "name")),
        (tree(ranks={"y": 2}), ("ranks", "decompose.ranks")),
        (tree(steps=3), ("steps", "train.steps")),
        (tree(train={"tolerance": 0.1}), ("train.tolerance", "decompose.tolerance")),
    ],
)
def test_an_unknown_key_names_the_nearest(recipe: dict[str, Any], near: tuple[str, str]) -> None:
    assert complaint(recipe) == f'unknown key "{near[0]}". The nearest known key is "{near[1]}".'


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tree(train={"steps": "many"}), '"train.steps": expected a whole number, got "many" (default 2000).'),
        (tree(train={"steps": 2.5}), '"train.steps": expected a whole number, got 2.5 (default 2000).'),
        (
            tree(train={"lr": -1}),
            '"train.lr": expected a number greater than 0, got -1 (default 0.01).',
        ),
        (tree(train=3), '"train" is a section, got 3. Put keys below [train], or set one with train.KEY = VALUE.'),
        (
            data(modes="y"),
            '"data.modes": expected a list in brackets, texts in quotes, got "y" '
            "(the sample's dims, in tensor order).",
        ),
        (data(modes=[]), '"data.modes": expected at least one entry, got [] (the sample\'s dims, in tensor order).'),
        (
            data(center="points"),
            '"data.center": expected "none", "variable" or "point", got "points" (subtract the training mean of; '
            '{ by = [...] }: along modes, or a climatology; default "variable").',
        ),
        (
            tree(decompose={"ranks": [2, 2]}),
            '"decompose.ranks": expected a table of keys, { mode = value }, got [2, 2] (rank by mode; a mode left out '
            "is not decomposed).",
        ),
        (tree(decompose={"ranks": {"y": "a"}}), '"decompose.ranks.y": expected a whole number, got "a".'),
        (
            data(condition={"initial": "y"}),
            '"data.condition.initial" is a section, got "y". Put keys below [data.condition.initial], or set one with '
            "data.condition.initial.KEY = VALUE.",
        ),
        (
            tree(compute={"processes": "maybe"}),
            '"compute.processes": expected true or false, got "maybe" (local workers as processes instead of threads; '
            "default false).",
        ),
        (
            tree(data={"source": "a.nc", "sample_dim": "t"}),
            '"data.modes" is required (the sample\'s dims, in tensor order). Add it to the recipe.',
        ),
    ],
)
def test_wrong_and_missing_values_are_told_in_words(recipe: dict[str, Any], message: str) -> None:
    assert complaint(recipe) == message


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tree(name="a b"), 'name: "a b" may hold letters, digits, ".", "_" and "-" only'),
        (tree(decompose={}), "decompose has neither ranks nor a tolerance. Set decompose.ranks, such as { y = 4 }, or"),
        (
            tree(decompose={"ranks": {"y": 2, "x": 2}, "tolerance": 0.1}),
            "decompose has both ranks and a tolerance. Remove one of them; on the command line, --set "
            "'decompose.ranks={}' clears the ranks.",
        ),
        (tree(align={"modes": ["y"]}), "aligns at least two modes, got 1 (y). Add ranks or align.modes, or"),
        (tree(align={"modes": ["y", "z"]}), 'align.modes names "z", which is no mode (y, x).'),
        (tree(align={"modes": ["y", "y"]}), "align.modes names a mode twice."),
        (tree(decompose={"ranks": {"y": 2}}), "aligns at least two modes, got 1 (y)."),
        (tree(primitive={"patch": {"y": 2}}), 'primitive.patch is for kind = "mgp". Remove it, or set primitive.kind'),
        (tree(primitive={"kind": "mgp"}), 'primitive.kind "mgp" needs primitive.patch and primitive.rank.'),
        (tree(primitive={"kind": "mgp", "rank": 2, "patch": {"y": 2}}), 'decompose and align are for kind = "tgp"'),
        (
            tree(evaluate={"metric": "best"}),
            'expected "auto", "energy_distance", "energy_distance_within", "sliced_wasserstein", "spectrum_error"',
        ),
        (tree(evaluate={"metric": "crps"}), 'evaluate.metric "crps" compares with the truth of a condition, and there'),
        (data(condition={"labels": "k"}) | {"evaluate": {"metric": "crps"}}, "Set data.condition.initial, fields or"),
        (tree(generate={"steps": 2000}), "generate.steps 2000 exceeds diffusion.noise_steps 1000. Use at most 1000."),
        (tree(anchor={"strategy": "index"}), 'anchor.strategy "index" needs anchor.index, the number of the sample.'),
        (tree(model={"width": 10, "heads": 3}), "width 10 is not a multiple of heads 3. Use width 9, or other heads."),
        (tree(compute={"memory": "lots"}), 'compute.memory: "lots" is not a size. Write it like "4GiB".'),
        (tree(compute={"scheduler": "here"}), '"here" is neither "local" nor an address such as "tcp://host:8786".'),
        (data(sample_dim="y"), 'data.sample_dim "y" is also a mode. A dim is either samples or a mode.'),
        (data(split={"by": "coordinate"}), "Set data.split.coordinate."),
        (data(split={"by": "block"}), 'by = "block" holds out blocks of windowed dims. Set data.windows.size'),
        (data(windows={"stride": {"y": 2}}), 'stride names dim "y" but size does not. Add its size or remove'),
        (data(storage_options={"secret": "x"}), '"secret" looks like a credential. Remove it and set it in the'),
    ],
)
def test_contradictions_are_told_with_the_fix(recipe: dict[str, Any], message: str) -> None:
    assert message in complaint(recipe)


def test_all_mistakes_are_told_at_once() -> None:
    message = complaint(tree(train={"stepps": 1}, model={"width": "wide"}))
    assert len(message.splitlines()) == 2
    assert "train.stepps" in message
    assert "model.width" in message


# --- sizes, portability -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2 KB", 2000), ("1.5KiB", 1536), ("4gib", 2**32)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "4 GB/s", "-1", "0", "1e5", "9" * 400])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


PLACES = {
    "u.nc": "u.nc",
    "data/series*.nc": "data/series*.nc",
    "./data/u.zarr": "./data/u.zarr",
    "data/../u.nc": "data/../u.nc",
    "builtin:indian-pines": "builtin:indian-pines",
    "/home/ann/u.nc": "u.nc",
    "/home/ann/u*.nc": "u*.nc",
    "~/u.nc": "u.nc",
    "~ann/u.nc": "u.nc",
    "../../home/ann/u.nc": "u.nc",
    "data/../../ann/u.nc": "u.nc",
    "file:///home/ann/u.nc": "u.nc",
    "file://~/ann/u.zarr/": "u.zarr",
    "local:///home/ann/u.nc": "u.nc",
    "s3://bucket/a/u.zarr": "s3://bucket/a/u.zarr",
    "https://host:8080/u.zarr": "https://host:8080/u.zarr",
    "https://host/u.zarr?sig=secret#part": "https://host/u.zarr",
    "zip://u.nc::/home/ann/all.zip": "zip://u.nc::all.zip",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_stored_place_names_neither_machine_nor_user(place: str) -> None:
    recipe = parse_recipe(data(source=place, storage_options={"endpoint_url": place, "anon": True}))
    stored = portable(recipe)["data"]
    assert stored["source"] == PLACES[place]
    assert stored["storage_options"] == {"endpoint_url": PLACES[place], "anon": True}
    assert recipe.data.source == place  # what is opened stays


@pytest.mark.parametrize(
    "place", ["https://ann:secret@host/u", "simplecache::https://a:secret@host/u", "s3://a:secret?@b"]
)
@pytest.mark.parametrize("key", ["source", "endpoint_url", "uri"])
def test_a_login_in_a_url_is_refused_and_not_repeated(place: str, key: str) -> None:
    given = {"source": place} if key == "source" else {"storage_options": {key: place}}
    recipe = data(**given) if key != "uri" else tree(tracking={"uri": place})
    with pytest.raises(RecipeError, match="holds a user or password") as caught:
        parse_recipe(recipe)
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert "secret" not in portable_place(place)


def test_the_names_that_recipes_accept_are_those_there_are() -> None:
    from diffats import diffusion, evaluation, metrics

    assert set(SAMPLERS) == set(diffusion.SAMPLERS)
    assert all(callable(getattr(metrics, name)) for name in METRICS)
    rng = np.random.default_rng(0)
    sets = {name: rng.normal(size=(4, 9, 3)) for name in ("train", "test", "generated")}
    forecast = {"ensemble": rng.normal(size=(2, 3, 9, 3)), "truth": rng.normal(size=(2, 9, 3))}
    strata = dict.fromkeys(sets, np.zeros(4, dtype=int))
    options: dict[str, Any] = {"mean": np.zeros(()), "scale": np.ones(()), "strata": strata, **sets, **forecast}
    fields = evaluation.Fields(modes=("y", "x"), **options)
    rows = evaluation.evaluate(fields)
    assert {rows[name]["better"] for name in METRICS} == {"lower"}


def test_what_is_stored_names_no_place_on_this_machine(tmp_path: Path) -> None:
    recipe = parse_recipe(
        data(source=str(tmp_path / "a.nc")) | {"root": str(tmp_path), "tracking": {"uri": "postgresql://me@h"}}
    )
    stored = json.dumps(portable(recipe))
    assert str(tmp_path) not in stored
    assert "me@h" not in stored
    assert '"source": "a.nc"' in stored


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"shift": ["z"]}}, 'train.shift names "z"; it can be some of'),
        ({"train": {"shift": ["x"]}, "data": {"windows": {"size": {"x": 4}}}}, "cut into windows"),
        ({"train": {"shift": ["y"]}, "data": {"condition": {"initial": {"dim": "y"}}}}, "data.condition.initial"),
        ({"train": {"shift": ["x"]}, "data": {"center": "point"}}, 'data.center = "point" belongs to fixed points'),
        ({"train": {"shift": ["x"]}, "data": {"scale": {"by": "x"}}}, "data.scale.by belongs to fixed points"),
        ({"train": {"shift": ["x"]}, "data": {"missing": "mask"}}, 'data.missing = "mask" belongs to fixed points'),
        (
            {"train": {"shift": ["y"]}, "primitive": {"kind": "mgp", "patch": {"x": 2}, "rank": 2}, "decompose": {}},
            'train.shift names "y"; it can be some of x',
        ),
    ],
)
def test_a_shift_along_what_does_not_wrap_is_refused(changes: dict[str, Any], words: str) -> None:
    base: dict[str, Any] = {
        "name": "a",
        "data": {"source": "x.zarr", "modes": ["y", "x"], "sample_dim": "n"},
        "decompose": {"ranks": {"y": 2, "x": 2}},
    }
    changed = base | changes | {"data": base["data"] | changes.get("data", {})}
    with pytest.raises(RecipeError, match=re.escape(words)):
        parse_recipe(changed)
    assert parse_recipe(base | {"train": {"shift": ["y", "x"]}}).train.shift == ["y", "x"]


def test_guidance_of_a_model_that_never_drops_its_conditions_is_refused() -> None:
    base: dict[str, Any] = {
        "name": "a",
        "data": {"source": "x.zarr", "modes": ["y", "x"], "sample_dim": "n"},
        "decompose": {"ranks": {"y": 2, "x": 2}},
        "generate": {"guidance": 2.0},
    }
    assert parse_recipe(base | {"data": base["data"] | {"condition": {"dropout": 0}}})  # nothing is given
    given = base["data"] | {"condition": {"scalars": ["nu"], "dropout": 0}}
    with pytest.raises(RecipeError, match=r"generate\.guidance 2 needs .* Set data\.condition\.dropout above 0"):
        parse_recipe(base | {"data": given})
    assert parse_recipe(base | {"data": given, "generate": {"guidance": 1.0}})


@pytest.mark.parametrize(
    ("condition", "chosen", "deciding"),
    [
        ({}, "auto", "energy_distance"),
        ({"labels": "k"}, "auto", "energy_distance_within"),
        ({"scalars": ["nu"]}, "auto", "energy_distance_within"),
        ({"labels": "k"}, "energy_distance", "energy_distance"),
        ({"initial": {"dim": "y", "index": 0}}, "auto", "crps"),
        ({"fields": ["forcing"]}, "auto", "crps"),
        ({"initial": {"dim": "y", "index": 0}}, "energy_distance", "energy_distance"),
        ({}, "spectrum_error", "spectrum_error"),
    ],
)
def test_the_metric_that_decides_follows_from_what_is_given(condition, chosen, deciding) -> None:
    recipe = parse_recipe(data(condition=condition) | {"evaluate": {"metric": chosen}})
    assert recipe.deciding_metric == deciding
