"""Record what a build was made with: versions, processor, git state, environment. No torch."""

import os
import platform
import re
import subprocess
from collections.abc import Set
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgepack.core.errors import RecipeError

CORE = ("edgepack", "torch")  # every stage's output depends on these
MISSING = "not installed"
SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)  # in the names of environment variables
_SHORTEST = 8  # characters of a secret; what is shorter, such as TOKENIZERS_PARALLELISM=false, may be a common word
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")  # of an address


@cache
def versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package from its metadata: torch and the like are not imported."""
    return {package: _version(package) for package in sorted(packages)}


def installed(*packages: str) -> dict[str, str]:
    """Return the version of each of these packages that is installed."""
    return {package: version for package, version in versions(*packages).items() if version != MISSING}


@cache  # reading a package's metadata takes a millisecond, and every step of a plan asks for some
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return MISSING


@cache
def cpu() -> dict[str, str]:
    """Return the processor's model name and features as reported by Linux."""
    facts: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    family = "/".join(facts.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return {
        "name": facts.get("model name", platform.processor() or platform.machine()),
        "family": family,
        "features": facts.get("flags", facts.get("Features", "")),
        "machine": platform.machine(),
    }


def cpu_features() -> frozenset[str]:
    return frozenset(cpu()["features"].split())


# Features that multiply bytes and sum the products in 32 bits: int8 runs faster with them and never saturates.
_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
SATURATION_HINT = "put `quantization: {int8_saturates: true}` into the device profile"


def int8_saturates(features: Set[str]) -> bool:
    """Return whether a processor with these features sums u8 x s8 products in 16 bits, which clips large sums."""
    return "avx2" in features and not int8_features(features)


def int8_features(features: Set[str]) -> list[str]:
    """Return those of the features that multiply int8."""
    return sorted(features & _INT8)


BF16 = frozenset({"amx_bf16", "avx512_bf16", "bf16"})  # features that multiply bfloat16; the last is Arm's


@cache
def threads() -> int:
    """Return the number of threads for training: EDGEPACK_THREADS, or the cores that this process may use."""
    asked, cores = os.environ.get("EDGEPACK_THREADS", ""), len(os.sched_getaffinity(0))
    if asked and not (asked.isdecimal() and 0 < int(asked) <= cores):
        raise RecipeError(f"EDGEPACK_THREADS is {asked!r}: give a whole number from 1 to {cores}")
    return int(asked or cores)


def compute() -> dict[str, Any]:
    """Return what training results depend on besides the recipe: part of the key of every stage.

    Includes the features, since virtual machines may mask them under the same processor name.
    """
    return {**cpu(), "threads": threads()}


def environment() -> dict[str, Any]:
    """Return the environment for reports; it contains no personal data and no secrets."""
    return {
        "cpu": cpu()["name"],
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def without_secrets(text: str) -> str:
    """Return a text with the passwords of its addresses, and the values of secret environment variables, left out.

    >>> without_secrets("no answer from https://me:word@host:5000/api")
    'no answer from https://***@host:5000/api'
    """
    secrets = {value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= _SHORTEST}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    return _PASSWORD.sub("***", text)


def summary(*packages: str) -> str:
    """Return the environment in one line, to print next to figures."""
    facts = environment()
    found = ", ".join(f"{name} {version}" for name, version in versions(*packages).items())
    int8 = ", ".join(int8_features(cpu_features())) or "no int8 products"
    return f"{facts['cpu']} ({int8}), {facts['threads']} of {facts['cores']} cores, {facts['system']}, {found}"


def git_state(folder: Path) -> dict[str, Any]:
    """Return the commit of `folder` and whether tracked files differ from it; empty outside a repository.

    `prefix` is the path of the current folder in its repository, such as "ml/models/", or "".
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "dirty": dirty, "prefix": _git(Path.cwd(), "rev-parse", "--show-prefix")}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
