"""A user's function is found by its name without running any of her code."""

import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from edgepack.config.user_code.references import Reference, resolve, source, sources
from edgepack.core.errors import RecipeError

RUNS = "raise RuntimeError('this ran')\n"


def _write(file: str, text: str) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path.resolve()


def _check(reference: str) -> str:
    return TypeAdapter(Reference).validate_python(reference)


def _refusal(reference: str) -> str:
    with pytest.raises(ValidationError) as caught:
        _check(reference)
    return str(caught.value)


@pytest.mark.parametrize("file", ["shop.py", "shop/__init__.py"])
def test_a_module_of_this_folder(file: str) -> None:
    path = _write(file, "def load(n=1):\n    return n\n")
    assert source(_check("shop:load")) == path
    assert resolve("shop:load")(n=3) == 3


@pytest.mark.parametrize("package", [True, False])
def test_a_module_in_folders_that_may_be_packages(package: bool) -> None:
    path = _write("shop/sale/data.py", "def load():\n    return 7\n")
    if package:
        _write("shop/__init__.py", ""), _write("shop/sale/__init__.py", "")
    assert source(_check("shop.sale.data:load")) == path
    assert resolve("shop.sale.data:load")() == 7


def test_a_module_that_is_installed() -> None:
    assert source(_check("json.decoder:JSONDecoder")).name == "decoder.py"


def test_nothing_of_it_runs_before_it_is_needed() -> None:
    _write("shop/__init__.py", RUNS)
    _write("shop/data.py", f"def load(): ...\n{RUNS}")
    assert _check("shop.data:load")
    assert "shop" not in sys.modules
    with pytest.raises(RecipeError, match="does not load: RuntimeError: this ran"):
        resolve("shop.data:load")


@pytest.mark.parametrize(
    "text",
    [
        "from json import loads as load",
        "load = dict",
        "try:\n    import nothing\nexcept ImportError:\n    def load(): ...",
        "from json import *",
        "def __getattr__(name): ...",
        "class load: ...",
    ],
)
def test_however_it_is_defined(text: str) -> None:
    _write("shop.py", text)
    assert _check("shop:load")


@pytest.mark.parametrize(
    ("reference", "text", "why"),
    [
        ("shop", "", 'expected "module:function"'),
        ("shop:", "", 'expected "module:function"'),
        ("shop/data.py:load", "", 'expected "module:function"'),
        ("shop:load()", "", 'expected "module:function"'),
        ("shpo:load", "", "there is no module 'shpo': neither shpo.py in this folder nor an installed one"),
        ("shop.data:load", "", "there is no module 'shop.data': neither shop/data.py"),
        ("shop:laod", "def load(): ...", "unknown function of shop 'laod': did you mean 'load'? (allowed: load)"),
        ("shop:load", "def other():\n    load = 1", "unknown function of shop 'load' (allowed: other)"),
        ("shop:load", "x = 1\ndef load(", "shop.py is not valid Python: '(' was never closed (line 2)"),
        ("math:sqrt", "", "the module 'math' is not a Python file"),
    ],
)
def test_what_is_wrong_is_said(reference: str, text: str, why: str) -> None:
    _write("shop.py", text)
    assert why in _refusal(reference)


def test_a_name_that_is_no_function() -> None:
    _write("shop.py", "load = 3")
    with pytest.raises(RecipeError, match="'shop:load' is not a function but int"):
        resolve("shop:load")


def test_a_mended_file_is_read_again() -> None:
    _write("shop.py", "def other(): ...")
    assert "unknown function" in _refusal("shop:load")
    _write("shop.py", "def other(): ...\ndef load(): ...")
    assert _check("shop:load")


def test_a_change_in_what_a_module_imports_is_a_change() -> None:
    nets = _write("shop/nets.py", "from shop.blocks import Block\nimport helpers, torch\ndef make(): ...\n")
    blocks, start = _write("shop/blocks.py", RUNS), _write("shop/__init__.py", "")
    helpers, far = _write("helpers.py", "from far import away\n"), _write("far.py", "import helpers\n")
    _write("unrelated.py", "")
    assert {*sources("shop.nets:make")} == {nets, blocks, start, helpers, far}
    assert {*sources("helpers:away")} == {helpers, far}


def test_code_that_is_not_valid_python_is_still_known_by_its_content() -> None:
    nets, broken = _write("nets.py", "import broken\ndef make(): ...\n"), _write("broken.py", "def (:\n")
    assert {*sources("nets:make")} == {nets, broken}
