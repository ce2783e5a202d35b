from __future__ import annotations

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats import config
from diffats.errors import InputError
from diffats.models import (
    CONDITION_NUMBERS,
    CONDITION_TOKENS,
    Denoiser,
    FieldCondition,
    PlacedCondition,
    StreamTokens,
    core_places,
    patch_shape,
    resolve_device,
)
from diffats.primitives import ConditionLayout, Layout

SMALL = config.Model(width=16, depth=2, heads=2)
ALL_CONDITIONS = ConditionLayout(
    initial=(2, 9),
    initial_dims=("component", "x"),
    fields={"orography": (7, 5)},
    scalars=("nu", "T.2"),
    scalar_log=(True, False),
    n_labels=4,
    label_names=("a", "b", "c", "d"),
)
LAYOUTS = {
    "two aligned of two": Layout("tgp", ("y", "x"), {"y": 6, "x": 5}, {"y": 3, "x": 3}, ("y", "x")),
    "one kept": Layout("tgp", ("t", "y", "x"), {"t": 4, "y": 7, "x": 5}, {"t": 2, "x": 3}, ("t", "x")),
    "two kept": Layout("tgp", ("a", "b", "c", "d"), {"a": 3, "b": 6, "c": 5, "d": 6}, {"a": 2, "d": 2}, ("a", "d")),
    "short kept": Layout("tgp", ("a", "b", "c", "d"), {"a": 3, "b": 4, "c": 2, "d": 9}, {"a": 2, "d": 9}, ("a", "d")),
    "matrix": Layout("mgp", ("ch", "y", "x"), {"ch": 2, "y": 8, "x": 6}, {"pixel": 3}, ("pixel",), {"y": 2, "x": 3}),
}


def all_conditions(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "initial": torch.randn(batch, 2, 9, generator=generator),
        "field_orography": torch.randn(batch, 7, 5, generator=generator),
        "scalar_nu": torch.randn(batch, generator=generator),
        "scalar_T.2": torch.randn(batch, generator=generator),
        "label": torch.arange(batch) % 4,
    }


def trained(layout: Layout, conditions: ConditionLayout, model: config.Model = SMALL) -> Denoiser:
    """A denoiser whose zero-initialised parts are not zero any more."""
    torch.manual_seed(0)
    denoiser = Denoiser(layout, conditions, model)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("core_patch", [1, 2, 3, 100])
def test_tokens_are_numbers_and_back(name: str, core_patch: int) -> None:
    layout = LAYOUTS[name]
    z = torch.randn(2, layout.numbers)
    for stream, x in zip(layout.streams, layout.unflatten(z).values(), strict=True):
        tokens = StreamTokens.of(stream, core_patch)
        parts = tokens.split(x.reshape(2, -1))
        assert parts.shape == (2, tokens.count, tokens.features)
        torch.testing.assert_close(tokens.join(parts), x.reshape(2, -1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "core_patch", "core", "others"),
    [
        ("two aligned of two", 1, (3, 3), [(3, 6), (3, 5)]),
        ("one kept", 1, (7, 2 * 3), [(2, 4), (3, 5)]),
        ("one kept", 2, (4, 2 * 2 * 3), [(2, 4), (3, 5)]),
        ("two kept", 1, (6 * 5, 2 * 2), [(2, 3), (2, 6)]),
        ("two kept", 5, (6, 5 * 2 * 2), [(2, 3), (2, 6)]),
        ("short kept", 1, (2, 4 * 2 * 9), [(2, 3), (3, 3 * 9)]),  # nine columns in at most four tokens
        ("matrix", 1, (8, 2 * 3), [(2 * 3, 6)]),
        ("matrix", 4, (2, 4 * 2 * 3), [(2 * 3, 6)]),
    ],
)
def test_tokens_follow_the_layout(
    name: str, core_patch: int, core: tuple[int, int], others: list[tuple[int, int]]
) -> None:
    tokens = [StreamTokens.of(stream, core_patch) for stream in LAYOUTS[name].streams]
    assert [(t.count, t.features) for t in tokens] == [core, *others]


