"""Build: everything that one build found out. Reports, gate, compare and bundle read nothing else.

Saved as dist/<recipe>/build.json, rewritten after every step, so that a crash loses nothing that was done.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from edgepack.core.errors import ExitCode, RecipeError
from edgepack.core.files import write_atomic
from edgepack.core.frozen import Frozen, Json, Moment
from edgepack.core.metrics import Metric, define, score
from edgepack.core.signature.shown import Sample
from edgepack.core.units import NUMBER, SHARE
from edgepack.records.artifact import Artifact
from edgepack.records.measurement import Measurement
from edgepack.records.training import TrainingRecord
from edgepack.records.verdict import Verdict

SCHEMA: Literal["edgepack.build/1"] = "edgepack.build/1"


class StageRecord(Frozen):
    """One line of the ledger: the model as a stage left it.

    `bytes` counts every stored tensor; `score` is the task's first metric, measured with torch on the validation split;
    `seconds` is how long the stage took when it ran, in this or an earlier build. In a file, an accuracy stands under
    that name, without `metric`.
    """

    stage: str
    key: str
    parameters: int
    macs: int
    bytes: int
    metric: str = "accuracy"
    score: float = Field(validation_alias=AliasChoices("score", "accuracy"))
    seconds: float
    reused: bool = False
    notes: tuple[str, ...] = ()
    decided: Json = {}  # settings that the stage chose by measuring
    trainings: tuple[TrainingRecord, ...] = ()

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> Json:
        facts: Json = handler(self)
        if self.metric != "accuracy":
            return facts
        return {"accuracy" if name == "score" else name: fact for name, fact in facts.items() if name != "metric"}


_NAMES: dict[str, Literal["a percentage", "a number"]] = {SHARE.name: "a percentage", NUMBER.name: "a number"}


class MetricRecord(Frozen):
    """A metric of a task: a user's own is known from nowhere else, once its code is gone."""

    name: str
    meaning: str
    quantity: Literal["a percentage", "a number"]
    higher: bool
    of_samples: bool = False

    @classmethod
    def of(cls, name: str, metric: Metric) -> "MetricRecord":
        return cls(
            name=name,
            meaning=metric.meaning,
            quantity=_NAMES[metric.quantity.name],
            higher=metric.higher,
            of_samples=metric.of_samples,
        )

    def defined(self) -> Metric:
        quantity = SHARE if self.quantity == SHARE.name else NUMBER
        return score(self.meaning, quantity, higher=self.higher, of_samples=self.of_samples)


def _code(value: int) -> int:
    return int(ExitCode(value))


class Build(Frozen):
    """The outcome of a recipe on a device. `exit_code` is None until the build is over."""

    schema_: Literal["edgepack.build/1"] = Field(default=SCHEMA, alias="schema")
    recipe: Json
    recipe_file: str = ""  # relative to the folder that edgepack ran in
    overrides: tuple[str, ...] = ()  # changes made by --set
    device: Json
    exit_code: Annotated[int, AfterValidator(_code)] | None = None
    error: str = ""
    started_at: Moment
    finished_at: Moment | None = None
    ledger: tuple[StageRecord, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    absent: str = ""  # why the device was unavailable, so that a fallback ran the files
    not_run: dict[str, str] = {}  # label of each file that the available runtime cannot run, and why
    not_timed: dict[str, str] = {}  # label of each file that ran but was not timed, and why
    verdicts: tuple[Verdict, ...] = ()
    provenance: Json = {}
    bundle: str = ""
    bundle_sha256: str = ""
    samples: tuple[Sample, ...] = ()
    metrics: tuple[MetricRecord, ...] = ()  # of the task, the first of which selects; that of classifications if empty

    @property
    def metric(self) -> str:
        """Return the name of the metric that selects."""
        return self.metrics[0].name if self.metrics else "accuracy"

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    def shipped(self) -> tuple[Artifact, ...]:
        """Return the artifacts in the bundle, without the teachers that they are compared with."""
        return tuple(artifact for artifact in self.artifacts if artifact.subject == "model")

    def find(self, metric: str, artifact: str) -> Measurement | None:
        return next((each for each in self.measurements if (each.metric, each.artifact) == (metric, artifact)), None)

    def save(self, path: Path) -> None:
        write_atomic(path, self.model_dump_json(by_alias=True, indent=1).encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Build":
        """Return the build in a file. Raises RecipeError if it is none."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror}", "run `edgepack build` first") from None
        try:
            build = cls.model_validate_json(content)
            define({each.name: each.defined() for each in build.metrics})
            _Shape.model_validate({"recipe": build.recipe, "device": build.device, "provenance": build.provenance})
        except ValidationError as error:
            raise RecipeError(f"{path} is not a build.json of schema {SCHEMA}: {_why(content, error)}") from None
        return build


_Named = Annotated[Json, Field(min_length=1, max_length=1)]  # {onnx: {opset: 20}}


class _Loose(BaseModel):
    """Checks the parts that are read of a mapping, and ignores others."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Recipe(_Loose):
    name: str
    stages: list[_Named] = []
    export: list[_Named] = []
    budgets: Json = {}
    waivers: list[Any] = []


class _Device(_Loose):
    id: str
    name: str


class _Git(_Loose):
    commit: str = ""


class _Provenance(_Loose):
    versions: dict[str, str] = {}
    git: _Git = _Git()


class _Shape(BaseModel):
    recipe: _Recipe
    device: _Device
    provenance: _Provenance


def _why(content: bytes, error: ValidationError) -> str:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return "it is truncated or not JSON"
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        return f"it has the schema {schema!r}" if schema else "it has no schema"
    first = error.errors()[0]
    return f"at {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def find_build(named: str, dist: Path) -> Path:
    """Return the path of build.json, given itself, its folder, or the recipe it was built from.

    Raises RecipeError if there is none.
    """
    path = Path(named)
    if path.suffix == ".zip":
        raise RecipeError(f"{named} is a bundle, and bundles hold no timings", "name the build.json next to it")
    built = dist / _recipe_name(path) / "build.json"
    if path.is_file() and path.suffix not in (".yaml", ".yml") and not (named == path.stem and built.is_file()):
        return path
    by_name = [built] if path.name == named or path.suffix in (".yaml", ".yml") else []  # a path is no name
    found = next((choice for choice in (path / "build.json", *by_name) if choice.is_file()), None)
    if found is None:
        known = ", ".join(sorted(each.parent.name for each in dist.glob("*/build.json"))) or "none"
        hint = f"name a build.json, its folder, or a recipe that was built (in {dist}: {known})"
        raise RecipeError(f"there is no build '{named}'", hint)
    return found


def _recipe_name(path: Path) -> str:
    """Return the name in a recipe; no more of it is read, since it may have changed."""
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return path.name
    from edgepack.config.document import Document

    return str(Document.read(path).data.get("name") or path.stem)
