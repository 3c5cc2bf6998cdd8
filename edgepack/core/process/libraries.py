"""Import torchvision, transformers and timm quietly with a torch without CUDA."""

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
def timm() -> Any:
    declare_operators()  # it imports torchvision
    import timm as module

    return module


def source_folder(package: str) -> Path | None:
    """Return the folder of an installed package, which is not imported; None where there is none."""
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


@cache
def declare_operators() -> None:
    """Make torchvision importable, by whoever imports it first."""
    import torch

    folder = source_folder("torchvision")
    assert folder is not None, "torchvision is a dependency of edgepack"
    try:
        torch.ops.load_library(str(folder / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator)
        _declared.append(library)
