"""The optimizers of timm: `optimizer: timm/lamb`. Which there are is read from its source, without importing it."""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from edgepack.core.errors import not_installed
from edgepack.core.process.libraries import source_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

PREFIX = "timm/"
_UNFIT = {  # by the class, or the package that it is of
    "apex": "it needs a GPU and the package apex",
    "bitsandbytes": "it needs a GPU and the package bitsandbytes",
    "Adahessian": "it needs second derivatives, which are not computed here",
    "AdafactorBigVision": "it keeps its momentum in bf16 and fails with this torch: use timm/adafactor",
    "Kron": "it keeps a state that no checkpoint can hold",
}


def incompatibility(name: str) -> str:
    """Say why there is no optimizer `timm/NAME`, or why it cannot be used, or ""."""
    if source_folder("timm") is None:
        return not_installed("timm", "timm")
    return _catalogue().get(name.removeprefix(PREFIX), "")


def names() -> tuple[str, ...]:
    """Return those that can be used, as they are named in a recipe."""
    return tuple(f"{PREFIX}{name}" for name, unfit in sorted(_catalogue().items()) if not unfit)


def known(name: str) -> bool:
    return name.removeprefix(PREFIX) in _catalogue()


@cache
def _catalogue() -> dict[str, str]:
    """Return why each cannot be used, or "", by name."""
    if (folder := source_folder("timm")) is None:
        return {}
    text = (folder / "optim" / "_optim_factory.py").read_text(encoding="utf-8")
    entries = re.findall(r"OptimInfo\(\s*(?:name=)?['\"](\w+)['\"],\s*(?:opt_class=)?['\"]?(\w+)", text)
    aliases = re.findall(r"register_alias\(['\"](\w+)['\"], ['\"](\w+)['\"]\)", text)
    found = {name: _UNFIT.get(made_by, "") for name, made_by in entries}
    return found | {alias: found[name] for alias, name in aliases if name in found}


def made(
    parameters: "Sequence[nn.Parameter]", name: str, learning_rate: float, weight_decay: float
) -> "torch.optim.Optimizer":
    from edgepack.core.process.libraries import timm

    timm()
    from timm.optim import create_optimizer_v2

    made: torch.optim.Optimizer = create_optimizer_v2(
        [*parameters], opt=name.removeprefix(PREFIX), lr=learning_rate, weight_decay=weight_decay
    )
    return made
