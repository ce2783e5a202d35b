"""The registered model. MLflow keeps a copy of this file beside the bundle and runs it to load the model.

Nothing is pickled; a process that loads the model needs ``diffats`` installed, nothing else.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT, MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from diffats import answers, bundle
from diffats.errors import InputError, TimeLimitError

Columns = dict[str, npt.NDArray[Any]]
Conditions = dict[str, Any]  # columns, and xarray objects
ITEM_BYTES = 8  # of a number of a decoded field, at most
# Samples a call and bytes of theirs, and bytes of a service's answer. Who loads a model may raise them (model_config).
LIMITS = {"max_count": 1024, "max_bytes": 2**31, "max_answer_bytes": 2**27}
SETTINGS = ("seed", "steps", "guidance", "impose", "max_extrapolation")
SHARE_OF_TIMEOUT = 0.9  # of the server's own time limit, whose answer says less


class Refusal(MlflowException):
    """What a server answers in place of fields: one line, and the HTTP status of its code.

    MLflow's server writes the whole request before a message; the line here stays as it is.
    """

    def __init__(self, line: str, error_code: int) -> None:
        super().__init__(line, error_code)
        self.line = line

    def serialize_as_json(self) -> str:
        """The body of the answer."""
        return json.dumps({"error_code": self.error_code, "message": self.line})


class GenerativeModel(PythonModel):
    """Fields from a count or from a table of conditions.

    Examples
    --------
    Given a registered model:

    .. code-block:: python

        model = mlflow.pyfunc.load_model("models:/indian-pines@champion")
        model.predict(8)                                            # eight fields
        model.predict(pd.DataFrame({"count": [3, 2], "label": ["Corn", "Woods"]}), params={"seed": 1})
        model.predict(pd.DataFrame({"nu": [0.01, 0.02, 0.05]}))     # one field a row
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle that lies beside this file."""
        self.open(context.artifacts["bundle"], context.model_config)

    def open(self, directory: str | Path, limits: Mapping[str, Any] | None = None) -> None:
        """Open a bundle; limits that are left out are those of ``LIMITS``."""
        self.bundle = bundle.load(directory)
        self.limits = {name: int((limits or {}).get(name, limit)) for name, limit in LIMITS.items()}
        self.turn = threading.Lock()

    # MLflow checks the hint and knows no unions; what is accepted is in the docstring.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Generate fields.

        Parameters
        ----------
        model_input
            A count; or a table (data frame, mapping of columns, or list of records) with a row per sample: a column per
            condition ("label" by name or code, scalars and fields by name, "initial") and, if a row stands for several
            samples, a column "count". A mapping may hold arrays whose first axis is the row, or one field for all rows,
            and xarray objects (also as their ``to_dict`` in JSON), which are no columns but as `Bundle.sample` takes
            them. Conditions without a column are drawn from the training data.
        params
            "seed": sample ``i`` depends on it and ``i`` only; "steps", "guidance", "impose", "max_extrapolation": as in
            the recipe where left out, see `Bundle.sample`; "output": "xarray", "json", "arrays", "netcdf" or "zarr",
            see `diffats.answers`; where left out, "json" of a server and "xarray" elsewhere. A condition outside of the
            range of training is logged as a warning.

        Returns
        -------
        xr.Dataset or dict
            Decoded variables in physical units over ``sample`` and the recipe's modes, with coordinates.

        Raises
        ------
        InputError
            For a table that cannot be read, an unknown condition or setting, or more samples or bytes than the model's
            limits, which are in its ``model_config``. A server answers with 400 and the message, and with 503 or 504
            where there was not the time.
        """
        if not _MLFLOW_IS_IN_SERVING_ENVIRONMENT.get():  # type: ignore[no-untyped-call]
            return self.generate(model_input, params)
        seconds = SHARE_OF_TIMEOUT * MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get()  # type: ignore[no-untyped-call]
        with refusals(), self.turn_within(seconds) as left:
            return self.generate(model_input, params, served=True, max_seconds=left)

    @contextmanager
    def turn_within(self, seconds: float) -> Iterator[float]:
        """One request at a time, as each takes all cores and its memory; gives the seconds that are left of these."""
        started = time.monotonic()
        if not self.turn.acquire(timeout=seconds):
            raise Refusal(f"other requests took all of {seconds:g} s. Ask again.", TEMPORARILY_UNAVAILABLE)
        try:
            yield seconds - (time.monotonic() - started)
        finally:
            self.turn.release()

    def generate(
        self,
        model_input: object,
        params: Mapping[str, Any] | None = None,
        *,
        served: bool = False,
        max_seconds: float | None = None,
    ) -> Any:
        """See :meth:`predict`."""
        settings = {name: value for name, value in (params or {}).items() if value is not None}
        output = settings.pop("output", "json" if served else "xarray")
        allowed = [name for name in answers.FORMATS if not (served and name == "xarray")]
        if output not in allowed:
            raise InputError(f'output "{str(output)[:40]}" is unknown. Use {" or ".join(allowed)}.')
        unknown = settings.keys() - set(SETTINGS)
        if unknown:
            raise InputError(f'parameter "{min(unknown)[:40]}" is unknown. Use {", ".join(SETTINGS)} or output.')
        count, conditions = requested(model_input, self.limits["max_count"], self.axes)
        self.check_size(count, output, served)
        seed = settings.pop("seed", 0)
        fields = self.bundle.sample(count, seed, conditions=conditions or None, max_seconds=max_seconds, **settings)
        return answers.FORMATS[output].write(fields)

    @property
    def axes(self) -> dict[str, int]:
        """How many axes the conditions of one sample have that are fields."""
        known = {name: value.ndim - 1 for name, value in self.bundle.examples.items() if not name.startswith("phase_")}
        return {bundle.public_name(name): axes for name, axes in known.items() if axes}

    def check_size(self, count: int, output: str, served: bool) -> None:
        """Refuse more than the model's limits before anything is generated."""
        numbers, limits = count * self.bundle.layout.raw_numbers, self.limits
        fix = 'Ask in parts with other seeds, or load the model with model_config={{"{}": {}}}.'
        size = numbers * ITEM_BYTES
        if size > limits["max_bytes"]:
            text = f"{count} samples take {size} bytes, at most {limits['max_bytes']} a call. "
            raise InputError(text + fix.format("max_bytes", size))
        size = numbers * answers.FORMATS[output].bytes_a_number
        if served and size > limits["max_answer_bytes"]:
            text = f"{count} samples take {size} bytes as {output}, at most {limits['max_answer_bytes']} an answer. "
            smaller = 'params {"output": "netcdf"} takes less. ' if output in ("json", "arrays") else ""
            raise InputError(text + smaller + fix.format("max_answer_bytes", size))


