"""List the differences between two JSON values, and make names in a list unique."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_SHOWN = 40  # longest shown value, in characters


class Difference(NamedTuple):
    """A value that differs; None stands for a missing one."""

    path: tuple[str, ...]
    before: Any
    after: Any

    def __str__(self) -> str:
        return self.describe(".".join(self.path))

    def describe(self, name: str) -> str:
        """Return the difference in words, under this name.

        >>> Difference(("ratio",), None, "30 %").describe("ratio")
        'ratio is new: 30 %'
        """
        before, after = _brief(self.before), _brief(self.after)
        if self.before is None:
            return f"{name} is new: {after}"
        if self.after is None:
            return f"{name} is gone: {before}"
        return f"{name} {before} -> {after}" if before != after else f"{name} differs"


def differences(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[Difference]:
    """Yield every value that changed. Lists are compared as a whole.

    >>> [str(each) for each in differences({"prune": {"ratio": "30 %"}}, {"prune": {"ratio": "40 %"}})]
    ['prune.ratio 30 % -> 40 %']
    """
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), (*path, str(key)))
    else:
        yield Difference(path, before, after)


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


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(item)}" for key, item in list(value.items())[:3]) or "no settings"
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
