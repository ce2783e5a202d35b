"""Where a repository lies: a directory or an object store."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from urllib.parse import urlsplit

import icechunk

from diffats.errors import StoreError, StoreNotFoundError


def local_path(location: str | Path) -> Path | None:
    """The directory that a location names, or None for a URL.

    >>> local_path("runs/a").as_posix(), local_path("s3://bucket/a")
    ('runs/a', None)
    """
    text = str(location)
    if text.startswith("file://"):
        return Path(urlsplit(text).path)
    return None if "://" in text else Path(text)


def absolute(location: str | Path) -> str:
    """A location that means the same to workers in other directories."""
    path = local_path(location)
    return str(location) if path is None else str(path.absolute())


def storage_for(location: str | Path) -> icechunk.Storage:
    """Icechunk's storage for a location; credentials come from the environment.

    Parameters
    ----------
    location
        A directory, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises
    ------
    StoreError
        Where Icechunk cannot keep a repository in such a place.
    """
    path = local_path(location)
    if path is not None:
        return icechunk.local_filesystem_storage(absolute(path))
    url = urlsplit(str(location))
    prefix = url.path.strip("/") or None
    if url.scheme in ("s3", "s3a"):
        return _s3(url.netloc, prefix)
    if url.scheme in ("gs", "gcs"):
        return icechunk.gcs_storage(bucket=url.netloc, prefix=prefix, from_env=True)
    if url.scheme in ("az", "abfs"):
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise StoreError(f"store {location}: the account is unknown. Set AZURE_STORAGE_ACCOUNT_NAME.")
        return icechunk.azure_storage(account=account, container=url.netloc, prefix=prefix or "", from_env=True)
    raise StoreError(
        f'store {location}: a repository cannot lie at a "{url.scheme}://" address. '
        "Use a directory, s3://, gs:// or az://."
    )


def _s3(bucket: str, prefix: str | None) -> icechunk.Storage:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        from_env=True,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=bool(endpoint),  # what S3-compatible servers need
    )


def create_repository(location: str | Path) -> icechunk.Repository:
    """Open the repository at a location, or make one."""
    quiet_icechunk()
    try:
        return icechunk.Repository.open_or_create(storage_for(location))
    except icechunk.IcechunkError as error:
        raise StoreError(f"store {location}: cannot be opened or made ({reason(error)}).") from error


@functools.lru_cache(maxsize=16)
def open_repository(location: str) -> icechunk.Repository:
    """Open the repository at a location, once for each process.

    Raises
    ------
    StoreNotFoundError
        Where there is none.
    """
    quiet_icechunk()
    path = local_path(location)
    missing = f"there is no store at {location}. Run the stage that makes it, or correct the root."
    if path is not None and not path.is_dir():  # asking Icechunk would make the directory
        raise StoreNotFoundError(missing)
    storage = storage_for(location)
    try:
        if not icechunk.Repository.exists(storage):
            raise StoreNotFoundError(missing)
        return icechunk.Repository.open(storage)
    except icechunk.IcechunkError as error:
        raise StoreError(f"store {location}: cannot be opened ({reason(error)}).") from error


def reason(error: Exception) -> str:
    """The first line of an error; Icechunk's go on with a trace."""
    return str(error).strip().partition("\n")[0].removeprefix("x ").strip() or type(error).__name__


@functools.cache
def quiet_icechunk() -> None:
    """Keep Icechunk from warning of concurrent commits on a local file system, which the writer lock prevents."""
    if "ICECHUNK_LOG" not in os.environ:
        icechunk.set_logs_filter("error")
