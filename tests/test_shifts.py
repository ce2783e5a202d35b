"""Shifts along periodic modes: the shifted primitive is the primitive of the shifted field."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffats.errors import InputError
from diffats.loader import PrimitiveSet
from diffats.primitives import ConditionLayout, Layout, Shifts, encode
from tests.tiny_primitives import LAYOUT, normalisation_of, tiny_dataset

Array = np.ndarray[Any, Any]
TENSOR = Layout(
    "tgp", ("component", "t", "y", "x"), {"component": 2, "t": 6, "y": 8, "x": 9}, {"t": 3, "x": 4}, ("t", "x")
)
MATRIX = Layout(
    "mgp", ("channel", "t", "x"), {"channel": 2, "t": 8, "x": 12}, {"pixel": 4}, ("pixel",), {"t": 4, "x": 3}
)


def shifted(x: Array, layout: Layout, modes: tuple[str, ...], by: Array) -> Array:
    axes = [layout.modes.index(mode) for mode in modes]
    return np.stack([np.roll(sample, shift, axis=axes) for sample, shift in zip(x, by, strict=True)])


@pytest.mark.parametrize(("layout", "modes"), [(TENSOR, ("y", "x")), (TENSOR, ("t",)), (MATRIX, ("x", "t"))])
def test_shift_of_the_encoding_is_the_encoding_of_the_shift(layout: Layout, modes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, *layout.sizes.values()))
    anchors = {str(s.mode): np.linalg.qr(rng.standard_normal(s.shape))[0] for s in layout.streams[1:]}
    shifts = Shifts(layout, modes, anchors)
    by = shifts.draw(len(x), rng)
    assert len(np.unique(by, axis=0)) > 1
    got = shifts.apply(encode(x, anchors, layout)[0], by)
    wanted = encode(shifted(x, layout, modes, by), anchors, layout)[0]
    for name, values in wanted.items():
        np.testing.assert_allclose(got[name], values, atol=1e-9, err_msg=name)


def test_without_anchors_a_factor_is_turned_only() -> None:
    rng = np.random.default_rng(0)
    streams = {s.name: rng.standard_normal((3, *s.shape)) for s in TENSOR.streams}
    shifts = Shifts(TENSOR, ("x",))
    moved = shifts.apply(streams, np.array([[1], [0], [8]]))
    np.testing.assert_array_equal(moved["factor_x"][0], np.roll(streams["factor_x"][0], 1, axis=0))
    np.testing.assert_array_equal(moved["factor_x"][2], np.roll(streams["factor_x"][2], -1, axis=0))
    np.testing.assert_array_equal(moved["core"], streams["core"])


def test_conditions_move_with_the_field() -> None:
    shifts = Shifts(TENSOR, ("y", "x"), None, {"initial": ("component", "y", "x")})
    initial = np.random.default_rng(0).standard_normal((2, 2, 8, 9))
    moved = shifts.apply_to_conditions({"initial": initial, "scalar_nu": np.ones(2)}, np.array([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(moved["initial"][1], np.roll(initial[1], (3, 4), axis=(1, 2)))
    np.testing.assert_array_equal(moved["scalar_nu"], np.ones(2))


def test_shifts_are_uniform_and_by_whole_patches() -> None:
    by = Shifts(MATRIX, ("t", "x")).draw(2000, np.random.default_rng(0))
    assert set(by[:, 0]) == {0, 4}
    assert set(by[:, 1]) == {0, 3, 6, 9}
    assert np.bincount(by[:, 1])[[0, 3, 6, 9]].min() > 420


@pytest.mark.parametrize(
    ("layout", "mode"), [(TENSOR, "z"), (TENSOR, "component"), (MATRIX, "channel"), (MATRIX, "patch")]
)
def test_other_modes_are_refused(layout: Layout, mode: str) -> None:
    with pytest.raises(InputError, match=f'train.shift names "{mode}"'):
        Shifts(layout, (mode,))


def test_a_training_step_is_shifted_the_same_way_each_time() -> None:
    ds = tiny_dataset(24)
    mode = LAYOUT.aligned[0]
    anchors = {str(s.mode): np.eye(*s.shape) for s in LAYOUT.streams[1:]}
    plain = PrimitiveSet(ds, LAYOUT, normalisation_of(ds), ConditionLayout())
    data = PrimitiveSet(ds, LAYOUT, normalisation_of(ds), ConditionLayout(), shifts=Shifts(LAYOUT, (mode,), anchors))
    z, _ = data.read_step(0, 3, 8)
    np.testing.assert_array_equal(z, data.read_step(0, 3, 8)[0])
    np.testing.assert_array_equal(z[2:4], data.read_step(0, 3, 8, slice(2, 4))[0])  # a process's part
    assert not np.array_equal(z, plain.read_step(0, 3, 8)[0])
    np.testing.assert_array_equal(plain.read_step(0, 3, 8)[0], plain.read(plain.batch(0, 3, 8))[0])
