"""The README's pictures are the reports' own."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from benchmarks.pictures import main
from diffats import plots
from diffats.report import ReportContent, render

FIRST, SECOND = (plots.png(Figure(figsize=(1, height), dpi=40)) for height in (0.5, 0.6))


def test_the_first_picture_of_each_report_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = render(ReportContent("a", pictures={"scree": SECOND, "gallery": FIRST}))
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    main([f"{tmp_path}=classes", "--to", str(tmp_path)])
    assert (tmp_path / "classes.png").read_bytes() == FIRST
    assert "Real and generated samples." in capsys.readouterr().out


@pytest.mark.parametrize("page", [None, render(ReportContent("a"))])
def test_nothing_is_written_where_a_report_is_missing(
    page: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if page is not None:
        (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with pytest.raises(SystemExit):
        main([f"{tmp_path}=a", "--to", str(tmp_path)])
    assert "report" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
