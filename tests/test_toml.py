"""What is written as TOML is what TOML reads."""

from __future__ import annotations

import math
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from diffats.toml import toml

SINGLE = st.one_of(st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))
VALUES = st.recursive(SINGLE, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)), max_leaves=6)


@given(st.dictionaries(st.text(), VALUES))
@settings(max_examples=60)
def test_it_reads_back(tree: dict[str, object]) -> None:
    assert tomllib.loads(toml(tree)) == tree


def test_nothing_has_no_value_and_not_a_number_has() -> None:
    assert tomllib.loads(toml({"a": None, "b": {"c": None, "d": {"e": None}}})) == {"b": {"d": {}}}
    assert math.isnan(tomllib.loads(toml({"a": math.nan}))["a"])
