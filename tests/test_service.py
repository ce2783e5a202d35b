"""What MLflow's scoring server answers for a model, in this process."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cftime
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from fastapi.testclient import TestClient
from mlflow.models import Model
from test_registry import make_bundle  # imports mlflow.pyfunc without its warnings

from diffats import answers, bundle
from diffats.errors import InputError, TimeLimitError
from diffats.registry.models import save_pyfunc
from diffats.registry.pyfunc import GenerativeModel, requested

SERVED = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    save_pyfunc(make_bundle(place / "bundle"), place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def direct(folder: Path) -> bundle.Bundle:
    return bundle.load(folder / "artifacts" / "bundle")


@pytest.fixture
def model(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder))


@pytest.fixture
def client(model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv(SERVED, "true")  # as init does, which does not take it back
    return server(model)


def server(model: mlflow.pyfunc.PyFuncModel) -> TestClient:
    from mlflow.pyfunc import scoring_server

    return TestClient(scoring_server.init(model))


def ask(client: TestClient, **body: Any) -> Any:
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def opened(answer: Any) -> xr.Dataset:
    return xr.decode_cf(xr.Dataset.from_dict(answer))


REQUESTS: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "count": ({"inputs": 2}, 2, {}),
    "records": ({"dataframe_records": [{"label": "Woods"}, {"label": "Corn"}]}, 2, {"label": ["Woods", "Corn"]}),
    "scalars": ({"dataframe_records": [{"nu": 1.5, "count": 2}]}, 2, {"nu": 1.5}),
    "split": ({"dataframe_split": {"columns": ["nu"], "data": [[1.5], [2.0]]}}, 2, {"nu": [1.5, 2.0]}),
    "columns": ({"inputs": {"label": ["Woods"], "count": [2]}}, 2, {"label": "Woods"}),
    "one value": ({"inputs": {"label": "Woods", "nu": 2}}, 1, {"label": "Woods", "nu": 2}),
    "list of records": ({"inputs": [{"label": "Woods"}, {"label": "Corn"}]}, 2, {"label": ["Woods", "Corn"]}),
    "instances": ({"instances": [{"label": "Woods", "nu": 1.5}]}, 1, {"label": "Woods", "nu": 1.5}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_obvious_requests_are_answered_as_sample_does(name: str, client: TestClient, direct: bundle.Bundle) -> None:
    body, count, conditions = REQUESTS[name]
    got = opened(ask(client, **body, params={"seed": 3}))
    expected = direct.sample(count, 3, conditions=conditions or None)
    assert got["t"].values.astype("f4").tobytes() == expected["t"].values.astype("f4").tobytes()
    assert got["t"].attrs["units"] == "K"
    assert got["x"].attrs["units"] == "m"
    assert got["t"].dims == ("sample", "y", "x")
    assert got["condition_label"].values.tolist() == expected["condition_label"].values.tolist()


@pytest.mark.parametrize("output", ["netcdf", "zarr"])
def test_large_fields_come_as_files(output: str, client: TestClient, direct: bundle.Bundle, tmp_path: Path) -> None:
    answer = ask(client, inputs=2, params={"output": output})
    assert answer.keys() == {"format", "encoding", "data"}
    content = base64.b64decode(answer["data"], validate=True)
    if output == "netcdf":
        got = xr.load_dataset(io.BytesIO(content), engine="h5netcdf")
    else:
        zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
        got = xr.open_zarr(tmp_path, chunks=None).load()
    xr.testing.assert_equal(got["t"], direct.sample(2)["t"])
    assert got["t"].attrs["units"] == "K"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no count": ({"inputs": 0}, "not a positive whole number"),
    "too many": ({"inputs": 1025}, "at most 1024 a call"),
    "condition": ({"inputs": {"lable": ["Corn"]}}, 'unknown condition "lable"'),
    "label": ({"dataframe_records": [{"label": "Corm"}]}, 'label "Corm" is unknown'),
    "gap": ({"inputs": [{"label": "Corn"}, {"nu": 1.0}]}, "record 1 and the first do not both have"),
    "ragged": ({"inputs": {"nu": [[1], [1, 2]]}}, ""),
    "output": ({"inputs": 1, "params": {"output": "csv"}}, 'output "csv" is unknown'),
    "python's": ({"inputs": 1, "params": {"output": "xarray"}}, 'output "xarray" is unknown'),
    "steps": ({"inputs": 1, "params": {"steps": 10**9}}, "steps"),
    "described": ({"inputs": {"nu": {"dims": ["x"], "data": [[1]]}}}, 'condition "nu"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_get_400_and_one_line(name: str, client: TestClient) -> None:
    body, message = WRONG[name]
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 400
    told = answer.json()["message"]
    assert message in told
    if message:  # else MLflow refuses it before the model sees it
        assert "\n" not in told
        assert len(told) < 500


def test_an_answer_that_would_be_too_large_names_the_smaller_form(folder: Path, monkeypatch: Any) -> None:
    small = mlflow.pyfunc.load_model(str(folder), model_config={"max_answer_bytes": 1000})
    assert small.predict(2).sizes["sample"] == 2  # in Python nothing is sent
    monkeypatch.setenv(SERVED, "true")
    answer = server(small).post("/invocations", json={"inputs": 2})
    assert answer.status_code == 400
    assert 'params {"output": "netcdf"} takes less' in answer.json()["message"]


def test_time_is_limited(client: TestClient, model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    answer = client.post("/invocations", json={"inputs": 1})
    assert (answer.status_code, answer.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
    assert "0 of 1 samples were done. Ask for fewer samples or steps." in answer.json()["message"]
    with model.unwrap_python_model().turn:
        busy = client.post("/invocations", json={"inputs": 1})
    assert busy.status_code == 503
    assert busy.json()["message"].endswith("Ask again.")


def test_sample_gives_up_in_python_too(direct: bundle.Bundle) -> None:
    assert direct.sample(1, max_seconds=600).sizes["sample"] == 1
    with pytest.raises(TimeLimitError):
        direct.sample(1, max_seconds=0)


def test_two_at_once_are_both_right(client: TestClient, direct: bundle.Bundle) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda seed: ask(client, inputs=3, params={"seed": seed}), (1, 2)))
    for seed, answer in zip((1, 2), both, strict=True):
        assert opened(answer)["t"].values.astype("f4").tobytes() == direct.sample(3, seed)["t"].values.tobytes()
    assert torch.get_num_threads() >= 1


def test_the_input_example_is_answered(folder: Path, client: TestClient) -> None:
    described = Model.load(folder)
    body = json.loads((folder / described.saved_input_example_info["serving_input_path"]).read_text())
    assert opened(ask(client, **body)).sizes["sample"] == 2
    assert described.signature.inputs is None  # with a schema MLflow would refuse a plain count


def test_outside_of_a_server_the_answer_is_a_dataset(model: mlflow.pyfunc.PyFuncModel) -> None:
    assert isinstance(model.predict(1), xr.Dataset)
    assert model.predict(1, params={"output": "json"})["dims"] == {"sample": 1, "y": 6, "x": 5}
    with pytest.raises(InputError, match="unknown condition"):
        model.predict({"lable": ["Corn"]})


def test_an_initial_state_is_one_for_all_or_one_a_row() -> None:
    state = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    count, one = requested({"initial": np.array(state), "count": np.array(3)}, 10, {"initial": 2})
    assert (count, one["initial"].shape) == (3, (3, 2, 3))
    count, rows = requested(pd.DataFrame({"initial": [state, state]}), 10, {"initial": 2})
    assert (count, rows["initial"].shape) == (2, (2, 2, 3))
    described = xr.DataArray(state, dims=("y", "x"), attrs={"units": "K"}).to_dict()
    count, fields = requested({"initial": np.array(described), "count": np.array(2)}, 10, {"initial": 2})
    assert count == 2
    assert fields["initial"].attrs == {"units": "K"}


def test_times_and_gaps_survive_json() -> None:
    times = [cftime.Datetime360Day(2000, 2, 30), cftime.Datetime360Day(2000, 3, 1)]
    fields = xr.Dataset(
        {"t": (("time", "lead"), np.array([[1.0, np.nan], [2.0, 3.0]], "f4"))},
        {"time": times, "lead": np.array([0, 6], "timedelta64[h]").astype("timedelta64[ns]")},
    )
    answer = json.loads(json.dumps(answers.as_json(fields), allow_nan=False))
    assert answer["data_vars"]["t"]["data"] == [[1.0, None], [2.0, 3.0]]
    got = xr.decode_cf(xr.Dataset.from_dict(answer), decode_timedelta=True)
    assert got["time"].values.tolist() == times
    assert (got["lead"].values == fields["lead"].values).all()


def test_a_model_opens_without_mlflow_s_folder(folder: Path) -> None:
    served = GenerativeModel()
    served.open(folder / "artifacts" / "bundle")
    assert served.generate(1, served=True)["dims"]["sample"] == 1
