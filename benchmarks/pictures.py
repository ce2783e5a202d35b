"""The README's pictures: the first one of the report of finished runs.

``python -m benchmarks.pictures runs/karman-small=forecast runs/indian-pines=classes`` writes ``forecast.png`` and
``classes.png`` into ``docs/images`` and prints what the reports say of them, for the README's alt texts.
"""

from __future__ import annotations

import argparse
import base64
from html.parser import HTMLParser
from pathlib import Path

from diffats.errors import DiffatsError, StoreNotFoundError

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


class FirstPicture(HTMLParser):
    """Bytes and alternative text of the first picture of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.png, self.alt = b"", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the first one."""
        found = dict(attrs)
        if tag == "img" and not self.png:
            self.png = base64.b64decode(str(found["src"]).partition(",")[2])
            self.alt = str(found["alt"])


def first_picture(root: Path) -> FirstPicture:
    """Of the report in a run's folder.

    Raises
    ------
    StoreNotFoundError
        Where there is no report, or no picture in it.
    """
    page = root / "report.html"
    if not page.is_file():
        raise StoreNotFoundError(f"{root} has no report.html. Run the recipe first: make demo, or flows.end_to_end.")
    found = FirstPicture(page.read_text(encoding="utf-8"))
    if not found.png:
        raise StoreNotFoundError(f"{page} has no picture. Run `diffats report RECIPE.toml --restart`.")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="ROOT=NAME", help="a finished run's folder, and its picture's name")
    parser.add_argument("--to", type=Path, default=IMAGES, metavar="FOLDER", help="where to write (docs/images)")
    options = parser.parse_args(arguments)
    pairs = [each.rpartition("=") for each in options.runs]
    if not all(root and name for root, _, name in pairs):
        parser.error("give each run as ROOT=NAME")
    try:
        found = {name: first_picture(Path(root)) for root, _, name in pairs}
    except DiffatsError as error:
        parser.error(str(error))
    for name, picture in found.items():
        (options.to / f"{name}.png").write_bytes(picture.png)
        print(f"{options.to / name}.png ({len(picture.png)} bytes): {picture.alt}")


if __name__ == "__main__":
    main()
