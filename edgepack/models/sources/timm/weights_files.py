"""Where pretrained weights of timm are found, and what is known of them: without torch."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgepack.core.errors import RecipeError
from edgepack.data import hub
from edgepack.models.contract import WEIGHT_FILES

TAGGED = "hub"  # the weights that the model's tag names
_OWNER = "timm"  # who has them on the hub
_IN_PACKAGE = re.compile(r"(\w+):([^:]+)")


def is_file(weights: str) -> bool:
    return Path(weights).suffix.lower() in WEIGHT_FILES and not Path(weights).is_dir()


def file(weights: str) -> Path:
    """Return a file of weights: a path, or "package:path" for one in an installed package.

    Raises ValueError if there is no such package.
    """
    named = _IN_PACKAGE.fullmatch(weights)
    if named is None or Path(weights).exists():
        return Path(weights)
    package, inside = named.groups()
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"there is no file {weights!r}, and no package '{package}' is installed")
    home = Path(next(iter(spec.submodule_search_locations))).resolve()
    found = (home / inside).resolve()
    if not found.is_relative_to(home):
        raise ValueError(f"{inside!r} lies outside of the package '{package}'")
    return found


def in_folder(model: str, weights: str, revision: str | None, wanted: tuple[str, ...]) -> tuple[Path, ...]:
    """Return files of a folder of weights, or of what the hub has. Raises what `hub.folder` does."""
    found = hub.folder(f"{_OWNER}/{model}" if weights == TAGGED else weights, wanted, revision)
    return tuple(found / each for each in wanted)


def facts(model: str, weights: str | None, revision: str | None) -> dict[str, Any]:
    """Return what config.json tells of pretrained weights; of those in a file nothing is known.

    Raises RecipeError where it cannot be read, or is of another model.
    """
    if weights is None or is_file(weights):
        return {}
    (path,) = in_folder(model, weights, revision, hub.CONFIG)
    found = _read(path, path.stat().st_mtime_ns)
    name, own = model.partition(".")[0], found.get("architecture")
    if own != name:
        raise RecipeError(f"{path} is of the model {own!r}, not of {name}", "name the model that these weights are of")
    return found


@cache
def _read(path: Path, changed: int) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as a model's description: {error}") from None
    return found if isinstance(found, dict) else {}


def setting(found: dict[str, Any], name: str) -> Any:
    """Return what is known of the data that weights were trained on, or of their labels; else None."""
    settings = found.get("pretrained_cfg")
    inside = settings.get(name) if isinstance(settings, dict) else None
    return found.get(name, inside)
