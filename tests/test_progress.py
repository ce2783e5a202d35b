"""The line that says how far a stage is."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffats import progress
from diffats.progress import LoggedProgress, ProgressLine, showing, waiting


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
    assert str(line) == "elapsed 0:00"
    now[0] = 2
    line(1000, 2000, 0)  # the first step after an interruption
    assert str(line) == "1,000/2,000 steps  elapsed 0:02"
    now[0] = 12
    line(1100, 2000, 0)
    assert str(line) == "1,100/2,000 steps  10/s  elapsed 0:12, left 1:30"
    now[0] = 22
    assert str(line) == "1,100/2,000 steps  10/s  elapsed 0:22, left 1:20"
    now[0] = 200
    assert str(line) == "1,100/2,000 steps  10/s  elapsed 3:20, left 0:00"


def test_the_loss_is_that_of_the_last_report(now: list[float]) -> None:
    line = ProgressLine("train")
    line(1, 2, 0)
    line.note({"loss": 0.43449, "lr": 1.0})
    line.note({"seconds": 3.0})
    assert str(line) == "1/2 steps  elapsed 0:00  loss 0.434"


def test_failed_is_said_where_samples_failed(now: list[float]) -> None:
    line = ProgressLine("decompose")
    line(5, 10, 0)
    assert str(line) == "5/10 samples  elapsed 0:00"
    line(6, 10, 2)
    assert str(line) == "6/10 samples  elapsed 0:00  2 failed"


@given(done=st.integers(1, 10**9), seconds=st.integers(1, 10**6), width=st.integers(0, 90))
def test_a_narrow_line_keeps_what_matters_most(done: int, seconds: int, width: int) -> None:
    times = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress.time, "monotonic", lambda: times[0])
        line = ProgressLine("decompose")
        line(0, 2 * done, 0)
        times[0] = float(seconds)
        line(done, 2 * done, 7)
        whole, short = str(line), line.fitting(width)
    assert len(short) <= max(width, len(short.split("  ")[0]))
    assert short == whole or len(whole) > width
    assert short.startswith(f"{done:,}/{2 * done:,} samples")
    assert all(part in whole.split("  ") for part in short.split("  "))


def test_what_is_waited_for_is_told_until_something_is_counted(now: list[float]) -> None:
    line = ProgressLine("generate")
    with waiting("nobody looks"), showing(line), waiting("preparing"):
        with waiting("loading PyTorch"):
            now[0] = 4
            assert str(line) == "loading PyTorch  elapsed 0:04"
        assert str(line) == "preparing  elapsed 0:04"
        line(1, 8, 0)
        assert str(line) == "1/8 samples  elapsed 0:04"
        with waiting("starting Dask"):
            assert (line.counted, str(line)) == (False, "starting Dask  elapsed 0:04")
        assert line.counted
        with waiting("starting Dask"):
            line(2, 8, 0)
            assert line.counted
    assert str(line).startswith("2/8 samples")
    with waiting("nobody looks"):
        assert line.counted


@pytest.mark.parametrize(
    ("seen", "total", "lines"),
    [
        pytest.param(
            [(1, 50), (6, 100), (20, 0), (25, 1), (30, 20), (40, 40)],
            100,
            [
                "decompose  20/100 samples  2.0/s  elapsed 0:30, left 0:40  3 failed",
                "decompose  40/100 samples  2.0/s  elapsed 0:40, left 0:30  3 failed",
            ],
            id="begins anew with each pass",
        ),
        pytest.param(
            [(15, 4), (15.5, 8), (35, 12)],
            48,
            ["decompose  12/48 samples  0.4/s  elapsed 0:35, left 1:30  3 failed"],
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


def test_a_log_tells_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    line, told = LoggedProgress("plan"), []
    came = threading.Event()
    monkeypatch.setattr(progress.log, "info", lambda text, *parts: (told.append(text % parts), came.set()))
    with showing(line), line.telling(), waiting("reading"):
        assert came.wait(60)
    assert told[0].startswith("plan  reading  elapsed 0:0")
    assert line.awaited == ""
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]
