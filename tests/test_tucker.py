"""ST-HOSVD and HOOI: against mathematics, and against tensorly."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import tensorly.decomposition
import torch
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats import requirements, spectrum, tucker
from diffats.errors import InputError, MissingPackageError, RankError
from diffats.tucker import check_ranks, hooi, sthosvd

few = settings(max_examples=20, deadline=None)
dtypes = st.sampled_from([np.float32, np.float64])


@st.composite
def fields(draw, min_modes=2):
    """A batch of 3 smooth-ish tensors with 2 to 4 modes, and ranks that fit."""
    shape = draw(st.lists(st.integers(2, 7), min_size=min_modes, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    x = rng.normal(size=(3, *shape))
    for axis in range(1, x.ndim):
        x = np.cumsum(x, axis=axis)
    ranks = tuple(draw(st.one_of(st.none(), st.integers(1, size))) for size in shape)
    return x.astype(draw(dtypes)), _fitting(ranks, shape)


def _fitting(ranks, shape):
    while True:
        kept = [n if r is None else r for n, r in zip(shape, ranks, strict=True)]
        product = int(np.prod(kept))
        cut = tuple(None if r is None else min(r, product // r) for r in ranks)
        if cut == ranks:
            return ranks
        ranks = cut


def smooth(*shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    for axis in range(1, x.ndim):
        x = np.cumsum(x, axis=axis)
    return x.astype(dtype)


def low_rank(shape, ranks, dtype=np.float64, seed=0):
    """A batch of 2 tensors of exactly these ranks."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *ranks))
    for mode, (n, r) in enumerate(zip(shape, ranks, strict=True)):
        x = spectrum.mode_dot(x, rng.normal(size=(n, r)), mode, len(shape))
    return x.astype(dtype)


def slack(dtype):
    return 3e-6 if dtype == np.float32 else 1e-12


@few
@given(fields())
def test_error_is_that_of_the_discarded_energies_and_factors_are_orthonormal(case):
    x, ranks = case
    t = sthosvd(x, ranks)
    measured = t.relative_error(x)
    np.testing.assert_allclose(t.error(), measured, atol=3e-6 if x.dtype == np.float32 else 3e-8)
    assert measured.dtype == np.float64
    assert t.core.dtype == x.dtype
    for factor, rank in zip(t.factors, ranks, strict=True):
        assert (factor is None) == (rank is None)
        if factor is not None:
            eye = np.broadcast_to(np.eye(rank), (len(x), rank, rank))
            np.testing.assert_allclose(np.swapaxes(factor, -1, -2) @ factor, eye, atol=slack(x.dtype))
    norms = np.sum(x.astype(np.float64) ** 2, axis=tuple(range(1, x.ndim)))
    np.testing.assert_allclose(t.norm2, norms, rtol=1e-6)


@few
@given(fields(), st.integers(0, 100))
def test_rotation_changes_the_gauge_and_nothing_else(case, seed):
    x, ranks = case
    t = sthosvd(x, ranks)
    rng = np.random.default_rng(seed)
    turns = [None if r is None else np.linalg.qr(rng.normal(size=(3, r, r)))[0].astype(x.dtype) for r in ranks]
    turned = t.rotate(turns)
    scale = np.abs(x).max()
    np.testing.assert_allclose(turned.to_tensor(), t.to_tensor(), atol=10 * slack(x.dtype) * scale)


@few
@given(fields(), st.floats(0.005, 0.9))
def test_tolerance_is_met_as_measured_by_a_core_whose_ranks_obey_the_product_law(case, tolerance):
    x, _ = case
    t = sthosvd(x, tolerance=tolerance, modes=x.ndim - 1)
    assert (t.relative_error(x) <= tolerance).all()
    sizes = {str(mode): n for mode, n in enumerate(x.shape[1:])}
    check_ranks(dict(zip(sizes, t.ranks, strict=True)), sizes)


