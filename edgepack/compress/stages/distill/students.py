"""Derive a narrower or shallower student from the teacher's structure."""

from typing import TYPE_CHECKING

from edgepack.compress.stages.distill.config import Config
from edgepack.core.errors import StageError

if TYPE_CHECKING:
    from edgepack.config.device import Quantization
    from edgepack.models.candidate import Candidate


def check_smaller(teacher: "Candidate", student: "Candidate") -> None:
    had, has = size_of(teacher), size_of(student)
    if has >= had:
        raise StageError(
            f"the student has {has:,} parameters, its teacher {had:,}",
            "use a smaller student, or a smaller width",
        )


def by_width(config: Config) -> bool:
    return config.compression is not None and config.scale == "width"


def make_student(teacher: "Candidate", config: Config, quantization: "Quantization") -> "Candidate":
    """Return the untrained student."""
    from edgepack.models.candidate import Candidate

    if config.student is not None:
        return Candidate.start(config.student, teacher.signature)
    if config.layers is not None:
        return _of_layers(teacher, config.layers)
    assert config.compression is not None, "the configuration has a student, a compression or layers"
    make = narrower_student if config.scale == "width" else _shallower
    return make(teacher, size_of(teacher) / config.compression, quantization)


def _of_layers(teacher: "Candidate", layers: int | tuple[int, ...]) -> "Candidate":
    """Return the teacher with only these layers; embeddings and head are kept."""
    from edgepack.models.structure.encoder import rest
    from edgepack.models.structure.surgery import Edit

    student = teacher.copy()
    for name in rest(teacher.module, layers, "the model"):
        student = student.edited(Edit(op="drop", layer=name))
    return student


def narrower_student(teacher: "Candidate", size: float, quantization: "Quantization") -> "Candidate":
    """Return the teacher with fewer channels in every layer, largest weights kept, at most `size` parameters."""
    from edgepack.compress.stages.distill import encoder_siblings
    from edgepack.models.structure.encoder import blocks

    multiple = quantization.channel_multiple
    return (encoder_siblings.narrower if blocks(teacher.module) else _thinner)(teacher, size, multiple)


def _thinner(teacher: "Candidate", size: float, multiple: int) -> "Candidate":
    """Make a convolutional model narrower: see `narrower_student`."""
    from torch_pruning import importance

    from edgepack.models.structure.surgery import widest
    from edgepack.models.structure.unprunable import cannot_be_narrower

    def narrowed(keep: float) -> "Candidate":
        return teacher.narrowed(keep, multiple=multiple, scored=lambda _: importance.GroupMagnitudeImportance(p=2))

    smallest = size_of(narrowed(0.0))
    why = cannot_be_narrower(teacher.module.eval(), teacher.example_inputs(2)) if smallest > size else ""
    if smallest == size_of(teacher):
        raise StageError(
            f"no narrower student can be derived in blocks of {multiple} channels{why}",
            "use scale: depth, or name a student",
        )
    if smallest > size:
        raise StageError(
            f"no student of {size:,.0f} parameters: with one block of {multiple} channels in "
            f"every layer it still has {smallest:,}{why}",
            f"use a compression of at most {size_of(teacher) / smallest:.3g}, or name a student of another kind",
        )
    narrower = narrowed(widest(lambda keep: size_of(narrowed(keep)), size))
    narrower.check_rebuilt()
    return narrower


def _shallower(teacher: "Candidate", size: float, quantization: "Quantization") -> "Candidate":
    """Return the teacher without some of the blocks whose output has the shape of their input, heaviest and last first.

    An encoder loses its highest layers.
    """
    from edgepack.models.structure.encoder import droppable_layers
    from edgepack.models.structure.surgery import Edit, droppable_blocks

    student, layers = teacher.copy(), droppable_layers(teacher.module)
    blocks = layers or droppable_blocks(teacher.module, teacher.example_inputs(2))
    for name in blocks:
        if size_of(student) <= size:
            return student
        student = student.edited(Edit(op="drop", layer=name))
    if size_of(student) > size:
        most = size_of(teacher) / size_of(student)
        raise StageError(
            f"no student of {size:,.0f} parameters: without the {len(blocks)} {'layers' if layers else 'blocks'} that "
            f"can be removed it has {size_of(student):,}{', because the embeddings stay' if layers else ''}",
            "use scale: width" + (f", or a compression of at most {most:.3g}" if blocks else ""),
        )
    return student


def size_of(candidate: "Candidate") -> int:
    from edgepack.models.complexity import parameters

    return parameters(candidate.module)
