"""Lowering for any backend leaves out what is done again, and the file is the same."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from torch_factories import made
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.export.formats.executorch import tracing


@pytest.mark.parametrize("backend", ["coreml", "portable"])
def test_light_tracing_changes_no_byte(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = plugins.choose("exporters", {"executorch": {"backend": backend}})
    light, plain = tmp_path / "light.pte", tmp_path / "plain.pte"
    exporter.module.export(made("eager"), exporter.config, light)
    monkeypatch.setattr(tracing, "light_tracing", nullcontext)
    exporter.module.export(made("eager"), exporter.config, plain)
    assert light.read_bytes() == plain.read_bytes()
