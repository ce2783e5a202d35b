"""Patches: a round trip, and einops as oracle."""

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from diffats.errors import InputError
from diffats.patches import from_patches, patch_counts, to_patches


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3))
def test_there_and_back(pairs):
    patch = [length for _, length in pairs]
    sizes = [count * length for count, length in pairs]
    x = np.random.default_rng(0).normal(size=(2, *sizes)).astype(np.float32)
    cut = to_patches(x, patch)
    assert cut.shape == (2, np.prod(patch_counts(sizes, patch)), np.prod(patch))
    np.testing.assert_array_equal(from_patches(cut, sizes, patch), x)
    on_torch = to_patches(torch.from_numpy(x), patch)
    np.testing.assert_array_equal(on_torch.numpy(), cut)
    np.testing.assert_array_equal(from_patches(on_torch, sizes, patch).numpy(), x)


def test_order_is_einops():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6))
    np.testing.assert_array_equal(to_patches(x, (2, 3)), rearrange(x, "b c (h p) (w q) -> b c (h w) (p q)", p=2, q=3))


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="patch 4 does not divide the size 6 of axis 1"):
        to_patches(np.ones((8, 6)), (4, 4))
