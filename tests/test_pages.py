"""MLflow's pages in a real browser: what a person finds there who opens them for the first time."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from chromium import NEEDED, launched
from test_browser import BLANK
from test_deployments import answers, wait_until
from tiny_recipe import write_recipe

from diffats import stages
from diffats.config import load_recipe
from diffats.registry import Tracker
from diffats.registry.connection import PORT, UI_SETTINGS, ui_arguments
from diffats.registry.places import WORKFLOW

pytestmark = [pytest.mark.browser, pytest.mark.slow, NEEDED]
PATIENCE = 60_000  # milliseconds, of a busy machine
# MLflow opens its assistant beside the page at the first visit of a browser, once.
VISITED = "if (window === top) localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@contextmanager
def opened(browser: Any, address: str) -> Iterator[Any]:
    """A page, which must not fail; nothing is asked of other machines."""
    visit = browser.new_context(viewport={"width": 1400, "height": 1200})
    visit.add_init_script(VISITED)
    visit.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    page = visit.new_page()
    page.set_default_timeout(PATIENCE)
    told: list[str] = []
    page.on("pageerror", lambda error: told.append(str(error)))
    page.goto(address)
    try:
        yield page
    finally:
        visit.close()
    assert told == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# --- MLflow ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """Two recipes in one tracker, whose pages a server shows at ``base``."""

    base: str
    tracker: Tracker
    runs: dict[str, tuple[str, str]]  # experiment and parent run by recipe

    def at(self, path: str) -> str:
        return f"{self.base}/#/{path}?{WORKFLOW}"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("mlflow")
    uri, runs = f"sqlite:///{folder / 'mlflow.db'}", {}
    written = write_recipe(folder)
    for name in ("tiny", "other"):
        given = (f"name={name}", f"root={folder / name}", f"tracking.uri={uri}", "train.steps=8")
        recipe = load_recipe(str(written), given)
        with stages.tracked(recipe) as parent:
            for stage in stages.STAGES:
                stages.run(stage, recipe, parent_run=parent)
        runs[name] = (Tracker.for_recipe(recipe).experiment_id, parent)
        tracker = Tracker.for_recipe(load_recipe(str(written), given))
        tracker.set_alias(name, "champion", "1")  # whatever so few steps have learnt
        tracker.tell_champion(name, "1", {"champion/crps": 0.5})
    port = free_port()
    line = [word.replace(str(PORT), str(port)) if word == str(PORT) else word for word in ui_arguments(uri)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(line, env={**os.environ, **UI_SETTINGS}, cwd=folder, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=base, timeout=60) as api:
            wait_until(lambda: answers(api), folder / "server.log")
        yield Shown(base, Tracker(uri, "tiny"), runs)
    finally:
        server.terminate()
        server.wait()


def says(page: Any, pattern: str) -> None:
    """Wait until the page shows a text."""
    page.wait_for_function("pattern => new RegExp(pattern).test(document.body.innerText)", arg=pattern)


def followed(page: Any, name: str) -> Any:
    """The page behind a link of a description, which MLflow opens in another tab."""
    with page.expect_popup() as other:
        page.get_by_role("link", name=name, exact=True).first.click()
    other.value.set_default_timeout(PATIENCE)
    return other.value


def test_three_clicks_lead_from_the_landing_page_to_champion_run_and_report(browser: Any, shown: Shown) -> None:
    landing = shown.tracker.overview("tiny")["Runs"].partition("/#/")[2]
    with opened(browser, f"{shown.base}/#/{landing}") as page:
        version = followed(page, "tiny version 1")
        says(version, "Limits of use")
        text = version.inner_text("body")
        assert "18 for training" in text
        assert "persistence" in text
        run = followed(version, "the run that made it")
        says(run, "tiny-raw")
        report = followed(run, "report")
        report.frame_locator("iframe").get_by_role("heading", name="tiny", exact=True).wait_for()


def test_the_report_is_whole_inside_mlflow(browser: Any, shown: Shown) -> None:
    experiment, run = shown.runs["tiny"]
    with opened(browser, shown.at(f"experiments/{experiment}/runs/{run}/artifacts/report.html")) as page:
        page.frame_locator("iframe").get_by_role("heading", name="tiny", exact=True).wait_for()
        report = page.frames[-1]
        assert report.evaluate("document.images.length") >= 8
        assert report.evaluate(BLANK) == []
        assert report.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_parent_run_has_description_data_curves_and_pictures(browser: Any, shown: Shown) -> None:
    experiment, run = shown.runs["tiny"]
    with opened(browser, shown.at(f"experiments/{experiment}/runs/{run}")) as page:
        page.get_by_text("Show more").first.click()
        text = page.inner_text("body")
        for words in ("Metrics by group", "reference/persistence/", "Data version", "Read this too", "test/crps"):
            assert words in text
        page.get_by_text("tiny-raw").first.click()
        page.get_by_text("float32 (time 6, x 8) in m s-1").wait_for()
        assert "18" in page.inner_text("body")
    with opened(browser, shown.at(f"experiments/{experiment}/runs/{run}/model-metrics")) as page:
        for group in ("test", "codec", "train", "reference/persistence"):
            says(page, rf"{group}\s*\(\d+\)")
    with opened(browser, shown.at(f"experiments/{experiment}/runs/{run}/artifacts")) as page:
        for name in ("pictures", "recipe.toml", "report.html"):
            page.get_by_text(name, exact=True).first.wait_for()


def test_two_recipes_are_compared_on_one_page(browser: Any, shown: Shown) -> None:
    experiments, runs = (list(each) for each in zip(*shown.runs.values(), strict=True))
    asked = f"runs={quote(yaml_list(runs))}&experiments={quote(yaml_list(experiments))}"
    with opened(browser, f"{shown.base}/#/compare-runs?{asked}&{WORKFLOW}") as page:
        says(page, "codec/compression")
        text = page.inner_text("body")
        assert "Comparing 2 Runs from 2 Experiments" in text
        assert all(name in text for name in shown.runs)


def yaml_list(texts: list[str]) -> str:
    return "[" + ",".join(f'"{text}"' for text in texts) + "]"


def test_the_history_of_champions_is_a_curve(browser: Any, shown: Shown) -> None:
    experiment = shown.runs["tiny"][0]
    [history] = shown.tracker.client.search_runs([experiment], "tags.`diffats.champions` = 'tiny'")
    with opened(browser, shown.at(f"experiments/{experiment}/runs/{history.info.run_id}/model-metrics")) as page:
        says(page, r"champion\s*\(\d+\)")
        page.locator(".js-plotly-plot").first.wait_for()
