"""A report that fails: told by its name, and the others are written."""

from pathlib import Path
from typing import Any

import pytest
from factories import build

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.deliver.contract import write_reports


def test_a_report_that_fails_is_named_and_keeps_no_other_from_being_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(build: Any) -> str:
        raise AttributeError("no such figure")

    monkeypatch.setattr(plugins.load("reports", "html"), "render", render)
    with pytest.raises(StageError, match="the report 'html' failed: AttributeError: no such figure"):
        write_reports(build(), Path())
    assert {each.name for each in Path().glob("*.*")} >= {"junit.xml", "report.md", "report.sarif"}
    assert not Path("report.html").exists()
