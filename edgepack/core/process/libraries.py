"""Import torchvision and transformers quietly with a torch without CUDA."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def transformers() -> Any:
    torchvision()
    import transformers as module

    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[Any] = []  # kept alive: a garbage-collected library removes its operators


@cache
def torchvision() -> Any:
    declare_operators()
    import torchvision as module

    return module


@cache
def declare_operators() -> None:
    """Make torchvision importable, by whoever imports it first."""
    import torch

    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None, "torchvision is a dependency of edgepack"
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator)
        _declared.append(library)
