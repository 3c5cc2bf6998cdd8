"""Initialise a student with weights of its teacher."""

from typing import TYPE_CHECKING

from edgepack.compress.stages.distill.config import Config, has_weights

if TYPE_CHECKING:
    from torch import nn

    from edgepack.models.candidate import Candidate


def begun(student: "Candidate", teacher: "Candidate", config: Config) -> "tuple[Candidate, list[str]]":
    """Return the student with its initial weights, and notes on them. A derived student has the teacher's already."""
    if config.init == "random":
        return student.forgotten(), ["starts from random weights"]
    if config.student is None:
        return student, ["starts from the teacher's weights"]
    places = None if getattr(config.student.config, "checkpoint", None) else _same_layers(student, teacher)
    if places is None and has_weights(config.student):
        return student, ["starts from its own weights"]
    taken = _inherit(student.module, teacher.module, places)
    whole = len(student.module.state_dict())
    return student, [f"{taken} of its {whole} tensors start as the teacher's"] if taken else []


def _same_layers(student: "Candidate", teacher: "Candidate") -> dict[int, int] | None:
    """Map the teacher's layers to those of a student with some layers of the same encoder; None for another student.

    Such a student may come with published weights, but the teacher's weights are trained for the task and better.
    """
    from edgepack.models.structure.encoder import blocks

    own, known, every = student.factory, teacher.factory, {"layers": None}
    row = blocks(student.module)
    if not row or own.model != known.model or own.config | every != known.config | every:
        return None
    chosen, had = own.config.get("layers"), known.config.get("layers")
    origins = chosen if isinstance(chosen, list) else range(len(row))
    places = had if isinstance(had, list) else range(max(origins) + 1)
    return {places.index(origin): place for place, origin in enumerate(origins) if origin in places}


def _inherit(student: "nn.Module", teacher: "nn.Module", places: dict[int, int] | None) -> int:
    """Copy every tensor that the teacher has under the same name and in the same shape; return how many were copied.

    `places` maps the teacher's layers to the student's, where their numbers may differ.
    """
    from edgepack.models.structure.encoder import renumbered

    own, known = student.state_dict(), teacher.state_dict() if places is None else renumbered(teacher, places)
    same = {name: known[name] for name, tensor in own.items() if name in known and known[name].shape == tensor.shape}
    student.load_state_dict(same, strict=False)
    return len(same)
