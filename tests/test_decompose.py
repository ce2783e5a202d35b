"""A sample on which the decomposition does not converge is recorded and left out, its neighbours are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from tiny_runs import PRIMITIVES, run, small_recipe, waves

from diffats.primitives import Layout
from diffats.stages import Workspace, decompose
from diffats.store import STATUS


def test_a_sample_without_convergence_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = waves(21, 8, 6)
    x[4, 0, 0] = 77.0  # by this the failing sample is recognised
    xr.Dataset({"u": (("run", "y", "x"), x)}).to_netcdf(tmp_path / "u.nc")
    data = {"source": str(tmp_path / "u.nc"), "modes": ["y", "x"], "sample_dim": "run"}
    data |= {"center": "none", "scale": "none"}
    real = decompose.decompose

    def fails_on_one(fields: Any, layout: Layout, method: str = "sthosvd") -> Any:
        if (fields[:, 0, 0] == 77.0).any():
            raise np.linalg.LinAlgError("SVD did not converge")
        return real(fields, layout, method)

    ranks = {"decompose": {"ranks": {"y": 3, "x": 3}}}
    unbroken = small_recipe(tmp_path / "unbroken", data, **ranks)
    run(unbroken, PRIMITIVES[:1])
    monkeypatch.setattr(decompose, "decompose", fails_on_one)
    broken = small_recipe(tmp_path / "broken", data, **ranks)
    made = run(broken, PRIMITIVES)
    assert made["decompose"].failed == 1

    def stored(recipe: Any) -> xr.Dataset:
        version = decompose.tucker_version(Workspace(recipe))
        assert version is not None
        return version.dataset().load()

    before, after = stored(unbroken), stored(broken)
    assert np.flatnonzero(after["status"] != STATUS["ok"]).tolist() == [4]
    assert after["status"][4] == STATUS["not_converged"]
    others = [i for i in range(21) if i != 4]
    for name in ("core", "factor_y", "relative_error"):
        np.testing.assert_allclose(after[name][others], before[name][others], rtol=1e-6, atol=1e-9)
    assert not after["core"][4].any()


def test_a_shard_of_test_samples_alone_is_no_exception(tmp_path: Path) -> None:
    """The pass for the training mean finds nothing in it."""
    dataset = xr.Dataset({"u": (("run", "y", "x"), waves(24, 8, 6))}, {"run": np.arange(24)})
    dataset.to_netcdf(tmp_path / "u.nc")
    data = {"source": str(tmp_path / "u.nc"), "modes": ["y", "x"], "sample_dim": "run"}
    data["split"] = {"by": "coordinate", "coordinate": "run", "test": 0.25}
    recipe = small_recipe(tmp_path / "root", data, decompose={"ranks": {"y": 3, "x": 3}}, compute={"shard_samples": 3})
    assert run(recipe, PRIMITIVES)["align"].failed == 0
