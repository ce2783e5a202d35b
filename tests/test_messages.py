"""Each message of the table in the situation it stands for, with the installed releases."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import distributed
import icechunk
import pytest
import zarr
from diffusers import DPMSolverMultistepScheduler
from repositories import RELEASE, empty_repository, head_file, made_by_other_release

from diffats.icechunk_releases import kind_of
from diffats.messages import KINDS_OF_ICECHUNK_1, MESSAGES
from diffats.store.location import quiet_icechunk, storage_for

quiet_icechunk()


def failure(call: Callable[..., object], *args: Any) -> Exception:
    """What a call raises."""
    with pytest.raises(Exception) as caught:
        call(*args)
    return caught.value


# Kinds of Icechunk's ----------------------------------------------------------------------------------------------


def no_repository(place: Path) -> Exception:
    place.mkdir()
    return failure(icechunk.Repository.open, storage_for(place))


def later_format(place: Path) -> Exception:
    if RELEASE > 1:
        pytest.skip("release 2 reads all formats that there are")
    made_by_other_release(place, 2)
    return failure(icechunk.Repository.open, storage_for(place))


def other_files(place: Path) -> Exception:
    place.mkdir()
    (place / "a.txt").write_text("a")
    return failure(icechunk.Repository.create, storage_for(place))


def damaged_head(place: Path) -> Exception:
    empty_repository(place, 1)
    head_file(place).write_text("{")
    return failure(icechunk.Repository.open, storage_for(place))


def damaged_settings(place: Path) -> Exception:
    empty_repository(place, 1)
    (place / "config.yaml").write_text("[")
    return failure(icechunk.Repository.open, storage_for(place))


def taken_tag(place: Path) -> Exception:
    empty_repository(place, 1)
    repo = icechunk.Repository.open(storage_for(place))
    repo.create_tag("a", repo.lookup_branch("main"))
    repo.delete_tag("a")
    return failure(repo.create_tag, "a", repo.lookup_branch("main"))


def commit(place: Path) -> None:
    session = icechunk.Repository.open(storage_for(place)).writable_session("main")
    zarr.open_group(session.store, mode="a", zarr_format=3).attrs["at"] = os.getpid()
    session.commit("a commit")


def clock_behind(place: Path) -> Exception:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the clock of a process cannot be moved")
    empty_repository(place, 1)
    library = place.with_name("clock.so")
    source = Path(__file__).with_name("faults") / "clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    code = "\n".join(["import os, icechunk, zarr", "storage_for = icechunk.local_filesystem_storage"])
    code += "\n" + inspect.getsource(commit).replace("place: Path", "place") + f"commit({str(place)!r})\n"
    environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": "3600", "ICECHUNK_LOG": "error"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return failure(commit, place)


KINDS = {
    "repository-not-found": no_repository,
    "unsupported-spec-version": later_format,
    "parent-directory-not-clean": other_files,
    "serialization": damaged_head,
    "config-deserialization": damaged_settings,
    "tag-already-exists": taken_tag,
    "snapshot-timestamp": clock_behind,
}


def test_each_kind_has_a_situation() -> None:
    assert KINDS.keys() == KINDS_OF_ICECHUNK_1.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_of_icechunk_has_its_kind(kind: str, tmp_path: Path) -> None:
    error = KINDS[kind](tmp_path / "place")
    assert isinstance(error, icechunk.IcechunkError)
    assert kind_of(error) == kind


# Storage ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """The address of a server whose every answer is this."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def s3(address: str, **credentials: Any) -> icechunk.Storage:
    keys = credentials or {"access_key_id": "a", "secret_access_key": "b"}
    return icechunk.s3_storage(
        bucket="bucket",
        prefix="a",
        region="us-east-1",
        endpoint_url=address,
        allow_http=True,
        force_path_style=True,
        **keys,
    )


def too_large_a_file(tmp_path: Path) -> Exception:
    """The operating system refuses, as it does where the disk is full."""
    empty_repository(tmp_path / "place", 1)
    session = icechunk.Repository.open(storage_for(tmp_path / "place")).writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(2**20,), dtype="u1", compressors=None, fill_value=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        return failure(array.__setitem__, slice(None), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_bucket(_: Path) -> Exception:
    body = b"<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"
    with answering(404, body) as address:
        return failure(icechunk.Repository.create, s3(address))


def no_credentials(_: Path) -> Exception:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        return failure(icechunk.Repository.open, s3("http://127.0.0.1:9", from_env=True))


def nobody_there(_: Path) -> Exception:
    config = {"azure_endpoint": "http://127.0.0.1:9", "azure_allow_http": "true"}
    storage = icechunk.azure_storage(account="a", container="c", prefix="p", access_key="YWJj", config=config)
    retries = icechunk.StorageRetriesSettings(max_tries=1)
    settings = icechunk.RepositoryConfig(storage=icechunk.StorageSettings(retries=retries))
    return failure(lambda: icechunk.Repository.open(storage, config=settings))


def refused(_: Path) -> Exception:
    with answering(403, b"") as address:
        return failure(icechunk.Repository.open, s3(address))


def test_a_code_of_the_operating_system(tmp_path: Path) -> None:
    assert MESSAGES["operating system"].code(too_large_a_file(tmp_path)) == str(errno.EFBIG)


def test_a_code_of_s3(tmp_path: Path) -> None:
    assert MESSAGES["S3 code"].code(no_bucket(tmp_path)) == "NoSuchBucket"


def test_credentials_that_are_missing(tmp_path: Path) -> None:
    error = no_credentials(tmp_path)
    assert MESSAGES["no credentials"].is_in(error)
    assert MESSAGES["request not sent"].is_in(error)  # of the AWS SDK


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    error = nobody_there(tmp_path)
    assert MESSAGES["request not sent"].is_in(error)  # of reqwest
    assert not MESSAGES["request refused"].is_in(error)


def test_a_refusal_without_a_body(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert MESSAGES["request refused"].is_in(error)
    assert MESSAGES["S3 code"].code(error) is None
    assert not MESSAGES["request not sent"].is_in(error)


# Others -----------------------------------------------------------------------------------------------------------


class OfAnotherRelease:
    """Cannot be read where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_work_that_the_scheduler_cannot_read() -> None:
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        error = failure(client.submit(id, OfAnotherRelease()).result)
    assert type(error) is RuntimeError
    assert MESSAGES["other environment"].is_in(error)


def test_diffusers_makes_arrays_of_tensors_in_the_old_way() -> None:
    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=100)
    with pytest.warns(DeprecationWarning, match=MESSAGES["arrays of tensors"].pattern):
        scheduler.set_timesteps(10)


def test_mlflow_warns_of_its_own_type_hints() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "import mlflow.pyfunc"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert MESSAGES["type hints"].is_in(done.stderr.strip().splitlines()[-1])
