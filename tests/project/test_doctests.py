"""The examples in docstrings are true.

Modules that import torch at the top are left out, and so is the package's own example, which builds the quickstart.
"""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from factories import PROJECT

_TORCH = re.compile(r"^(import|from) torch\b", re.M)


def _name(file: Path) -> str:
    return ".".join(file.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


MODULES = [
    _name(file)
    for file in sorted((PROJECT / "edgepack").rglob("*.py"))
    if not _TORCH.search(file.read_text(encoding="utf-8")) and _name(file) not in ("edgepack", "edgepack.__main__")
]


@pytest.mark.parametrize(
    "name", [name for name in MODULES if ">>>" in Path(import_module(name).__file__ or "").read_text()]
)
def test_the_examples_are_true(name: str) -> None:
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
    assert found.attempted > 0


def test_there_are_examples_to_check() -> None:
    assert len(MODULES) > 20
