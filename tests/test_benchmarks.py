"""The benchmarks run, and what they claim besides time holds: sizes of seconds, nothing that is timed is asserted."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest

from benchmarks import common, encode, medoid, pipeline


def run(benchmark, folder, capsys):
    benchmark.main(["--quick", "--folder", str(folder)])
    name = benchmark.__name__.split(".")[-1]
    found = json.loads((folder / f"{name}.json").read_text())
    text = (folder / f"{name}.md").read_text()
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert found["machine"]["cpu"] in text
    assert str(folder) not in json.dumps(found) + text
    assert text.splitlines()[0] in capsys.readouterr().out
    return found


def test_the_pipeline_is_measured_part_by_part(tmp_path, capsys):
    found = run(pipeline, tmp_path, capsys)
    rows = [*found["main"], *found["codecs"]]
    assert [row["codec"] for row in rows] == [pipeline.MAIN, pipeline.NETCDF]
    for row in rows:
        assert set(row["alone_s"]) == set(pipeline.PARTS)
        assert row["sum_s"] == pytest.approx(sum(row["alone_s"].values()))
        assert row["wall_s"] == pytest.approx(sum(row["stages_s"].values()))
        assert 1 < row["samples_read_per_sample"] <= 2  # once for the mean, once to decompose
    assert [row["workers"] for row in found["workers"]] == [1]
    assert [row["shards"] for row in found["tiny"]] == [8]
    assert found["memory"]["samples"] == [4, 64]
    assert found["memory"]["peaks"]["16N"]["worker"] >= found["memory"]["peaks"]["N"]["worker"]
    growth = found["growth"]
    assert set(growth["slopes"]) == {"seconds_per_shard", "bookkeeping_s_per_shard", "seconds_per_commit"}
    assert growth["marks"][-1]["done"] == growth["shards"]
    assert max(mark["tasks"] for mark in growth["marks"]) <= growth["in_flight"] + 1


def test_the_streamed_medoid_is_that_of_brute_force_and_of_all_pairs(tmp_path, capsys):
    found = run(medoid, tmp_path, capsys)
    assert found["exact"]["equal"]
    assert found["exact"]["largest_relative_difference"] < 1e-9
    assert [row["samples"] for row in found["streamed"]] == list(medoid.QUICK.samples)
    assert all(row["bound_s"] > 0 and row["peak_bytes"] > row["work_bytes"] for row in found["streamed"])
    assert [row["samples"] for row in found["pairwise"]] == list(medoid.QUICK.pairwise)


def test_fasterpam_and_the_stream_choose_the_same_sample(tmp_path):
    size = medoid.QUICK
    medoid.make(medoid.recipe_of(tmp_path), 200, size)
    index = medoid.stream(tmp_path, size)["index"]
    assert medoid.pairwise(tmp_path, 188)["index"] == index  # 188 of 200 are for training


def test_memory_is_that_of_a_new_process():
    held = np.ones(2**24)  # 128 MiB, of this process alone
    assert common.peak_bytes() > held.nbytes
    assert common.in_process(common.peak_bytes) < common.peak_bytes() - held.nbytes / 2


def test_examples_of_the_shared_parts_hold():
    assert doctest.testmod(common).failed == 0


def test_the_kernels_lose_no_more_than_others(tmp_path, capsys):
    found = run(encode, tmp_path, capsys)
    names = {case.name for case in encode.QUICK}
    assert {row["case"] for row in found["cases"]} == names
    for row in found["cases"]:
        assert set(row["libraries"]) == {"diffats", *encode.PEERS}
        # ST-HOSVD and the best rank of a small rough field; the full run is the comparison that counts
        assert row["error_over_best_tensorly"] < 1.02
        assert row["libraries"]["diffats"]["error"] == pytest.approx(
            row["libraries"]["numpy.linalg.svd"]["error"], rel=0.02
        )
    assert {row["part"] for row in found["parts"]} == {"Procrustes", "merging a mode", "decoding"}
    assert all(row["chosen_over_fastest"] >= 1 for row in found["orders"])


def test_operations_are_counted_as_by_hand():
    flops, numbers = encode.operations((10, 8, 6), (3, None, 2), (0, 2))
    assert flops == 480 * 10 + 2 * 3 * 480 + 9 * 10**3 + 144 * 6 + 2 * 2 * 144 + 9 * 6**3
    assert numbers == 2 * 480 + 144 + 2 * 144 + 48