def test_a_factor_token_is_a_column_or_some_and_a_core_token_a_slice() -> None:
    layout = LAYOUTS["one kept"]
    streams = layout.unflatten(torch.arange(2 * layout.numbers).reshape(2, -1).float())
    tokens = {s.name: StreamTokens.of(s).split(streams[s.name].reshape(2, -1)) for s in layout.streams}
    torch.testing.assert_close(tokens["factor_t"][:, 1], streams["factor_t"][:, :, 1])
    torch.testing.assert_close(
        tokens["core"][:, 4], streams["core"][:, :, 4].reshape(2, -1)
    )  # core (rank_t, y, rank_x)
    wide = LAYOUTS["short kept"].streams[2]
    x = torch.randn(2, *wide.shape)
    torch.testing.assert_close(
        StreamTokens.of(wide, factor_tokens=9).split(x.reshape(2, -1))[:, 1], x[:, :, 1]
    )  # a column each where there may be as many tokens
    torch.testing.assert_close(
        StreamTokens.of(wide).split(x.reshape(2, -1))[:, 1], x[:, :, 3:6].transpose(1, 2).flatten(1)
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("conditions", [ConditionLayout(), ALL_CONDITIONS], ids=["unconditional", "conditional"])
def test_shapes_and_gradients(name: str, conditions: ConditionLayout) -> None:
    layout = LAYOUTS[name]
    denoiser = trained(layout, conditions)
    cond = all_conditions(3) if conditions.any else {}
    drop = torch.tensor([False, True, False]) if conditions.any else None
    out = denoiser(torch.randn(3, layout.numbers), torch.tensor([0, 500, 999]), cond, drop)
    assert out.shape == (3, layout.numbers)
    out.square().mean().backward()
    for parameter_name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_starts_as_zero() -> None:
    denoiser = Denoiser(LAYOUTS["one kept"], ALL_CONDITIONS, SMALL)
    out = denoiser(torch.randn(2, LAYOUTS["one kept"].numbers), torch.tensor([3.0, 700.5]), all_conditions(2))
    assert (out == 0).all()


def test_rows_do_not_see_each_other() -> None:
    layout = LAYOUTS["one kept"]
    denoiser = trained(layout, ALL_CONDITIONS)
    z, t, cond = torch.randn(4, layout.numbers), torch.arange(4) * 100, all_conditions(4)
    alone = denoiser(z[2:3], t[2:3], {name: x[2:3] for name, x in cond.items()})
    torch.testing.assert_close(denoiser(z, t, cond)[2:3], alone)


def test_each_condition_and_its_absence_matter() -> None:
    layout = LAYOUTS["one kept"]
    denoiser = trained(layout, ALL_CONDITIONS)
    z, t, cond = torch.randn(2, layout.numbers), torch.tensor([100, 900]), all_conditions(2)
    out = denoiser(z, t, cond)
    for name, x in cond.items():
        other = denoiser(z, t, {**cond, name: x + 1})
        left_out = denoiser(z, t, {key: value for key, value in cond.items() if key != name})
        assert not torch.allclose(out, other), name
        assert not torch.allclose(out, left_out), name


def test_dropped_conditions_are_as_if_not_given() -> None:
    layout = LAYOUTS["one kept"]
    denoiser = trained(layout, ALL_CONDITIONS)
    z, t, cond = torch.randn(2, layout.numbers), torch.tensor([100, 900]), all_conditions(2)
    dropped = denoiser(z, t, cond, torch.tensor([True, False]))
    torch.testing.assert_close(dropped[0], denoiser(z, t, {})[0])
    torch.testing.assert_close(dropped[1], denoiser(z, t, cond)[1])


@given(shape=st.lists(st.integers(1, 300), max_size=3))
@settings(max_examples=30, deadline=None)
def test_condition_tokens_are_few_and_cover_the_field(shape: list[int]) -> None:
    patch = patch_shape(tuple(shape))
    count = math.prod(math.ceil(n / p) for n, p in zip(shape, patch, strict=True))
    assert count <= CONDITION_TOKENS
    assert count == 1 or math.prod(patch) >= CONDITION_NUMBERS
    if math.prod(shape) < 10_000:
        assert FieldCondition(tuple(shape), 4)(torch.randn(2, *shape)).shape == (2, count, 4)


def test_condition_patches_hold_neighbours() -> None:
    field = FieldCondition((16, 64), 4)
    assert field.patch == (4, 16)
    field.embed = torch.nn.Identity()  # type: ignore[assignment]
    x = torch.arange(16 * 64.0).reshape(1, 16, 64)
    torch.testing.assert_close(field(x)[0, 5], x[0, 4:8, 16:32].reshape(-1))


def test_many_tokens_warn_with_the_fix(caplog: pytest.LogCaptureFixture) -> None:
    layout = Layout("tgp", ("a", "y", "x"), {"a": 2, "y": 2100, "x": 2}, {"a": 2, "x": 2}, ("a", "x"))
    with caplog.at_level(logging.WARNING):
        Denoiser(layout, ConditionLayout(), SMALL)
    assert "model.core_patch" in caplog.text


def test_unknown_device() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match=r'device "tpu" is not available here .* Set compute\.device'):
        resolve_device("tpu")


