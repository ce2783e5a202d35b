"""The page on reliability says what the committed record says."""

from __future__ import annotations

from page import PAGE, RESULTS, page


def test_the_page_is_made_from_the_record() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(RESULTS.read_text(encoding="utf-8").splitlines())


def test_no_fault_of_the_record_failed() -> None:
    assert "FAILED" not in RESULTS.read_text(encoding="utf-8")
