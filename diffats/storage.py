"""Object storage: what lies at s3://, gs:// and az:// addresses, and what to do where it cannot be reached.

Credentials come from the environment only, and are in no message.
"""

from __future__ import annotations

import errno
import http.client
import os
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import icechunk

from diffats.config import portable_place
from diffats.errors import StoreError
from diffats.icechunk_releases import LATER_FORMAT, kind_of, last_cause, reason
from diffats.messages import MESSAGES

#: Schemes of the places that can hold Icechunk repositories.
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs")

# A server that takes the connection and says nothing would otherwise be waited for minutes, in each of many tries.
_ANSWER_SECONDS = 5
_answering: set[str] = set()
# What a request ended in, and the fix; the first match counts.
_FIXES = {
    "no credentials": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    "request not sent": "Check the network and AWS_ENDPOINT_URL",
    "request refused": "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, their rights in the bucket, and AWS_REGION",
}


def object_storage(url: str) -> icechunk.Storage:
    """Icechunk's storage at a URL.

    Parameters
    ----------
    url
        ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.

    Raises
    ------
    StoreError
        Where Icechunk cannot keep a repository in such a place.
    """
    parts = urlsplit(url)
    prefix = parts.path.strip("/") or None
    if parts.scheme in ("s3", "s3a"):
        return _s3(parts.netloc, prefix)
    if parts.scheme in ("gs", "gcs"):
        return icechunk.gcs_storage(bucket=parts.netloc, prefix=prefix, from_env=True)
    if parts.scheme in ("az", "abfs"):
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise StoreError(f"store {url}: the account is unknown. Set AZURE_STORAGE_ACCOUNT_NAME.")
        return icechunk.azure_storage(account=account, container=parts.netloc, prefix=prefix or "", from_env=True)
    raise StoreError(
        f'store {portable_place(url)}: a repository cannot lie at a "{parts.scheme}://" address. '
        "Use a directory, s3://, gs:// or az://."
    )


def _endpoint() -> str | None:
    """The S3 server that the environment names; none stands for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _s3(bucket: str, prefix: str | None) -> icechunk.Storage:
    endpoint = _endpoint()
    return icechunk.s3_storage(
        bucket=bucket,
        prefix=prefix,
        from_env=True,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_url=endpoint,
        allow_http=bool(endpoint and endpoint.startswith("http://")),
        force_path_style=bool(endpoint),  # what S3-compatible servers need
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Any answer will do: Amazon's points to its web site, which need not be reachable."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Not to be followed."""


def check_endpoint(url: str, endpoint: str | None = None) -> None:
    """Refuse an S3 server of one's own that does not answer, in seconds; asked once in each process.

    Parameters
    ----------
    url
        Of what is to be opened there.
    endpoint
        The server; the one that the environment names where left out.

    Raises
    ------
    ConnectionError
        Where it does not answer.
    """
    server = endpoint or _endpoint()
    if server is None or server in _answering or not url.startswith(("s3://", "s3a://")):
        return
    try:
        urllib.request.build_opener(_NoRedirect).open(server, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()  # it answers, if only to say that it wants credentials
    except OSError as error:
        why = getattr(error, "reason", error)
        if isinstance(why, OSError) and not isinstance(why, ssl.SSLError):  # certificates are the libraries' matter
            words = why.strerror or str(why) or type(why).__name__
            raise ConnectionError(f"{portable_place(server)} does not answer: {words}") from error
    except (ValueError, http.client.HTTPException):
        return  # no URL, or no web server: the libraries tell
    _answering.add(server)


def explain(error: Exception) -> str:
    """The cause of a storage's failure in brackets, and the fix: the end of a message.

    >>> explain(ConnectionError("http://127.0.0.1:9 does not answer: Connection refused"))
    '(http://127.0.0.1:9 does not answer: Connection refused). Start the server, or correct AWS_ENDPOINT_URL.'
    """
    return f"({_cause(error)}). {_fix(error)}."


def _fix(error: Exception) -> str:
    if isinstance(error, ConnectionError):  # of `check_endpoint`
        return "Start the server, or correct AWS_ENDPOINT_URL"
    if kind_of(error) == LATER_FORMAT:
        return "Install icechunk 2 or later, which needs Python 3.12 or later: this release reads format 1 only"
    if MESSAGES["operating system"].code(error) == str(errno.ENOSPC):
        return "Free space on this disk"
    if MESSAGES["S3 code"].code(error) == "NoSuchBucket":
        return "Make the bucket, or correct its name"
    told = (fix for name, fix in _FIXES.items() if MESSAGES[name].is_in(error))
    return next(told, "Check the place, and rights and credentials for it")


def _cause(error: Exception) -> str:
    """S3's own code or the connection's failure, where there is one; else the first line.

    >>> _cause(ValueError('error getting object\\n  |-> service error\\n  `-> Error { code: "NoSuchBucket" }'))
    'NoSuchBucket'
    """
    code = MESSAGES["S3 code"].code(error)
    if code is not None:
        return code
    if MESSAGES["request not sent"].is_in(error):
        return last_cause(error)
    if MESSAGES["request refused"].is_in(error):  # whose answers have no body
        return "access refused"
    return reason(error)
