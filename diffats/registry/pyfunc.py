"""The registered model. MLflow keeps a copy of this file beside the bundle and runs it to load the model.

Nothing is pickled; a process that loads the model needs ``diffats`` installed, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from diffats import bundle
from diffats.errors import InputError

Columns = dict[str, npt.NDArray[Any]]
Conditions = dict[str, Any]  # columns, and xarray objects
ITEM_BYTES = 8  # of a number of a decoded field, at most


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
        self.bundle = bundle.load(context.artifacts["bundle"])
        self.max_count = int(context.model_config["max_count"])
        self.max_bytes = int(context.model_config["max_bytes"])

    # MLflow checks the hint and knows no unions; what is accepted is in the docstring.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Generate fields.

        Parameters
        ----------
        model_input
            A count; or a table (data frame or mapping of columns) with a row per sample: a column per condition
            ("label" by name or code, scalars and fields by name, "initial"; a mapping may hold arrays whose first axis
            is the row, and xarray objects, which are no columns but as `Bundle.sample` takes them) and, if a row stands
            for several samples, a column "count". Conditions without a column are drawn from the training data.
        params
            "seed": sample ``i`` depends on it and ``i`` only; "steps", "guidance", "impose", "max_extrapolation": as in
            the recipe where left out, see `Bundle.sample`; "output": "xarray", or "arrays" for a server that answers in
            JSON. A condition outside of the range of training is logged as a warning.

        Returns
        -------
        xr.Dataset or dict of arrays
            Decoded variables in physical units over ``sample`` and the recipe's modes, with coordinates; as arrays:
            every variable and coordinate by name.

        Raises
        ------
        InputError
            For a table that cannot be read, an unknown condition or setting, or more samples or bytes than the model's
            limits ``max_count`` and ``max_bytes``, which are in its ``model_config``.
        """
        settings = dict(params or {})
        output = settings.pop("output", "xarray")
        if output not in ("xarray", "arrays"):
            raise InputError(f'output "{output}" is unknown. Use "xarray" or "arrays".')
        unknown = settings.keys() - {"seed", "steps", "guidance", "impose", "max_extrapolation"}
        if unknown:
            known = "seed, steps, guidance, impose, max_extrapolation or output"
            raise InputError(f'parameter "{min(unknown)}" is unknown. Use {known}.')
        count, conditions = requested(model_input, self.max_count)
        size = count * self.bundle.layout.raw_numbers * ITEM_BYTES
        if size > self.max_bytes:
            raise InputError(
                f"{count} samples take {size} bytes, at most {self.max_bytes} a call. Ask in parts with other seeds, "
                f'or load the model with model_config={{"max_bytes": {size}}}.'
            )
        fields = self.bundle.sample(count, settings.pop("seed", 0), conditions=conditions or None, **settings)
        return fields if output == "xarray" else as_arrays(fields)


def requested(model_input: object, limit: int = 1024) -> tuple[int, Conditions]:
    """How many samples, at most ``limit``, and the conditions of each, in what a caller passed.

    >>> requested(3)
    (3, {})
    >>> requested({"count": [2, 1], "label": ["Corn", "Woods"]})
    (3, {'label': array(['Corn', 'Corn', 'Woods'], dtype=object)})
    """
    if isinstance(model_input, pd.DataFrame | Mapping):
        fields = {str(n): x for n in model_input if isinstance(x := model_input[n], xr.DataArray | xr.Dataset)}
        plain = {str(n): _column(str(n), model_input[n]) for n in model_input if str(n) not in fields}
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


def _column(name: str, values: Any) -> npt.NDArray[Any]:
    try:
        return np.atleast_1d(np.asarray(values))
    except ValueError as error:
        raise InputError(f'column "{name}" is no array: {error}. Give arrays of one shape.') from error


def _whole(value: Any) -> int:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)  # JSON and data frames with gaps turn counts into floats
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"count {value} is not a positive whole number. Use 1 or more.")
    return int(value)


def as_arrays(fields: xr.Dataset) -> Columns:
    """Every variable and coordinate by name.

    >>> as_arrays(xr.Dataset({"t": ("sample", [1.0, 2.0])}))
    {'t': array([1., 2.])}
    """
    return {str(name): variable.to_numpy() for name, variable in fields.variables.items()}


set_model(GenerativeModel())
