"""Where a bundle must run: a device profile, read from YAML.

device = load_device("host")          # devices/host.yaml of the project, else the profile shipped with edgepack
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from edgepack.config import plugins
from edgepack.config.analytic import Analytic
from edgepack.config.document import Document, Nested, unknown
from edgepack.config.plugins import Choice
from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import int8_saturates
from edgepack.core.runtimes import RUNTIMES
from edgepack.core.units import SIZE, Duration, Size

_X86 = ("x86_64", "amd64", "AMD64")  # int8 products saturate on these only
Core = Annotated[int, Field(ge=0)]


class Processor(Frozen):
    """The processor that runs the model, for people and for latency estimates; `match` recognises the device."""

    name: str = Field(description="name of the processor, such as Cortex-A76")
    architecture: str = Field(default="", description="output of `uname -m`: x86_64, aarch64")
    features: tuple[str, ...] = Field(
        default=(), description="instruction sets that int8 kernels use, such as asimddp, i8mm"
    )
    cores: int | None = Field(default=None, ge=1, description="total number of cores")


class CoolDown(Frozen):
    """How cool the device must be before each timed process."""

    below: float = Field(
        gt=0,
        lt=120,
        description="wait until the hottest sensor (on a phone: the battery) is below this, degrees Celsius",
    )
    timeout: Duration = Field(default=600_000.0, description="longest time to wait")


class Controls(Frozen):
    """Conditions that are held constant while a file is timed."""

    threads: int | None = Field(default=None, ge=1, description="number of runtime threads; default: all cores")
    cores: tuple[Core, ...] = Field(default=(), description="cores to run on; default: the last ones")
    cool_down: CoolDown | None = None

    @model_validator(mode="after")
    def _enough(self) -> "Controls":
        if self.cores and self.threads and self.threads > len(set(self.cores)):
            raise ValueError(
                f"{self.threads} threads need {self.threads} cores, but `cores` names {len(set(self.cores))}"
            )
        return self

    def job(self) -> dict[str, Any]:
        """Return what the worker needs to time a file; the runner passes threads and cores."""
        cool = self.cool_down
        return {"cool_down": {"below": cool.below, "seconds": cool.timeout / 1000}} if cool else {}


class Quantization(Frozen):
    """What the hardware requires of a compressed model. Each value is part of the key of the stages that read it."""

    channel_multiple: int = Field(default=8, ge=1, description="pruned channel counts and ranks are multiples of this")
    int8_saturates: bool | None = Field(
        default=None,
        description="whether products of u8 x s8 are summed in 16 bits (AVX2 without VNNI): weights then get 7 bits; "
        "default: from the features of its processor",
    )
    activations: Literal["uint8", "int8"] = Field(
        default="uint8",
        description="activation type for ONNX Runtime's int8 kernels: x86 fuses uint8 only, ARM takes both",
    )
    sparsity: tuple[Literal["unstructured", "2:4"], ...] = Field(
        default=(), description="sparsity patterns that the hardware accelerates; most hardware accelerates none"
    )


class DeviceFile(Frozen):
    """The top level of a device profile."""

    edgepack: Literal[1]
    name: str
    cpu: Processor | None = None
    memory: Size | None = None
    runtimes: dict[str, str] = Field(
        default={},
        description="allowed runtime versions on the device, such as '>=1.20,<2'; default: the version installed here",
    )
    runner: Any
    controls: Controls = Controls()
    match: dict[str, tuple[str, ...]] = Field(
        default={}, description="how to recognise the device: {fact: [patterns]}, such as {model: ['Raspberry Pi 5*']}"
    )
    quantization: Quantization = Quantization()
    analytic: Analytic | None = None

    @model_validator(mode="after")
    def _same_threads(self) -> "DeviceFile":
        asked, known = self.controls.threads, self.analytic.threads if self.analytic else None
        if asked and known and asked != known:
            raise ValueError(f"`analytic` is for {known} threads, but `controls` sets {asked}")
        return self

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("give the device a name")
        if not name.isprintable():
            raise ValueError(f"a name must be printable text, got {name!r}")
        return name

    @field_validator("runtimes")
    @classmethod
    def _versions(cls, runtimes: dict[str, str]) -> dict[str, str]:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        for runtime, versions in runtimes.items():
            if runtime not in RUNTIMES:
                raise ValueError(unknown("runtime", runtime, RUNTIMES))
            try:
                SpecifierSet(versions)
            except InvalidSpecifier:
                raise ValueError(f"{versions!r} is not a version range: write it as '>=1.20,<2'") from None
        return runtimes


@dataclass(frozen=True, kw_only=True)
class Device:
    """A checked device profile; `id` is the stem of its file name."""

    id: str
    file: Path
    name: str
    cpu: Processor | None
    memory: float | None  # bytes
    runtimes: dict[str, str]
    runner: Choice
    controls: Controls
    match: dict[str, tuple[str, ...]]
    quantization: Quantization
    analytic: Analytic | None

    @property
    def evidence(self) -> dict[str, str]:
        """Return the evidence that each mode of the worker gives; a missing mode is not available on this device."""
        worth = dict(self.runner.module.EVIDENCE)
        if self.analytic is None and worth.get("time") == "estimated":
            del worth["time"]  # without these figures nothing can be estimated
        return worth

    def run_by(self, runner: str, settings: dict[str, Any]) -> "Device":
        """Return this device with another runner: files then run elsewhere, so match rules and versions are cleared."""
        return replace(self, runner=plugins.choose("runners", {runner: settings}), match={}, runtimes={})

    def settled(self, facts: Mapping[str, Any]) -> "Device":
        """Return the profile with `int8_saturates` filled in from the features of its processor, or else from `facts`
        of the processor that runs the files. False if neither is known.
        """
        if self.quantization.int8_saturates is not None:
            return self
        named = self.cpu.features if self.cpu else ()
        features = frozenset(named or str(facts.get("features", "")).split())
        foreign = self.cpu is not None and self.cpu.architecture not in ("", *_X86)
        saturates = not foreign and int8_saturates(features)
        known = self.quantization.model_copy(update={"int8_saturates": saturates})
        return replace(self, quantization=known)

    def plain(self) -> dict[str, Any]:
        facts = {
            "edgepack": 1,
            "name": self.name,
            "cpu": _dump(self.cpu),
            "memory": None if self.memory is None else SIZE.exact(self.memory),
            "runtimes": self.runtimes,
            "runner": {self.runner.name: self.runner.plain()},
            "controls": _dump(self.controls),
            "match": {fact: list(patterns) for fact, patterns in self.match.items()},
            "quantization": _dump(self.quantization),
            "analytic": _dump(self.analytic),
        }
        return {key: value for key, value in facts.items() if value not in (None, {})}


def _dump(value: Frozen | None) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_none=True) if value else {}


def load_device(device: str | Path) -> Device:
    """Return the profile with this id or in this file. Raises ConfigError with every mistake in it."""
    file = _find(device)
    document = Document.read(file)
    raw = document.check(DeviceFile, document.data)
    runner = _runner(document)
    document.raise_problems()
    if raw is None or runner is None:
        raise RecipeError(f"{file} could not be read")
    facts = {name: getattr(raw, name) for name in DeviceFile.model_fields if name not in ("edgepack", "runner")}
    return Device(id=file.stem, file=file, runner=runner, **facts)


def all_devices() -> dict[str, Path]:
    """Return every profile by id: the shipped ones, and the project's own, which take precedence."""
    folders = (_shipped(), Path("devices"))
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _find(device: str | Path) -> Path:
    if Path(device).suffix in (".yaml", ".yml"):
        return Path(device)
    known = all_devices()
    if str(device) not in known:
        raise RecipeError(unknown("device", device, known), "device files are in the folder devices/")
    return known[str(device)]


def _shipped() -> Path:
    package = Path(__file__).parent.parent
    inside = package / "devices"  # in a wheel; in a checkout the folder is next to the package
    return inside if inside.is_dir() else package.parent / "devices"


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
