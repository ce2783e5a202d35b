"""Muon against torch's own, and its iteration against the singular value decomposition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats import muon

SHAPES = [(4, 12), (12, 4), (4, 12), (6, 6), (1, 5)]


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic applied to each singular value."""
    a, b, c = muon.COEFFICIENTS
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / (s**2).norm() ** 0.5
    for _ in range(muon.ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


def matrices(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), decades=st.floats(0, 6))
def test_directions_are_the_quintic_of_the_singular_values(seed, decades):
    given = [x * torch.logspace(0, -decades, x.shape[0])[:, None] for x in matrices(seed)]
    for x, direction in zip(given, muon.orthogonalise(given), strict=True):
        torch.testing.assert_close(direction.double(), by_svd(x), atol=2e-3, rtol=0)


def test_both_forms_are_the_same_polynomial():
    x = torch.randn(3, 5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 40
    torch.testing.assert_close(muon.by_gram(x), muon.by_quintic(x), atol=1e-12, rtol=0)


def test_a_direction_does_not_depend_on_the_matrices_beside_it():
    xs = matrices(3, torch.float64)
    for x, beside in zip(xs, muon.orthogonalise(xs), strict=True):
        torch.testing.assert_close(muon.orthogonalise([x])[0], beside, atol=1e-12, rtol=0)


def test_no_gradient_gives_no_direction():
    assert not muon.orthogonalise([torch.zeros(3, 4)])[0].any()


@pytest.mark.parametrize("shape", [(64, 64), (48, 200)])
@pytest.mark.parametrize("slope", [0.0, 0.25, 0.5])
def test_four_iterations_from_the_tighter_norm_reach_as_far_as_five(shape, slope):
    x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x = x * torch.arange(1, shape[0] + 1)[:, None] ** -slope
    a, b, c = muon.COEFFICIENTS
    five = torch.linalg.svdvals(x / torch.linalg.matrix_norm(x))
    for _ in range(5):
        five = a * five + b * five**3 + c * five**5
    four = torch.linalg.svdvals(muon.by_quintic(x))
    assert four.quantile(0.2) > 0.67
    assert four.max() < 1.21
    assert (four - 1).square().mean() < (five - 1).square().mean() + 0.02


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torch_where_both_converge(decay, monkeypatch):
    monkeypatch.setattr(muon, "COEFFICIENTS", (1.875, -1.25, 0.375))  # of the quintic that ends at 1
    monkeypatch.setattr(muon, "ITERATIONS", 12)
    start = matrices(0)
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    mine = muon.Muon(ours, lr=0.01, weight_decay=decay)
    its = torch.optim.Muon(
        theirs,
        lr=0.01,
        weight_decay=decay,
        adjust_lr_fn="match_rms_adamw",
        ns_coefficients=muon.COEFFICIENTS,
        ns_steps=muon.ITERATIONS,
    )
    for step in range(5):
        for parameters, optimizer in ((ours, mine), (theirs, its)):
            for p, x in zip(parameters, matrices(step + 1), strict=True):
                p.grad = x.clone()
            optimizer.step()
    for a, b, x in zip(ours, theirs, start, strict=True):
        moved = (b - x).norm()
        assert (a - b).norm() < 0.03 * moved
        assert moved > 0.01
    assert [*mine.state_dict()["state"][0]] == [*its.state_dict()["state"][0]]  # checkpoints of either fit the other


def test_parameters_without_a_gradient_stay():
    p = torch.nn.Parameter(torch.ones(2, 3))
    muon.Muon([p], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(p, torch.ones(2, 3))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_the_iteration_runs_in_the_type_that_it_is_given(products, monkeypatch):
    used = set()
    for name in ("by_gram", "by_quintic"):
        method = getattr(muon, name)
        monkeypatch.setattr(muon, name, lambda x, method=method: (used.add(str(x.dtype)), method(x))[1])
    directions = muon.orthogonalise(matrices(0), products)
    assert used == {f"torch.{products}"}
    for x, direction in zip(matrices(0), directions, strict=True):
        torch.testing.assert_close(direction.double(), by_svd(x), atol=0.05, rtol=0)
