"""Step: one piece of a build's work; StepId: which one, whatever its result depends on."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from edgepack.config.plugins import Choice
from edgepack.config.recipe import ResolvedRecipe
from edgepack.core.frozen import Json
from edgepack.records.artifact import label_of
from edgepack.workflows.build.store import Entry

Kind = Literal["candidate", "artifact", "outputs", "evaluation", "timing"]
_VERBS = {"artifact": "export", "evaluation": "evaluate", "timing": "time"}


@dataclass(frozen=True)
class StepId:
    """A step of a recipe's plan. `subject` of a candidate is its stage, "prune (2)" for the second prune; of a file
    MODEL or TEACHER. `format` of a candidate is its quantizer, if there is one candidate per quantizer.

    >>> StepId("evaluation", "teacher", "onnx").name
    'evaluate teacher (onnx)'
    >>> StepId.parse("evaluation/teacher/onnx") == StepId("evaluation", "teacher", "onnx")
    True
    """

    kind: Kind
    subject: str
    format: str = ""

    @classmethod
    def parse(cls, text: str) -> "StepId":
        """Return the id that `str` wrote. Raises ValueError."""
        kind, _, rest = text.partition("/")
        subject, _, format = rest.partition("/")
        if kind not in get_args(Kind) or not subject:
            raise ValueError(
                f"{text!r} is not a step: write it as KIND/SUBJECT or KIND/SUBJECT/FORMAT, as timing/model/onnx"
            )
        return cls(kind, subject, format)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return "/".join(filter(None, (self.kind, self.subject, self.format)))

    @property
    def name(self) -> str:
        """Return the name for people: "prune", "export onnx", "reference outputs"."""
        if self.kind in _VERBS:
            return f"{_VERBS[self.kind]} {self.label}"
        named = "reference outputs" if self.kind == "outputs" else self.subject
        return f"{named} ({self.format})" if self.format else named

    @property
    def label(self) -> str:
        """Return the label of the artifact that the step is about."""
        return label_of(self.format, self.subject)

    def of(self, kind: Kind) -> "StepId":
        """Return the id of another kind of step for the same file."""
        return replace(self, kind=kind)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step with its key, the sha256 of all `ingredients` that its result depends on."""

    id: StepId
    key: str
    ingredients: Json
    reason: str = ""  # why it must run; "" if it is cached
    choice: Choice | None = None  # the plugin that it runs, if any
    entry: Entry | None = None

    @property
    def kind(self) -> Kind:
        return self.id.kind

    @property
    def name(self) -> str:
        return self.id.name

    @property
    def cached(self) -> bool:
        return not self.reason

    @property
    def plugin(self) -> Choice:
        """Return the plugin of a step that has one, as all candidates and files do."""
        assert self.choice is not None, f"{self.name} has no plugin"
        return self.choice

    def because(self, reason: str) -> "Step":
        return replace(self, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every step of a build, in the order of execution.

    >>> [(step.name, step.reason) for step in plan(recipe, device, Store()).steps]    # doctest: +SKIP
    [('model', ''), ('train', ''), ('distill', ''), ('prune', 'ratio 30 % -> 40 %'), ('quantize', 'prune runs'), ...]
    """

    recipe: ResolvedRecipe
    steps: tuple[Step, ...]

    @property
    def up_to_date(self) -> bool:
        return all(step.cached for step in self.steps)
