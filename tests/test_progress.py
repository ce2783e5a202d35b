"""The line that says how far a stage is."""

from __future__ import annotations

import logging

import pytest

from diffats import progress
from diffats.progress import LoggedProgress, ProgressLine


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (6737, "1:52:17")]
)
def test_a_clock(seconds: float, shown: str) -> None:
    assert progress.clock(seconds) == shown


def test_what_is_left_shrinks_between_two_steps(now: list[float]) -> None:
    line = ProgressLine("train")
    assert str(line) == "step 0 of 0, 0:00 elapsed"
    now[0] = 2
    line(100, 200, 0)  # the first step after an interruption
    assert str(line) == "step 100 of 200, 0:02 elapsed"
    now[0] = 12
    line(110, 200, 0)
    assert str(line) == "step 110 of 200, 0:12 elapsed, 1:30 left"
    now[0] = 22
    assert str(line) == "step 110 of 200, 0:22 elapsed, 1:20 left"
    now[0] = 200
    assert str(line) == "step 110 of 200, 3:20 elapsed, 0:00 left"


def test_the_loss_is_that_of_the_last_report(now: list[float]) -> None:
    line = ProgressLine("train")
    line(1, 2, 0)
    line.note({"loss": 0.43449, "lr": 1.0})
    line.note({"seconds": 3.0})
    assert str(line) == "step 1 of 2, 0:00 elapsed, loss 0.434"


@pytest.mark.parametrize(
    ("seen", "total", "lines"),
    [
        pytest.param(
            [(1, 50), (6, 100), (20, 0), (25, 1), (30, 20), (40, 40)],
            100,
            [
                "decompose: 20 of 100 samples, 0:30 elapsed, 0:40 left, 3 failed",
                "decompose: 40 of 100 samples, 0:40 elapsed, 0:30 left, 3 failed",
            ],
            id="begins anew with each pass",
        ),
        pytest.param(
            [(15, 4), (15.5, 8), (35, 12)],
            48,
            ["decompose: 12 of 48 samples, 0:35 elapsed, 1:30 left, 3 failed"],
            id="takes no rate from first answers that come together",
        ),
    ],
)
def test_logged_progress(
    seen: list[tuple[float, int]], total: int, lines: list[str], now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown = LoggedProgress("decompose")
    for seconds, done in seen:
        now[0] = seconds
        shown(done, total, 3)
    assert [record.message for record in caplog.records] == lines
