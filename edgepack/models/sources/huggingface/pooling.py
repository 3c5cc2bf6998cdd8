"""How an encoder of texts makes one embedding of its tokens, as sentence-transformers writes it beside config.json."""

import json
from pathlib import Path
from typing import Any

from edgepack.core.errors import RecipeError
from edgepack.data import hub

# "mean_sqrt_len" divides the same sum by another number: the direction is that of the mean.
_KNOWN = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean", "mean_sqrt_len_tokens": "mean"}
_MODE = "pooling_mode"
_PARTS = ("Transformer", "Pooling", "Normalize")


def pooling(name: str) -> str:
    """Return mean or cls: which of the last layer's outputs make the embedding; the mean where nothing is said.

    Raises RecipeError for a file that cannot be read, or an embedding that is made in another way.
    """
    settings = _read(hub.optional(name, hub.POOLING))
    asked = [_mode(settings)] if _MODE in settings else [_short(key) for key, on in settings.items() if _is_on(key, on)]
    if strange := [mode for mode in asked if mode not in _KNOWN]:
        raise RecipeError(f"pools by {strange[0]!r}, edgepack by mean and cls only")
    modes = {_KNOWN[mode] for mode in asked} or {"mean"}
    if len(modes) > 1:
        raise RecipeError("joins the mean and the first token, of which edgepack knows one at a time")
    return modes.pop()


def other_part(name: str) -> str:
    """Return the kind of a module that follows the pooling, such as Dense, or ""."""
    modules = _read(hub.optional(name, hub.MODULES))
    kinds = [str(part.get("type", "")).rpartition(".")[2] for part in modules if isinstance(part, dict)]
    return next((kind for kind in kinds if kind not in _PARTS), "")


def _mode(settings: dict[str, Any]) -> str:
    return str(settings[_MODE])


def _short(key: str) -> str:
    return key.removeprefix(f"{_MODE}_")


def _is_on(key: str, on: object) -> bool:
    return key.startswith(f"{_MODE}_") and on is True


def _read(file: Path | None) -> Any:
    if file is None:
        return {}
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"has a file {file} that cannot be read as JSON: {error}") from error
