"""What a key knows of a user's code: every file of hers that is imported, wherever it lies, and no other."""

import sys
import zipfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from edgepack.config.user_code import imports, installed


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is `here`, beside folders that are on no path; what is installed is asked for anew."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {*sys.modules}
    yield
    assert not {name for name in {*sys.modules} - before if name.startswith("own_")}, "code of the user's ran"
    for cached in CACHED:
        cached.cache_clear()


CACHED = (installed.version_of, installed._owner, installed._infos, installed._content)
RUNS = "raise RuntimeError('this ran')\n"


def write(files: dict[str, str]) -> None:
    """Modules by their path beside the current folder."""
    for name, text in files.items():
        path = Path("..", f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" + RUNS)


def found(name: str = "own_net") -> set[str]:
    root = Path.cwd().parent
    return {file.relative_to(root).as_posix() for file in imports.of(name).files}


ZOO = {"lib/own_zoo/__init__.py", "lib/own_zoo/base.py"}
DEEP = {*ZOO, "lib/own_zoo/deep/__init__.py", "lib/own_zoo/deep/net.py"}
ALL = {*ZOO, "lib/own_zoo/deep/__init__.py", "lib/own_zoo/late.py"}
BARE = {"lib/own_bare/a.py", "lib/own_bare/b.py"}


@pytest.mark.parametrize(
    ("says", "also"),
    [
        ("import own_layers", {"lib/own_layers.py"}),
        ("import own_layers as layers, json", {"lib/own_layers.py"}),
        ("from own_layers import block", {"lib/own_layers.py"}),
        ("from own_layers import *", {"lib/own_layers.py"}),
        ("def make():\n    import own_layers", {"lib/own_layers.py"}),
        ("try:\n    import nowhere\nexcept ImportError:\n    import own_layers", {"lib/own_layers.py"}),
        ("if x:\n    import own_layers\nelse:\n    import own_other", {"lib/own_layers.py", "lib/own_other.py"}),
        ("from importlib import import_module\nimport_module('own_layers')", {"lib/own_layers.py"}),
        ("import importlib\nimportlib.import_module(name='own_layers')", {"lib/own_layers.py"}),
        ("__import__('own_layers')", {"lib/own_layers.py"}),
        ("import own_zoo.deep.net", DEEP),
        ("from own_zoo import base", ZOO),
        ("from own_zoo.deep import net", DEEP),
        ("from own_zoo import *", ALL),
        ("import importlib\ndef make(name): return importlib.import_module(f'own_bare.{name}')", BARE),
        ("import importlib\ndef make(name): return importlib.import_module('own_bare.' + name)", BARE),
        ("import own_bare.a", {"lib/own_bare/a.py"}),
        ("import json, torch, edgepack.datasets, nowhere.at.all", set()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", ["sys.path", ".pth"])
def test_modules_that_are_imported_in_any_way_from_another_folder(
    says: str, also: set[str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH and .pth files come to the same: folders of `sys.path`."""
    write(
        {
            "lib/own_layers": "",
            "lib/own_other": "",
            "lib/own_unused": "",
            "lib/own_zoo/__init__": "",
            "lib/own_zoo/base": "",
        }
    )
    write({"lib/own_zoo/deep/__init__": "from ..base import one", "lib/own_zoo/deep/net": "", "lib/own_zoo/late": ""})
    write({"lib/own_bare/a": "", "lib/own_bare/b": "", "here/own_net": says})
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path("../lib").resolve() if how == ".pth" else "../lib")])
    assert found() - {"here/own_net.py"} == also


@pytest.mark.parametrize(
    "says",
    [
        "import sys\nsys.path.insert(0, '../lib')",
        "import sys\nsys.path += ['../lib']",
        "import sys\nsys.path[:0] = ['../lib']",
        "import sys\nsys.path = ['../lib'] + sys.path",
        "import sys, os\nsys.path.append(os.path.join(os.path.dirname(__file__), '..', 'lib'))",
        "import sys, os\nsys.path.insert(0, os.path.dirname(os.path.abspath(__file__)) + '/../lib')",
        "import sys\nROOT = Path(__file__).resolve().parent.parent\nsys.path.append(str(ROOT / 'lib'))",
        "from sys import path\npath.extend([str(Path(__file__).resolve().parents[1].joinpath('lib'))])",
        "import site, os\nsite.addsitedir(os.path.join(os.getcwd(), os.pardir, 'lib'))",
    ],
)
def test_folders_that_a_module_puts_on_the_path(says: str) -> None:
    write(
        {
            "lib/own_layers": "import own_deeper",
            "lib/own_deeper": "",
            "here/own_net": f"{says}\nfrom own_layers import block",
        }
    )
    assert found() == {"here/own_net.py", "lib/own_layers.py", "lib/own_deeper.py"}


def test_a_folder_that_is_put_before_the_others_comes_first() -> None:
    write(
        {
            "lib/own_layers": "",
            "here/own_layers": "",
            "here/own_net": "import sys\nsys.path.insert(0, '../lib')\nimport own_layers",
        }
    )
    assert found() == {"here/own_net.py", "lib/own_layers.py"}


class Editable:
    """An import hook as setuptools, hatch and meson-python install it: it maps names to files."""

    def __init__(self, **files: str) -> None:
        self.files = {name.replace("__", "."): Path(file).resolve() for name, file in files.items()}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = self.files.get(name)
        inside = [str(file.parent)] if file and file.name == "__init__.py" else None
        return spec_from_file_location(name, file, submodule_search_locations=inside) if file else None


def test_packages_that_are_installed_in_development_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        {
            "repo/src/own_pkg/__init__": "from . import blocks",
            "repo/src/own_pkg/blocks": "",
            "repo/src/own_pkg/unused": "",
        }
    )
    write({"other/own_one": "", "spaces/core/__init__": "", "spaces/core/a": "", "here/own_spaces/b": ""})
    write({"here/own_net": "import own_pkg, own_one, own_spaces.core.a"})
    hook = Editable(
        own_pkg="../repo/src/own_pkg/__init__.py",
        own_one="../other/own_one.py",
        own_spaces__core="../spaces/core/__init__.py",
    )
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, hook])
    own = {"repo/src/own_pkg/__init__.py", "repo/src/own_pkg/blocks.py", "other/own_one.py"}
    assert found() == {"here/own_net.py", *own, "spaces/core/__init__.py", "spaces/core/a.py"}


def test_a_hook_that_fails_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hook: Any = object()
    write({"here/own_net": "import nowhere"})
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    assert found() == {"here/own_net.py"}


def test_the_rest_of_its_own_package_counts_even_where_nothing_names_it() -> None:
    write(
        {
            "here/own_pkg/nets/__init__": "",
            "here/own_pkg/nets/small": "",
            "here/own_pkg/late": "import own_far",
            "here/own_far": "",
        }
    )
    write({"here/own_pkg/.hidden/x": "", "here/own_pkg/nets/__pycache__/x": ""})
    assert found("own_pkg.nets") == {
        "here/own_pkg/nets/__init__.py",
        "here/own_pkg/nets/small.py",
        "here/own_pkg/late.py",
        "here/own_far.py",
    }


def test_a_package_in_several_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is a namespace, the other names its further folders by pkgutil."""
    write({"lib/own_space/b": "", "here/own_space/a": "import own_space.b, own_old.b"})
    write(
        {
            "here/own_old/__init__": "__path__ = __import__('pkgutil').extend_path(__path__, __name__)",
            "lib/own_old/b": "",
        }
    )
    monkeypatch.syspath_prepend("../lib")
    assert found("own_space.a") >= {"here/own_space/a.py", "lib/own_space/b.py", "lib/own_old/b.py"}


def test_relative_imports_that_lead_out_of_the_package_lead_nowhere() -> None:
    write({"here/own_net": "from . import own_x\nfrom ...far import y", "here/own_x": ""})
    assert found() == {"here/own_net.py"}


def test_a_module_called_as_one_of_python() -> None:
    write({"here/own_net": "import code, types", "here/code": "import own_x", "here/own_x": ""})
    assert found() == {"here/own_net.py", "here/code.py", "here/own_x.py"}


def test_modules_in_an_archive_are_known_by_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"here/own_net": "import own_zipped"})
    with zipfile.ZipFile("../lib.zip", "w") as archive:
        archive.writestr("own_zipped.py", "")
    # An archive that stays in there is read again by every later test, which others take for a file that a model reads.
    monkeypatch.setattr(sys, "path_importer_cache", {**sys.path_importer_cache})
    monkeypatch.syspath_prepend(str(Path("../lib.zip").resolve()))
    assert found() == {"here/own_net.py", "lib.zip"}


def test_a_compiled_module_counts_with_its_content() -> None:
    write({"here/own_net": "from own_pkg import fast", "here/own_pkg/__init__": ""})
    Path("own_pkg/fast.so").write_bytes(b"\x7fELF")
    assert found() == {"here/own_net.py", "here/own_pkg/__init__.py", "here/own_pkg/fast.so"}


def install(name: str, version: str, record: str, **more: str) -> None:
    """Into a site-packages beside the current folder."""
    info = Path("../site-packages", f"{name}-{version}.dist-info")
    info.mkdir(parents=True)
    for file, text in {"RECORD": record, "METADATA": f"Name: {name}\nVersion: {version}\n", **more}.items():
        (info / file.replace("__", ".")).write_text(text)


def test_of_what_is_installed_the_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"site-packages/own_lib/__init__": "import own_deep", "site-packages/own_deep": ""})
    write(
        {
            "site-packages/own_mod": "",
            "site-packages/own_shared/part": "",
            "site-packages/own_copied": "import own_mod",
        }
    )
    install("Own.Lib", "1.2", "own_lib/__init__.py,,\n")
    install("distribution_of_another_name", "3", "own_mod.py,sha256=x,9\nown_other/__init__.py,,\n")
    install("own_shared_part", "4.dev1+g12", "own_shared/part.py,,\n")
    monkeypatch.syspath_prepend(str(Path("../site-packages").resolve()))
    write({"here/own_net": "import own_lib, own_mod\nfrom own_shared.part import x\nimport torch, edgepack, json"})
    assert found() == {"here/own_net.py"}
    versions = {"own-lib": "1.2", "distribution-of-another-name": "3", "own-shared-part": "4.dev1+g12"}
    assert imports.of("own_net").libraries == versions
    write({"here/own_net": "import own_copied"})  # which nothing has installed, and nothing else can tell of a change
    assert found() == {"here/own_net.py", "site-packages/own_copied.py"}
    assert imports.of("own_net").libraries == {"distribution-of-another-name": "3"}


def test_versions_count_only_of_what_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the package may need what is not installed everywhere; its files count all the same."""
    write({"site-packages/own_lib": "", "site-packages/own_plots": "", "site-packages/own_named": ""})
    for name in ("own_lib", "own_plots", "own_named"):
        install(name, "1", f"{name}.py,,\n")
    monkeypatch.syspath_prepend(str(Path("../site-packages").resolve()))
    write(
        {
            "here/own_pkg/__init__": "",
            "here/own_pkg/nets": "from .blocks import x",
            "here/own_pkg/blocks": "import own_lib",
        }
    )
    write({"here/own_pkg/plots": "import own_plots, own_far", "here/own_far": "import own_plots"})
    files = {f"here/own_pkg/{name}.py" for name in ("__init__", "nets", "blocks", "plots")} | {"here/own_far.py"}
    assert found("own_pkg.nets") == files
    assert imports.of("own_pkg.nets").libraries == {"own-lib": "1"}
    assert imports.of("own_pkg.plots").libraries == {"own-plots": "1"}
    write({"here/own_pkg/blocks": "import importlib\ndef f(name): importlib.import_module(name)"})  # any of them
    assert imports.of("own_pkg.nets").libraries == {"own-plots": "1"}


def test_of_what_was_installed_from_a_folder_the_code_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install .` again, after a change that left the version as it was."""
    write({"site-packages/own_lib/__init__": "", "here/own_net": "import own_lib"})
    monkeypatch.syspath_prepend(str(Path("../site-packages").resolve()))
    seen = []
    for sha, other in (("a", "1"), ("a", "2"), ("b", "2")):
        record = f"own_lib-1.dist-info/INSTALLER,sha256={other},4\nown_lib/__init__.py,sha256={sha},9\n"
        install("own_lib", "1", record, direct_url__json="{}")
        seen.append(imports.of("own_net").libraries["own-lib"])
        for cached in CACHED:
            cached.cache_clear()
        for file in Path("../site-packages/own_lib-1.dist-info").iterdir():
            file.unlink()
        Path("../site-packages/own_lib-1.dist-info").rmdir()
    assert seen[0] == seen[1] != seen[2] and seen[0].startswith("1 ")


@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_link_in_site_packages_leads_to_the_users_code(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write({"repo/own_pkg/__init__": "from own_pkg import inner", "repo/own_pkg/inner": "", "repo/own_one": ""})
    Path("../site-packages").mkdir()
    name = "own_pkg" if kind == "package" else "own_one.py"
    Path("../site-packages", name).symlink_to(Path("../repo", name).resolve())
    monkeypatch.syspath_prepend(str(Path("../site-packages").resolve()))
    write({"here/own_net": f"import {name.removesuffix('.py')}"})
    also = {"repo/own_pkg/__init__.py", "repo/own_pkg/inner.py"} if kind == "package" else {"repo/own_one.py"}
    assert found() == {"here/own_net.py", *also}


def test_files_come_in_the_order_of_their_modules_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"here/own_net": "import own_a, own_z", "zz/own_a": "", "aa/own_z": ""})
    for folder in ("../zz", "../aa"):
        monkeypatch.syspath_prepend(folder)
    assert [file.stem for file in imports.of("own_net").files] == ["own_a", "own_net", "own_z"]
