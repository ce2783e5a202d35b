"""A database of runs that was moved or copied: where the files of its runs and models are now.

MLflow's SQLite database holds absolute paths. The files of runs and models lie beside it, in ``mlartifacts``, and go
with it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import create_engine, text

from diffats.errors import InputError, StoreNotFoundError

logger = logging.getLogger("diffats.registry")

FOLDER = "mlartifacts"
# Where MLflow's tables name files.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifacts_beside(database: Path) -> Path:
    """Where the files of a database's runs and models lie."""
    return database.parent / FOLDER


def follow(database: Path) -> None:
    """Have a database that was moved or copied name the files that lie beside it now.

    Nothing is done where it lies where it was, by whatever symbolic link it is reached.

    Raises
    ------
    InputError
        Where the files were left behind: the message names both places.
    """
    here = artifacts_beside(database)
    for there in _former_places(database):
        if there.is_dir() and not here.is_dir():
            raise InputError(
                f"{database} was moved or copied without the files of its runs and models: they are in {there}, and "
                f"nothing is written there from here. Move or copy {there} to {here} too."
            )
        engine = create_engine(f"sqlite:///{database}")
        try:
            with engine.begin() as connection:
                for table, column in _COLUMNS:
                    connection.execute(
                        text(
                            f"UPDATE {table} SET {column} = :here || substr({column}, :length + 1) "
                            f"WHERE {column} = :there OR substr({column}, 1, :length + 1) = :there || '/'"
                        ),
                        {"here": str(here), "there": str(there), "length": len(str(there))},
                    )
        finally:
            engine.dispose()
        logger.warning(
            "%s was moved or copied: files of its runs and models are in %s, were in %s", database, here, there
        )


def located(source: str, database: Path, uri: str) -> str:
    """Where the files of a model are that a database names; nothing is written.

    Parameters
    ----------
    source
        As the database has it.
    database
        Where it lies now.
    uri
        Of the model, for messages.

    Raises
    ------
    StoreNotFoundError
        Where the database was moved or copied without them: the message names both places.
    """
    for there in _former_places(database):
        if Path(source).is_relative_to(there):
            here = artifacts_beside(database) / Path(source).relative_to(there)
            if not here.exists():
                raise StoreNotFoundError(
                    f"{uri}: its files were in {source}, and are not in {here}, beside the database as it lies now. "
                    f"Move or copy {there} to {artifacts_beside(database)}."
                )
            return str(here)
    return source


def _former_places(database: Path) -> list[Path]:
    """Folders beside which the database lay; experiments of others, which keep their files elsewhere, have none."""
    engine = create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT DISTINCT artifact_location FROM experiments")).scalars().all()
    finally:
        engine.dispose()
    places = [Path(row) for row in rows if row]
    here = artifacts_beside(database).resolve()
    return [place for place in places if place.is_absolute() and place.name == FOLDER and place.resolve() != here]
