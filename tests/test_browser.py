"""The report in a real browser: no error, no sideways scrolling, no clipped text, every picture there and not blank."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import NEEDED, launched
from tiny_runs import ALL, images, run, runs

from diffats import stages

pytestmark = [pytest.mark.browser, NEEDED]

# Names and values of what is wrong, by what the page's own elements say.
CLIPPED = """() => [...document.querySelectorAll('body *')].filter(e => {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!e.checkVisibility() || !e.innerText || style.position === 'absolute' || e.closest('thead')?.offsetHeight <= 1)
        return false;
    const hidden = e.scrollWidth > e.clientWidth + 1 && style.overflowX === 'hidden';
    const scrolled = e.closest('pre') !== null;
    return hidden || (!scrolled && (box.left < -1 || box.right > innerWidth + 1));
}).map(e => e.tagName + ': ' + e.innerText.slice(0, 60))"""
BLANK = """async () => {
    const bad = [];
    for (const image of document.images) {
        await image.decode();
        const canvas = new OffscreenCanvas(64, 64), context = canvas.getContext('2d');
        context.drawImage(image, 0, 0, 64, 64);
        const pixels = context.getImageData(0, 0, 64, 64).data;
        if (!image.naturalWidth || new Set(pixels.filter((_, i) => i % 4 !== 3)).size < 4) bad.push(image.alt);
    }
    return bad;
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of a forecast and that of classes."""
    made = {}
    for make in (runs, images):
        recipe = make(tmp_path_factory.mktemp(make.__name__)).recipe
        run(recipe, ALL)
        made[make.__name__] = Path(stages.run("report", recipe).location)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as opened:
        yield opened


@pytest.fixture(params=["runs", "images"])
def address(request: pytest.FixtureRequest, pages: dict[str, Path]) -> str:
    return pages[request.param].as_uri()


def opened(browser: Any, address: str, width: int, told: list[str]) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda asked: told.append(asked.url) if not asked.url.startswith(("data:", address)) else None)
    page.goto(address)
    return page


def unfold(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_at_every_width(browser: Any, address: str, width: int) -> None:
    told: list[str] = []
    page = opened(browser, address, width, told)
    assert width == 390 or page.evaluate("document.documentElement.scrollHeight") <= 4000
    for _ in range(2):  # folded, and with all that is folded
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CLIPPED) == []
        unfold(page)
    assert len(page.query_selector_all("img")) >= 10
    assert page.evaluate(BLANK) == []
    assert told == []
    page.close()


def test_the_checks_see_what_is_wrong(browser: Any, tmp_path: Path) -> None:
    """A page with an error, text that is cut, a blank picture and a request must not pass."""
    blank = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>"
    (tmp_path / "bad.html").write_text(
        "<div style='width:50px;overflow:hidden;white-space:nowrap'>a long line that is cut</div>"
        f'<img alt=b src="{blank}">'
        "<p style='width:3000px'>wide</p><script>console.error('broken')</script><link rel=stylesheet href=none.css>"
    )
    told: list[str] = []
    page = opened(browser, (tmp_path / "bad.html").as_uri(), 1280, told)
    assert [text.partition(":")[0] for text in page.evaluate(CLIPPED)] == ["DIV", "P"]
    assert page.evaluate(BLANK) == ["b"]
    assert page.evaluate("document.documentElement.scrollWidth") > 1280
    assert "broken" in told
    assert any(text.endswith("none.css") for text in told)
    page.close()
