"""Replace the model by a small student that learns the model's outputs.

Where the student is much smaller, teacher assistants of sizes in between stand between the two.
Source: G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015; for the
assistants, S.-I. Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, AAAI 2020, arXiv 1902.03393;
for students of an encoder's lower layers, arXiv 1910.01108 (DistilBERT) and 2305.15032.
"""

from typing import TYPE_CHECKING

from edgepack.compress.contract import Context
from edgepack.compress.stages.distill.config import MOST
from edgepack.compress.stages.distill.config import Config as Config
from edgepack.compress.stages.distill.inheritance import begun
from edgepack.compress.stages.distill.students import by_width, check_smaller, make_student, narrower_student, size_of
from edgepack.core.errors import StageError
from edgepack.core.events import Note
from edgepack.core.units import SHARE

if TYPE_CHECKING:
    from edgepack.compress.training.evaluation import EpochResult
    from edgepack.config.device import Quantization
    from edgepack.models.candidate import Candidate


TAKES, GIVES = "eager", "eager"
VERSION = 11
LIBRARIES = ("torchvision", "torch-pruning", "transformers")
READS = ("channel_multiple",)
# A student with up to so many times fewer parameters learns as well with no assistant, or with one assistant.
_ALONE, _ONE_BETWEEN = 4.0, 16.0
_USUAL = "where 2 to 4x are usual"
_ROUNDING = 1.02  # a student meant to be a quarter of its teacher has slightly fewer parameters than that
_DEMANDING = 0.01  # a student below a sixteenth of its teacher's size is unlikely to keep within a smaller drop


def remarks(config: Config) -> tuple[str, ...]:
    """Say where the student is much smaller than the one that it learns from, and where assistants would help."""
    ratio = config.compression or 1.0
    number = assistants(ratio) if config.progressive == "auto" else int(config.progressive)
    step = ratio ** (1 / (number + 1))
    if step > _ALONE * _ROUNDING:
        fitting = next((n for n in range(number, MOST) if ratio ** (1 / (n + 1)) <= _ALONE * _ROUNDING), MOST)
        return (
            f"each student has {step:.2g}x fewer parameters than its teacher, {_USUAL}: try progressive: {fitting}",
        )
    if ratio > _ONE_BETWEEN * _ROUNDING:
        return (
            f"{ratio:.3g}x fewer parameters are more than students usually bear, which is up to {_ONE_BETWEEN:.0f}x",
        )
    return ()


def dry_run(candidate: "Candidate", config: Config, quantization: "Quantization") -> "Candidate":
    """Return the student that `run` will train, untrained. Raises StageError unless it is smaller than its teacher."""
    from edgepack.compress.training.loop import check_trainable

    student = make_student(candidate, config, quantization)
    check_smaller(candidate, student)
    _between(candidate, student, config, quantization)
    _check_inside(candidate, student, config)
    check_trainable(student.module)
    return student


def _check_inside(teacher: "Candidate", student: "Candidate", config: Config) -> None:
    """Raises StageError where the two models have no internal features to compare."""
    from edgepack.compress.training.loss.feature_matching import FeatureLoss

    FeatureLoss(_inside(config), teacher.module, student.module, teacher.example_inputs(2)).close()


def _inside(config: Config) -> dict[str, float]:
    return {"features": config.features, "hidden": config.hidden, "attention": config.attention}


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    planned = make_student(
        candidate, config, context.quantization
    )  # when derived from an assistant, the student is replaced below
    check_smaller(candidate, planned)
    had, has = size_of(candidate), size_of(planned)
    wanted = config.compression or had / has
    between, why = _between(candidate, planned, config, context.quantization)
    teacher, notes = candidate, [f"{had / has:.1f}x fewer parameters; teacher assistants: {between or 'none'}{why}"]
    _warn(had / has, context)
    for number in range(1, between + 1):
        size = had / (had / has) ** (number / (between + 1))
        assistant = narrower_student(teacher, size, context.quantization)
        if config.init == "random":
            assistant = assistant.forgotten()
        best = _teach(assistant, teacher, config, context, f"teaching assistant {number} of {between}")
        notes.append(
            f"assistant {number}: {size_of(assistant):,} parameters, {context.task.shown(best.score)} on validation"
        )
        teacher = assistant
    student = narrower_student(teacher, had / wanted, context.quantization) if between and by_width(config) else planned
    student, started = begun(student, teacher, config)
    best = _teach(student, teacher, config, context, "teaching the student")
    return student.changed(notes=(f"kept epoch {best.epoch} of {config.epochs}", *notes, *started))


def assistants(ratio: float) -> int:
    """Return how many teacher assistants to use for a student with this many times fewer parameters.

    >>> assistants(4), assistants(4.2), assistants(60)
    (0, 1, 2)
    """
    if ratio <= _ALONE * _ROUNDING:
        return 0
    return 1 if ratio <= _ONE_BETWEEN * _ROUNDING else 2


def _between(
    teacher: "Candidate", student: "Candidate", config: Config, quantization: "Quantization"
) -> tuple[int, str]:
    """Return the number of assistants, and the reason if they cannot be made."""
    ratio = config.compression or size_of(teacher) / size_of(student)
    number = assistants(ratio) if config.progressive == "auto" else int(config.progressive)
    if not number:
        return 0, ""
    try:
        narrower_student(teacher, size_of(teacher) / ratio ** (number / (number + 1)), quantization)
    except StageError as error:
        if config.progressive == "auto":
            return 0, f" ({error.message})"
        raise StageError(f"no teacher assistant: {error.message}", "use progressive: 0") from error
    return number, ""


def _warn(ratio: float, context: Context) -> None:
    if not context.task.counts_samples or context.tolerance is None:
        return
    if ratio > _ONE_BETWEEN * _ROUNDING and context.tolerance <= _DEMANDING:
        drop = SHARE.format(context.tolerance)
        context.emit(Note(text=f"warning: {ratio:.0f}x fewer parameters make a drop of at most {drop} unlikely"))


def _teach(student: "Candidate", teacher: "Candidate", config: Config, context: Context, doing: str) -> "EpochResult":
    from edgepack.compress.training.batch_norm import refresh_batch_norm
    from edgepack.compress.training.loop import fit
    from edgepack.compress.training.loss import Distillation

    lesson = Distillation(
        teacher=teacher.module, temperature=config.temperature, alpha=config.alpha, inside=_inside(config)
    )
    if student.surgery != ():
        refresh_batch_norm(student.module, context.data.train)
    return fit(student.module, context, config, doing=doing, distillation=lesson)
