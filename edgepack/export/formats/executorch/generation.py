"""A decoder's .pte: one method for a prompt and for each token after it, as ExecuTorch's LLM runner calls it.

    forward(tokens [1, length] int64, position [1] int64) -> logits [1, length, vocabulary] float32

Keys and values stay inside, for as many tokens as the decoder has places. The other methods tell the runner about it.
Source: extension/llm/runner of ExecuTorch.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.export import Dim, ExportedProgram

from edgepack.export.formats.executorch.tables import with_packed_tables
from edgepack.export.generation import Step, end_of_text, generator

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

_SOME = 3  # tokens of the example: 1 would be taken for the only length


class Written(NamedTuple):
    """What a .pte is made of: a program, its inputs, which of their sizes are open, and what it says of itself."""

    program: ExportedProgram
    inputs: tuple[torch.Tensor, ...]
    shapes: tuple[Any, ...] | None = None
    facts: dict[str, Any] | None = None  # by the names of methods that return them


def written(candidate: "Candidate") -> Written:
    decoder = generator(candidate)
    inputs = torch.zeros(1, _SOME, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    shapes = {1: Dim("length", min=1, max=decoder.places)}, None
    program = torch.export.export(Step(decoder).eval(), inputs, dynamic_shapes=shapes)
    if candidate.form == "exported":
        graph = program.module(check_guards=False)
        if (packed := with_packed_tables(graph)) is not graph:
            program = torch.export.export(packed, inputs, dynamic_shapes=shapes)
    end = end_of_text(candidate)
    facts = {
        "get_vocab_size": candidate.signature.outputs[0].shape[-1],
        "get_max_seq_len": decoder.places,
        "get_max_context_len": decoder.places,
        "get_bos_id": end,
        "get_eos_ids": [end],
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,  # its attention is made of plain operators
        "enable_dynamic_shape": True,  # a prompt is read at once
    }
    return Written(program, inputs, shapes, facts)
