"""The packages that only a part of the commands needs, and what to say where they are not installed.

``pip install diffats`` is enough to read, encode and check data. The extras of ``pyproject.toml`` bring the rest.
"""

from __future__ import annotations

from importlib.util import find_spec

from diffats.errors import MissingPackageError

#: By extra: the modules that its packages provide, beside those that every installation has.
MODULES = {
    "serve": ("torch", "diffusers"),
    "train": ("torch", "accelerate", "diffusers", "ot", "sklearn"),
    "track": ("mlflow", "sqlalchemy"),
    "flows": ("prefect", "fastapi", "uvicorn", "httpx"),
    "simulate": ("exponax", "sklearn"),
}
_PACKAGES = {"ot": "POT", "sklearn": "scikit-learn"}  # where the names differ


def missing(*extras: str) -> list[str]:
    """The packages of some extras that are not installed, by the names under which pip knows them.

    >>> missing()
    []
    """
    absent = dict.fromkeys(name for extra in extras for name in MODULES[extra] if find_spec(name) is None)
    return [_PACKAGES.get(name, name) for name in absent]


def require(purpose: str, *extras: str) -> None:
    """Refuse what needs packages that are not installed. Nothing is imported.

    Parameters
    ----------
    purpose
        What needs them, as the message's first words.
    extras
        Of ``pyproject.toml``: "serve", "train", "track", "flows", "simulate".

    Raises
    ------
    MissingPackageError
        Which says what is missing, for what, and the command that installs it.
    """
    absent = missing(*extras)
    if not absent:
        return
    needed = ",".join(extra for extra in extras if missing(extra))
    verb = "is" if len(absent) == 1 else "are"
    raise MissingPackageError(
        f"{purpose} needs {', '.join(absent)}, which {verb} not installed. Run: pip install 'diffats[{needed}]'"
    )