# --- conditions at the core's tokens -------------------------------------------------------------------------------

FLOW = Layout(
    "tgp", ("component", "t", "y", "x"), {"component": 2, "t": 4, "y": 7, "x": 5}, {"t": 2, "x": 3}, ("t", "x")
)


def changed_tokens(
    layout: Layout, core_patch: int, dims: tuple[str, ...], place: tuple[int, ...], finer: int = 1
) -> list[int]:
    """Tokens of the core that a change of a given field at one point reaches."""
    core = StreamTokens.of(layout.streams[0], core_patch)
    shape = [finer * layout.sizes[dim] for dim in dims]
    placed = PlacedCondition(core_places(layout, core), core, dims, shape, 4)
    x = torch.randn(1, *shape)
    other = x.clone()
    other[(0, *place)] += 1.0
    difference = (placed(x) - placed(other)).abs().sum(dim=2)[0]
    assert difference.shape == (core.count,)
    return torch.nonzero(difference > 1e-6).flatten().tolist()


def test_a_token_gets_the_part_of_a_given_field_at_its_place() -> None:
    assert changed_tokens(FLOW, 1, ("component", "y", "x"), (1, 3, 4)) == [3]  # of both components
    assert changed_tokens(FLOW, 2, ("component", "y", "x"), (1, 3, 4)) == [1]
    assert changed_tokens(FLOW, 2, ("x", "y"), (4, 6)) == [3]
    assert changed_tokens(LAYOUTS["two kept"], 2, ("c", "d"), (2, 5)) == [1, 4, 7, 10, 13, 16]  # at every b
    matrix = LAYOUTS["matrix"]  # patches of 2 x 3: 4 along y, 2 along x, of 2 channels
    assert changed_tokens(matrix, 1, ("y", "x"), (5, 1)) == [4]
    assert changed_tokens(matrix, 1, ("x",), (1,)) == [0, 2, 4, 6]  # at every y
    assert changed_tokens(matrix, 2, ("ch", "y"), (1, 5)) == [2]
    assert changed_tokens(FLOW, 1, ("y", "x"), (13, 0), finer=2) == [6]


def test_a_field_is_at_its_place_or_in_tokens() -> None:
    placed = Denoiser(FLOW, ConditionLayout(initial=(2, 7, 5), initial_dims=("component", "y", "x")), SMALL)
    assert placed.placed_names == ("initial",)
    assert placed.condition.count == 0
    for conditions in (
        ConditionLayout(initial=(2, 4), initial_dims=("component", "t")),  # the core keeps y
        ConditionLayout(fields={"orography": (7, 5)}),  # dims that are not known
        ConditionLayout(fields={"orography": (3, 5)}, field_dims={"orography": ("y", "x")}),  # on another grid
    ):
        assert Denoiser(FLOW, conditions, SMALL).placed_names == ()
        assert Denoiser(FLOW, conditions, SMALL).condition.count > 0
    assert Denoiser(LAYOUTS["two aligned of two"], ConditionLayout((6,), ("y",)), SMALL).placed_names == ()
    given = ConditionLayout(fields={"orography": (7, 5)}, field_dims={"orography": ("y", "x")})
    assert Denoiser(FLOW, given, SMALL).placed_names == ("field_orography",)


def test_a_dropped_condition_is_seen_nowhere() -> None:
    conditions = ConditionLayout(initial=(2, 7, 5), initial_dims=("component", "y", "x"))
    denoiser = trained(FLOW, conditions)
    z, t, initial = torch.randn(2, FLOW.numbers), torch.tensor([3, 500]), torch.randn(2, 2, 7, 5)
    drop = torch.tensor([True, False])
    out = denoiser(z, t, {"initial": initial}, drop)
    torch.testing.assert_close(out[0], denoiser(z, t, {})[0])
    torch.testing.assert_close(out[1], denoiser(z, t, {"initial": initial})[1])
    assert not torch.allclose(out[1], denoiser(z, t, {"initial": initial + 1})[1])
