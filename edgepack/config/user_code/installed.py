"""Find the installed distribution and version that a file belongs to, without reading other distributions.

    version_of(Path(".../site-packages/timm/__init__.py"))       # ("timm", "1.0.3")

`importlib.metadata.packages_distributions` would read the files of every distribution, which takes a second.
"""

import re
import sysconfig
from functools import cache
from pathlib import Path

from edgepack.core.files import digest

_SITES = ("site-packages", "dist-packages")
_INFO = re.compile(r"(?P<name>.+?)-(?P<version>[^-]+)(-py[\d.]+)?\.(dist|egg)-info")
_STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))


def is_installed(path: Path) -> bool:
    """Return whether a path is in site-packages or in Python's standard library."""
    return any(part in _SITES for part in path.parts) or any(path.is_relative_to(each) for each in _STANDARD)


def is_standard(path: Path) -> bool:
    return is_installed(path) and not any(part in _SITES for part in path.parts)


@cache
def version_of(file: Path) -> tuple[str, str] | None:
    """Return the name and version of the distribution that installed the file, or None, as for a file copied there.

    A distribution installed from a folder or repository can change without a new version, so its code counts too.
    """
    site = next(folder for folder in file.parents if folder.name in _SITES)
    info = _owner(site, file.relative_to(site).as_posix())
    found = _INFO.fullmatch(info.name) if info else None
    if info is None or found is None:
        return None
    code = f" {_code(info)}" if (info / "direct_url.json").is_file() else ""
    return _plain(found["name"]), f"{found['version']}{code}"


@cache
def _owner(site: Path, name: str) -> Path | None:
    top = name.partition("/")[0].partition(".")[0]
    infos = _infos(site)
    named = [info for info, plain in infos if plain == _plain(top)]
    if named and (site / top / "__init__.py").exists():  # folders without one may belong to several
        return named[0]
    telling = [info for info, _ in infos if top in _content(info / "top_level.txt").split()]
    return next((info for info in (*named, *telling, *(each for each, _ in infos)) if _lists(info, name, top)), None)


@cache
def _infos(site: Path) -> tuple[tuple[Path, str], ...]:
    """Return the metadata folder and name of each distribution, those with the longest RECORD last."""
    infos = [*site.glob("*.dist-info"), *site.glob("*.egg-info")]
    matches = [(info, found) for info in infos if (found := _INFO.fullmatch(info.name))]
    return tuple((info, _plain(found["name"])) for info, found in sorted(matches, key=lambda each: _size(each[0])))


def _lists(info: Path, name: str, top: str) -> bool:
    record = _content(info / "RECORD")
    return f"\n{name}," in f"\n{record}" if record else top in _content(info / "top_level.txt").split()


def _size(info: Path) -> int:
    record = info / "RECORD"
    return record.stat().st_size if record.exists() else 0


def _code(info: Path) -> str:
    """Return a digest of a distribution's code, as listed in its RECORD."""
    lines = _content(info / "RECORD").splitlines()
    return digest(sorted(line for line in lines if line.partition(",")[0].endswith((".py", ".so"))))[:12]


@cache
def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _plain(name: str) -> str:
    """
    >>> _plain("Torch_Pruning")
    'torch-pruning'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
