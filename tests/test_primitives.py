"""Layouts, encoding and decoding, normalisation and conditions."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats import primitives as p
from diffats.config import parse_recipe
from diffats.errors import InputError, RankError
from diffats.spectrum import mode_dot

few = settings(max_examples=20, deadline=None)
SIZES = {"time": 6, "y": 5, "x": 8, "band": 4}


def recipe(modes=("time", "y", "x"), variables=(), **sections):
    data = {"source": "a.zarr", "modes": list(modes), "sample_dim": "n", "variables": list(variables)}
    return parse_recipe({"name": "a", "data": data, **sections})


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.normal(size=shape))[0]


def anchors_of(layout, rng):
    return {mode: orthonormal(rng, *shape) for mode, shape in layout.anchor_shapes.items()}


@st.composite
def tgp_layouts(draw):
    """2 to 4 modes, at least two of them aligned, the others merged with a rank or without."""
    modes = tuple(list(SIZES)[: draw(st.integers(2, 4))])
    aligned = draw(st.sets(st.sampled_from(modes), min_size=2))
    merged = {mode for mode in modes if mode not in aligned and draw(st.booleans())}
    ranks = {mode: draw(st.integers(2, 3)) for mode in modes if mode in aligned | merged}
    if len(modes) == 2:
        ranks = dict.fromkeys(ranks, 2)
    sizes = {mode: SIZES[mode] for mode in modes}
    return p.Layout("tgp", modes, sizes, ranks, tuple(mode for mode in modes if mode in aligned))


@st.composite
def mgp_layouts(draw):
    """Patches over one or two modes; the others are labelled, wherever they stand."""
    modes = tuple(draw(st.permutations(["channel", "y", "x"])))
    lengths = {"y": 2, "x": 4}
    patched = draw(st.sampled_from([("y", "x"), ("x",)]))
    patch = {mode: lengths[mode] for mode in modes if mode in patched}
    sizes = {"channel": 3, "y": 4, "x": 8}
    return p.Layout("mgp", modes, {m: sizes[m] for m in modes}, {"pixel": 2}, ("pixel",), patch)


layouts = st.one_of(tgp_layouts(), mgp_layouts())


def batch(layout, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, *(layout.sizes[mode] for mode in layout.modes))).astype(dtype)


@few
@given(layouts, st.integers(0, 999), st.sampled_from(["sthosvd", "hooi"]))
def test_decoding_gives_the_projection_that_the_decomposition_is(layout, seed, method):
    x = batch(layout, seed)
    rng = np.random.default_rng(seed)
    tucker, t = p.decompose(x, layout, method)
    streams, overlaps = p.encode(x, anchors_of(layout, rng), layout, method)
    np.testing.assert_allclose(p.decode(streams, layout), layout.restore(t.to_tensor()), atol=1e-10)
    for made, expected in ((streams, layout.streams), (tucker, layout.tucker_streams)):
        assert {name: part.shape[1:] for name, part in made.items()} == {s.name: s.shape for s in expected}
    for mode, overlap in overlaps.items():
        assert overlap.shape == (3, *layout.anchor_shapes[mode][:-2], layout.ranks[mode])
        assert ((overlap >= 0) & (overlap <= 1)).all()


@few
@given(layouts, st.integers(0, 999))
def test_encoding_does_not_depend_on_the_gauge_of_the_decomposition(layout, seed):
    rng = np.random.default_rng(seed)
    anchors = anchors_of(layout, rng)
    _, t = p.decompose(batch(layout, seed), layout)
    turned = t.rotate([None if U is None else orthonormal(rng, *U.shape[:-2], *U.shape[-1:] * 2) for U in t.factors])
    encoded = [p.align(_named(layout, tensor), anchors, layout) for tensor in (t, turned)]
    if min(overlap.min() for overlap in encoded[0][1].values()) > 1e-3:
        for name in encoded[0][0]:
            np.testing.assert_allclose(encoded[0][0][name], encoded[1][0][name], atol=1e-8)


def _named(layout, t):
    factors = zip(layout.working_modes, t.factors, strict=True)
    return {"core": t.core, **{f"factor_{mode}": U for mode, U in factors if U is not None}}


@few
@given(layouts, st.sampled_from([np.float32, np.float64]))
def test_torch_gives_the_same_as_numpy(layout, dtype):
    x = batch(layout, dtype=dtype)
    anchors = {name: A.astype(dtype) for name, A in anchors_of(layout, np.random.default_rng(1)).items()}
    streams, _ = p.encode(x, anchors, layout)
    theirs, _ = p.encode(torch.from_numpy(x), {m: torch.from_numpy(A) for m, A in anchors.items()}, layout)
    close = {"atol": 1e-3 if dtype == np.float32 else 1e-8}
    for name, part in streams.items():
        assert part.dtype == dtype
        assert isinstance(theirs[name], torch.Tensor)
    np.testing.assert_allclose(p.decode(theirs, layout).numpy(), p.decode(streams, layout), **close)
    z = layout.flatten(theirs)
    assert isinstance(z, torch.Tensor)
    for name, part in layout.unflatten(z).items():
        assert torch.equal(part, theirs[name])


@few
@given(layouts)
def test_flattening_keeps_every_number(layout):
    z = np.random.default_rng(0).normal(size=(4, layout.numbers))
    np.testing.assert_array_equal(layout.flatten(layout.unflatten(z)), z)
    assert layout.compression == layout.raw_numbers / layout.numbers
    x = batch(layout)
    np.testing.assert_array_equal(layout.restore(layout.arrange(x)), x)


@few
@given(layouts, st.integers(0, 99))
def test_factors_of_samples_are_orthonormal_and_those_of_noise_are_not(layout, seed):
    noise = layout.unflatten(np.random.default_rng(seed).normal(size=(3, layout.numbers)))
    streams, _ = p.encode(batch(layout), anchors_of(layout, np.random.default_rng(seed)), layout)
    found = p.orthonormality_defect(streams, layout)
    for name, defect in found.items():
        assert defect.max() < 1e-6
        assert p.orthonormality_defect(noise, layout)[name].shape == (3,)
        assert p.orthonormality_defect(noise, layout)[name].min() > 1e-3


@few
@given(layouts)
def test_layouts_survive_json_and_pickle(layout):
    again = p.Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert pickle.loads(pickle.dumps(layout)) == layout  # noqa: S301 - our own bytes


@few
@given(layouts)
def test_no_samples_are_no_problem(layout):
    tucker = {stream.name: np.zeros((0, *stream.shape)) for stream in layout.tucker_streams}
    streams, overlaps = p.align(tucker, anchors_of(layout, np.random.default_rng(0)), layout)
    assert p.decode(streams, layout).shape == (0, *(layout.sizes[mode] for mode in layout.modes))
    assert layout.flatten(streams).shape == (0, layout.numbers)
    assert all(len(overlap) == 0 for overlap in overlaps.values())


def test_merging_a_mode_without_a_rank_costs_nothing():
    x = batch(p.Layout("tgp", ("time", "y", "x"), {"time": 6, "y": 5, "x": 8}, {"time": 6, "x": 8}, ("time", "x")))
    whole = p.Layout("tgp", ("time", "y", "x"), {"time": 6, "y": 5, "x": 8}, {"time": 6, "x": 8}, ("time", "x"))
    ranked = p.Layout("tgp", whole.modes, whole.sizes, {"time": 6, "y": 3, "x": 8}, ("time", "x"))
    anchors = anchors_of(whole, np.random.default_rng(0))
    exact, _ = p.encode(x, anchors, whole)
    np.testing.assert_allclose(p.decode(exact, whole), x, atol=1e-10)
    truncated, _ = p.encode(x, anchors, ranked)
    assert truncated["core"].shape == exact["core"].shape == (3, 6, 5, 8)
    U = p.decompose(x, ranked)[0]["factor_y"]
    projected = mode_dot(x, U @ np.swapaxes(U, -1, -2), 1, 3)
    np.testing.assert_allclose(p.decode(truncated, ranked), projected, atol=1e-10)


def test_matrix_primitive_is_the_patch_svd_of_every_channel():
    layout = p.Layout(
        "mgp", ("channel", "y", "x"), {"channel": 3, "y": 8, "x": 8}, {"pixel": 3}, ("pixel",), {"y": 4, "x": 4}
    )
    assert layout.streams[0].dims == ("channel", "patch", "rank_pixel")
    assert layout.streams[1].dims == ("channel", "pixel", "rank_pixel")
    assert layout.numbers == 3 * (4 + 16) * 3
    x = batch(layout)
    streams, _ = p.encode(x, anchors_of(layout, np.random.default_rng(0)), layout)
    matrices = layout.arrange(x)
    U, S, Vt = np.linalg.svd(matrices, full_matrices=False)
    best = (U[..., :3] * S[..., None, :3]) @ Vt[..., :3, :]
    np.testing.assert_allclose(layout.arrange(p.decode(streams, layout)), best, atol=1e-10)


def test_paper_numbers():
    celeba = p.Layout(
        "mgp",
        ("channel", "y", "x"),
        {"channel": 3, "y": 1024, "x": 1024},
        {"pixel": 32},
        ("pixel",),
        {"y": 32, "x": 32},
    )
    burgers = p.Layout("mgp", ("time", "x"), {"time": 200, "x": 1024}, {"pixel": 32}, ("pixel",), {"time": 20, "x": 32})
    sizes = {"time": 200, "y": 128, "x": 128}
    vortex = p.Layout("tgp", tuple(sizes), sizes, {"time": 10, "y": 30}, ("time", "y"))
    assert celeba.numbers == 196_608
    assert burgers.numbers == 30_720
    assert vortex.numbers == 44_240
    assert round(vortex.compression) == 74


def test_layout_from_a_recipe():
    sizes = {"time": 20, "y": 16, "x": 16}
    layout = p.Layout.from_recipe(recipe(decompose={"ranks": {"x": 4, "time": 3}}), sizes)
    assert layout.aligned == ("time", "x")
    assert layout.streams[0].dims == ("rank_time", "y", "rank_x")
    wind = p.Layout.from_recipe(
        recipe(variables=("u", "v"), decompose={"ranks": {"x": 4, "y": 4, "time": 3}}, align={"modes": ["x", "y"]}),
        {"component": 2, **sizes},
    )
    assert wind.streams[0].dims == ("component", "time", "rank_y", "rank_x")
    assert [stream.name for stream in wind.tucker_streams] == ["core", "factor_time", "factor_y", "factor_x"]
    image = p.Layout.from_recipe(recipe(primitive={"kind": "mgp", "patch": {"x": 4, "y": 8}, "rank": 5}), sizes)
    assert image.labelled == ("time",)
    assert image.working_sizes == {"patch": 8, "pixel": 32}


def test_ranks_are_found_where_the_recipe_has_a_tolerance():
    asked = recipe(decompose={"tolerance": 0.05}, align={"modes": ["time", "x"]})
    sizes = {"time": 6, "y": 5, "x": 8}
    x = np.cumsum(np.cumsum(np.random.default_rng(0).normal(size=(9, 6, 5, 8)), axis=1), axis=3)
    ranks = p.find_ranks(x, x, asked)
    assert set(ranks) == {"time", "x"}
    layout = p.Layout.from_recipe(asked, sizes, ranks)
    assert np.sqrt(np.mean(p.decompose(x, layout)[1].error() ** 2)) <= 0.05
    with pytest.raises(InputError, match="ranks are found from samples"):
        p.Layout.from_recipe(asked, sizes)
    with pytest.raises(InputError, match="recipe gives ranks"):
        p.find_ranks(x, x, recipe(decompose={"ranks": {"x": 4, "time": 3}}))


def test_impossible_layouts_are_refused():
    sizes = {"time": 20, "y": 16, "x": 16}
    with pytest.raises(RankError, match=r'rank 40 for mode "x" exceeds its size 16 \(sample: time=20, y=16, x=16\)'):
        p.Layout.from_recipe(recipe(decompose={"ranks": {"x": 40, "time": 3}}), sizes)
    with pytest.raises(RankError, match="exceeds the product 6 of the other ranks"):
        p.Layout.from_recipe(recipe(decompose={"ranks": {"x": 16, "y": 2, "time": 3}}), sizes)
    with pytest.raises(InputError, match=r'patch 3 does not divide the size 16 of mode "x".*such as 2'):
        p.Layout.from_recipe(recipe(primitive={"kind": "mgp", "patch": {"x": 3}, "rank": 2}), sizes)
    with pytest.raises(RankError, match="larger or more patches"):
        p.Layout.from_recipe(recipe(primitive={"kind": "mgp", "patch": {"x": 4}, "rank": 5}), sizes)
    with pytest.raises(InputError, match="recipe names"):
        p.Layout.from_recipe(recipe(decompose={"ranks": {"x": 4, "time": 3}}), {"time": 20, "x": 16})
    with pytest.raises(InputError, match="clashes"):
        p.Layout("mgp", ("patch", "x"), {"patch": 3, "x": 8}, {"pixel": 2}, ("pixel",), {"x": 4})
    with pytest.raises(InputError, match="no rank"):
        p.Layout("tgp", ("y", "x"), {"y": 3, "x": 8}, {"x": 2}, ("y", "x"))


def test_arrays_of_another_layout_are_refused():
    layout = p.Layout("tgp", ("y", "x"), {"y": 4, "x": 6}, {"y": 2, "x": 2}, ("y", "x"))
    x, anchors = batch(layout), anchors_of(layout, np.random.default_rng(0))
    with pytest.raises(InputError, match="y=4, x=6"):
        p.encode(np.swapaxes(x, 1, 2), anchors, layout)
    with pytest.raises(InputError, match='mode "x" has no anchor'):
        p.encode(x, {"y": anchors["y"]}, layout)
    with pytest.raises(InputError, match=r"shape \(4, 1\), expected \(4, 2\)"):
        p.encode(x, anchors | {"y": anchors["y"][:, :1]}, layout)
    with pytest.raises(InputError, match='"factor_x" is missing'):
        p.decode({"core": np.ones((3, 2, 2)), "factor_y": np.ones((3, 4, 2))}, layout)
    with pytest.raises(InputError, match="another layout"):
        p.decode({"core": np.ones((3, 2, 3)), "factor_y": np.ones((3, 4, 2))}, layout)
    with pytest.raises(InputError, match=r"not \(samples, 24\)"):
        layout.unflatten(np.ones((3, 23)))
    with pytest.raises(InputError, match="is no decomposition"):
        p.decompose(x, layout, "cp")


def test_both_errors_skip_masked_points_only():
    x = np.array([[3.0, 4.0, np.nan], [0.0, 0.0, np.nan], [1.0, 1.0, 1.0]], np.float32)
    xhat = np.array([[3.0, 3.0, np.nan], [0.0, 0.0, np.nan], [1.0, 1.0, np.nan]], np.float32)
    error = p.relative_error(x, xhat)
    np.testing.assert_allclose(error, [0.2, 0.0, np.nan])
    assert error.dtype == np.float64
    assert p.relative_error(x, xhat, np.array([3.0, 3.0, np.nan]))[0] == 1.0
    assert p.relative_error(np.zeros((1, 2)), np.ones((1, 2)))[0] == np.inf
    np.testing.assert_allclose(p.relative_error(torch.from_numpy(x), torch.from_numpy(xhat))[0], 0.2)


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_moments_merge_in_any_order(counts, random):
    x = 1e4 + np.random.default_rng(0).normal(size=(sum(counts) + 2, 2, 3))
    shards = np.split(x, np.cumsum(counts))
    random.shuffle(shards)
    whole = p.Moments()
    for shard in shards:
        part = p.Moments()
        part.add(shard)
        whole.merge(p.Moments.from_arrays(part.to_arrays()))
    assert whole.count == len(x)
    np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.variance, x.var(axis=0), rtol=1e-8)


def test_moments_of_float32_do_not_cancel():
    x = (300 + 1e-3 * np.random.default_rng(0).normal(size=(1000, 4))).astype(np.float32)
    moments = p.Moments()
    moments.add(x)
    np.testing.assert_allclose(np.sqrt(moments.variance), x.astype(np.float64).std(axis=0), rtol=1e-6)
    with pytest.raises(InputError, match="cannot be merged"):
        moments.add(np.ones((2, 3)))


def test_normalised_streams_have_unit_scale_and_come_back():
    rng = np.random.default_rng(0)
    streams = {"core": 50 * rng.normal(size=(40, 2, 3)) + 7, "factor_x": np.full((40, 5), 0.3)}
    moments = {name: p.Moments() for name in streams}
    for name, part in streams.items():
        moments[name].add(part)
    fitted = p.Normalisation.from_arrays(p.Normalisation.fit(moments).to_arrays())
    normal = fitted.apply(streams)
    assert np.mean(normal["core"] ** 2) == pytest.approx(1)
    assert fitted.scale["factor_x"] == 1  # constant: nothing to scale
    for name, part in fitted.undo(normal).items():
        np.testing.assert_allclose(part, streams[name])
    tensors = {name: torch.from_numpy(part.astype(np.float32)) for name, part in streams.items()}
    np.testing.assert_allclose(fitted.apply(tensors)["core"], normal["core"], atol=1e-5)
    assert fitted.apply(tensors)["core"].dtype == torch.float32
    with pytest.raises(InputError, match="no training samples"):
        p.Normalisation.fit({"core": p.Moments()})
    with pytest.raises(InputError, match="no normalisation"):
        fitted.apply({"other": np.ones(3)})


@pytest.mark.parametrize("center", ["none", "variable", "point"])
@pytest.mark.parametrize("scale", ["none", "variable"])
@pytest.mark.parametrize("component", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_field_scaling_goes_there_and_back(center, scale, component, masked):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2, 4, 5)) * np.array([1.0, 1e4])[:, None, None] + np.array([280.0, 1e5])[:, None, None]
    x += rng.normal(size=(4, 5))
    if masked:
        x[:, :, 1, 2:4] = np.nan
    moments = p.Moments()
    moments.add(x)
    fitted = p.FieldScaling.fit(moments, center, scale, component=component)
    fitted = p.FieldScaling.from_arrays(fitted.to_arrays())
    scaled = fitted.apply(x)
    assert np.isfinite(scaled).all()
    assert (scaled[np.isnan(x)] == 0).all()
    np.testing.assert_allclose(fitted.undo(scaled), x, rtol=1e-12)
    assert (fitted.mask is not None) == masked
    known = np.where(np.isnan(x), np.nan, scaled)
    if component and scale == "variable":
        per_variable = np.nanstd(known, axis=(0, 2, 3))
        np.testing.assert_allclose(per_variable, 1, rtol=1e-9)
    if center == "point":
        assert np.abs(np.nan_to_num(np.mean(known, axis=0))).max() < 1e-5
    if center == "none":
        assert (fitted.mean == 0).all()
    assert fitted.apply(x.astype(np.float32)).dtype == np.float32


def test_field_scaling_of_a_constant_field_does_not_blow_up_rounding():
    moments = p.Moments()
    moments.add(np.full((7, 3, 3), 300.1, np.float32))
    fitted = p.FieldScaling.fit(moments)
    assert fitted.scale.item() == 1
    moments = p.Moments()
    moments.add(np.full((7, 3), np.nan))
    with pytest.raises(InputError, match="missing"):
        p.FieldScaling.fit(moments)
    with pytest.raises(InputError, match="no good training sample"):
        p.FieldScaling.fit(p.Moments())


@pytest.fixture
def raw():
    rng = np.random.default_rng(0)
    initial = rng.normal(size=(20, 2, 4)) * np.array([1.0, 100.0])[:, None] + 5
    initial[:, :, 3] = np.nan
    return {
        "initial": initial,
        "field_mask": rng.normal(size=(20, 3, 3)) + 9,
        "scalar_nu": np.geomspace(1e-4, 1, 20),
        "scalar_angle": np.linspace(-3, 3, 20),
        "scalar_one": np.ones(20),
        "label": np.arange(20) % 3,
    }


def test_conditions_are_standardised(raw):
    layout = p.ConditionLayout.fit(raw, initial_dims=("component", "x"), label_names=("a", "b", "c"))
    assert layout.any
    assert layout.scalar_log == (True, False, False)
    normal = layout.normalise(raw)
    assert set(normal) == set(raw)
    for name, values in normal.items():
        assert values.dtype == (np.int64 if name == "label" else np.float32)
        assert np.isfinite(values).all()
        assert values.shape == raw[name].shape
    assert (normal["initial"][:, :, 3] == 0).all()
    np.testing.assert_allclose(normal["initial"][:, :, :3].std(axis=(0, 2)), 1, rtol=1e-5)
    assert normal["scalar_nu"].std() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(np.diff(normal["scalar_nu"]), np.diff(normal["scalar_nu"])[0], rtol=1e-4)
    assert (normal["scalar_one"] == 0).all()


def test_conditions_are_fitted_in_parts_and_survive_json(raw):
    whole = p.ConditionLayout.fit(raw, initial_dims=("component", "x"), label_names=("a", "b", "c"))
    parts = ({name: values[i : i + 7] for name, values in raw.items()} for i in range(0, 20, 7))
    streamed = p.ConditionLayout.fit(parts, initial_dims=("component", "x"), label_names=("a", "b", "c"))
    again = p.ConditionLayout.from_dict(json.loads(json.dumps(streamed.to_dict())))
    assert again == streamed
    for name, values in whole.normalise(raw).items():
        np.testing.assert_allclose(again.normalise(raw)[name], values, atol=1e-6)


def test_no_condition():
    layout = p.ConditionLayout.fit({})
    assert not layout.any
    assert layout.normalise({}) == {}
    assert p.ConditionLayout.from_dict(layout.to_dict()) == layout == p.ConditionLayout()


def test_conditions_that_cannot_be_taken_are_refused(raw):
    layout = p.ConditionLayout.fit(raw, initial_dims=("component", "x"), label_names=("a", "b", "c"))
    for name, values, message in (
        ("label", np.full(20, 3), "none of 0 to 2"),
        ("scalar_nu", np.full(20, -1.0), '"nu" must be positive'),
        ("scalar_angle", np.full(20, np.nan), '"angle" must be finite'),
        ("initial", np.ones((20, 2, 5)), r"expected \(samples, 2, 4\)"),
    ):
        with pytest.raises(InputError, match=message):
            layout.normalise(raw | {name: values})
    with pytest.raises(InputError, match='"label" is missing'):
        layout.normalise({name: values for name, values in raw.items() if name != "label"})
    with pytest.raises(InputError, match="not finite"):
        p.ConditionLayout.fit({"scalar_a": np.array([1.0, np.inf])})
