"""Machines that others set up: proxies, certificates, launchers, Dask's and Prefect's settings, homes, limits.

Work on one machine needs none of them. It goes on, or one message names the setting.
"""

from __future__ import annotations

import errno
import http.server
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import certifi
import httpx
import pytest
from safetensors.torch import load_file
from tiny_recipe import write_recipe

from diffats import environment, processes, training
from diffats.compute import open_cluster
from diffats.config import Compute
from diffats.errors import InputError

ROOT = Path(__file__).parents[1]
UNSHARE = shutil.which("unshare")
#: Where no file can be made, by root neither.
NOWHERE = "/proc/none"


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment that may be changed, and in which `prepare` has not been called."""
    before, limits = dict(os.environ), resource.getrlimit(resource.RLIMIT_NOFILE)
    environment.prepare.cache_clear()
    for name in ("NO_PROXY", "no_proxy", *(n for n in os.environ if n.startswith("ACCELERATE_"))):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    environment.prepare.cache_clear()
    os.environ.clear()
    os.environ.update(before)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose samples are encoded."""
    recipe = write_recipe(tmp_path_factory.mktemp("tiny"))
    assert run("decompose", recipe).returncode == 0
    return recipe


def run(*line: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """A verb on a machine with these settings."""
    return started([sys.executable, "-m", "diffats", *map(str, line)], settings)


def run_flow(name: str, recipe: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return started([sys.executable, "-m", f"flows.{name}", str(recipe)], settings)


def started(line: list[str], settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    without = ("PREFECT_API_URL", "PREFECT_HOME", "NO_PROXY", "no_proxy")
    surroundings = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(line, cwd=ROOT, env=surroundings | settings, capture_output=True, text=True, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One message, as for every input that cannot work, with these words."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert all(word in message for word in words), message


# Proxies and certificates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "a.org, .b.org"}, {"no_proxy": "a.org"}, {"NO_PROXY": "localhost"}])
def test_no_proxy_is_asked_for_this_machine(surroundings: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name, value in {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", **given}.items():
        surroundings.setenv(name, value)
    environment.prepare()
    for name, value in given.items():
        assert {each.strip() for each in value.split(",")} <= set(os.environ[name].split(","))
    with httpx.Client() as client, answering() as address:  # at port 9 nobody listens
        for host in ("127.0.0.1", "localhost"):
            assert client.get(address.replace("127.0.0.1", host)).status_code == 200
        assert client._transport_for_url(httpx.URL("http://c.org")) is not client._transport


@pytest.mark.parametrize("url", ["socks://127.0.0.1:1", "socks4://127.0.0.1:1", "ftp://a.org:1"])
def test_a_proxy_that_no_client_can_use_is_dropped_and_told(surroundings: pytest.MonkeyPatch, url: str) -> None:
    surroundings.setenv("ALL_PROXY", url)
    surroundings.setenv("HTTPS_PROXY", "http://ann:secret@a.org:3128")
    (note,) = environment.drop_proxies()
    assert f"ALL_PROXY={url} is no proxy" in note
    assert "ALL_PROXY" not in os.environ
    assert "HTTPS_PROXY" in os.environ
    httpx.Client().close()


@pytest.mark.parametrize("content", [None, "", "no certificate"])
@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_cannot_be_read_are_dropped_and_told(
    surroundings: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str | None
) -> None:
    place = tmp_path / "cacert.pem"
    if content is not None:
        place.write_text(content)
    surroundings.setenv(name, str(place))
    (note,) = environment.prepare()
    assert f"{name} names {place}, which holds no certificates" in note
    assert name not in os.environ
    assert environment.prepare() == (note,)  # told again by whoever asks
    httpx.Client().close()


def test_certificates_that_can_be_read_stay(surroundings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    surroundings.setenv("SSL_CERT_FILE", certifi.where())
    surroundings.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))  # a folder of certificates
    assert environment.prepare() == ()
    assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"} <= set(os.environ)


@pytest.mark.slow
def test_a_flow_needs_neither_proxy_nor_certificates(tiny: Path, tmp_path: Path) -> None:
    settings = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    settings |= {"ALL_PROXY": "socks5://127.0.0.1:9", "SSL_CERT_FILE": f"{tmp_path}/none.pem"}
    done = run_flow("preprocess", tiny, **settings, PREFECT_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "warning: SSL_CERT_FILE names" in done.stderr


# What is reported to others ---------------------------------------------------------------------------------------


def test_nothing_is_reported_to_anybody() -> None:
    code = (
        "import flows\n"
        "from huggingface_hub import constants\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "from prefect._internal.analytics.enabled import is_telemetry_enabled\n"
        "from prefect.settings import get_current_settings\n"
        "print(is_telemetry_disabled(), is_telemetry_enabled(), constants.HF_HUB_DISABLE_TELEMETRY, "
        "get_current_settings().server.analytics_enabled)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in environment.SETTINGS and name != "CI"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True", "False"]


def test_what_the_user_has_set_stays(surroundings: pytest.MonkeyPatch) -> None:
    surroundings.setenv("OMP_WAIT_POLICY", "active")
    environment.prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "active"


# Launchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({"WORLD_SIZE": "2"}, "says that 2 processes run this, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "auto"}, "WORLD_SIZE=auto is no number"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "RANK=2 is none of the 2 processes",
        ),
    ],
)
def test_variables_of_no_launcher_are_refused(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, str], words: str
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    for asked in (processes.count, processes.is_main):
        with pytest.raises(InputError, match="unset WORLD_SIZE, RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT") as told:
            asked()
        assert words in str(told.value)


def test_variables_of_a_launcher_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.is_main()) == (3, False)
    assert processes.meeting().startswith("process 2 of 3 waits for the others at node7:29500.")


def test_ranks_without_a_number_of_processes_are_dropped(surroundings: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}.items():
        surroundings.setenv(name, value)
    assert environment.prepare() == ()
    assert processes.is_main()
    assert {"RANK", "LOCAL_RANK"}.isdisjoint(os.environ)


def test_accelerate_trains_as_the_recipe_says(surroundings: pytest.MonkeyPatch) -> None:
    surroundings.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    surroundings.setenv("ACCELERATE_DYNAMO_BACKEND", "no")
    assert [note.partition(" is")[0] for note in environment.prepare()] == ["ACCELERATE_MIXED_PRECISION=fp16"]
    assert not [name for name in os.environ if name.startswith("ACCELERATE_")]


def test_a_verb_says_which_variable_it_stumbles_over(tiny: Path) -> None:
    refused(run("train", tiny, WORLD_SIZE="2"), "WORLD_SIZE=2", "RANK", "MASTER_ADDR")


# Dask -------------------------------------------------------------------------------------------------------------

SITE = {
    "distributed.comm.require-encryption": True,
    "distributed.comm.default-scheme": "tls",
    "distributed.comm.timeouts.connect": "a while",
    "distributed.worker.preload": ["nosuch"],
    "distributed.nanny.preload": ["nosuch"],
    "temporary-directory": NOWHERE,
    "scheduler-address": "tcp://192.0.2.1:8786",
    "scheduler": "distributed",
}


@pytest.mark.parametrize("setting", SITE)
def test_local_workers_need_none_of_a_sites_settings(setting: str) -> None:
    import dask.config

    with dask.config.set({setting: SITE[setting]}):
        with open_cluster(Compute(workers=2)) as cluster:
            assert dict(cluster.map(abs, [-1, 2])) == {-1: 1, 2: 2}
        assert dask.config.get(setting) == SITE[setting]


@pytest.mark.parametrize("content", ["distributed:\n  worker: {bad\n", "- a list\n"])
def test_a_file_of_dasks_settings_that_is_wrong_is_named(tiny: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "dask.yaml").write_text(content)
    settings = {"DASK_CONFIG": str(tmp_path / "dask.yaml")}
    refused(run("decompose", tiny, "--restart", **settings), "dask.yaml", "malformed", "DASK_CONFIG")


# Prefect ----------------------------------------------------------------------------------------------------------


class Other(http.server.BaseHTTPRequestHandler):
    """A web server that answers whatever it is asked with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome</html>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering() -> Iterator[str]:
    """The address of another web server, for a ``with`` block."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()


def test_another_service_is_not_taken_for_prefect(tiny: Path) -> None:
    with answering() as address:
        done = run_flow("preprocess", tiny, PREFECT_API_URL=address)
    refused(done, f"no Prefect server answers at {address}", "status 200", "ends with /api")


def test_a_home_that_cannot_be_written_is_named(tiny: Path) -> None:
    refused(run_flow("preprocess", tiny, HOME=NOWHERE), f"{NOWHERE}/.prefect", "PREFECT_HOME")


def later_release(place: Path) -> None:
    with sqlite3.connect(place) as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('deadbeef0123')")
    database.close()


def noise(place: Path) -> None:
    place.write_bytes(b"no database" * 1000)


@pytest.mark.parametrize(
    ("make", "words"), [(later_release, "another release of Prefect"), (noise, "file is not a database")]
)
def test_a_database_that_cannot_be_used_is_named(
    tiny: Path, tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    place = tmp_path / "prefect.db"
    make(place)
    before = place.stat().st_size
    refused(run_flow("preprocess", tiny, PREFECT_HOME=str(tmp_path)), str(place), words, "PREFECT_HOME=")
    assert place.stat().st_size == before


def test_a_setting_of_prefects_that_is_none_is_named(tiny: Path) -> None:
    refused(run_flow("preprocess", tiny, PREFECT_API_REQUEST_TIMEOUT="soon"), "request_timeout", "'soon'", "PREFECT_")


@pytest.mark.slow
def test_three_flows_at_once_in_a_new_home(tmp_path: Path) -> None:
    """Each private server makes the same database."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    surroundings["PREFECT_HOME"] = str(tmp_path / "home")
    running = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        line = [sys.executable, "-m", "flows.preprocess", str(write_recipe(tmp_path / str(number)))]
        running.append(
            subprocess.Popen(line, cwd=ROOT, env=surroundings, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    for process in running:
        told = process.communicate()[1].decode()
        assert process.returncode == 0, told


@pytest.mark.slow
@pytest.mark.skipif(UNSHARE is None, reason="needs unshare")
@pytest.mark.parametrize(
    "make", ["mount -t tmpfs -o size=64k tmpfs $0; head -c 99999 /dev/zero > $0/a", "mount -t tmpfs -o ro tmpfs $0"]
)
def test_a_full_or_read_only_home(tiny: Path, tmp_path: Path, make: str) -> None:
    """The verbs need no home; a flow names it."""
    place, recipe = tmp_path / "home", tiny
    place.mkdir()
    assert UNSHARE is not None
    python = f"{sys.executable} -m"
    line = f"({make}) 2> /dev/null; export HOME=$0; {python} diffats plan {recipe} > /dev/null && "
    line += f"{python} flows.preprocess {recipe}"
    done = started([UNSHARE, "--map-root-user", "--mount", "sh", "-c", line, str(place)], {})
    refused(done, f"Prefect's home {place}/.prefect cannot be written", "PREFECT_HOME")


@pytest.mark.slow
@pytest.mark.skipif(UNSHARE is None, reason="needs unshare")
def test_a_user_without_home_and_name(tiny: Path, tmp_path: Path) -> None:
    """As in containers that run under any number."""
    (tmp_path / "passwd").write_text("")
    assert UNSHARE is not None
    line = f"mount --bind {tmp_path}/passwd /etc/passwd && unset HOME && {sys.executable} -m diffats "
    done = started([UNSHARE, "--map-root-user", "--mount", "sh", "-c", f"{line} decompose {tiny} --restart"], {})
    assert done.returncode == 0, done.stderr


# Python and the system --------------------------------------------------------------------------------------------


def test_python_without_assertions_works_or_says_so(tiny: Path) -> None:
    done = run("inspect", tiny, PYTHONOPTIMIZE="1")
    if done.returncode:  # as zarr 3.1.6
        refused(done, "PYTHONOPTIMIZE", "zarr")
    assert "damaged" not in done.stderr


def test_as_many_files_are_open_as_the_system_allows(surroundings: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    environment.prepare()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft == 2**16 if hard == resource.RLIM_INFINITY else soft == min(hard, 2**16)


def test_too_many_open_files_name_the_limit(tiny: Path) -> None:
    line = f"ulimit -n 14; exec {sys.executable} -m diffats plan {tiny}"
    refused(started(["sh", "-c", line], {}), "too many open files", "14", "RLIMIT_NOFILE", "ulimit")


def test_the_limit_of_open_files_is_told_whatever_it_was_taken_for() -> None:
    error = InputError("a.nc is damaged")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.nc")
    assert "RLIMIT_NOFILE" in str(environment.explain(error))
    assert environment.explain(InputError("a.nc is damaged")) is None


def test_a_checkpoint_that_cannot_be_opened_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be passed over, and removed."""
    for step in (1, 2):
        training.write_checkpoint(tmp_path, training.Checkpoint(step, {"model": {}}))

    def no_handle(path: Path) -> dict[str, object]:
        if "checkpoint-2" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return dict(load_file(path))

    monkeypatch.setattr(training, "load_file", no_handle)
    with pytest.raises(OSError, match="Too many open files"):
        training.read_checkpoint(tmp_path)
