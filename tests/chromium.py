"""The distribution's Chromium, for tests of pages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [
    name
    for name, there in {
        "Chromium, which the distribution's package manager installs": CHROMIUM,
        "the package playwright, which make setup installs": importlib.util.find_spec("playwright"),
    }.items()
    if not there
]
NEEDED = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("DIFFATS_BROWSER") != "required",
    reason=f"needs {' and '.join(MISSING)}; make test-browser and make test-pages do not skip it",
)


@contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    assert not MISSING, f"needs {' and '.join(MISSING)}"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield opened
        opened.close()
