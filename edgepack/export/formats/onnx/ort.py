"""Write ONNX Runtime's .ort form of a file, and list what an ONNX Runtime build for that file needs.

An .ort file holds the graph as it was optimized for one kind of processor; on x86 its convolutions have the block
length of the computer that wrote it. A minimal build loads no other form, and knows only the operators it is given.
"""

import contextlib
import io
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from edgepack.export.formats.onnx.ort_order import settled

Platform = Literal["arm", "amd64"]
_CONFIG = "required_operators_and_types.config"
_ALL, _NONE = "all", "disable"  # optimization levels, as the converter names them

_BUILDING = """\
In a checkout of https://github.com/microsoft/onnxruntime at the tag `v{version}`:

```
./build.sh --config MinSizeRel --build_shared_lib --parallel --skip_tests {minimal}\\
  --include_ops_by_config "$BUNDLE/runtime/{config}" --enable_reduced_operator_type_support
```

{note}
Add `--android` or `--ios` with their paths, or `--arm64`, for the device. `{config}`{as_well} was made for
processors of the kind {platform} (`--optimization_style Fixed --target_platform {platform}`). For another kind export
anew: `export: [{{onnx: {{target_platform: {other}}}}}]`.
"""
_MINIMAL = """\
The runtime then loads .ort files alone, and no operator but this file's. `--disable_ml_ops --disable_exceptions
--disable_rtti` makes it smaller still; without exceptions a failure ends the app."""
_REDUCED = """\
The operators are those of the file and those that it is optimized to when it is loaded. A minimal build
(`--minimal_build`) loads .ort files alone: `export: [{onnx: {format: ort}}]` makes one."""


def convert(source: Path, path: Path, target: Platform | None) -> None:
    """Write the .onnx file `source` as the .ort file `path`, with fixed optimization."""
    with TemporaryDirectory() as folder:
        path.write_bytes(settled(_converted(source, Path(folder), target, _ALL).read_bytes()))


def files(path: Path, target: Platform | None) -> dict[str, bytes]:
    """Return the list of operators and types that a build for this file needs, and build instructions."""
    import onnxruntime

    ready = path.suffix == ".ort"
    with TemporaryDirectory() as folder:
        models = [path] if ready else [_converted(path, Path(folder), target, level) for level in (_ALL, _NONE)]
        wanted = _operators(models, Path(folder) / _CONFIG)
    text = _BUILDING.format(
        version=onnxruntime.__version__,
        minimal="--minimal_build " if ready else "",
        config=_CONFIG,
        note=_MINIMAL if ready else _REDUCED,
        as_well=", as the .ort file itself," if ready else "",
        platform=(kind := target or host()),
        other="amd64" if kind == "arm" else "arm",
    )
    return {_CONFIG: wanted, "BUILDING.md": text.encode()}


def host() -> Platform:
    """Return the processor kind of this computer, as ONNX Runtime's tools name it."""
    return "arm" if platform.machine().lower().startswith(("arm", "aarch")) else "amd64"


def _converted(source: Path, folder: Path, target: Platform | None, level: str) -> Path:
    """Convert like `python -m onnxruntime.tools.convert_onnx_models_to_ort --optimization_style Fixed`."""
    from onnxruntime.tools import convert_onnx_models_to_ort as tool

    platform = target or host()
    with contextlib.redirect_stdout(io.StringIO()):
        (made,) = tool._convert(
            model_path_or_dir=source.resolve(),
            output_dir=folder.resolve(),
            optimization_level_str=level,
            optimization_style=tool.OptimizationStyle.Fixed,
            custom_op_library=None,
            create_optimized_onnx_model=False,
            allow_conversion_failures=False,
            target_platform=platform,
            session_options_config_entries={"session.qdqisint8allowed": "1" if platform == "arm" else "0"},
        )
    return Path(made)


def _operators(models: list[Path], path: Path) -> bytes:
    """List one operator set per line, without the lines that name files of this computer."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    create_config_from_models(models, path, enable_type_reduction=True)
    lines = path.read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith("#")).encode()
