"""Make a folder with what the worker needs on aarch64 Linux: Python, libraries, wheels of the runtimes.

    arm64/
      edgepack.json        that it is ours, and what it was made of
      usr/ lib/ ...        Debian's packages, unpacked
      site/                wheels

It is made without root rights and without containers: apt-get works in folders of its own, for arm64 and on a system
where nothing is installed; dpkg-deb unpacks; pip takes wheels of another platform. apt-get checks signatures and pip
the hashes of its index.
"""

import compileall
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.core.errors import DeviceError
from edgepack.core.files import full_disk

Tell = Callable[[str], None]

_MARK = "edgepack.json"
_SYSTEM = ("python3", "libstdc++6")  # with their dependencies
_PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_TIMEOUT = 1800.0  # seconds for one download


def home() -> Path:
    """Return its path: EDGEPACK_ARM64_ROOT, or a folder of the user's cache."""
    return Path(os.environ.get("EDGEPACK_ARM64_ROOT") or Path.home() / ".cache" / "edgepack" / "arm64").absolute()


def python(root: Path) -> Path | None:
    """Return its Python, or None if it was not made yet."""
    return _binary(root) if (root / _MARK).is_file() else None


def _binary(root: Path) -> Path | None:
    return next(iter(sorted(root.glob("usr/bin/python3.[0-9]*"))), None)


def site(root: Path) -> Path:
    return root / "site"


def versions(root: Path, *packages: str) -> dict[str, str]:
    """Return the versions of these packages in it."""
    from importlib.metadata import distributions

    found = {each.metadata["Name"]: each.version for each in distributions(path=[str(site(root))])}
    return {package: found[package] for package in packages if package in found}


def make(root: Path, wheels: Sequence[str], tell: Tell) -> None:
    """Make the folder (again), complete or not at all; `wheels` are pip requirements. Raises DeviceError."""
    if root.exists() and any(root.iterdir()) and not (root / _MARK).is_file():
        advice = "set EDGEPACK_ARM64_ROOT to an empty folder, or to one that this command made"
        raise DeviceError(f"{root} holds other files, which would be overwritten", advice)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=".arm64-", ignore_cleanup_errors=True) as work:
            _make(Path(work), root, wheels, tell)
    except OSError as error:
        raise full_disk(error, root) or error from error


def _make(work: Path, root: Path, wheels: Sequence[str], tell: Tell) -> None:
    fresh = work / "root"
    tell("fetching Debian's Python for arm64")
    packages = _fetch(work / "apt")
    for package in packages:
        _run(["dpkg-deb", "--extract", str(package), str(fresh)], f"{package.name} cannot be unpacked")
    tell(f"fetching {', '.join(wheels)}")
    _install(fresh, wheels)
    made_of = {"packages": sorted(package.name for package in packages), "wheels": sorted(wheels)}
    (fresh / _MARK).write_text(json.dumps(made_of, indent=1))
    if root.exists():
        root.rename(work / "old")
    fresh.rename(root)


def _fetch(folder: Path) -> list[Path]:
    """Download the packages. Sources that `apt-get update` cannot reach may not matter: only missing packages fail."""
    archives = folder / "cache" / "archives"
    for each in (folder / "state" / "lists" / "partial", archives / "partial"):
        each.mkdir(parents=True)
    (folder / "status").touch()
    apt = ["apt-get", *(word for option in _options(folder) for word in ("-o", option)), "--quiet", "--yes"]
    update = _done([*apt, "update"])
    advice = "this needs the network, and package sources that have arm64, as Debian's have"
    problem = "apt-get has no Python for arm64"
    if update.returncode != 0:
        problem += f" ({_last(update)})"
    _run([*apt, "install", "--download-only", *_SYSTEM], problem, advice)
    return sorted(archives.glob("*.deb"))


def _options(folder: Path) -> list[str]:
    """Return options for a separate apt-get: arm64 only, nothing installed, folders that need no root rights."""
    return [
        "APT::Architecture=arm64",
        "APT::Architectures=arm64",
        "APT::Install-Recommends=false",
        "APT::Sandbox::User=",
        "Acquire::Languages=none",
        f"Dir::State={folder / 'state'}",
        f"Dir::State::status={folder / 'status'}",
        f"Dir::Cache={folder / 'cache'}",
        f"Dir::Log={folder}",
    ]


def _install(root: Path, wheels: Sequence[str]) -> None:
    """Install wheels without their dependencies: pip would choose those for this computer's processor.

    If Python versions match, Python's own modules are compiled here too, as pip does with the wheels': under emulation,
    that would happen at every start.
    """
    binary = _binary(root)
    if binary is None:
        raise DeviceError("Debian's packages for arm64 hold no Python", "report this with your package sources")
    version = binary.name.removeprefix("python")
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    where = ["--target", str(site(root)), *platforms, "--python-version", version, "--implementation", "cp"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    advice = "check the network, and that this version exists for aarch64"
    _run([*pip, "--only-binary=:all:", *where, *wheels], "pip cannot fetch the runtimes for arm64", advice)
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        compileall.compile_dir(root / "usr" / "lib" / binary.name, quiet=2)


def _run(command: list[str], problem: str, advice: str = "") -> None:
    done = _done(command)
    if done.returncode != 0:
        raise DeviceError(f"{problem}: {_last(done)}", advice)


def _done(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise DeviceError(
            f"{command[0]} is not installed; it downloads Debian's Python for arm64",
            "make the folder on a Debian computer, copy it here, and set EDGEPACK_ARM64_ROOT to it",
        ) from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{command[0]} did not finish in {_TIMEOUT:.0f} s", "check the network") from None


def _last(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the last line that is an error, else the last line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR:"))]
    return (errors or lines or [f"it ended with code {done.returncode}"])[-1]
