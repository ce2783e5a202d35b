"""What comes in that is bad or odd, and exactly what happens: the one table of it, run by ``test_bad_input.py``.

A row says what is given, how it is made, and the outcome:

works
    exit code 0; the stored primitives give back the source's numbers as plain NumPy has them.
warned
    the same, and a warning says what is odd.
left out
    exit code 3; some samples are bad, recorded by status, named in a warning, and in nothing that follows.
refused
    exit code 2 from ``plan`` and ``decompose``, one message, and nothing is made.
refused on reading
    exit code 2 from ``decompose``: only reading the values shows it.
failed
    exit code 1, one message; what was committed stays.

``python tests/bad_inputs.py`` prints the table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from tiny_recipe import RECIPE, waves, write_recipe

from diffats.store import STATUS, Store

Array = np.ndarray[Any, Any]
Make = Callable[[Path], "Array | None"]
WORKS, WARNED, LEFT_OUT, REFUSED, ON_READING, FAILED = (
    "works",
    "warned",
    "left out",
    "refused",
    "refused on reading",
    "failed",
)
CODES = {WORKS: 0, WARNED: 0, LEFT_OUT: 3, REFUSED: 2, ON_READING: 2, FAILED: 1}
#: Ranks that keep the tiny samples whole, so that the store must hold exactly what the source does.
WHOLE = "decompose.ranks={time=6,x=6}"


@dataclass(frozen=True)
class Row:
    """One input and its outcome.

    Attributes
    ----------
    what, how
        In words: what is bad, and how it is made.
    outcome, says
        One of the outcomes above; what its message holds, with ``{dir}`` for the input's folder.
    make
        Writes ``tiny.toml`` and data into a folder; returns the samples ``(n, ...)`` as NumPy cuts them, where they are
        to be compared.
    options
        Overrides of the recipe.
    bad
        By sample that is left out: its status.
    tolerance
        Of the comparison, relative to the largest value.
    meanwhile
        What happens to the source after its first read.
    locked
        What the user may not read, of the input's folder. The superuser may read all, so these rows are run by
        ``faults/test_faults_disk.py``, by a user who may not.
    """

    what: str
    how: str
    outcome: str
    says: str = ""
    make: Make | None = None
    options: tuple[str, ...] = ()
    bad: Mapping[int, str] = field(default_factory=dict)
    tolerance: float = 2e-6
    meanwhile: Callable[[Path], None] | None = None
    locked: str = ""


ROWS: dict[str, tuple[Row, ...]] = {}


def table() -> str:
    """All rows as Markdown."""
    lines = []
    for title, rows in ROWS.items():
        lines += [f"### {title}", "", "| input | made by | outcome | message |", "|---|---|---|---|"]
        for row in rows:
            says = f"`{_cell(row.says)}`" if row.says else ""
            lines.append(f"| {_cell(row.what)} | {_cell(row.how)} | {_outcome(row)} | {says} |")
        lines.append("")
    return "\n".join(lines)


def _outcome(row: Row) -> str:
    bad = ", ".join(f"{index}: {status}" for index, status in row.bad.items())
    return f"{row.outcome} (exit {CODES[row.outcome]}{'; ' + bad if bad else ''})"


def _cell(text: str) -> str:
    plain = text.replace("{dir}/", "").replace("{{", "{").replace("}}", "}")
    return plain.replace("|", "\\|").replace("\n", "\\n").replace("<", "&lt;").replace("`", "'")


def counts() -> dict[str, int]:
    """How many rows have each outcome."""
    every = [row.outcome for rows in ROWS.values() for row in rows]
    return {outcome: every.count(outcome) for outcome in CODES}


# --- how inputs are made ----------------------------------------------------------------------------------------


def changed(change: Callable[[xr.Dataset], xr.Dataset], **options: Any) -> Make:
    """The tiny data set, changed, as a NetCDF file."""

    def make(directory: Path) -> Array:
        data = change(waves())
        write(directory, lambda source: data.to_netcdf(source, engine="h5netcdf", **options))
        return np.asarray(data["u"].isel(level=0) if "level" in data.dims else data["u"])

    return make


def write(directory: Path, save: Callable[[Path], Any], source: str = "tiny.nc") -> None:
    """A source, and the tiny recipe that names it."""
    save(directory / source.replace("*", "0"))
    recipe = RECIPE.format(root=directory / "root", source=directory / source)
    (directory / "tiny.toml").write_text(recipe, encoding="utf-8")


def values(change: Callable[[Array], Array | None], dtype: str = "f4") -> Make:
    """The tiny data set with other numbers."""

    def edit(data: xr.Dataset) -> xr.Dataset:
        u = data["u"].values.astype(dtype)
        new = change(u)
        attrs = {} if new is not None and new.dtype.kind in "mM" else data["u"].attrs
        return data.assign(u=(data["u"].dims, u if new is None else new, attrs))

    return changed(edit)


def at(index: Any, value: Any, dtype: str = "f4") -> Make:
    """The tiny data set with some numbers replaced."""

    def put(u: Array) -> None:
        u[index] = value

    return values(put, dtype)


def content(name: str, damage: Callable[[bytes], bytes], save: Callable[[Path], Any]) -> Make:
    """A file whose bytes are damaged."""

    def make(directory: Path) -> None:
        write(directory, save, name)
        path = directory / name
        path.write_bytes(damage(path.read_bytes()))

    return make


def glob(*parts: Callable[[xr.Dataset], xr.Dataset], encodings: tuple[Any, ...] = ()) -> Make:
    """The tiny data set with a coordinate along ``sample``, in files of 12 samples, each changed."""

    def make(directory: Path) -> Array | None:
        whole = waves().assign_coords(sample=np.arange(24))
        changed = [part(whole.isel(sample=slice(12 * i, 12 * i + 12))) for i, part in enumerate(parts)]
        for i, data in enumerate(changed):
            encoding = encodings[i] if encodings else {}
            data.to_netcdf(directory / f"part{i}.nc", engine="h5netcdf", encoding=encoding)
        write(directory, lambda path: None, "part*.nc")
        if len({part["u"].shape[1:] if "u" in part else () for part in changed}) > 1:
            return None
        return np.concatenate([part["u"].values for part in changed], dtype="f8")

    return make


def recipe(content: bytes | str) -> Make:
    """A recipe file of this content."""

    def make(directory: Path) -> None:
        write_recipe(directory)
        path = directory / "tiny.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def same(data: xr.Dataset) -> xr.Dataset:
    """Nothing is changed."""
    return data


def good(directory: Path) -> None:
    """The tiny data set and recipe, with things beside them that are not data."""
    write_recipe(directory)
    (directory / "garbage.nc").write_bytes(b"this is no data at all")
    (directory / "nothing.nc").write_bytes(b"")
    (directory / "nothing.npy").write_bytes(b"")
    (directory / "empty.zarr").mkdir()


def set_on(what: str, options: str | tuple[str, ...], says: str, outcome: str = REFUSED) -> Row:
    """A row of overrides on good data."""
    given = (options,) if isinstance(options, str) else options
    return Row(what, " ".join(f"--set '{one}'" for one in given), outcome, says, None, given)


# --- whether what is stored is right ------------------------------------------------------------------------------


def check_store(location: Path, truth: Array, bad: Mapping[int, str], tolerance: float = 2e-6) -> None:
    """Hold stored Tucker forms, and primitives where there are, against the samples ``(n, ...)``, by plain NumPy."""
    store = Store.open(location)
    groups = {name: store.latest(name) for name in ("tucker", "primitives", "scaling", "anchor", "normalisation")}
    data = {name: version.dataset().load() for name, version in groups.items() if version is not None}
    status = data["tucker"]["status"].values
    meaning = {flag: name for name, flag in STATUS.items()}
    assert {int(i): meaning[int(status[i])] for i in np.flatnonzero(status != STATUS["ok"])} == dict(bad)
    good = np.flatnonzero(status == STATUS["ok"])
    check_finite(data, good)
    x = truth[good].astype("f8")
    scale, mean = (data["scaling"][name].values.astype("f8") for name in ("scale", "mean"))
    tucker = rebuilt(data["tucker"], good) * scale + mean
    aligned = rebuilt(data.get("primitives", data["tucker"]), good) * scale + mean
    if "mask" in data["scaling"]:
        mask = data["scaling"]["mask"].values
        assert (np.isnan(x) == mask).all()
        x, tucker, aligned = (np.where(mask, 0.0, part) for part in (x, tucker, aligned))
    largest = np.abs(x).max()
    assert np.abs(tucker - aligned).max() <= 1e-5 * largest
    if math.isfinite(tolerance):
        assert np.abs(tucker - x).max() <= tolerance * largest
    check_errors(data["tucker"], good, x, tucker, tolerance)


def check_finite(data: Mapping[str, xr.Dataset], good: Array) -> None:
    """Nothing that is stored of a good sample, or of all together, is NaN or infinite."""
    for group, dataset in data.items():
        for name, variable in dataset.variables.items():
            if variable.dtype.kind != "f" or str(name).startswith("score_") or name in dataset.coords:
                continue  # test samples have no score
            whose = variable.isel(sample=good) if "sample" in variable.dims else variable
            masked = group in ("tucker", "primitives") and str(name).startswith("condition_")
            assert masked or np.isfinite(whose.values).all(), f"{group}: {name}"


def rebuilt(dataset: xr.Dataset, good: Array) -> Array:
    """Samples ``core x_1 U_1 .. x_N U_N`` of a tensor primitive, in float64."""
    factors = {str(name).removeprefix("factor_"): dataset[name].values for name in dataset if "factor_" in str(name)}
    modes = [str(dim).removeprefix("rank_") if dim not in factors else str(dim) for dim in dataset["core"].dims[1:]]
    out = []
    for i in good:
        G = dataset["core"].values[i].astype("f8")
        for axis, mode in enumerate(modes):
            if mode in factors:
                G = np.moveaxis(np.tensordot(factors[mode][i].astype("f8"), G, (1, axis)), 0, axis)
        out.append(G)
    return np.stack(out)


def check_errors(dataset: xr.Dataset, good: Array, x: Array, xhat: Array, tolerance: float) -> None:
    """The stored errors are those of the stored numbers."""
    axes = tuple(range(1, x.ndim))
    unit = np.abs(x).max(axis=axes, keepdims=True)  # squares of 1e-90 would vanish
    lost, size = (np.sqrt((part**2).sum(axis=axes)) for part in ((x - xhat) / unit, x / unit))
    stored = dataset["relative_error"].values[good]
    slack = max(tolerance if math.isfinite(tolerance) else 0.0, 1e-5) * np.abs(xhat / unit).max()
    # Worse than zeros is rounding of far larger samples, and its size the processor's order of sums.
    allowed = np.where(stored > 1, 0.5, 0.01) * stored + slack
    assert (np.abs(stored - lost / size) <= allowed).all(), (stored, lost / size)


# --- recipes that are no recipe ---------------------------------------------------------------------------------


def malformed(what: str, how: str, text: bytes | str, says: str, outcome: str = REFUSED) -> Row:
    return Row(what, how, outcome, says, recipe(text))


MINIMAL = 'name = "tiny"\n[data]\nsource = "tiny.nc"\nmodes = ["time", "x"]\nsample_dim = "sample"\n'
RANKED = MINIMAL + "[decompose]\nranks = { time = 6, x = 6 }\n"


def working(**replaced: str) -> Callable[[Path], None]:
    """The recipe that works, with words replaced."""

    def make(directory: Path) -> None:
        write_recipe(directory)
        path = directory / "tiny.toml"
        text = path.read_text(encoding="utf-8")
        for encoding in (replaced.pop("encoding", "utf-8"),):
            path.write_text(text, encoding=encoding)

    return make


def a_folder(directory: Path) -> None:
    (directory / "tiny.toml").mkdir()


def no_file(directory: Path) -> None:
    """There is nothing."""


ROWS["Recipe files"] = (
    malformed("empty file", "0 bytes", "", '"name" is required'),
    malformed("only a comment", "# nothing", "# nothing\n", '"data" is required'),
    Row("missing file", "no file", REFUSED, "No such file or directory. Give the path of a TOML file.", no_file),
    Row("a folder", "mkdir tiny.toml", REFUSED, "Is a directory. Give the path of a TOML file.", a_folder),
    malformed("half a line", "name =", "name = ", "is not TOML: Invalid value (at end of document). Mend this line."),
    malformed(
        "a key twice", "name = 'a' name = 'b'", "name = 'a'\nname = 'b'", "is not TOML: Cannot overwrite a value"
    ),
    malformed("a table twice", "[data] [data]", MINIMAL + "[data]\n", "is not TOML: Cannot declare ('data',) twice"),
    malformed("JSON", '{"name": "tiny"}', '{"name": "tiny"}', "is not TOML: Invalid statement (at line 1, column 1)"),
    malformed("YAML", "name: tiny", "name: tiny\n", "is not TOML: Expected '=' after a key"),
    malformed("not UTF-8", "Latin-1 bytes", b"name = 'caf\xe9'", "not UTF-8 text. Give the path of a TOML file."),
    malformed("UTF-16", "as Windows' Unicode text", RANKED.encode("utf-16"), "not UTF-8 text. Give the path of a"),
    Row("byte order mark", "UTF-8 with a BOM", WORKS, "", working(encoding="utf-8-sig"), (WHOLE,)),
    malformed("null bytes", "1 KiB of zeros", b"\0" * 1024, "is not TOML: Invalid statement (at line 1, column 1)"),
    malformed("binary", "the bytes of a PNG", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not UTF-8 text. Give the"),
    malformed("nested too deep", "100,000 brackets", "x = " + "[" * 10**5, "is not TOML: brackets are nested too deep"),
    malformed("a number without end", "seed = 999...9, 10,000 digits", "seed = " + "9" * 10**4, "is not TOML: Exceeds"),
    malformed(
        "a number without end, in hex",
        "seed = 0xfff...f",
        RANKED.replace("[data]", "seed = 0x" + "f" * 9999 + "\n[data]", 1),
        '"seed": expected a number less than 4294967296, got a int of excessive size',
    ),
    malformed(
        "a megabyte of name",
        "name = 'aaa...a'",
        RANKED.replace("tiny", "a" * 2**20, 1),
        '"name": expected a shorter text, got "aaaa',
    ),
    malformed(
        "unknown section",
        "[trian]",
        RANKED + "[trian]\nsteps = 3\n",
        'unknown key "trian". The nearest known key is "train".',
    ),
    malformed(
        "a section that is a value",
        "train = 3",
        "train = 3\n" + RANKED,
        '"train" is a section, got 3. Put keys below [train]',
    ),
    malformed(
        "a section that is a list",
        "[[train]]",
        RANKED + "[[train]]\nsteps = 3\n",
        '"train" is a section, got [{"steps": 3}]',
    ),
    malformed(
        "a value that is a section",
        "[seed]",
        RANKED + "[seed]\nx = 1\n",
        '"seed": expected a whole number, got {"x": 1}',
    ),
    malformed(
        "a date for a name",
        "name = 2020-01-01",
        RANKED.replace('"tiny"', "2020-01-01", 1),
        '"name": expected text in quotes, got "2020-01-01"',
    ),
    malformed(
        "ranks and a tolerance",
        "both in [decompose]",
        RANKED + "tolerance = 0.1\n",
        "decompose has both ranks and a tolerance. Remove one",
    ),
    malformed(
        "neither ranks nor a tolerance",
        "no [decompose]",
        MINIMAL,
        "decompose has neither ranks nor a tolerance. Set decompose.ranks",
    ),
    malformed(
        "a patch without mgp",
        "[primitive] patch",
        RANKED + "[primitive]\npatch = { x = 2 }\n",
        'primitive.patch is for kind = "mgp". Remove it',
    ),
    malformed(
        "several mistakes",
        "two unknown keys",
        RANKED + "[train]\nstepps = 3\n[model]\nwith = 3\n",
        'unknown key "model.with". The nearest',
    ),
)

ROWS["Overrides (`--set`)"] = (
    set_on("no value", "train.steps", 'override "train.steps" is not of the form section.key=value.'),
    set_on("no key", "=3", 'override "=3" is not of the form section.key=value.'),
    set_on("nothing", "", 'override "" is not of the form section.key=value.'),
    set_on("only dots", "..=3", 'unknown key "". The nearest known key'),
    set_on("a key below a value", "name.x=3", '"name" is a value, not a section.'),
    set_on("a section as a whole", "train=3", '"train" is a section, got 3. Put keys below [train]'),
    set_on(
        "an index into a list", "data.modes[0]=x", 'unknown key "data.modes[0]". The nearest known key is "data.modes".'
    ),
    set_on("a space in a key", "train. steps=3", 'unknown key "train. steps"'),
    set_on("a second line", 'seed=1\nname="other"', '"seed": expected a whole number, got "1\\nname='),
    set_on("a comment", "seed=1 # one", "", WORKS),
    set_on(
        "text where a number belongs",
        "model.width=wide",
        '"model.width": expected a whole number, got "wide" (default 128).',
    ),
    set_on("a number and a half", "train.steps=2.5", '"train.steps": expected a whole number, got 2.5 (default 2000).'),
    set_on("a list for a number", "train.lr=[1,2]", '"train.lr": expected a number, got [1, 2]'),
    set_on(
        "NaN",
        "train.lr=nan",
        '"train.lr": expected a finite number, got NaN (default 0.01).',
    ),
    set_on(
        "infinity",
        "train.lr=inf",
        '"train.lr": expected a finite number, got Infinity (default 0.01).',
    ),
    set_on("negative", "train.lr=-1", '"train.lr": expected a number greater than 0, got -1'),
    set_on(
        "huge",
        "train.steps=10000000000000",
        '"train.steps": expected a number less than or equal to 2147483647, got 10000000000000',
    ),
    set_on("a share above one", "data.split.test=2", '"data.split.test": expected a number less than 1, got 2'),
    set_on("unclosed", "data.modes=[", '"data.modes": expected a list in brackets, texts in quotes, got "["'),
    set_on("an unknown key", "train.stepps=3", 'unknown key "train.stepps". The nearest known key is "train.steps".'),
    set_on("an unknown section", "ranks.x=3", 'unknown key "ranks". The nearest known key is "decompose.ranks".'),
    set_on("a byte that is no text", "data.source=\udcff.nc", "a text in it is not UTF-8"),
    set_on("a byte that is no text in a choice", "compute.scheduler=\udcff", "a text in it is not UTF-8"),
    set_on("a null in a path", 'data.source="a\\u0000b"', "data.source"),
    set_on(
        "a path too long", "data.source=" + "a" * 5000, "cannot be looked for: File name too long. Check the path and"
    ),
    set_on(
        "a memory that is none", "compute.memory=lots", 'compute.memory: "lots" is not a size. Write it like "4GiB".'
    ),
    set_on("a scheduler that is none", "compute.scheduler=here", '"here" is neither "local" nor an address such as'),
)

# --- recipes against good data ----------------------------------------------------------------------------------

ROWS["Recipes that good data cannot serve"] = (
    set_on(
        "missing source",
        "data.source={dir}/tinny.nc",
        'data.source names "tinny.nc", which the folder {dir} does not have',
    ),
    set_on("source near by", "data.source={dir}/tinny.nc", 'Did you mean "tiny.nc"?'),
    set_on("missing folder", "data.source={dir}/no/where.nc", 'data.source "{dir}/no/where.nc" does not exist. Check'),
    set_on("a file as folder", "data.source={dir}/tiny.nc/u", 'data.source "{dir}/tiny.nc/u" does not exist. Check'),
    set_on(
        "glob of nothing", "data.source={dir}/*.grib", 'data.source "{dir}/*.grib" matches no file. Check the pattern.'
    ),
    set_on("no source", 'data.source=""', "data.source"),
    set_on(
        "the recipe as source",
        "data.source={dir}/tiny.toml",
        'data.source "{dir}/tiny.toml" cannot be read as netcdf: ',
    ),
    set_on(
        "unreadable source", "data.source={dir}/garbage.nc", 'data.source "{dir}/garbage.nc" cannot be read as netcdf: '
    ),
    set_on(
        "empty NetCDF file", "data.source={dir}/nothing.nc", 'data.source "{dir}/nothing.nc" cannot be read as netcdf: '
    ),
    set_on(
        "empty NumPy file", "data.source={dir}/nothing.npy", 'data.source "{dir}/nothing.npy" cannot be read as numpy: '
    ),
    set_on("empty folder", "data.source={dir}/empty.zarr", "is a folder, but neither a Zarr store nor an Icechunk"),
    set_on("unknown engine", "data.engine=grib", 'data.source "{dir}/tiny.nc" cannot be read as grib: '),
    set_on("unknown builtin", 'data.source="builtin:indian-pine"', "indian-pines"),
    set_on("unknown group", "data.group=run7", 'group "run7", cannot be read as h5netcdf'),
    set_on(
        "unknown variable",
        'data.variables=["uu"]',
        'data.variables names "uu", which the source does not have (it has: u). Did you mean "u"?',
    ),
    set_on(
        "a variable twice",
        ('data.variables=["u","u"]', "decompose.ranks={{time=3,x=3}}"),
        "data.variables names a variable twice. Name each once.",
    ),
    set_on(
        "unknown mode",
        ('data.modes=["time","xx"]', "decompose.ranks={{time=2,xx=2}}"),
        'data.modes names "xx", which variable "u" does not have (it has: sample, time, x). Did you mean "x"?',
    ),
    set_on(
        "unknown sample dim", "data.sample_dim=run", 'data.sample_dim names "run", which variable "u" does not have'
    ),
    set_on(
        "a mode named sample",
        (
            "data.sample_dim=time",
            'data.modes=["x","sample"]',
            "decompose.ranks={{x=2,sample=2}}",
            "data.condition={{}}",
        ),
        'data.modes names "sample", a name that the stores use. Rename the dim in the source.',
    ),
    set_on(
        "mode named twice",
        'data.modes=["time","time"]',
        'mode "time" is named twice in data.modes. Name each dim once.',
    ),
    set_on(
        "window too large",
        "data.windows.size={{x=9}}",
        'data.windows.size 9 for dim "x" exceeds its length 8 (field: time=6, x=8). Use at most 8.',
    ),
    set_on("window of nothing", "data.windows.size={{x=0}}", 'size 0 for dim "x" is not positive. Use at least 1.'),
    set_on(
        "window of no mode",
        "data.windows.size={{y=4}}",
        'windows cut dim "y", which data.modes does not name. Add it to data.modes.',
    ),
    set_on(
        "stride of nothing",
        ("data.windows.size={{x=4}}", "data.windows.stride={{x=-1}}"),
        'stride -1 for dim "x" is not positive. Use at least 1.',
    ),
    set_on(
        "nothing makes samples",
        "data.sample_dim=",
        "nothing makes samples. Set data.sample_dim, or data.windows.size to cut windows.",
    ),
    set_on(
        "too few training samples",
        "data.split.test=0.97",
        'data.split by "sample" leaves 1 training and 23 test samples of 24 (0 dropped), and at least 2 and 1 are',
    ),
    set_on(
        "split value unknown",
        ("data.split.by=coordinate", "data.split.coordinate=sample", "data.split.values=[99]"),
        'data.split.values holds 99.0, which coordinate "sample" does not take.',
    ),
    set_on(
        "block too small",
        ("data.windows.size={{x=4}}", "data.split.by=block", "data.split.block={{x=2}}"),
        'data.split.block 2 for dim "x" is below the window size 4: no window fits in a block. Use at least 4.',
    ),
    set_on(
        "unknown label",
        "data.condition.labels=kind",
        'data.condition.labels names "kind", which the source does not have',
    ),
    set_on(
        "initial outside",
        "data.condition.initial.index=6",
        'data.condition.initial.index 6 is outside dim "time" of size 6. Use 0 to 5.',
    ),
    set_on(
        "rank above size",
        "decompose.ranks.time=40",
        'rank 40 for mode "time" exceeds its size 6 (sample: time=6, x=8). Use at most 6, or set decompose.tolerance.',
    ),
    set_on(
        "rank above product",
        "decompose.ranks.time=2",
        'rank 3 for mode "x" exceeds the product 2 of the other ranks (sample: time=6, x=8; a mode without rank counts',
    ),
    set_on("rank of nothing", "decompose.ranks.time=0", 'rank 0 for mode "time" is not positive. Use at least 1.'),
    set_on("rank of no mode", "decompose.ranks.y=2", 'decompose.ranks names "y", which is no mode (time, x).'),
    set_on(
        "tolerance too large",
        "decompose={{tolerance=1.5}}",
        '"decompose.tolerance": expected a number less than 1, got 1.5 (root mean square of the anomaly error, for '
        "which the smallest ranks are found).",
    ),
    set_on(
        "tolerance of zero",
        "decompose={{tolerance=0}}",
        '"decompose.tolerance": expected a number greater than 0, got 0',
    ),
    set_on(
        "patch does not divide",
        ('primitive={{kind="mgp",patch={{time=4,x=4}},rank=2}}', "decompose={{}}"),
        'patch 4 does not divide the size 6 of mode "time" (sample: time=6, x=8). Use a divisor of 6, such as 3,',
    ),
    set_on(
        "patch of nothing",
        ('primitive={{kind="mgp",patch={{time=0,x=4}},rank=2}}', "decompose={{}}"),
        '"primitive.patch.time": expected a number greater than or equal to 1, got 0',
    ),
    set_on(
        "rank above pixels",
        ('primitive={{kind="mgp",patch={{time=2,x=2}},rank=5}}', "decompose={{}}"),
        'rank 5 for mode "pixel" exceeds its size 4',
    ),
    set_on(
        "not enough memory",
        "compute.memory=2KiB",
        "compute.memory is 2KiB, of which 1.6 KiB can be used (Dask's own margin is the rest). One needs ",
    ),
    set_on(
        "anchor is a test sample",
        ("anchor.strategy=index", "anchor.index=99"),
        "anchor.index 99 is not one of 24 samples.",
    ),
    set_on("root is a file", "root={dir}/tiny.nc", '"{dir}/tiny.nc" is a file. Use another root.'),
    set_on("root is a URL", "root=s3://bucket/a", 'root "s3://bucket/a" is a URL. Use a local directory for root.'),
)


# --- values -----------------------------------------------------------------------------------------------------

TOLERANT = "data.max_failed=0.2"
MASK = "data.missing=mask"
LEFT = "samples failed and are left out: "


def nowhere(u: Array) -> Array:
    return u * np.nan


def holes_that_move(u: Array) -> None:
    for i in range(len(u)):
        u[i, i % 6, i % 8] = np.nan


def rows(*given: tuple[Any, ...]) -> tuple[Row, ...]:
    """Rows whose field ``options`` follows the recipe for whole samples."""
    return tuple(Row(*one[:5], **(one[5] if len(one) > 5 else {})) for one in given)


def packed(**encoding: Any) -> Make:
    def make(directory: Path) -> Array:
        data = waves()
        write(directory, lambda path: data.to_netcdf(path, engine="h5netcdf", encoding={"u": encoding}))
        step = encoding["scale_factor"]
        return np.round((data["u"].values - encoding.get("add_offset", 0.0)) / step) * step + encoding.get(
            "add_offset", 0.0
        )

    return make


def of_dtype(dtype: str, factor: float = 100.0) -> Make:
    return values(lambda u: (u * factor).astype(dtype))


def saved_npy(dtype: str, factor: float = 100.0) -> Make:
    """A NumPy file, which keeps dtypes and byte orders that NetCDF does not."""

    def make(directory: Path) -> Array:
        u = (waves()["u"].values * factor).astype(dtype)
        write(directory, lambda path: np.save(path, u), "tiny.npy")
        return u.astype("f8")

    return make


def second(dtype: Any, change: Callable[[Array], Array] = lambda u: u) -> Make:
    """Another variable beside u."""

    def make(directory: Path) -> Array:
        data = waves()
        v = change(data["u"].values).astype(dtype)
        both = data.assign(v=(data["u"].dims, v))
        write(directory, lambda path: both.to_netcdf(path, engine="h5netcdf"))
        return np.stack([data["u"].values.astype("f8"), v.astype("f8")], axis=1)

    return make


def unwritten(data: xr.Dataset) -> xr.Dataset:
    data = data.copy(deep=True)
    data["u"][3, 1] = 9.969209968386869e36
    data["u"].encoding["_FillValue"] = None
    return data


BEYOND = "beyond float32 (1e-38 to 3e38), in which samples are generated. Convert them to other units."
TWO = ('data.variables=["u","v"]', "decompose.ranks={{time=6,x=8}}")

ROWS["Values"] = (
    Row(
        "NaN in a sample",
        "u[2, 0, 0] = nan",
        LEFT_OUT,
        "1 of 24 " + LEFT + "2 (non_finite)",
        at((2, 0, 0), np.nan),
        bad={2: "non_finite"},
    ),
    Row(
        "infinity in a sample",
        "u[7, 3, 3] = inf",
        LEFT_OUT,
        LEFT + "7 (non_finite)",
        at((7, 3, 3), np.inf),
        bad={7: "non_finite"},
    ),
    Row(
        "minus infinity in a sample",
        "u[7] = -inf",
        LEFT_OUT,
        LEFT + "7 (non_finite)",
        at(7, -np.inf),
        bad={7: "non_finite"},
    ),
    Row("a zero sample", "u[5] = 0", LEFT_OUT, LEFT + "5 (all_zero)", at(5, 0), bad={5: "all_zero"}),
    Row(
        "several bad samples, allowed",
        "u[2, 0, 0] = nan, u[5] = 0",
        LEFT_OUT,
        "2 of 24 " + LEFT + "2 (non_finite), 5 (all_zero)",
        values(lambda u: (u.__setitem__((2, 0, 0), np.nan), u.__setitem__(5, 0))[0]),
        (TOLERANT,),
        {2: "non_finite", 5: "all_zero"},
    ),
    Row(
        "more bad samples than allowed",
        "u[:3, 0, 0] = nan",
        FAILED,
        "decompose: 3 of 24 samples failed, 1 are allowed by data.max_failed = 0.01: 0 (non_finite), 1 (",
        at((slice(3), 0, 0), np.nan),
    ),
    Row(
        "NaN everywhere",
        "u * nan",
        ON_READING,
        "no training sample is usable (100.0% of the values are missing",
        values(nowhere),
    ),
    Row(
        "the same points missing in all",
        "u[:, 1, 2] = nan",
        ON_READING,
        'Set data.missing = "mask" if the same points are missing in every sample.',
        at((slice(None), 1, 2), np.nan),
    ),
    Row(
        "the same points missing in all, masked",
        "u[:, 1, 2] = nan, data.missing = mask",
        WORKS,
        "",
        at((slice(None), 1, 2), np.nan),
        (MASK,),
    ),
    Row(
        "one more point missing in a sample",
        "u[:, 1, 2] = nan, u[4, 0, 0] = nan, masked",
        LEFT_OUT,
        LEFT + "4 (non_finite)",
        values(lambda u: (u.__setitem__((slice(None), 1, 2), np.nan), u.__setitem__((4, 0, 0), np.nan))[0]),
        (MASK,),
        {4: "non_finite"},
    ),
    Row(
        "holes that move",
        "another point missing in each sample, masked",
        ON_READING,
        "samples not at the same points as in the others",
        values(holes_that_move),
        (MASK,),
    ),
    Row(
        "fill values without _FillValue",
        "9.96921e36, netCDF's default, where nothing was written",
        LEFT_OUT,
        LEFT + "3 (non_finite)",
        changed(unwritten),
        bad={3: "non_finite"},
    ),
    Row("a constant sample", "u[4] = 5", WORKS, "", at(4, 5)),
    Row(
        "a constant data set",
        "u = 5",
        WARNED,
        "numerical rank below the ranks kept",
        values(lambda u: np.full_like(u, 5)),
    ),
    Row("equal samples", "all are the first", WORKS, "", values(lambda u: u[:1].repeat(24, axis=0))),
    Row(
        "equal samples, not centred",
        "all are the first, data.center = none",
        WORKS,
        "",
        values(lambda u: u[:1].repeat(24, axis=0)),
        ("data.center=none",),
    ),
    Row(
        "zeros everywhere",
        "u = 0",
        ON_READING,
        "no training sample is usable (0.0% of the values are missing, infinite or excessive, the others zero)",
        values(np.zeros_like),
    ),
    Row("float32 denormals", "1e-40 u", WORKS, "", values(lambda u: u * np.float32(1e-40)), tolerance=1e-4),
    Row("the smallest float32 numbers", "1e-45 u", ON_READING, BEYOND, values(lambda u: (u * 1e-45).astype("f4"))),
    Row("float64 denormals", "1e-310 u", ON_READING, "the others zero", values(lambda u: u * 1e-310, "f8")),
    Row("float64, tiny", "1e-90 u", ON_READING, BEYOND, values(lambda u: u * 1e-90, "f8")),
    Row("float32 near its end", "1e38 u / max|u|", WORKS, "", values(lambda u: u / np.abs(u).max() * np.float32(1e38))),
    Row(
        "float32 near its end, not scaled",
        "1e38 u / max|u|, data.scale = none",
        FAILED,
        "(not_converged)",
        values(lambda u: u / np.abs(u).max() * np.float32(3e38)),
        ("data.scale=none", "data.center=none"),
    ),
    Row(
        "a sample near float32's end",
        "u[3] = 3e38",
        WARNED,
        "samples are given back worse than zeros would be (relative error above 1)",
        at(3, 3e38),
        tolerance=math.inf,
    ),
    Row(
        "float64, excessive",
        "1e300 u",
        ON_READING,
        "(100.0% of the values are missing, infinite or excessive",
        values(lambda u: u * 1e300, "f8"),
    ),
    Row(
        "a sample of float64, excessive",
        "u[3] = 1e300",
        LEFT_OUT,
        LEFT + "3 (non_finite)",
        at(3, 1e300, "f8"),
        bad={3: "non_finite"},
    ),
    Row("float64, large", "1e90 u", ON_READING, BEYOND, values(lambda u: u * 1e90, "f8")),
    Row("far from zero", "u + 1e6", WORKS, "", values(lambda u: u + np.float32(1e6))),
)

ROWS["Kinds of numbers"] = (
    Row("float16", "u as float16, .npy", WORKS, "", saved_npy("f2", 1)),
    Row("long double", "u as float128, .npy", WORKS, "", saved_npy("g", 1)),
    Row("8-bit integers", "30 u as int8", WORKS, "", of_dtype("i1", 10)),
    Row("unsigned bytes", "u as uint8", WORKS, "", values(lambda u: (10 * np.abs(u)).astype("u1"))),
    Row("64-bit integers", "1e12 u as int64", WORKS, "", of_dtype("i8", 1e12)),
    Row(
        "integers above 2^63",
        "u as uint64",
        WORKS,
        "",
        values(lambda u: (1e19 * np.minimum(np.abs(u), 1)).astype("u8")),
    ),
    Row("truth values", "u > 0", WARNED, "numerical rank below the ranks kept", saved_npy("?", 1)),
    Row("big-endian float32", "u as >f4, .npy", WORKS, "", saved_npy(">f4", 1)),
    Row("big-endian float64", "u as >f8, .npy", WORKS, "", saved_npy(">f8", 1)),
    Row("big-endian integers", "u as >i2, .npy", WORKS, "", saved_npy(">i2")),
    Row(
        "packed integers",
        "int16, scale_factor, add_offset, _FillValue",
        WORKS,
        "",
        packed(dtype="i2", scale_factor=0.001, add_offset=1.0, _FillValue=-32768),
        tolerance=1e-5,
    ),
    Row(
        "unsigned packed integers",
        "uint8, scale_factor, add_offset",
        WORKS,
        "",
        packed(dtype="u1", scale_factor=0.05, add_offset=-6.0, _FillValue=255),
        tolerance=1e-5,
    ),
    Row("two variables of other kinds", "float32 and int16", WORKS, "", second("i2", lambda u: 100 * u), TWO),
    Row(
        "two variables of other scales",
        "u and 1e6 u, float64",
        WARNED,
        "numerical rank below the ranks kept",
        second("f8", lambda u: 1e6 * u),
        TWO,
    ),
    Row(
        "a scalar of 1e300",
        "conditioned on s, s[3] = 1e300",
        LEFT_OUT,
        LEFT + "3 (non_finite)",
        changed(lambda data: data.assign(s=("sample", np.where(np.arange(24) == 3, 1e300, 1.0)))),
        ('data.condition={scalars=["s"]}',),
        {3: "non_finite"},
    ),
    Row(
        "a variable that is constant",
        "v = 5 beside u",
        WARNED,
        "numerical rank below the ranks kept",
        second("f4", lambda u: 0 * u + 5),
        TWO,
    ),
    Row(
        "complex numbers",
        "u + 1j",
        REFUSED,
        '"u" is complex64 (complex), expected real numbers. Name another variable',
        values(lambda u: u + 1j),
    ),
    Row(
        "dates",
        "u as datetime64",
        REFUSED,
        '"u" is datetime64[ns] (times), expected real numbers',
        values(lambda u: (1e9 * u).astype("M8[ns]")),
    ),
    Row("time differences", "u as timedelta64", REFUSED, "expected real numbers", saved_npy("m8[s]")),
    Row(
        "text",
        "u as str",
        REFUSED,
        "expected real numbers. Name another variable, or convert it",
        values(lambda u: u.astype(str)),
    ),
    Row("bytes", "u as S8", REFUSED, "expected real numbers", saved_npy("S8")),
    Row(
        "Python objects",
        "u as object, .npy",
        REFUSED,
        "dtype object holds objects or records. Leave it out of the file, or save an array of numbers.",
        saved_npy("O"),
    ),
    Row(
        "records",
        "structured dtype, .npy",
        REFUSED,
        "holds objects or records. Leave it out of the file, or save an array of numbers.",
        lambda directory: write(directory, lambda path: np.save(path, np.zeros((24, 6, 8), "f4,i2")), "tiny.npy"),
    ),
)


# --- coordinates, sizes, names ----------------------------------------------------------------------------------


def along(dim: str, coordinate: Any, attrs: Mapping[str, Any] | None = None) -> Make:
    """A coordinate of the tiny data set."""
    return changed(lambda data: data.assign_coords({dim: (dim, coordinate, dict(attrs or {}))}))


def steps(*lengths: float) -> Array:
    return np.concatenate([[0.0], np.cumsum(lengths)])


def months(directory: Path) -> Array:
    data = waves().assign_coords(
        time=xr.date_range("2000-01-01", periods=6, freq="MS", calendar="noleap", use_cftime=True)
    )
    write(directory, lambda path: data.to_netcdf(path, engine="h5netcdf"))
    return windows(data["u"].values, axis=1, size=2)


def windows(u: Array, axis: int, size: int) -> Array:
    """Samples cut into windows that do not overlap, as plain slices."""
    cut = [u.take(range(start, start + size), axis=axis) for start in range(0, u.shape[axis] - size + 1, size)]
    return np.stack(cut, axis=1).reshape(-1, *cut[0].shape[1:])


def windowed(coordinate: Any) -> Make:
    def make(directory: Path) -> Array:
        data = waves().assign_coords(time=("time", coordinate))
        write(directory, lambda path: data.to_netcdf(path, engine="h5netcdf"))
        return windows(data["u"].values, axis=1, size=2)

    return make


def renamed(names: Mapping[str, str], variable: str = "u") -> Make:
    """Other names of dims and variable, in a Zarr store, which takes any."""

    def make(directory: Path) -> Array:
        data = waves().drop_vars(["time", "x"])
        u = data["u"].values
        dims = [names.get(str(dim), str(dim)) for dim in data["u"].dims]
        new = xr.Dataset({variable: (dims, u)})
        write(directory, lambda path: new.to_zarr(path, zarr_format=3, consolidated=False), "tiny.zarr")
        return u

    return make


def modes(time: str, x: str, variable: str = "u", sample: str = "sample") -> tuple[str, ...]:
    """The overrides that name them."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    return (
        f"data.variables=[{quoted(variable)}]",
        f"data.modes=[{quoted(time)},{quoted(x)}]",
        f"data.sample_dim={quoted(sample)}",
        f"decompose.ranks={{{{{quoted(time)}=6,{quoted(x)}=6}}}}",
        "data.condition={{}}",
    )


