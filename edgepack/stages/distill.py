"""Put a small student in place of the model, taught by the model's own outputs.

Where the student is much smaller, teacher assistants of sizes in between stand between the two.
Source: G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015; for the
assistants, S.-I. Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020, arXiv 1902.03393;
for students of an encoder's lower layers, arXiv 1910.01108 (DistilBERT) and 2305.15032.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict, Field, PositiveInt, field_validator, model_validator

from edgepack.errors import StageError
from edgepack.events import Note
from edgepack.models import ModelChoice
from edgepack.stages import Context, Training
from edgepack.units import SHARE, Share

if TYPE_CHECKING:
    from torch import nn

    from edgepack.candidate import Candidate
    from edgepack.device import Quantization
    from edgepack.plugins import Choice
    from edgepack.train import Fitted

TAKES, GIVES = "eager", "eager"
VERSION = 9
LIBRARIES = ("torchvision", "torch-pruning", "transformers")
READS = ("channel_multiple",)

# Times fewer parameters up to which a student learns as well from none, and from one assistant.
_ALONE, _ONE_BETWEEN = 4.0, 16.0
_ROUNDING = 1.02  # a student named as a quarter of its teacher has a few parameters less than one
_DEMANDING = 0.01  # a tolerated drop below which a student of less than a sixteenth is unlikely to do


class Config(Training):
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [way]} for way in ("student", "compression", "layers")]},
    )

    student: ModelChoice | None = Field(
        default=None, description="the model that is left: {torchvision: resnet18, width: 25 %}"
    )
    compression: float | None = Field(
        default=None,
        gt=1,
        le=10_000,
        description="in place of a student: derive one from the model with this many times fewer parameters",
    )
    layers: PositiveInt | tuple[int, ...] | None = Field(
        default=None,
        description="in place of a student: the first so many layers of an encoder, or those at these places from 0",
    )
    scale: Literal["width", "depth"] = Field(
        default="width",
        description="what a derived student has less of: channels, or blocks; of an encoder: heads, or layers",
    )
    init: Literal["teacher", "random"] = Field(
        default="teacher", description="what the student starts from: the teacher's weights where shapes allow, or none"
    )
    progressive: Literal["auto"] | int = Field(
        default="auto", description="teacher assistants on the way; auto: none up to 4x, one up to 16x, else two"
    )
    epochs: int = Field(default=20, ge=1, le=10_000, description="passes over the training split, of each student")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak rate; a fresh student wants more than fine-tuning"
    )
    temperature: float = Field(default=4.0, gt=0, le=100, description="softens the teacher's outputs")
    alpha: Share = Field(default=0.9, description="weight of the teacher; the labels have the rest")
    features: float = Field(
        default=0.0, ge=0, le=1000, description="weight of feature matching (attention transfer); 0: none"
    )
    hidden: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching an encoder's hidden states; 0: none"
    )
    attention: float = Field(
        default=0.0, ge=0, le=1000, description="weight of matching how an encoder relates its tokens; 0: none"
    )

    @field_validator("alpha")
    @classmethod
    def _share(cls, alpha: float) -> float:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share between 0 % and 100 %, got {SHARE.format(alpha)}")
        return alpha

    @field_validator("progressive")
    @classmethod
    def _few(cls, progressive: str | int) -> str | int:
        if isinstance(progressive, int) and not 0 <= progressive <= 4:
            raise ValueError(f"progressive is auto or a number of assistants from 0 to 4, got {progressive}")
        return progressive

    @model_validator(mode="after")
    def _one_student(self) -> "Config":
        if [self.student, self.compression, self.layers].count(None) != 2:
            raise ValueError(
                "give one of: a student, as {torchvision: resnet18, width: 25 %}, a compression, as 8, or layers, as 2"
            )
        if self.init == "random" and self.student is not None and _has_weights(self.student):
            raise ValueError("init: random would throw the student's own weights away: leave one of them out")
        return self


def rehearse(candidate: "Candidate", config: Config, quantization: "Quantization") -> "Candidate":
    """The student that `run` will give, untrained. Raises StageError when it is no smaller than its teacher."""
    from edgepack.train import check_trainable

    student = _student(candidate, config, quantization)
    _check_smaller(candidate, student)
    _between(candidate, student, config, quantization)
    _check_inside(candidate, student, config)
    check_trainable(student.module)
    return student


def _check_inside(teacher: "Candidate", student: "Candidate", config: Config) -> None:
    """Raises StageError where the two have nothing to compare inside."""
    from edgepack.features import Inside

    Inside(_inside(config), teacher.module, student.module, teacher.example_inputs(2)).close()


def _inside(config: Config) -> dict[str, float]:
    return {"features": config.features, "hidden": config.hidden, "attention": config.attention}


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    planned = _student(candidate, config, context.quantization)  # a derived student of an assistant replaces it below
    _check_smaller(candidate, planned)
    had, has = _size(candidate), _size(planned)
    wanted = config.compression or had / has
    between, why = _between(candidate, planned, config, context.quantization)
    teacher, notes = candidate, [f"{had / has:.1f}x fewer parameters; teacher assistants: {between or 'none'}{why}"]
    _warn(had / has, context)
    for number in range(1, between + 1):
        size = had / (had / has) ** (number / (between + 1))
        assistant = _narrower(teacher, size, context.quantization)
        if config.init == "random":
            assistant = assistant.forgotten()
        best = _teach(assistant, teacher, config, context, f"teaching assistant {number} of {between}")
        notes.append(f"assistant {number}: {_size(assistant):,} parameters, {SHARE.format(best.score)} on validation")
        teacher = assistant
    student = _narrower(teacher, had / wanted, context.quantization) if between and _by_width(config) else planned
    student, started = _begun(student, teacher, config)
    best = _teach(student, teacher, config, context, "teaching the student")
    return student.changed(notes=(f"kept epoch {best.epoch} of {config.epochs}", *notes, *started))


def assistants(ratio: float) -> int:
    """How many teacher assistants a student with this many times fewer parameters is given.

    >>> assistants(4), assistants(4.2), assistants(60)
    (0, 1, 2)
    """
    if ratio <= _ALONE * _ROUNDING:
        return 0
    return 1 if ratio <= _ONE_BETWEEN * _ROUNDING else 2


def _between(
    teacher: "Candidate", student: "Candidate", config: Config, quantization: "Quantization"
) -> tuple[int, str]:
    """How many assistants there will be, and why there are none where they cannot be made."""
    ratio = config.compression or _size(teacher) / _size(student)
    number = assistants(ratio) if config.progressive == "auto" else int(config.progressive)
    if not number:
        return 0, ""
    try:
        _narrower(teacher, _size(teacher) / ratio ** (number / (number + 1)), quantization)
    except StageError as error:
        if config.progressive == "auto":
            return 0, f" ({error.message})"
        raise StageError(f"no teacher assistant: {error.message}", "use progressive: 0") from error
    return number, ""


def _warn(ratio: float, context: Context) -> None:
    if ratio > _ONE_BETWEEN * _ROUNDING and context.tolerance is not None and context.tolerance <= _DEMANDING:
        drop = SHARE.format(context.tolerance)
        context.emit(Note(text=f"warning: {ratio:.0f}x fewer parameters make a drop of at most {drop} unlikely"))


def _check_smaller(teacher: "Candidate", student: "Candidate") -> None:
    had, has = _size(teacher), _size(student)
    if has >= had:
        raise StageError(
            f"the student has {has:,} parameters, its teacher {had:,}",
            "name a smaller student, or give it a smaller width",
        )


def _by_width(config: Config) -> bool:
    return config.compression is not None and config.scale == "width"


def _student(teacher: "Candidate", config: Config, quantization: "Quantization") -> "Candidate":
    """The student before it is taught."""
    from edgepack.candidate import Candidate

    if config.student is not None:
        return Candidate.start(config.student, teacher.signature)
    if config.layers is not None:
        return _of_layers(teacher, config.layers)
    assert config.compression is not None, "the configuration has a student, a compression or layers"
    make = _narrower if config.scale == "width" else _shallower
    return make(teacher, _size(teacher) / config.compression, quantization)


def _of_layers(teacher: "Candidate", layers: int | tuple[int, ...]) -> "Candidate":
    """The teacher without all other layers, its embeddings and its head as they are."""
    from edgepack.encoder import rest
    from edgepack.surgery import Edit

    student = teacher.copy()
    for name in rest(teacher.module, layers, "the model"):
        student = student.edited(Edit(op="drop", layer=name))
    return student


def _narrower(teacher: "Candidate", size: float, quantization: "Quantization") -> "Candidate":
    """The teacher with fewer channels in every layer, the largest weights kept, of at most `size` parameters."""
    from edgepack import siblings
    from edgepack.encoder import blocks

    multiple = quantization.channel_multiple
    return (siblings.narrower if blocks(teacher.module) else _thinner)(teacher, size, multiple)


def _thinner(teacher: "Candidate", size: float, multiple: int) -> "Candidate":
    """Of a convolutional net: see `_narrower`."""
    from torch_pruning import importance

    from edgepack.stages._whole import cannot_be_narrower
    from edgepack.surgery import widest

    def narrowed(keep: float) -> "Candidate":
        return teacher.narrowed(keep, multiple=multiple, scored=lambda _: importance.GroupMagnitudeImportance(p=2))

    smallest = _size(narrowed(0.0))
    why = cannot_be_narrower(teacher.module.eval(), teacher.example_inputs(2)) if smallest > size else ""
    if smallest == _size(teacher):
        raise StageError(
            f"no narrower student can be derived in blocks of {multiple} channels{why}",
            "use scale: depth, or name a student",
        )
    if smallest > size:
        raise StageError(
            f"no student of {size:,.0f} parameters: with one block of {multiple} channels in "
            f"every layer it still has {smallest:,}{why}",
            f"ask for a compression of at most {_size(teacher) / smallest:.3g}, or name a student of another kind",
        )
    narrower = narrowed(widest(lambda keep: _size(narrowed(keep)), size))
    narrower.check_rebuilt()
    return narrower


def _shallower(teacher: "Candidate", size: float, quantization: "Quantization") -> "Candidate":
    """The teacher without some of the blocks that give the shape they take, the heaviest and last first.

    Of an encoder, without its highest layers.
    """
    from edgepack.encoder import spare_layers
    from edgepack.surgery import Edit, spare_blocks

    student, layers = teacher.copy(), spare_layers(teacher.module)
    blocks = layers or spare_blocks(teacher.module, teacher.example_inputs(2))
    for name in blocks:
        if _size(student) <= size:
            return student
        student = student.edited(Edit(op="drop", layer=name))
    if _size(student) > size:
        most = _size(teacher) / _size(student)
        raise StageError(
            f"no student of {size:,.0f} parameters: without the {len(blocks)} {'layers' if layers else 'blocks'} that "
            f"can go it has {_size(student):,}{', for the embeddings stay' if layers else ''}",
            "use scale: width" + (f", or a compression of at most {most:.3g}" if blocks else ""),
        )
    return student


def _begun(student: "Candidate", teacher: "Candidate", config: Config) -> "tuple[Candidate, list[str]]":
    """The student with its first weights, and what they are: a derived one has the teacher's already."""
    if config.init == "random":
        return student.forgotten(), ["starts from random weights"]
    if config.student is None:
        return student, ["starts from the teacher's weights"]
    places = None if getattr(config.student.config, "checkpoint", None) else _same_layers(student, teacher)
    if places is None and _has_weights(config.student):
        return student, ["starts from its own weights"]
    taken = _inherit(student.module, teacher.module, places)
    whole = len(student.module.state_dict())
    return student, [f"{taken} of its {whole} tensors start as the teacher's"] if taken else []


