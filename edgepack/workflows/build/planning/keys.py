"""What a step's key is made of, and why one differs from another."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

from edgepack.config.plugins import Choice
from edgepack.core import provenance
from edgepack.core.files import file_digest


def numbered(names: Iterable[str]) -> list[str]:
    """
    >>> numbered(["distill", "prune", "distill"])
    ['distill', 'prune', 'distill (2)']
    """
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def differences(before: Any, after: Any, name: str = "", *, of_machine: bool = False) -> list[str]:
    """What changed between two JSON values, in words; `of_machine` where they are facts of a computer or device.

    >>> differences({"config": {"ratio": "30 %"}}, {"config": {"ratio": "40 %"}})
    ['ratio 30 % -> 40 %']
    >>> differences({"compute": {"features": "sse avx2"}}, {"compute": {"features": "sse avx2 avx512f"}})
    ['processor features +avx512f']
    """
    if before == after:
        return []
    if name == "read" and isinstance(before, dict | None) and isinstance(after, dict | None):
        one, other = before or {}, after or {}
        return [f"{key} changed" for key in sorted({*one} & {*other}) if one[key] != other[key]]
    if isinstance(before, dict) and isinstance(after, dict):
        changed = [
            differences(before.get(key), after.get(key), key, of_machine=of_machine or key in ("compute", "where"))
            for key in sorted({*before, *after})
        ]
        return list(chain.from_iterable(changed))
    if name in ("parent", "teacher", "reference"):
        return ["a step before it changed"] if name == "parent" else []
    if name in ("files", "data"):
        return ["another file"] if name == "files" else ["the data changed"]
    if of_machine and name == "features":
        return [_features(str(before or ""), str(after or ""))]
    return [f"{name} {_brief(before)} -> {_brief(after)}"]


def _features(before: str, after: str) -> str:
    """
    >>> _features("sse avx avx2", "sse avx avx512f")
    'processor features +avx512f -avx2'
    """
    had, has = ({*features.split()} for features in (before, after))
    changed = [*(f"+{each}" for each in sorted(has - had)), *(f"-{each}" for each in sorted(had - has))]
    shown = [*changed[:6], "and others"] if len(changed) > 6 else changed or ["in another order"]
    return " ".join(["processor features", *shown])


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def plugin_facts(choice: Choice) -> dict[str, Any]:
    return {
        "plugin": choice.name,
        "version": choice.module.VERSION,
        "config": choice.plain(),
        "versions": provenance.versions(*provenance.CORE, *choice.module.LIBRARIES),
    }


def files(models: Iterable[Choice]) -> list[str]:
    """The hashes of what models are made of: another file under the same name is another model."""
    return [file_digest(path) for model in models for path in model.module.files(model.config)]


def installed(models: Iterable[Choice]) -> dict[str, str]:
    """The versions of what the code of models imports, where that is a user's."""
    return {name: version for model in models for name, version in model.module.installed(model.config).items()}
