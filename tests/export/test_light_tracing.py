"""Lowering for any backend leaves out what is done again, and the file is the same."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch_factories import How, Inside, made
from torch_factories import tiny_models as tiny_models

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.export.formats.executorch import tracing
from edgepack.models.candidate import Candidate


def written(candidate: Candidate, backend: str, path: Path) -> bytes:
    exporter = plugins.choose("exporters", {"executorch": {"backend": backend}})
    exporter.module.export(candidate, exporter.config, path)
    return path.read_bytes()


def both(candidate: Candidate, backend: str, folder: Path) -> tuple[bytes, bytes]:
    """Return the file as edgepack writes it, and as ExecuTorch does."""
    light = written(candidate, backend, folder / "light.pte")
    with patch.object(tracing, "light_tracing", nullcontext):
        return light, written(candidate, backend, folder / "plain.pte")


@pytest.mark.parametrize(("backend", "how"), [("coreml", "eager"), ("portable", "eager"), ("portable", "quantized")])
def test_light_tracing_changes_no_byte(backend: str, how: How, tmp_path: Path) -> None:
    light, plain = both(made(how), backend, tmp_path)
    assert light == plain


def branches(x: torch.Tensor) -> torch.Tensor:
    """The operators to decompose are in the branches alone."""
    chosen: torch.Tensor = torch.cond(
        x.amax() > 0, nn.functional.hardswish, lambda inside: nn.functional.softplus(inside), (x,)
    )
    return chosen


def test_light_tracing_changes_no_byte_of_branches(tmp_path: Path) -> None:
    light, plain = both(replace(made("eager"), module=Inside(branches)), "portable", tmp_path)
    assert light == plain


def numbers(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(max=x.amax().item())


def test_a_number_that_is_read_from_a_tensor_is_not_fixed(tmp_path: Path) -> None:
    light, plain = both(replace(made("eager"), module=Inside(numbers)), "portable", tmp_path)
    assert light == plain


def test_what_cannot_be_exported_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"torch_factories.py:\d+: return self.said"):
        written(replace(made("eager"), module=Inside(torch.nonzero)), "xnnpack", tmp_path / "model.pte")
