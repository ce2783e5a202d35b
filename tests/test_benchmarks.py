"""The benchmarks run, and what they claim besides time holds: sizes of seconds, nothing that is timed is asserted."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import common, encode, gpu_check, medoid, pipeline, training
from benchmarks.gpu_run import NOT_RUN, SIZES, Run


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


def test_a_training_step_is_measured_by_part_beside_its_bound(tmp_path, capsys):
    found = run(training, tmp_path, capsys)
    (network,) = found["networks"]
    assert {row["busy"] for row in network["rows"]} == {0, training.BUSY}
    assert all(min(row["parts_s"].values()) > 0 for row in network["rows"])
    assert all(row["network_bound_s"] > 0 for row in network["rows"] if not row["busy"])
    assert [row["how"] for row in network["others"]] == ["as it is", "AdamW alone", "torch.optim.Muon"]


def test_products_of_a_step_are_those_of_the_network():
    """A linear layer without an input's gradient has two: the output, and the weight's gradient."""
    layer, x = torch.nn.Linear(5, 3), torch.ones(7, 5)
    assert training.products(lambda: layer(x).sum().backward()) == {((7, 5), (5, 3)): 1, ((3, 7), (7, 5)): 1}


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


@pytest.mark.parametrize("name", gpu_check.PARTS)
def test_each_part_of_the_gpu_check_runs_on_the_cpu_and_what_it_compares_holds(name, tmp_path):
    rows = json.loads(json.dumps(list(gpu_check.PARTS[name].rows(Run(torch.device("cpu"), SIZES["tiny"], tmp_path)))))
    assert all(row.get("holds", True) for row in rows)
    assert any("holds" in row for row in rows) == (name in ("kernels", "networks", "resume", "training"))
    expected = {NOT_RUN} if name in ("device", "training", "sampling", "graphs") else set()
    expected = {"it takes minutes on a CPU"} if name == "compile" else expected
    assert {row["not_run"] for row in rows if "not_run" in row} == expected


def test_a_part_that_is_stopped_leaves_the_others_what_they_found():
    written = []
    found = gpu_check.check(
        "cpu", "tiny", lambda now: written.append(json.dumps(now)), {"kernels": 0.1, "device": 300.0}
    )
    assert [entry["state"] for entry in found["parts"].values()] == ["stopped after 0.1 s", "done"]
    assert found["parts"]["kernels"]["rows"] == []
    assert len(written) == len(found["parts"]["device"]["rows"]) + 2  # after every row, and after every part
    assert gpu_check.failures(found) == ["Kernels against the CPU in float64: stopped after 0.1 s"]
    text = gpu_check.page(found)
    assert "no GPU was there" in text
    assert common.processor_features() in text
    assert "Not run:\n\n- The device (no CUDA device): TF32" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="the part would not fail")
def test_a_part_that_fails_is_reported_with_its_error_and_without_places():
    found = gpu_check.check("cuda", "tiny", lambda now: None, {"device": 300.0})
    assert found["parts"]["device"]["state"] == "failed, exit code 2"
    text = gpu_check.page(found)
    assert "no CUDA device is available here" in text
    assert str(Path(__file__).parents[1]) not in text


def test_what_does_not_hold_is_a_failure():
    row = {"what": "decode", "case": "2x3", "dtype": "float32", "difference": 0.5, "bound": 0.1, "holds": False}
    found = {"device": "cpu", "processor": "", "parts": {"kernels": {"state": "done", "rows": [row]}}}
    assert gpu_check.failures(found) == [
        "Kernels against the CPU in float64: not equal: decode, 2x3, float32 (difference 5.0e-01)"
    ]
    assert "**NO**" in gpu_check.page(found)


@pytest.mark.slow
def test_the_gpu_check_runs_from_beginning_to_end_on_the_cpu(tmp_path, capsys):
    assert gpu_check.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    text = (tmp_path / "gpu_check.md").read_text()
    assert {entry["state"] for entry in found["parts"].values()} == {"done"}
    assert "All parts ran to their end, and what is compared holds." in text
    assert text.splitlines()[0] in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(found) + text
