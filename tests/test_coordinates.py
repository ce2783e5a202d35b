"""Streams on principal axes, each number with a scale of its own: exact, merged in any order, blind to what is lost."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_primitives import layouts
from tiny_primitives import LAYOUT, normalisation_of, tiny_dataset, tiny_recipe

from diffats import primitives as p
from diffats.loader import PrimitiveSet
from diffats.models import Denoiser
from diffats.primitives import coordinates
from diffats.training import loss_weights

few = settings(max_examples=20, deadline=None)


def samples(layout, n=40, seed=0):
    """Streams whose numbers lie along axes of points with deviations over two orders of magnitude along each."""
    rng, out = np.random.default_rng(seed), {}
    for stream in layout.streams:
        x = rng.normal(size=(n, *stream.shape))
        for axis in p.turned_axes(stream):
            length = stream.shape[axis]
            Q = np.linalg.qr(np.random.default_rng(length).normal(size=(length, length)))[0]
            along = np.tensordot(x, Q * 10.0 ** -np.linspace(0, 2, length), axes=(axis + 1, 1))
            x = np.moveaxis(along, -1, axis + 1)
        out[stream.name] = x + rng.normal(size=stream.shape)
    return out


def fitted(layout, parts, beta=0.5, floor=1e-9):
    products = {stream.name: p.Products(p.turned_axes(stream)) for stream in layout.streams}
    for part in parts:
        for name, seen in products.items():
            seen.add(part[name])
    turned = p.Normalisation.on_principal_axes(products)
    moments = {name: p.Moments() for name in products}
    for part in parts:
        for name, values in turned.apply(part).items():
            moments[name].add(values)
    return turned.with_deviations(moments, beta=beta, floor=floor)


def rows(streams, chosen):
    return {name: values[chosen] for name, values in streams.items()}


@few
@given(layouts, st.floats(0, 1), st.integers(0, 99), st.sampled_from([1024, 3]))
def test_the_map_can_be_undone_and_stored(layout, beta, seed, leading):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinates, "LEADING", leading)  # a longer mode has so many axes, and one scale for the rest
        patch.setattr(coordinates, "SKETCH", leading + 2)
        x = samples(layout, seed=seed)
        normalisation = fitted(layout, [x], beta)
        z = normalisation.apply(x)
        for name, values in normalisation.undo(z).items():
            np.testing.assert_allclose(values, x[name], atol=1e-12 * np.abs(x[name]).max(), rtol=0)
        stored = p.Normalisation.from_arrays(normalisation.to_arrays())
        assert all(np.array_equal(values, z[name]) for name, values in stored.apply(x).items())
        assert set(stored.coordinates) == {stream.name for stream in layout.streams if p.turned_axes(stream)}
        for stream in layout.streams:
            known = stored.coordinates.get(stream.name)
            shapes = {} if known is None else {axis: basis.shape for axis, basis in known.bases.items()}
            assert shapes == coordinates.basis_shapes(stream)


@few
@given(layouts, st.integers(0, 99))
def test_with_beta_1_every_number_varies_alike_and_alone_along_each_axis(layout, seed):
    x = samples(layout, n=60, seed=seed)
    normalisation = fitted(layout, [x], beta=1.0)
    for name, z in normalisation.apply(x).items():
        if name not in normalisation.coordinates:
            continue
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-6)
    turned = fitted(layout, [x], beta=0.0).apply(x)
    for stream in layout.streams:
        for axis in p.turned_axes(stream):
            along = np.moveaxis(turned[stream.name], axis + 1, 0).reshape(stream.shape[axis], -1)
            products = along @ along.T
            off = products - np.diag(np.diag(products))
            assert np.abs(off).max() <= 1e-9 * products.max()


@few
@given(layouts, st.permutations(range(4)))
def test_parts_merge_in_any_order(layout, order):
    x = samples(layout)
    parts = [rows(x, slice(0, 1)), rows(x, slice(1, 17)), rows(x, slice(17, 17)), rows(x, slice(17, 40))]
    whole = {stream.name: p.Products(p.turned_axes(stream)) for stream in layout.streams}
    for name, seen in whole.items():
        for number in order:
            part = p.Products(seen.axes)
            part.add(parts[number][name])
            seen.merge(part)
        expected = p.Products(seen.axes)
        expected.add(x[name])
        for axis in seen.axes:
            deviations = np.moveaxis(x[name] - x[name].mean(axis=0), axis + 1, 0).reshape(x[name].shape[axis + 1], -1)
            np.testing.assert_allclose(expected.sums[axis], deviations @ deviations.T, atol=1e-9)
            np.testing.assert_allclose(seen.sums[axis], expected.sums[axis], atol=1e-9)


def test_a_long_mode_keeps_the_axes_of_the_largest_deviations(monkeypatch):
    monkeypatch.setattr(coordinates, "LEADING", 8)
    monkeypatch.setattr(coordinates, "SKETCH", 12)
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    x = np.einsum("nj,ij->ni", rng.normal(size=(400, 50)) * 10.0 ** -np.arange(50), Q)[:, :, None]
    seen = p.Products((0,))
    for start in range(0, 400, 64):
        seen.add(x[start : start + 64])
    basis = seen.basis(0)
    assert seen.sums[0].shape == (50, 12)
    assert basis.shape == (50, 8)
    exact = np.linalg.eigh(np.einsum("nia,nja->ij", x - x.mean(0), x - x.mean(0)))[1][:, ::-1]
    np.testing.assert_allclose(np.abs(np.sum(basis[:, :4] * exact[:, :4], axis=0)), 1, atol=1e-6)


@pytest.mark.parametrize("leading", [1024, 2])
def test_a_stream_that_never_varies_stays_as_it_is(leading, monkeypatch):
    monkeypatch.setattr(coordinates, "LEADING", leading)
    monkeypatch.setattr(coordinates, "SKETCH", leading + 2)
    streams = {s.name: np.full((5, *s.shape), 3.0) for s in LAYOUT.streams}
    normalisation = fitted(LAYOUT, [streams], beta=1.0)
    assert all((values == 0).all() for values in normalisation.apply(streams).values())
    back = normalisation.undo(normalisation.apply(streams))
    assert all(np.array_equal(back[name], values) for name, values in streams.items())
    normalisation.apply({name: values + np.arange(5)[:, None, None] for name, values in streams.items()})


def test_a_patch_matrix_has_coordinates_in_its_pixels_alone():
    layout = p.Layout(
        "mgp", ("band", "y", "x"), {"band": 3, "y": 4, "x": 8}, {"pixel": 2}, ("pixel",), {"y": 2, "x": 4}
    )
    axes = {stream.name: [stream.dims[axis] for axis in p.turned_axes(stream)] for stream in layout.streams}
    assert axes == {"core": [], "factor_pixel": ["pixel"]}
    assert set(fitted(layout, [samples(layout)]).coordinates) == {"factor_pixel"}


def test_deviations_have_a_floor():
    known = p.Coordinates.fit({}, np.array([1.0, 1e-30, 0.04]), beta=1.0, floor=1e-3)
    assert known.deviation.tolist() == [1.0, 1e-3, 0.2]


def spectral_set(beta):
    ds = tiny_dataset(60)
    train = {s.name: ds[s.name].values[ds["split"].values == "train"] for s in LAYOUT.streams}
    normalisation = fitted(LAYOUT, [{name: x.astype(np.float64) for name, x in train.items()}], beta, floor=1e-5)
    return PrimitiveSet(ds, LAYOUT, normalisation, p.ConditionLayout(), shard=5)


@pytest.mark.parametrize("weighting", ["stream", "field"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_measures_the_same_error_of_the_field_in_any_coordinates(weighting, beta):
    ds = tiny_dataset(60)
    plain = PrimitiveSet(ds, LAYOUT, normalisation_of(ds), p.ConditionLayout(), shard=5)
    spectral = spectral_set(beta)
    rng = np.random.default_rng(1)
    streams = {s.name: ds[s.name].values[:4].astype(np.float64) for s in LAYOUT.streams}
    wrong = {name: x + 0.1 * rng.normal(size=x.shape) for name, x in streams.items()}
    losses = []
    for data in (plain, spectral):
        clean, guess = (LAYOUT.flatten(data.normalisation.apply(x)) for x in (streams, wrong))
        losses.append((guess - clean) ** 2 @ loss_weights(data, weighting).numpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_network_that_passes_its_input_on_does_so_in_any_coordinates():
    """The core is turned to its points and back."""
    layout = p.Layout("tgp", ("t", "y", "x"), {"t": 6, "y": 7, "x": 5}, {"t": 3, "x": 3}, ("t", "x"))
    normalisation = fitted(layout, [samples(layout)], beta=0.5)
    network = Denoiser(layout, p.ConditionLayout(), tiny_recipe().model, normalisation)
    assert network.view is not None
    assert not [name for name in network.state_dict() if name.startswith("view")]  # these are no weights
    with torch.no_grad():
        network.modulation.bias[-network.n_tokens :] = 1.0  # the gate of each token's input
    z = torch.randn(4, layout.numbers, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(network(z, torch.full((4,), 500)).detach(), z, atol=1e-4)
    core = z[:, : layout.streams[0].size]
    seen = network.view.to_points(core).reshape(4, *layout.streams[0].shape).numpy()
    plain = dataclasses.replace(normalisation, coordinates={"core": normalisation.coordinates["core"]})
    points = plain.undo({"core": core.reshape(seen.shape).double().numpy()})["core"]
    np.testing.assert_allclose(seen * normalisation.scale["core"] + normalisation.mean["core"], points, atol=1e-5)


def test_samples_of_a_step_are_shifted_alike_in_any_coordinates():
    ds = tiny_dataset(60)
    anchors = {"y": np.eye(6)[:, :3], "x": np.eye(5)[:, :3]}
    for name in ("factor_y", "factor_x"):
        ds[name].values[:] = np.linalg.qr(ds[name].values)[0]
    shifts = p.Shifts(LAYOUT, ("y", "x"), anchors)
    train = {s.name: ds[s.name].values[ds["split"].values == "train"].astype(np.float64) for s in LAYOUT.streams}
    found = []
    for normalisation in (normalisation_of(ds), fitted(LAYOUT, [train], beta=0.7)):
        data = PrimitiveSet(ds, LAYOUT, normalisation, p.ConditionLayout(), shard=5, shifts=shifts)
        stepped, _ = data.read_step(0, 3, 8)
        read, _ = data.read(data.train)
        found.append([normalisation.undo(LAYOUT.unflatten(z)) for z in (stepped, read)])
    for streams, spectral in zip(*found, strict=True):
        for name, values in streams.items():
            np.testing.assert_allclose(spectral[name], values, atol=2e-6)
