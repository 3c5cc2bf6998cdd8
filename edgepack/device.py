"""Where a bundle must run: a device profile, read from YAML.

device = load_device("host")          # devices/host.yaml of the project, else the profile shipped with edgepack
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from edgepack import plugins
from edgepack.config import Document, Frozen, Nested, unknown
from edgepack.errors import RecipeError
from edgepack.plugins import Choice


class Controls(Frozen):
    """What is held still while a file is timed."""

    threads: int | None = Field(default=None, ge=1, description="threads of the runtime; default: every core")


class Quantization(Frozen):
    """What the hardware wants of a compressed model. Each fact is part of the key of the stages that read it."""

    channel_multiple: int = Field(
        default=8, ge=1, description="channels left by pruning and ranks are multiples of this"
    )
    int8_saturates: bool = Field(
        default=False,
        description="whether products of u8 x s8 are summed in 16 bits (AVX2 without VNNI): weights get 7 bits then",
    )
    activations: Literal["uint8", "int8"] = Field(
        default="uint8",
        description="how ONNX Runtime's int8 kernels want activations: x86 fuses uint8 alone, ARM takes both",
    )
    sparsity: tuple[Literal["unstructured", "2:4"], ...] = Field(
        default=(), description="patterns of zero weights that the hardware skips; most hardware skips none"
    )


class DeviceFile(Frozen):
    """The top level of a device profile."""

    edgepack: Literal[1]
    name: str
    runner: Any
    controls: Controls = Controls()
    quantization: Quantization = Quantization()

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("give the device a name that people know it by")
        if not name.isprintable():
            raise ValueError(f"a name is printable text, got {name!r}")
        return name


@dataclass(frozen=True, kw_only=True)
class Device:
    """A checked device profile; `id` is the stem of its file name."""

    id: str
    file: Path
    name: str
    runner: Choice
    controls: Controls
    quantization: Quantization

    def resolved(self) -> dict[str, Any]:
        return {
            "edgepack": 1,
            "name": self.name,
            "runner": {self.runner.name: self.runner.plain()},
            "controls": self.controls.model_dump(mode="json"),
            "quantization": self.quantization.model_dump(mode="json"),
        }


def load_device(device: str | Path) -> Device:
    """The profile with this id, or in this file. Raises ConfigError with every mistake in it."""
    file = _find(device)
    document = Document.read(file)
    raw = document.check(DeviceFile, document.data)
    runner = _runner(document)
    document.raise_problems()
    if raw is None or runner is None:
        raise RecipeError(f"{file} could not be read")
    return Device(
        id=file.stem, file=file, name=raw.name, runner=runner, controls=raw.controls, quantization=raw.quantization
    )


def all_devices() -> dict[str, Path]:
    """Every profile by id: those shipped, and the project's own, which win."""
    folders = (_shipped(), Path("devices"))
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _find(device: str | Path) -> Path:
    if Path(device).suffix in (".yaml", ".yml"):
        return Path(device)
    known = all_devices()
    if str(device) not in known:
        raise RecipeError(unknown("device", device, known), "a device is a profile in the folder devices/")
    return known[str(device)]


def _shipped() -> Path:
    inside = Path(__file__).parent / "devices"  # in a wheel; a checkout has the folder beside the package
    return inside if inside.is_dir() else Path(__file__).parent.parent / "devices"


def _runner(document: Document) -> Choice | None:
    if "runner" not in document.data:
        return None
    try:
        return plugins.choose("runners", document.data["runner"])
    except Nested as error:
        document.note(error.error, error.model, error.value, ("runner", *error.path))
    except ValueError as error:
        document.problem(("runner",), str(error))
    return None
