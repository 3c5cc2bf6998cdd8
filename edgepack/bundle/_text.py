"""JSON and YAML as a bundle holds them: the same bytes for the same values."""

import io
import json
from typing import Any


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
