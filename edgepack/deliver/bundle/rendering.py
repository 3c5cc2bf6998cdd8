"""Templates, JSON and YAML of a bundle: the same bytes for the same values."""

import io
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
    """Return a string literal that is valid in Python and Swift, and in Kotlin unless it contains a dollar sign.

    >>> print(quoted('say "input"'))
    "say \\"input\\""
    """
    return json.dumps(text, ensure_ascii=False)


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def as_yaml(value: Any) -> bytes:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.BytesIO()
    yaml.dump(value, buffer)
    return buffer.getvalue()
