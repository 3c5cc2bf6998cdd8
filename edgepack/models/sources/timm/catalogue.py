"""What timm has, read from its source without importing it."""

import re
from functools import cache

from edgepack.core.process.libraries import source_folder


@cache
def models() -> dict[str, tuple[str, ...]]:
    """Return every model with the tags of its weights; none where timm's code puts them together.

    A function decorated with `@register_model` makes a model; the text "name.tag" names weights.
    """
    if (folder := source_folder("timm")) is None:
        return {}
    texts = [file.read_text(encoding="utf-8") for file in (folder / "models").glob("*.py")]
    found: dict[str, set[str]] = {
        name: set() for text in texts for name in re.findall(r"^@register_model\n(?:@.*\n)*def (\w+)\(", text, re.M)
    }
    for name, tag in (pair for text in texts for pair in re.findall(r"""["'](\w+)\.(\w+)["']""", text)):
        if name in found:
            found[name].add(tag)
    return {name: tuple(sorted(tags)) for name, tags in found.items()}
