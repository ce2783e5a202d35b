"""What a command makes of the environment it is started in, before any library reads it.

Sites, shells and launchers leave settings behind that were meant for something else. All commands and flows begin
with `prepare`, so that work on this machine needs none of them: it goes on, or one message names the setting.
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import resource
import sys
from collections.abc import Iterator

from diffats.errors import InputError, redact

#: What is set where the environment says nothing.
SETTINGS = {
    # How OpenMP's threads wait for work; torch reads it when it is imported. Threads that spin for long slow training
    # tenfold where another process wants a core. But some microseconds, from one operation to the next, are less than
    # waking them takes: half of a small network's step. The second is GNU's alone.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "10000",
    # Nothing is reported to anybody. Prefect, MLflow and Hugging Face's libraries heed the first, in this spelling.
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "disabled",
}

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "PREFECT_API_SSL_CERT_FILE")
_PROXIES = ("all_proxy", "http_proxy", "https_proxy")
_FILES = 2**16
#: What Accelerate's settings say where they ask for nothing.
_NOTHING = ("", "0", "1", "no", "none", "false", "off")


@functools.cache
def prepare() -> tuple[str, ...]:
    """Set this process's environment, and that of its children, up.

    Returns
    -------
    tuple of str
        What the user is to be told, once messages can be shown: settings that are not heeded, and why.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    _keep_proxies_from_loopback()
    _allow_open_files()
    return (*_drop_certificates(), *_drop_launchers())


def _keep_proxies_from_loopback() -> None:
    """Have no library ask a proxy for what is on this machine: the proxy would look on its own."""
    for name in ("NO_PROXY", "no_proxy"):  # libraries differ in which they read first
        given = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*given, *_LOOPBACK]))


def _allow_open_files() -> None:
    """Take as many open files as the system lets this user have: the usual limit suits a shell, not many sources."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):  # macOS has a lower limit that it does not tell
            return


def _drop_certificates() -> Iterator[str]:
    """Forget files of certificates that cannot be read, for which libraries fail where nothing is encrypted, too."""
    for name in _CERTIFICATES:
        path = os.environ.get(name)
        reason = path and _unreadable(path)
        if reason:
            del os.environ[name]
            yield f"{name} names {path}, which holds no certificates ({reason}). It is not heeded: unset or correct it"


def _unreadable(path: str) -> str | None:
    import ssl

    if os.path.isdir(path):
        return None
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _drop_launchers() -> Iterator[str]:
    """Forget what launchers have left: which process this is, of one, and how Accelerate trains, which recipes say."""
    if not os.environ.get("WORLD_SIZE"):
        for name in ("RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        value = os.environ.pop(name)
        if value.lower() not in _NOTHING and not name.startswith("ACCELERATE_USE_CPU"):
            yield f"{name}={value} is not heeded: the recipe says how is trained"


def drop_proxies() -> Iterator[str]:
    """Forget proxies that httpx, and so Prefect, cannot use: it fails for them where it needs no proxy, too.

    Returns
    -------
    iterator of str
        What the user is to be told of each.
    """
    import httpx

    for name in [name for name in os.environ if name.lower() in _PROXIES]:
        url = os.environ[name]
        if not url:
            continue
        try:
            httpx.HTTPTransport(proxy=url if "://" in url else f"http://{url}", verify=False).close()
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            del os.environ[name]
            reason = str(error).rstrip(".")
            yield f"{name}={redact(url)} is no proxy that Prefect's client can use ({reason}). It is not heeded"


def refuse_optimised() -> None:
    """Refuse to run without assertions where zarr then cannot read what it wrote.

    Raises
    ------
    InputError
        Which names the setting. Releases of zarr after https://github.com/zarr-developers/zarr-python/pull/4363 work.
    """
    if not sys.flags.optimize:
        return
    import zarr
    from zarr.core.group import GroupMetadata

    try:
        GroupMetadata.from_dict({"zarr_format": 3, "node_type": "group", "attributes": {}})
    except TypeError as error:
        raise InputError(
            f"Python runs without assertions (PYTHONOPTIMIZE, or python -O), and zarr {zarr.__version__} then cannot "
            "read its own files, which are all right. Unset PYTHONOPTIMIZE, leave -O out, or install a newer zarr."
        ) from error


def explain(error: BaseException) -> InputError | None:
    """An error that comes from the environment, as ours; None for others."""
    link: BaseException | None = error
    while link is not None:
        if getattr(link, "errno", None) == errno.EMFILE or os.strerror(errno.EMFILE) in str(link):
            return _too_many_files()
        link = link.__cause__ or link.__context__
    return _wrong_dask_settings() if isinstance(error, ValueError) and "dask" not in sys.modules else None


def _too_many_files() -> InputError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return InputError(
        f"too many open files: this process may have {limit} (RLIMIT_NOFILE). Raise the limit, as `ulimit -n 4096` in "
        "the shell does, or have its administrator raise it; then run the command again. What was committed stays."
    )


def _wrong_dask_settings() -> InputError | None:
    """Dask reads its settings when it is imported; a file that is wrong ends the import, wherever that is."""
    try:
        importlib.import_module("dask.config")
    except ValueError as error:
        return InputError(
            f"{' '.join(str(error).split())}. Correct this file, or move it away; DASK_CONFIG may name it."
        )
    return None