@contextmanager
def refusals() -> Iterator[None]:
    """What our errors are in an answer of a server."""
    try:
        yield
    except InputError as error:
        raise Refusal(" ".join(str(error).split()), INVALID_PARAMETER_VALUE) from error
    except TimeLimitError as error:
        raise Refusal(str(error), DEADLINE_EXCEEDED) from error


def requested(model_input: object, limit: int = 1024, axes: Mapping[str, int] | None = None) -> tuple[int, Conditions]:
    """How many samples, at most ``limit``, and the conditions of each, in what a caller passed.

    ``axes`` says how many axes a condition of one sample has, by its name; none where it is left out.

    >>> requested(3)
    (3, {})
    >>> requested({"count": [2, 1], "label": ["Corn", "Woods"]})
    (3, {'label': array(['Corn', 'Corn', 'Woods'], dtype=object)})
    """
    if isinstance(model_input, list) and model_input and all(isinstance(row, Mapping) for row in model_input):
        model_input = _from_records(model_input)
    if isinstance(model_input, pd.DataFrame | Mapping):
        given = {str(name): _field(str(name), model_input[name]) for name in model_input}
        fields = {name: value for name, value in given.items() if isinstance(value, xr.DataArray | xr.Dataset)}
        plain = {n: _column(n, value, (axes or {}).get(n)) for n, value in given.items() if n not in fields}
        count, columns = _from_table(plain or ({"count": np.ones(1, int)} if fields else {}), limit)
        return count, columns | fields
    values = _column("count", model_input)
    if values.size != 1:
        raise InputError(
            f"expected a count, a data frame or a mapping of columns, got {type(model_input).__name__} of {values.size}"
            " values. "
            'Use predict(8) or predict(pd.DataFrame({"count": [8]})).'
        )
    return _within(_whole(values.ravel()[0]), limit), {}


def _within(count: int, limit: int) -> int:
    """A count that is not above the limit."""
    if count > limit:
        told = count if count < 10**12 else "over 10^12"
        raise InputError(
            f"{told} samples asked for, at most {limit} a call. Ask in parts with other seeds, "
            f'or load the model with model_config={{"max_count": {told}}}.'
        )
    return count


def _from_table(columns: Columns, limit: int) -> tuple[int, Columns]:
    lengths = {name: len(column) for name, column in columns.items()}
    rows = max(lengths.values(), default=0)
    for name, length in lengths.items():
        if length not in (1, rows):
            raise InputError(f'column "{name}" has {length} rows, others {rows}. Give one row per sample.')
    if not rows:
        raise InputError('the table has no rows. Give one row per sample, or a column "count".')
    _within(rows, limit)  # before anything is repeated
    texts = {name: column.astype(object) if column.dtype.kind in "UT" else column for name, column in columns.items()}
    whole = {name: np.repeat(column, rows // len(column), axis=0) for name, column in texts.items()}
    counts = [_whole(value) for value in whole.pop("count", np.ones(rows, int))]
    return _within(sum(counts), limit), {name: np.repeat(column, counts, axis=0) for name, column in whole.items()}


def _from_records(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            name = min(map(str, row.keys() ^ rows[0].keys()))
            raise InputError(f'record {number} and the first do not both have "{name}". Give it in all.')
    return {str(name): [row[name] for row in rows] for name in rows[0]}


def _field(name: str, value: Any) -> Any:
    """An xarray object where JSON holds what its ``to_dict`` gives; other values as they are."""
    inner = value.item() if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 0 else value
    if not isinstance(inner, Mapping):
        return value
    try:
        return (xr.Dataset if "data_vars" in inner else xr.DataArray).from_dict(dict(inner))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f'condition "{name}" is no array: {error}. Give nested lists, or what xarray\'s to_dict gives.'
        ) from error


def _column(name: str, values: Any, axes: int | None = None) -> npt.NDArray[Any]:
    """Values whose first axis is the row; a field of so many ``axes`` is one row."""
    try:
        column = np.atleast_1d(np.asarray(values))
        if column.dtype == object and isinstance(column.flat[0] if column.size else None, list):
            column = np.array(column.tolist())  # cells of a data frame that hold nested lists
    except ValueError as error:
        raise InputError(f'column "{name}" is no array: {error}. Give arrays of one shape.') from error
    return column[None] if column.ndim == axes else column


def _whole(value: Any) -> int:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)  # JSON and data frames with gaps turn counts into floats
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"count {value} is not a positive whole number. Use 1 or more.")
    return int(value)


set_model(GenerativeModel())