def _same_layers(student: "Candidate", teacher: "Candidate") -> dict[int, int] | None:
    """Where the teacher's layers stand in a student that has some of the layers of the same encoder; else None.

    Such a student may come with the published weights, but what the teacher made of them is worth more.
    """
    from edgepack.encoder import blocks

    own, known, every = student.factory, teacher.factory, {"layers": None}
    row = blocks(student.module)
    if not row or own.model != known.model or own.config | every != known.config | every:
        return None
    chosen, had = own.config.get("layers"), known.config.get("layers")
    origins = chosen if isinstance(chosen, list) else range(len(row))
    places = had if isinstance(had, list) else range(max(origins) + 1)
    return {places.index(origin): place for place, origin in enumerate(origins) if origin in places}


def _has_weights(student: "Choice") -> bool:
    return any(getattr(student.config, key, None) for key in ("checkpoint", "weights"))


def _inherit(student: "nn.Module", teacher: "nn.Module", places: dict[int, int] | None) -> int:
    """Copy every tensor that the teacher has under the same name and in the same shape; how many there were.

    `places` are the student's layers, where they have others than the teacher's that they begin as.
    """
    from edgepack.encoder import renumbered

    own, known = student.state_dict(), teacher.state_dict() if places is None else renumbered(teacher, places)
    same = {name: known[name] for name, tensor in own.items() if name in known and known[name].shape == tensor.shape}
    student.load_state_dict(same, strict=False)
    return len(same)


def _teach(student: "Candidate", teacher: "Candidate", config: Config, context: Context, doing: str) -> "Fitted":
    from edgepack.train import Distillation, fit, refresh_batch_norm

    lesson = Distillation(
        teacher=teacher.module, temperature=config.temperature, alpha=config.alpha, inside=_inside(config)
    )
    if student.surgery != ():
        refresh_batch_norm(student.module, context.data.train)
    return fit(student.module, context, config, doing=doing, distillation=lesson)


def _size(candidate: "Candidate") -> int:
    from edgepack.candidate import parameters

    return parameters(candidate.module)
