"""The servers of `deployments/team`: two clients at once, restarts between stages, a third client, passwords."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from tiny_recipe import write_recipe

from requirements.install import find_uv, pip, uv_settings

ROOT = Path(__file__).parents[1]
RUN = ROOT / "deployments" / "team" / "run"
SERVERS = ("postgres", "storage", "mlflow", "prefect")
PORTS = ("MLFLOW", "PREFECT", "POSTGRES", "STORAGE", "STORAGE_MASTER", "STORAGE_VOLUME", "STORAGE_FILER")
CLIENT = """
import importlib.util, sys
import diffats
assert importlib.util.find_spec("prefect") is None
print(dict(diffats.load("models:/one@champion").sample(2).sizes))
assert "dask" not in sys.modules and "distributed" not in sys.modules
"""
# Secrets that only the servers have: a client works without them.
FOREIGN = ("AWS_", "MLFLOW_", "PREFECT_", "PG")


class Team:
    """The servers, in a folder of their own, on free ports."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.mlflow = f"http://127.0.0.1:{self.ports['MLFLOW']}"
        self.prefect = f"http://127.0.0.1:{self.ports['PREFECT']}/api"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.configure()

    def configure(self, auth: str = "") -> None:
        """Write the env file."""
        given = {"TEAM_HOME": self.home, "TEAM_BIN": Path(sys.executable).parent, "TEAM_AUTH": auth}
        given |= {f"{name}_PORT": port for name, port in self.ports.items()}
        (self.home / "team.env").write_text("".join(f"{name}='{value}'\n" for name, value in given.items()))

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return clean | {"TEAM_ENV": str(self.home / "team.env")}

    def run(self, what: str) -> int:
        with (self.home / f"{what}.log").open("ab") as log:
            return subprocess.run([RUN, what], env=self.environment, stdout=log, stderr=log, check=False).returncode

    def start(self, *servers: str) -> None:
        for name in servers:
            with (self.home / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [RUN, name], env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            self.wait(name, self.is_up(name))

    def stop(self, *servers: str) -> None:
        """Stop servers as systemd does: what is left of one's processes ends with it."""
        for name in servers:
            process = self.processes.pop(name, None)
            if process is None:
                continue
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def restart(self) -> None:
        self.stop(*reversed(SERVERS))
        self.start(*SERVERS)

    def is_up(self, name: str) -> Callable[[], bool]:
        if name == "storage":
            return lambda: self.run("bucket") == 0
        if name == "postgres":
            return lambda: connects(self.ports["POSTGRES"])
        return lambda: answers(f"{self.mlflow}/health" if name == "mlflow" else f"{self.prefect}/health")

    def wait(self, name: str, reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not reached():
            log = (self.home / f"{name}.log").read_text(encoding="utf-8")
            assert self.processes[name].poll() is None, log
            assert time.monotonic() < end, log
            time.sleep(0.5)

    def client(self, folder: Path, *line: str, **environment: str) -> subprocess.Popen[str]:
        """A command of a person who has a folder, the servers' addresses, and no secret."""
        folder.mkdir(exist_ok=True)
        own = {"HOME": str(folder), "PREFECT_HOME": str(folder / "prefect"), "PREFECT_API_URL": self.prefect}
        given = {**self.environment, **own, "MLFLOW_TRACKING_URI": self.mlflow, **environment}
        return subprocess.Popen(line, env=given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; the store takes each of its own plus 10000, too."""
    sockets = []
    while len(sockets) < count:
        server = socket.create_server(("127.0.0.1", 0))
        if server.getsockname()[1] < 55000:
            sockets.append(server)
        else:
            server.close()
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def connects(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    home = Path(tempfile.mkdtemp(prefix="team-"))  # pytest's folders are closed to PostgreSQL's user
    home.chmod(0o755)
    made = Team(home)
    try:
        for _ in range(2):  # what is there stays
            assert made.run("setup") == 0, (home / "setup.log").read_text()
        made.start(*SERVERS)
        yield made
    finally:
        made.stop(*reversed(SERVERS))
        shutil.rmtree(home)


def together(*clients: subprocess.Popen[str]) -> None:
    for client in clients:
        said, _ = client.communicate()
        assert client.returncode == 0, said


@pytest.mark.team
def test_two_recipes_from_two_clients_with_restarts_between_stages(team: Team, tmp_path: Path) -> None:
    recipes = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        recipes[name] = write_recipe(tmp_path / name)
        recipes[name].write_text(recipes[name].read_text().replace('name = "tiny"', f'name = "{name}"'))
    for flow in ("preprocess", "end_to_end"):
        line = (sys.executable, "-m", f"flows.{flow}")
        there = ("--set", f"tracking.uri={team.mlflow}")
        together(*(team.client(path.parent, *line, str(path), *there) for path in recipes.values()))
        team.restart()
    registry = MlflowClient(team.mlflow, team.mlflow)
    assert {model.name: len(model.latest_versions) for model in registry.search_registered_models()} == {
        "one": 1,
        "two": 1,
    }
    together(*(team.client(path.parent, *line, str(path), *there) for path in recipes.values()))
    assert [str(v.version) for v in registry.search_model_versions("name = 'one'")] == ["1"]  # nothing new
    registry.set_registered_model_alias("one", "champion", "1")
    flows = httpx.post(f"{team.prefect}/flow_runs/filter", json={}, timeout=60).raise_for_status().json()
    assert {run["state"]["type"] for run in flows} == {"COMPLETED"}
    assert len(flows) == 6
    together(team.client(tmp_path / "third", str(served(tmp_path)), "-c", CLIENT))


def served(folder: Path) -> Path:
    """A Python that has what a model needs that is loaded from a registry, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", folder / "served"], check=True)
    python, uv = folder / "served" / "bin" / "python", find_uv()
    pins = (
        "--constraint",
        str(ROOT / "requirements" / "lock.txt"),
        "--constraint",
        str(ROOT / "requirements" / "torch.txt"),
    )
    install = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), *pip()[1:], "install"]
    subprocess.run(
        [*install, "--quiet", *pins, f"{ROOT}[serve,track]"],
        env={**os.environ, **(uv_settings() if uv else {})},
        check=True,
    )
    return python


@pytest.mark.team
def test_with_basic_authentication_who_has_no_password_gets_nothing(team: Team) -> None:
    secrets = dict(line.split("=") for line in (team.home / "secrets.env").read_text().splitlines())
    login = ("admin", secrets["ADMIN_PASSWORD"])
    team.configure("basic")
    try:
        team.restart()
        for url in (f"{team.mlflow}/api/2.0/mlflow/experiments/search?max_results=1", f"{team.prefect}/admin/version"):
            assert httpx.get(url, timeout=60).status_code == 401
            assert httpx.get(url, auth=login, timeout=60).status_code == 200
    finally:
        team.configure()


@pytest.mark.team
def test_secrets_are_the_owners_and_in_no_command_line(team: Team) -> None:
    for name in ("secrets.env", "storage.json", "basic_auth.ini"):
        assert (team.home / name).stat().st_mode & 0o077 == 0
    secrets = [line.split("=")[1] for line in (team.home / "secrets.env").read_text().splitlines()]
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not any(secret in lines for secret in secrets)
