"""Your own model, returned by your function "module:function".

The function is called with `args`, when the recipe is built and again whenever a saved candidate is loaded: the same
arguments must give the same structure. Wrappers are taken off, and weights that are computed each time are folded.
"""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.config.user_code.references import Arguments, Files, Reference, libraries, named, resolve, sources
from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.models.contract import Checkpoint, CheckpointKey

if TYPE_CHECKING:
    from torch import nn


FOREIGN = True


class Config(Frozen):
    python: Reference = Field(description='"module:function" that returns the model, for example shop.nets:make')
    args: Arguments = Field(default={}, description="keyword arguments of the function")
    checkpoint: Checkpoint | None = Field(
        default=None, description="file with weights of exactly this model: .safetensors, .pth"
    )
    checkpoint_key: CheckpointKey = None
    files: Files = Field(
        default=(),
        description='what the function reads, for example ["weights/*.npz"]: when they change, so does the model',
    )


def trained(config: Config, signature: Signature) -> bool:
    return config.checkpoint is not None


def files(config: Config) -> tuple[Path, ...]:
    """Return the files of its code, of the user's modules it imports, and those that the recipe names."""
    checkpoint = [Path(config.checkpoint)] if config.checkpoint else []
    return (*sources(config.python), *named(config.files).values(), *checkpoint)


def installed(config: Config) -> dict[str, str]:
    return libraries(config.python)


def build(config: Config, signature: Signature) -> "nn.Module":
    from edgepack.models.checks.trial import some_inputs, tried
    from edgepack.models.sources.python.plain import folded, is_plain
    from edgepack.models.weights.loading import fits, load_weights

    module = tried(_made(config, signature), signature, f"the model of '{config.python}'")
    checkpoint, key = Path(config.checkpoint) if config.checkpoint else None, config.checkpoint_key
    computed = checkpoint is not None and not is_plain(module) and fits(module, checkpoint, key)
    if checkpoint and computed:  # saved before folding
        load_weights(module, checkpoint, key)
    folded(module, some_inputs(signature))
    if checkpoint and not computed:
        load_weights(module, checkpoint, key)
    return module


def _made(config: Config, signature: Signature) -> "nn.Module":
    from torch import nn
    from torch.nn.parameter import is_lazy

    from edgepack.core.errors import reason
    from edgepack.models.checks.trial import tried
    from edgepack.models.sources.python.plain import plain

    make = resolve(config.python)
    try:
        module = make(**copy.deepcopy(config.args))
    except (Exception, SystemExit) as error:
        logging.getLogger(__name__).exception("%s failed", config.python)
        given = ", ".join(f"{name}={value!r}" for name, value in config.args.items())
        message = f"'{config.python}', called with ({given}), failed: {reason(error)}"
        raise StageError(message, "see build.log for the traceback") from error
    if not isinstance(module, nn.Module):
        raise StageError(f"'{config.python}' gives {type(module).__name__}, not a torch.nn.Module", "let it return one")
    if any(is_lazy(weight) for weight in module.parameters()):  # these cannot be copied before their size is known
        module = tried(module, signature, f"the model of '{config.python}'")
    return plain(module)  # a copy: the function may keep its model and return it again