@few
@given(fields())
def test_torch_gives_the_same_as_numpy(case):
    x, ranks = case
    ours, theirs = sthosvd(x, ranks), sthosvd(torch.from_numpy(x), ranks)
    assert isinstance(theirs.core, torch.Tensor)
    assert theirs.core.dtype == torch.from_numpy(x).dtype
    assert theirs.order == ours.order
    scale = np.abs(x).max()
    np.testing.assert_allclose(theirs.to_tensor().numpy(), ours.to_tensor(), atol=100 * slack(x.dtype) * scale)
    rounding = 20 * np.finfo(x.dtype).eps  # of energies, which are squares
    np.testing.assert_allclose(theirs.error().numpy() ** 2, ours.error() ** 2, atol=rounding)
    np.testing.assert_array_equal(theirs.numerical_ranks.numpy(), ours.numerical_ranks)


def test_leading_axes_are_batch():
    x = smooth(6, 5, 6, 7)
    whole = sthosvd(x.reshape(2, 3, 5, 6, 7), (2, 3, None))
    assert whole.core.shape == (2, 3, 2, 3, 7)
    assert whole.error().shape == (2, 3)
    assert whole.discarded.shape == whole.numerical_ranks.shape == (2, 3, 3)
    single = sthosvd(x[4], (2, 3, None))
    assert single.error().shape == ()
    np.testing.assert_allclose(single.to_tensor(), whole.to_tensor()[1, 1], atol=1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_order_gives_an_error_below_the_tensorly_bound(order, monkeypatch):
    x = smooth(1, 8, 9, 10)
    monkeypatch.setattr("diffats.tucker.mode_order", lambda shape, ranks: order)
    t = sthosvd(x[0], (3, 4, 5))
    core, factors = tensorly.decomposition.tucker(x[0], (3, 4, 5), tol=1e-10, n_iter_max=200)
    best = np.linalg.norm(x[0] - tensorly.tucker_to_tensor((core, factors))) / np.linalg.norm(x[0])
    assert t.order == order
    assert best <= t.relative_error(x[0]) + 1e-12
    assert t.relative_error(x[0]) <= np.sqrt(3) * best  # quasi-optimality of ST-HOSVD


@few
@given(fields())
def test_hooi_is_never_worse_than_its_start(case):
    x, ranks = case
    start, refined = sthosvd(x, ranks), hooi(x, ranks, n_iter_max=10)
    assert (refined.relative_error(x) <= start.relative_error(x) + slack(x.dtype)).all()
    np.testing.assert_allclose(refined.error(), refined.relative_error(x), atol=slack(x.dtype))
    assert refined.core.dtype == x.dtype


def test_hooi_reaches_tensorly_and_takes_torch():
    x = np.random.default_rng(3).normal(size=(2, 6, 7, 8))
    refined = hooi(torch.from_numpy(x), (2, 3, 4), n_iter_max=200, tol=1e-12)
    start = sthosvd(x, (2, 3, 4))
    for i in range(2):
        _, errors = tensorly.decomposition.partial_tucker(
            x[i], (2, 3, 4), init=(start.core[i], [f[i].copy() for f in start.factors]), n_iter_max=200, tol=1e-12
        )
        assert refined.error()[i].item() == pytest.approx(float(errors[-1]), rel=1e-8)
    assert (refined.error().numpy() < start.error()).all()


def test_hooi_leaves_modes_without_rank_and_zero_samples_alone():
    x = smooth(2, 5, 6, 7)
    x[1] = 0
    t = hooi(x, (2, None, 3))
    assert t.factors[1] is None
    assert t.core.shape == (2, 2, 6, 3)
    assert t.error()[1] == 0
    assert np.isfinite(t.core).all()


@pytest.mark.parametrize("tolerance", [1e-8, 1e-10, 1e-12])
def test_a_tolerance_below_what_a_gram_matrix_resolves_is_met(tolerance):
    decay = np.diag(10.0 ** -np.arange(12.0))
    left, right = (np.linalg.qr(np.random.default_rng(i).normal(size=(12, 12)))[0] for i in range(2))
    x = np.stack([left @ decay @ right] * 2)[..., None] * np.ones(3)
    t = sthosvd(x, tolerance=tolerance, modes=3)
    assert (t.relative_error(x) <= tolerance).all()
    assert t.ranks[0] == t.ranks[1] < 12 + (tolerance < 1e-11)
    assert t.ranks[0] >= -np.log10(tolerance)
    assert t.ranks[2] == 1


def decaying(shape, decay, noise=0.0, seed=0):
    """A batch of 2 tensors whose singular values fall by ``exp(-decay)`` from one to the next in every mode."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *shape))
    for mode, n in enumerate(shape):
        basis = np.linalg.qr(rng.normal(size=(n, n)))[0] * np.exp(-decay * np.arange(n))
        x = spectrum.mode_dot(x, basis, mode, len(shape))
    x /= np.sqrt(np.mean(x**2))
    return x + noise * rng.normal(size=x.shape)


def test_float32_sums_give_way_to_float64_where_they_would_be_too_coarse():
    """A float32 Gram matrix alone stops near a relative error of 2e-4."""
    x = low_rank((20, 24, 16), (4, 5, 3), np.float32)
    t = sthosvd(x, (4, 5, 3))
    assert t.relative_error(x).max() < 3e-6
    assert t.error().max() < 3e-6
    assert sthosvd(x, tolerance=1e-5, modes=3).ranks == (4, 5, 3)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize("decay", [0.03, 0.2, 0.5, 0.8, 1.2])
def test_float32_data_lose_as_little_as_in_float64(decay, noise):
    x = decaying((30, 40, 20), decay, noise).astype(np.float32)
    ours, exact = sthosvd(x, (6, 8, 5)), sthosvd(x.astype(np.float64), (6, 8, 5))
    assert (ours.relative_error(x) <= 1.0005 * exact.relative_error(x) + 3e-7).all()
    np.testing.assert_allclose(ours.error(), ours.relative_error(x), rtol=2e-3, atol=1e-6)


def test_each_sample_gets_the_precision_that_it_needs_whatever_is_beside_it():
    x = np.concatenate([decaying((12, 14, 10), decay).astype(np.float32) for decay in (0.05, 3.0)])
    together = sthosvd(x, (3, 3, 3))
    for i in range(len(x)):
        alone = sthosvd(x[i], (3, 3, 3))
        np.testing.assert_allclose(together.error()[i], alone.error(), rtol=1e-5)
        np.testing.assert_allclose(together.to_tensor()[i], alone.to_tensor(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e15, 1e25])
def test_float32_squares_neither_vanish_nor_overflow(scale):
    x = smooth(3, 8, 9, 10, dtype=np.float32)
    scaled = x * np.float32(scale)
    t = sthosvd(scaled, (3, 3, 3))
    np.testing.assert_allclose(t.error(), sthosvd(x, (3, 3, 3)).error(), rtol=1e-4)
    np.testing.assert_allclose(t.error(), t.relative_error(scaled), rtol=1e-4)
    np.testing.assert_allclose(spectrum.norm2(scaled, 3), np.sum(scaled.astype(np.float64) ** 2, axis=(1, 2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [0.01, 0.1, 0.5])
def test_a_few_of_many_vectors_lose_as_little_as_those_of_a_full_decomposition(decay, dtype, monkeypatch):
    x = decaying((200, 180), decay, 1e-2).astype(dtype)
    assert spectrum._width(20) * 3 <= 180
    few = sthosvd(x, (20, None))
    monkeypatch.setattr(spectrum, "_FEW_OF", 10_000)
    exact = sthosvd(x, (20, None))
    assert (few.relative_error(x) <= 1.0005 * exact.relative_error(x)).all()
    np.testing.assert_allclose(few.spectra[0], exact.spectra[0], rtol=2e-2)
    np.testing.assert_allclose(few.error(), few.relative_error(x), rtol=1e-3)
    eye = np.broadcast_to(np.eye(20), (2, 20, 20))
    np.testing.assert_allclose(np.swapaxes(few.factors[0], 1, 2) @ few.factors[0], eye, atol=slack(dtype))


def test_vectors_that_have_not_converged_come_from_a_full_decomposition(monkeypatch):
    monkeypatch.setattr(spectrum, "_CONVERGED", -1.0)
    x = decaying((200, 180), 0.1)
    few = sthosvd(x, (20, None))
    monkeypatch.setattr(spectrum, "_FEW_OF", 10_000)
    full = sthosvd(x, (20, None))
    np.testing.assert_allclose(few.factors[0], full.factors[0], rtol=0, atol=1e-12)  # sums may be of another order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mode_longer_than_the_rest_is_no_exception(dtype):
    x = decaying((300, 20), 0.4).astype(dtype)
    t = sthosvd(x, (6, None))
    exact = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(t.spectra[0], exact[:, :6] ** 2, rtol=1e-4 if dtype == np.float32 else 1e-9)
    np.testing.assert_allclose(np.swapaxes(t.factors[0], 1, 2) @ t.factors[0], [np.eye(6)] * 2, atol=slack(dtype))
    np.testing.assert_allclose(t.error(), t.relative_error(x), rtol=1e-3)
    constant = sthosvd(np.ones((300, 20), dtype), (6, None))  # 1 column of 6 carries something
    factor = constant.factors[0].astype(np.float64)
    np.testing.assert_allclose(factor.T @ factor, np.eye(6), atol=slack(dtype))
    assert constant.relative_error(np.ones((300, 20), dtype)) < 1e-5


@few
@given(fields())
def test_energies_kept_and_lost_add_up(case):
    x, ranks = case
    t = sthosvd(x, ranks)
    left = t.norm2
    for mode in t.order:
        np.testing.assert_allclose(t.spectra[mode].sum(-1) + t.discarded[:, mode], left, rtol=1e-5)
        left = t.spectra[mode].sum(-1)
        assert (np.diff(t.spectra[mode], axis=-1) <= 1e-6 * t.norm2[:, None]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numerical_rank_sees_smooth_constant_and_zero_fields(dtype):
    y, x = np.meshgrid(np.linspace(0, 1, 20), np.linspace(0, 1, 30), indexing="ij")
    batch = np.stack([np.full((20, 30), 300.1), y + x, np.zeros((20, 30)), smooth(1, 20, 30)[0]]).astype(dtype)
    t = sthosvd(batch, (8, 8))
    assert t.numerical_ranks[:3].tolist() == [[1, 1], [2, 2], [0, 0]]
    assert (t.numerical_ranks[3] >= 8).all()
    assert t.error()[2] == t.relative_error(batch)[2] == 0


def test_tolerance_on_constant_and_zero_samples_keeps_one_column():
    assert sthosvd(np.full((2, 5, 6, 7), 3.0), tolerance=0.1, modes=3).ranks == (1, 1, 1)
    assert sthosvd(np.zeros((2, 5, 6)), tolerance=0.1, modes=2).ranks == (1, 1)


def test_ranks_from_a_tolerance_are_cut_to_the_product_of_the_others():
    x = np.diag([1.0, 0.1, 0.1, 0.1])[None] + np.zeros((1, 4, 4))
    budget = 0.011 / np.sum(x**2)  # of each mode: the first drops one value, the second another
    t = sthosvd(x, tolerance=np.sqrt(2 * budget), modes=2)
    assert t.ranks == (2, 2)
    assert t.error()[0] == pytest.approx(np.sqrt(0.02 / 1.03))
    np.testing.assert_allclose(t.relative_error(x), t.error(), atol=1e-12)


def test_cutting_loses_nothing():
    t = sthosvd(smooth(2, 8, 3, 2), (6, 3, 2))
    # ranks (6, 2, 2): two columns of mode 0 are arbitrary
    wide = dataclasses.replace(t, core=t.core[..., :2, :2], factors=(t.factors[0], t.factors[1][..., :2], t.factors[2]))
    cut = tucker._cut(wide)
    assert cut.ranks == (4, 2, 2)
    np.testing.assert_allclose(cut.to_tensor(), wide.to_tensor(), atol=1e-10)
    np.testing.assert_allclose(np.swapaxes(cut.factors[0], -1, -2) @ cut.factors[0], [np.eye(4)] * 2, atol=1e-12)


def test_tolerance_with_named_axes_leaves_the_others():
    x = smooth(3, 5, 6, 7)
    t = sthosvd(x, tolerance=0.1, modes=(-3, -1))
    assert t.factors[1] is None
    assert t.core.shape[0] == 3
    assert (t.relative_error(x) <= 0.1).all()
    assert sthosvd(x, tolerance=0.1, modes=(1, 3)).ranks == t.ranks
    assert len(sthosvd(x, tolerance=0.1).factors) == 4  # every axis is a mode


def test_integers_become_floats():
    x = np.random.default_rng(0).integers(-50, 50, size=(4, 5, 6))
    assert sthosvd(x.astype(np.int16), (2, 2, 2)).core.dtype == np.float32
    assert sthosvd(x.astype(np.int64), (2, 2, 2)).core.dtype == np.float64
    assert sthosvd(torch.from_numpy(x.astype(np.int16)), (2, 2, 2)).core.dtype == torch.float32


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((40, None), 'rank 40 for mode "0" exceeds its size 5'),
        ((4, 2), 'rank 4 for mode "0" exceeds the product 2 of the other ranks'),
        ((0, 2), "not positive"),
    ],
)
def test_impossible_ranks_are_refused(ranks, message):
    with pytest.raises(RankError, match=message):
        sthosvd(np.ones((5, 6)), ranks)


def test_rank_message_is_the_house_message():
    with pytest.raises(RankError) as caught:
        check_ranks({"x": 40}, {"time": 50, "x": 32})
    assert str(caught.value) == (
        'rank 40 for mode "x" exceeds its size 32 (sample: time=50, x=32). Use at most 32, or set decompose.tolerance.'
    )
    with pytest.raises(RankError, match="which the sample does not have"):
        check_ranks({"z": 1}, {"time": 50, "x": 32})


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_tolerance_outside_its_range_is_refused(tolerance):
    with pytest.raises(RankError, match="outside"):
        sthosvd(np.ones((3, 4)), tolerance=tolerance)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_the_sample_named(value):
    x = np.ones((4, 5, 6))
    x[2, 3, 1] = value
    with pytest.raises(InputError, match="sample 2 of 4"):
        sthosvd(x, (2, 2))
    with pytest.raises(InputError, match="sample 2 of 4"):
        sthosvd(torch.from_numpy(x), tolerance=0.1, modes=2)


def test_unusable_arguments_are_refused():
    x = np.ones((4, 5, 6))
    with pytest.raises(InputError, match="either ranks or a tolerance"):
        sthosvd(x)
    with pytest.raises(InputError, match="array with 3 axes"):
        sthosvd(x, (1, 1, 1, 1))
    with pytest.raises(InputError, match="nothing to decompose"):
        sthosvd(x[:0], (1, 1))
    with pytest.raises(InputError, match="not distinct axes"):
        sthosvd(x, tolerance=0.1, modes=(-1, 2))
    with pytest.raises(InputError, match="complex"):
        sthosvd(x + 1j, (1, 1))
    with pytest.raises(InputError, match="1e150"):
        sthosvd(x * 1e200, (1, 1))
    with pytest.raises(InputError, match="rotations"):
        sthosvd(x, (1, 1)).rotate([None])
    with pytest.raises(InputError, match="not decomposed"):
        sthosvd(x, (1, None)).rotate([None, np.eye(6)])


@few
@given(fields())
def test_energies_are_the_squared_singular_values_of_the_unfolding(case):
    x, _ = case
    for mode in range(x.ndim - 1):
        unfolded = np.moveaxis(x.astype(np.float64), mode + 1, 1).reshape(3, x.shape[mode + 1], -1)
        values = np.linalg.svd(unfolded, compute_uv=False) ** 2
        for accurate in (False, True):
            vectors, energies = spectrum.leading(x, mode, accurate=accurate)
            found = energies[:, : values.shape[1]]
            np.testing.assert_allclose(found, values, atol=1e-13 * values.max() * x.size)
            assert (energies[:, values.shape[1] :] == 0).all() or not accurate
            assert vectors.shape[-1] >= values.shape[1]


@few
@given(fields(), st.integers(1, 5))
def test_mode_dot_is_tensorlys(case, rows):
    x, _ = case
    rng = np.random.default_rng(rows)
    for mode in range(x.ndim - 1):
        matrix = rng.normal(size=(3, rows, x.shape[mode + 1]))
        expected = [tensorly.tenalg.mode_dot(x[i].astype(np.float64), matrix[i], mode) for i in range(3)]
        np.testing.assert_allclose(spectrum.mode_dot(x, matrix, mode, x.ndim - 1), expected, rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(0, 99))
@few
def test_the_chosen_order_is_the_cheapest(shape, seed):
    rng = np.random.default_rng(seed)
    ranks = [int(rng.integers(1, n + 1)) if rng.random() < 0.8 else None for n in shape]
    order = spectrum.mode_order(shape, ranks)
    decomposed = [mode for mode, rank in enumerate(ranks) if rank is not None]
    assert sorted(order) == decomposed
    assert spectrum.flops(shape, ranks) <= spectrum.flops(shape, ranks, decomposed)
    assert spectrum.flops(shape, ranks) == spectrum.flops(shape, ranks, order)


def test_many_modes_are_ordered_too():
    assert sorted(spectrum.mode_order((2,) * 8, (1,) * 8)) == list(range(8))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
@few
def test_matrices_are_multiplied_in_the_cheapest_order(pairs):
    shape = tuple(n for n, _ in pairs)
    x = np.random.default_rng(0).normal(size=(2, *shape))
    matrices = [np.random.default_rng(i).normal(size=(2, m, n)) for i, (n, m) in enumerate(pairs)]
    order = spectrum.product_order(shape, tuple(m for _, m in pairs))
    assert sorted(order) == list(range(len(pairs)))
    expected = x
    for mode, matrix in enumerate(matrices):
        expected = spectrum.mode_dot(expected, matrix, mode, len(shape))
    np.testing.assert_allclose(tucker.multi_mode_dot(x, matrices), expected, rtol=1e-9, atol=1e-9)


def test_big_endian_read_only_and_reversed_arrays_are_taken():
    x = smooth(2, 5, 6, 7)
    expected = sthosvd(x, (2, 2, 2)).error()
    fixed = x.copy()
    fixed.flags.writeable = False
    for other in (x.astype(">f8"), fixed, x[:, ::-1], np.asfortranarray(x)):
        np.testing.assert_allclose(sthosvd(other, (2, 2, 2)).error(), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operations_of_a_decomposition(dtype, monkeypatch):
    """One Gram matrix and one projection a mode, of a tensor that shrinks; a regression shows without a clock."""
    multiplications, eigenproblems, precisions = [], [], set()
    symmetric, product = spectrum._symmetric, spectrum.mode_dot
    linalg = array_namespace(np.zeros(1)).linalg
    eigh = linalg.eigh

    def counted_symmetric(a, out):
        multiplications.append(a.shape[0] * a.shape[1] ** 2 * a.shape[2])
        precisions.add(out.dtype)
        symmetric(a, out)

    def counted_product(x, matrix, mode, n_modes):
        multiplications.append(x.size * matrix.shape[-2])
        precisions.add(x.dtype)
        return product(x, matrix, mode, n_modes)

    def counted_eigh(g):
        eigenproblems.append(tuple(g.shape))
        return eigh(g)

    monkeypatch.setattr(spectrum, "_symmetric", counted_symmetric)
    monkeypatch.setattr(tucker, "mode_dot", counted_product)
    monkeypatch.setattr(linalg, "eigh", counted_eigh)
    x = decaying((20, 24, 30), 0.1).astype(dtype)
    t = sthosvd(x, (4, 6, 5))
    size, expected, problems = 20 * 24 * 30, [], []
    for mode in t.order:
        n, rank = x.shape[mode + 1], t.ranks[mode]
        small = min(n, size // n)
        expected += [2 * size * small, 2 * size * rank]
        problems.append((2, small, small))
        size = size // n * rank
    assert multiplications == expected
    assert eigenproblems == problems
    assert precisions == {x.dtype}  # nothing was widened that need not be


def test_nothing_but_the_samples_in_doubt_is_done_twice(monkeypatch):
    sizes = []
    gram = spectrum.gram
    monkeypatch.setattr(spectrum, "gram", lambda x, mode, dtype: sizes.append((dtype, len(x))) or gram(x, mode, dtype))
    x = np.concatenate([decaying((12, 14), 0.05), low_rank((12, 14), (2, 2))]).astype(np.float32)
    sthosvd(x, (3, None))
    assert sizes == [(np.float32, 4), (np.float64, 2)]


def test_devices_for_encoding(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = ("auto", "cuda", "cuda:1", "cpu", "mps")
    assert [spectrum.encoding_device(name) for name in names] == ["cuda", "cuda", "cuda:1", "cpu", "cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert spectrum.encoding_device("auto") == "cpu"


def test_without_torch_no_gpu_is_found_and_one_asked_for_is_refused(monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert spectrum.encoding_device("auto") == "cpu"
    with pytest.raises(MissingPackageError, match=r'"cuda:1" needs torch.* pip install .diffats\[train\]'):
        spectrum.encoding_device("cuda:1")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_symmetric_products_are_the_same_by_numpy_and_by_torch(dtype):
    """NumPy sees that they are symmetric, torch does not."""
    x = smooth(2, 9, 110, 4, dtype=dtype)
    for mode in range(3):
        by_torch = spectrum.gram(torch.from_numpy(x), mode, torch.float64)
        np.testing.assert_allclose(by_torch, spectrum.gram(x, mode, np.float64), rtol=1e-12)


def test_squared_norms_of_no_samples_and_of_long_ones():
    assert spectrum.norm2(np.ones((0, 3, 700), np.float32), 2).shape == (0,)
    x = smooth(2, 3, 700, dtype=np.float32)
    np.testing.assert_allclose(spectrum.norm2(x, 2), np.sum(x.astype(np.float64) ** 2, axis=(1, 2)), rtol=1e-6)
    assert spectrum.norm2(x, 3).shape == ()


@pytest.mark.parametrize("right", [1, 2, 40])
@pytest.mark.parametrize("batched", [True, False])
def test_a_middle_mode_is_multiplied_without_copies_of_the_matrix(right, batched):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(3, 5, 6, right)), rng.normal(size=(3, 4, 6) if batched else (4, 6))
    expected = np.einsum("bmn,blnr->blmr" if batched else "mn,blnr->blmr", matrix, x)
    np.testing.assert_allclose(spectrum.mode_dot(x, matrix, 1, 3), expected, atol=1e-12)
    one = matrix[0] if batched else matrix
    np.testing.assert_allclose(spectrum.mode_dot(x[0], one, 1, 3), expected[0], atol=1e-12)


def test_the_lost_energy_of_a_long_unfolding_is_not_summed_in_float32_too_far():
    rng = np.random.default_rng(0)
    x = (1 + 0.0068 * rng.normal(size=(20, 2**19))).astype(np.float32)
    t = sthosvd(x, (4, None))
    assert t.error() == pytest.approx(t.relative_error(x), rel=2e-3)


def test_tensors_that_require_gradients_are_taken():
    x = torch.from_numpy(smooth(2, 5, 6, 7)).requires_grad_()
    assert sthosvd(x, (2, 2, 2)).error().shape == (2,)