def resized(**sizes: int) -> Make:
    return changed(lambda data: data.isel({dim: slice(size) for dim, size in sizes.items()}))


def with_coordinate(name: str) -> Make:
    """A number for each sample, under a name that the stores use, too."""
    return changed(lambda data: data.assign_coords({name: ("sample", np.arange(24.0))}))


def odd_attributes(data: xr.Dataset) -> xr.Dataset:
    data["x"].attrs["valid"], data["u"].attrs["valid"], data.attrs["valid"] = np.nan, np.inf, [np.nan, 1.0]
    return data.assign_coords(sample=("sample", np.arange(24), {"valid": np.nan}))


HALVES = ("data.windows.size={{time=2}}", "decompose.ranks={{time=2,x=2}}", "data.condition={{}}")

ROWS["Coordinates"] = (
    Row("unsorted", "x = 3, 1, 2, 0, ...", WORKS, "", along("x", [3.0, 1, 2, 0, 7, 5, 6, 4])),
    Row("descending", "x = 7, 6, ..., 0", WORKS, "", along("x", np.arange(8.0)[::-1])),
    Row("repeated, along a mode", "x = 0, 0, 1, ...", WORKS, "", along("x", [0.0, 0, 1, 2, 3, 4, 5, 6])),
    Row(
        "repeated, along the samples",
        "sample = 0, 0, 1, 1, ...",
        WARNED,
        'coordinate "sample" repeats 12 of 24 values',
        along("sample", np.arange(24) // 2),
    ),
    Row("NaN, along a mode", "x[3] = nan", WORKS, "", along("x", [0, 1, 2, np.nan, 4, 5, 6, 7])),
    Row(
        "NaN, along the samples",
        "sample[3] = nan",
        WORKS,
        "",
        along("sample", np.where(np.arange(24) == 3, np.nan, np.arange(24))),
    ),
    Row(
        "NaN, and it splits",
        "sample[3] = nan, split by it",
        REFUSED,
        'data.split.coordinate "sample" is missing for 1 of 24 points',
        along("sample", np.where(np.arange(24) == 3, np.nan, np.arange(24))),
        ("data.split.by=coordinate", "data.split.coordinate=sample"),
    ),
    Row("none", "no coordinate at all", WORKS, "", changed(lambda data: data.drop_vars(["time", "x"]))),
    Row("text", 'x = "a", "b", ...', WORKS, "", along("x", list("abcdefgh"))),
    Row(
        "units that nobody knows",
        'time in "months since 2000"',
        WARNED,
        "data.source: times stay numbers, because",
        along("time", np.arange(6.0), {"units": "months since 2000-01-15", "calendar": "standard"}),
    ),
    Row(
        "a gap in a window",
        "time = 0, 1, 2, 9, 10, 11; windows of 2",
        WARNED,
        '24 of 72 windows along "time" hold a gap, a repeated or an unsorted point',
        windowed([0.0, 1, 2, 9, 10, 11]),
        HALVES,
    ),
    Row(
        "a gap between windows",
        "time = 0, 1, 9, 10, 20, 21; windows of 2",
        WARNED,
        "points along time are not evenly spaced",
        windowed([0.0, 1, 9, 10, 20, 21]),
        HALVES,
    ),
    Row(
        "a repeated time in a window",
        "time = 0, 1, 2, 2, 3, 4",
        WARNED,
        '24 of 72 windows along "time" hold a gap',
        windowed([0.0, 1, 2, 2, 3, 4]),
        HALVES,
    ),
    Row(
        "unsorted times in a window",
        "time = 0, 1, 3, 2, 4, 5",
        WARNED,
        '24 of 72 windows along "time" hold a gap',
        windowed([0.0, 1, 3, 2, 4, 5]),
        HALVES,
    ),
    Row("numbers of days", 'time = 0, 1, ... in "days"', WORKS, "", along("time", np.arange(6.0), {"units": "days"})),
    Row("attributes that are NaN", "x.valid = nan, u.valid = inf", WORKS, "", changed(odd_attributes)),
    Row("months", "a calendar of 365 days", WARNED, "points along time are not evenly spaced", months, HALVES),
)

ROWS["Sizes"] = (
    Row("no samples", "u[:0]", REFUSED, '"u" is empty: dim "sample" has size 0. Check data.source.', resized(sample=0)),
    Row("no points", "u[:, :, :0]", REFUSED, 'is empty: dim "x" has size 0', resized(x=0)),
    Row("one sample", "u[:1]", REFUSED, "data: 1 samples come from", resized(sample=1)),
    Row("two samples", "u[:2]", REFUSED, "data: 2 samples come from", resized(sample=2)),
    Row("four samples", "u[:4], two of them to test", WORKS, "", resized(sample=4), ("data.split.test=0.5",)),
    Row("a mode of one point", "u[:, :1]", WORKS, "", resized(time=1), ("decompose.ranks={{time=1,x=1}}",)),
    Row("all modes of one point", "u[:, :1, :1]", WORKS, "", resized(time=1, x=1), ("decompose.ranks={{time=1,x=1}}",)),
    Row(
        "ranks for what has one point",
        "u[:, :1], rank 6",
        REFUSED,
        'rank 6 for mode "time" exceeds its size 1',
        resized(time=1),
        (WHOLE,),
    ),
    Row(
        "a dim too many",
        "level = 2",
        REFUSED,
        '"u" has dim "level" of size 2, which is neither data.sample_dim nor a mode (time, x)',
        changed(lambda data: data.assign(u=data["u"].expand_dims(level=2))),
    ),
    Row(
        "a dim of one too many",
        "level = 1",
        WORKS,
        "",
        changed(lambda data: data.assign(u=data["u"].expand_dims(level=1, axis=1))),
    ),
    Row(
        "a mode too long to align",
        "x = 5000",
        REFUSED,
        'aligned mode "x" has 5000 points, at most 4096 can be aligned. Leave "x" out of align.modes, or cut it',
        changed(lambda data: xr.Dataset({"u": (("sample", "time", "x"), np.ones((6, 2, 5000), "f4"))})),
        ("decompose.ranks={{time=2,x=2}}",),
    ),
    Row(
        "more windows than can be listed",
        "10^6 x 10^6 points, windows of 2 by 2",
        REFUSED,
        "samples would be cut, at most 100000000 can be. Raise data.windows.stride",
        lambda directory: write(directory, huge, "tiny.zarr"),
        ("data.sample_dim=", "data.windows.size={{time=2,x=2}}", "decompose.ranks={{time=2,x=2}}"),
    ),
    Row(
        "a last shard of one sample",
        "25 samples, shards of 8",
        WORKS,
        "",
        changed(lambda data: xr.concat([data, data.isel(sample=[0])], "sample")),
        ("compute.shard_samples=8",),
    ),
)


def huge(path: Path) -> None:
    """Metadata of a field far larger than any disk."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3)
    group.create_array("u", shape=(10**6, 10**6), chunks=(1000, 1000), dtype="f4", dimension_names=["time", "x"])


STORED = "cannot be stored: it is empty, a dot"
ROWS["Names"] = (
    tuple(
        Row(what, f"variable {name!r}", outcome, says, renamed({}, name), modes("time", "x", name))
        for what, name, outcome, says in (
            ("not ASCII", "température", WORKS, ""),
            ("another script", "気温", WORKS, ""),
            ("a space", "sea surface", WORKS, ""),
            ("quotes", "a\"b'c", WORKS, ""),
            ("markup", "<script>alert(1)", WORKS, ""),
            ("markup with a slash", "</script>", REFUSED, STORED),
            ("a line break", "a\nb", REFUSED, STORED),
            ("a percent sign", "%s%d{x}", WORKS, ""),
            ("very long", "u" * 200, WORKS, ""),
            ("the name of a stream", "core", WORKS, ""),
            ("the name of a dim", "time", WORKS, ""),
        )
    )
    + tuple(
        Row(what, f"mode {name!r}", outcome, says, renamed({"time": name}), modes(name, "x"))
        for what, name, outcome, says in (
            ("not ASCII, a mode", "zeit·schritt", WORKS, ""),
            ("a space, a mode", "time step", WORKS, ""),
            ("quotes, a mode", 'a"b', WORKS, ""),
            ("markup, a mode", "<script>", WORKS, ""),
            ("a path, a mode", "../../up", REFUSED, STORED),
            ("a slash, a mode", "a/b", REFUSED, STORED),
            ("a dot, a mode", "..", REFUSED, STORED),
            ("a line break, a mode", "a\nb", REFUSED, STORED),
            ("empty, a mode", "", REFUSED, STORED),
            ("very long, a mode", "t" * 300, REFUSED, "has more than 200 bytes. Rename it in the source."),
            (
                "reserved: status",
                "status",
                REFUSED,
                'data.modes names "status", a name that the stores use. Rename the dim in the source.',
            ),
            (
                "reserved: rank_x",
                "rank_x",
                REFUSED,
                'data.modes names "rank_x", a name that the stores use. Rename the dim in the source.',
            ),
            ("reserved: decomposed_mode", "decomposed_mode", REFUSED, "a name that the stores use"),
            ("reserved: component_x", "component_x", REFUSED, "a name that the stores use"),
            ("a stream's, a mode", "core", REFUSED, "a name that the stores use"),
        )
    )
    + tuple(
        Row(f"a coordinate named {name}", f"{name} = 0, 1, ... along sample", WORKS, "", with_coordinate(name))
        for name in (
            "core",
            "overlap",
            "status",
            "split",
            "truncation_error",
            "factor_x",
            "aligned_mode",
            "mean",
            "sample_start",
        )
    )
)


# --- files ------------------------------------------------------------------------------------------------------


def netcdf(path: Path) -> None:
    waves(2000).to_netcdf(path, engine="h5netcdf")


def npy(path: Path) -> None:
    np.save(path, waves()["u"].values)


def npz(path: Path) -> None:
    np.savez(path, u=waves()["u"].values)


def packed_npz(path: Path) -> None:
    np.savez_compressed(path, u=waves()["u"].values)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def middle(content: bytes) -> bytes:
    """Some bytes in the middle are others."""
    start = len(content) // 2
    return content[:start] + bytes(255 - byte for byte in content[start : start + 64]) + content[start + 64 :]


def zarr(damage: Callable[[Path], None], *, fill: float | None = None) -> Make:
    """A Zarr store of four chunks along the samples, damaged."""

    def make(directory: Path) -> Array:
        data = waves()
        encoding = {"u": {"chunks": (6, 6, 8), **({} if fill is None else {"_FillValue": fill})}}
        write(
            directory,
            lambda path: data.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding),
            "tiny.zarr",
        )
        damage(directory / "tiny.zarr")
        return np.asarray(data["u"].values)

    return make


def chunk(store: Path) -> Path:
    """The file of samples 6 to 11."""
    return store / "u" / "c" / "1" / "0" / "0"


def npy_of(n: int, factor: float = 1.0) -> Callable[[Path], None]:
    return lambda directory: np.save(directory / "tiny.npy", factor * waves(n)["u"].values)


def plain_npy(directory: Path) -> Array:
    write(directory, npy, "tiny.npy")
    return waves()["u"].values


def many_files(directory: Path) -> Array | None:
    return glob(same, same)(directory)


def cut(name: str) -> Callable[[Path], None]:
    return lambda directory: os.truncate(directory / name, 2000)


def removed(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def in_celsius(data: xr.Dataset) -> xr.Dataset:
    return data.assign(u=data["u"].assign_attrs(units="cm s-1"))


def dated(calendar: str) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        days = xr.date_range("2000-01-01", periods=24, freq="D", calendar=calendar, use_cftime=calendar != "standard")
        return data.assign_coords(sample=days[data["sample"].values])

    return change


def flipped(data: xr.Dataset) -> xr.Dataset:
    return data.isel(x=slice(None, None, -1))


def as_integers(data: xr.Dataset) -> xr.Dataset:
    return data.assign(u=(data["u"].dims, np.round(100 * data["u"].values).astype("i2"), data["u"].attrs))


def early(data: xr.Dataset) -> xr.Dataset:
    """The second file begins with the last samples of the first."""
    return data.assign_coords(sample=data["sample"] - 3)


SHARDS = ("compute.shard_samples=6",)
AWAY = "or was changed or removed while it was read. Mend it, and run the same command; what was committed stays."

ROWS["Files"] = (
    Row(
        "half a NetCDF file",
        "cut in the middle",
        REFUSED,
        "cannot be read as h5netcdf: ",
        content("tiny.nc", half, netcdf),
    ),
    Row(
        "half a NumPy file",
        "cut in the middle",
        REFUSED,
        "bytes before its array does. Copy it anew.",
        content("tiny.npy", half, npy),
    ),
    Row(
        "half an .npz file",
        "cut in the middle",
        REFUSED,
        "cannot be read as numpy: File is not a zip file. Check the file",
        content("tiny.npz", half, npz),
    ),
    Row(
        "damaged bytes in a packed .npz", "64 bytes changed", ON_READING, AWAY, content("tiny.npz", middle, packed_npz)
    ),
    Row(
        "a NumPy header that lies",
        "b'\\x93NUMPY' and noise",
        REFUSED,
        "cannot be read as numpy: ",
        content("tiny.npy", lambda b: b[:10] + b"garbage" + b[17:], npy),
    ),
    Row(
        "a NetCDF file of zeros",
        "its header, then zeros",
        REFUSED,
        "cannot be read as h5netcdf: ",
        content("tiny.nc", lambda b: b[:8] + bytes(len(b) - 8), netcdf),
    ),
    Row(
        "a damaged chunk in a Zarr store",
        "64 bytes of noise",
        ON_READING,
        AWAY,
        zarr(lambda store: chunk(store).write_bytes(b"\x28noise" * 12) and None),
    ),
    Row(
        "an empty chunk in a Zarr store",
        "0 bytes",
        ON_READING,
        AWAY,
        zarr(lambda store: chunk(store).write_bytes(b"") and None),
    ),
    Row(
        "a lost chunk, fill value NaN",
        "a chunk's file removed",
        LEFT_OUT,
        "6 of 24 " + LEFT + "6 (non_finite)",
        zarr(lambda store: chunk(store).unlink()),
        ("data.max_failed=0.3",),
        dict.fromkeys(range(6, 12), "non_finite"),
    ),
    Row(
        "Zarr metadata that is no JSON",
        "zarr.json cut",
        REFUSED,
        "cannot be read as zarr: ",
        zarr(lambda store: os.truncate(store / "zarr.json", 20)),
    ),
)

ROWS["Files in a glob"] = (
    Row("as they should be", "samples 0 to 11 and 12 to 23", WORKS, "", many_files),
    Row(
        "other dtypes",
        "float32 and int16",
        WARNED,
        'variable "u" has numbers that are real in',
        glob(same, as_integers),
        tolerance=1e-5,
    ),
    Row(
        "other packing",
        "int16 with scale factors 0.001 and 0.002",
        WORKS,
        "",
        glob(
            same,
            same,
            encodings=(
                {"u": {"dtype": "i2", "scale_factor": 0.001, "_FillValue": -9}},
                {"u": {"dtype": "i2", "scale_factor": 0.002, "_FillValue": -9}},
            ),
        ),
        tolerance=2e-3,
    ),
    Row(
        "ragged",
        "x has 8 and 7 points",
        REFUSED,
        'dim "x" has 8 points in',
        glob(same, lambda data: data.isel(x=slice(7))),
        ("data.concat_dim=sample",),
    ),
    Row("other units", "m s-1 and cm s-1", REFUSED, 'variable "u" has units m s-1 in', glob(same, in_celsius)),
    Row(
        "other calendars",
        "noleap and 360_day",
        REFUSED,
        'variable "sample" has values that are dates of calendar noleap in',
        glob(dated("noleap"), dated("360_day")),
    ),
    Row(
        "dates and numbers",
        "sample as dates and as numbers",
        REFUSED,
        'variable "sample" has values that are',
        glob(same, dated("standard")),
    ),
    Row(
        "another grid",
        "x is reversed in the second file",
        REFUSED,
        'coordinate "x" has other values in',
        glob(same, flipped),
        ("data.concat_dim=sample",),
    ),
    Row(
        "two dims that differ",
        "x is reversed, nothing says along which dim",
        REFUSED,
        "are joined along the dim whose coordinate differs, but several do (sample, x)",
        glob(same, flipped),
    ),
    Row("another variable", "u and v", REFUSED, "", glob(same, lambda data: data.rename(u="v"))),
    Row(
        "a variable too many",
        "w in the second file only",
        REFUSED,
        "",
        glob(same, lambda data: data.assign(w=data["u"])),
    ),
    Row(
        "a coordinate too few",
        "x missing in the second file",
        REFUSED,
        '"x" is in',
        glob(same, lambda data: data.drop_vars("x")),
        ("data.concat_dim=sample",),
    ),
    Row(
        "overlapping",
        "sample 9 to 11 in both files",
        WARNED,
        'coordinate "sample" repeats 3 of 24 values',
        glob(same, early),
    ),
    Row("a file without samples", "0 samples", WORKS, "", glob(same, lambda data: data.isel(sample=slice(0)))),
    Row(
        "a file that is none",
        "garbage beside good files",
        REFUSED,
        "cannot be read as netcdf: ",
        lambda directory: ((directory / "part9.nc").write_bytes(b"garbage"), glob(same, same)(directory))[1],
    ),
)

ROWS["Sources that change while they are read"] = (
    Row(
        "more samples",
        "tiny.npy written anew with 30 samples",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        plain_npy,
        SHARDS,
        meanwhile=npy_of(30),
    ),
    Row(
        "fewer samples",
        "tiny.npy written anew with 20 samples",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        plain_npy,
        SHARDS,
        meanwhile=npy_of(20),
    ),
    Row(
        "other numbers",
        "tiny.npy written anew, 1000 times larger",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        plain_npy,
        SHARDS,
        meanwhile=npy_of(24, 1000.0),
    ),
    Row(
        "a file that is cut",
        "tiny.npy cut to 2000 bytes",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        plain_npy,
        SHARDS,
        meanwhile=cut("tiny.npy"),
    ),
    Row(
        "a file that goes away",
        "tiny.npy removed",
        ON_READING,
        'data.source names "tiny.npy", which the folder {dir} does not have',
        plain_npy,
        SHARDS,
        meanwhile=removed("tiny.npy"),
    ),
    Row(
        "one of many files goes away",
        "part1.nc removed",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        many_files,
        SHARDS,
        meanwhile=removed("part1.nc"),
    ),
    Row(
        "one of many files is cut",
        "part1.nc cut to 2000 bytes",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        many_files,
        SHARDS,
        meanwhile=cut("part1.nc"),
    ),
    Row(
        "a chunk goes away",
        "a chunk's file of a Zarr store removed",
        ON_READING,
        "was changed while it was read. When it is complete, run the same command",
        zarr(lambda store: None),
        SHARDS,
        meanwhile=lambda directory: chunk(directory / "tiny.zarr").unlink(),
    ),
)


def in_folders(directory: Path) -> None:
    """Twelve samples in a file of each of two folders."""
    whole = waves().assign_coords(sample=np.arange(24))
    for number in range(2):
        (directory / f"run{number}").mkdir()
        part = whole.isel(sample=slice(12 * number, 12 * number + 12))
        part.to_netcdf(directory / f"run{number}" / "tiny.nc", engine="h5netcdf")
    write(directory, lambda path: None, "run*/tiny.nc")


def locked(what: str, place: str, outcome: str, says: str, make: Make, *options: str) -> Row:
    """Something of a source that its user may not read."""
    return Row(what, f"chmod 000 {place}", outcome, says, make, options, locked=place)


DENIED = "cannot be read as any known format: [Errno 13] Permission denied"
ROWS["Sources that may not be read"] = (
    locked("a file", "tiny.nc", REFUSED, f'data.source "{{dir}}/tiny.nc" {DENIED}', lambda d: write(d, netcdf)),
    locked("one of many files", "part1.nc", REFUSED, f'data.source "{{dir}}/part1.nc" {DENIED}', many_files),
    locked(
        "the folder of a file",
        "run0",
        REFUSED,
        'data.source "{dir}/run0/tiny.nc" cannot be looked for: Permission denied. Check the path and its permissions.',
        in_folders,
        "data.source={dir}/run0/tiny.nc",
    ),
    locked(
        "the folder of a glob",
        "run0",
        REFUSED,
        'data.source "{dir}/run0/*.nc" cannot be looked for: Permission denied. Check the path and its permissions.',
        in_folders,
        "data.source={dir}/run0/*.nc",
    ),
    locked(
        "one of the folders of a glob",
        "run1",
        REFUSED,
        'data.source "{dir}/run*/tiny.nc": the folder {dir}/run1 cannot be listed, so files may be missing.',
        in_folders,
    ),
    locked("a store", "tiny.zarr", REFUSED, DENIED, zarr(lambda store: None)),
    locked(
        "a variable of a store",
        "tiny.zarr/u",
        REFUSED,
        'data.source "{dir}/tiny.zarr" cannot be read as zarr: [Errno 13] Permission denied',
        zarr(lambda store: None),
    ),
    locked(
        "a variable's chunks",
        "tiny.zarr/u/c",
        ON_READING,
        'data.source: "u" cannot be read: [Errno 13] Permission denied',
        zarr(lambda store: None),
    ),
    locked(
        "the recipe", "tiny.toml", REFUSED, "recipe {dir}/tiny.toml: Permission denied.", lambda d: write(d, netcdf)
    ),
)


if __name__ == "__main__":
    print(table())
