"""Text from a template in templates/. A value that is not there is an error, never an empty place."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "templates"


def render(name: str, **values: Any) -> bytes:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=False,  # noqa: S701  (Markdown and source code: `quoted` is what they need)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = quoted
    return environment.get_template(name).render(**values).encode()


def quoted(text: str) -> str:
    """A string literal that Python and Swift read alike, and Kotlin where there is no dollar in it.

    >>> print(quoted('say "input"'))
    "say \\"input\\""
    """
    return json.dumps(text, ensure_ascii=False)
