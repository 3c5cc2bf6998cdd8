"""Define Candidate, a torch model on its way from teacher to bundle, saved without pickle.

On disk an eager candidate is three things: how the untouched model is made (`factory`), what was done to its structure
since (`surgery`, a JSON log), and `weights.safetensors`. An exported (quantized) one is `program.pt2`.

    candidate.json   {"form": "eager", "factory": {"model": "torchvision", ...},
                      "surgery": [{"op": "resize", "layer": "layer1.0.conv1", "to": {"out_channels": 40}}, ...]}
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from edgepack.config import plugins
from edgepack.config.plugins import Choice
from edgepack.core.errors import StageError
from edgepack.core.frozen import Frozen
from edgepack.core.process.random_numbers import own_random
from edgepack.core.signature import Signature
from edgepack.models.notes import collected
from edgepack.models.structure.channels import cache_channels, cached_channels
from edgepack.models.structure.dependency_groups import Score
from edgepack.models.structure.encoder.attention import separated
from edgepack.models.structure.surgery import Edit, apply, first, repeat, resizes, shrink, sizes
from edgepack.models.weights.loading import load_weights

if TYPE_CHECKING:
    from torch.export import ExportedProgram


Form = Literal["eager", "exported"]

_STARTS = ("checkpoint", "checkpoint_key", "weights", "revision")  # settings of a model for the weights it starts from


class Factory(Frozen):
    """How to make the model that the surgery log starts from."""

    model: str  # the plugin in models/sources/
    config: dict[str, Any]
    signature: Signature

    @classmethod
    def of(cls, choice: Choice, signature: Signature) -> "Factory":
        """Leave out the weights that a model may start from: a saved candidate has its own."""
        config = {key: None if key in _STARTS else value for key, value in choice.plain().items()}
        return cls(model=choice.name, config=config, signature=signature)

    def build(self) -> nn.Module:
        """Build the structure with fresh weights. It has its own random generator: loading must not change later random
        numbers. Raises StageError when its source is gone.
        """
        module = plugins.load("models", self.model)
        try:
            config = module.Config.model_validate_json(json.dumps(self.config))  # JSON has lists for tuples
        except ValidationError as error:
            why = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
            raise StageError(f"a saved model cannot be built again: {why}", "put back what made it") from error
        with own_random():
            return _built(module, config, self.signature)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model and how it came to be. A stage may change `module` in place: it was given a private copy.

    `notes` are messages of the stage that made it, one line each ("layer4.0.conv1: split at rank 24"). `decided` are
    settings that the stage chose by measuring: a recipe with these gives the same candidate without measuring.
    """

    module: nn.Module
    factory: Factory
    form: Form = "eager"
    surgery: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    decided: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def start(cls, choice: Choice, signature: Signature) -> "Candidate":
        """Build the model of a recipe, with its trained weights if it has any."""
        with collected() as notes:
            module = _built(choice.module, choice.config, signature)
        return cls(module=module, factory=Factory.of(choice, signature), notes=tuple(notes))

    @property
    def signature(self) -> Signature:
        return self.factory.signature

    def changed(self, *edits: Edit, notes: tuple[str, ...] = ()) -> "Candidate":
        """Return this candidate after structural changes that its module already has."""
        return replace(self, surgery=(*self.surgery, *edits), notes=notes)

    def copy(self) -> "Candidate":
        return replace(self, module=copy.deepcopy(self.module))

    def edited(self, edit: Edit) -> "Candidate":
        """Return this candidate after changing its module in place as `edit` says."""
        apply(self.module, edit)
        return self.changed(edit)

    def narrowed(
        self,
        keep: float | Mapping[str, float],
        *,
        multiple: int,
        scored: Callable[[nn.Module], Score] = lambda module: first,
        exclude: tuple[str, ...] = (),
    ) -> "Candidate":
        """Return a copy with this share of the channels of every layer, or of each group; `scored` gets the copy.

        Raises what `shrink` does.
        """
        narrow, before = self.copy(), sizes(self.module)
        inputs, score = self.example_inputs(2), scored(narrow.module.eval())
        shrink(narrow.module, inputs, keep=keep, score=score, multiple=multiple, exclude=exclude)
        if cached := cached_channels(narrow.module):  # for the old shapes: the next width needs no trace
            cache_channels(self.module, cached)
        return narrow.changed(*resizes(before, narrow.module))

    def forgotten(self) -> "Candidate":
        """Return the same structure with fresh weights."""
        return replace(self, module=rebuild(self.factory, self.surgery))

    def check_rebuilt(self) -> None:
        """Raises StageError where the structure cannot be rebuilt from its log, or does not run.

        Channels may have been removed from a tensor that the log cannot describe, or the model's own code may need
        their old number.
        """
        from edgepack.models.checks.trial import tried

        fresh = rebuild(self.factory, self.surgery).state_dict()
        for name, tensor in self.module.state_dict().items():
            if name not in fresh or fresh[name].shape != tensor.shape:
                layer, _, parameter = name.rpartition(".")
                kind, where = type(self.module.get_submodule(layer)).__name__, f" '{layer}'" if layer else ""
                raise StageError(
                    f"losing channels changed '{parameter}' of the {kind}{where}, which edgepack cannot rebuild",
                    "channels may pass through convolutions, Linear, norms, PReLU and scales of one number a channel",
                )
        tried(self.module, self.signature, "the model with fewer channels")

    def example_inputs(self, batch: int = 1) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.zeros(batch, *spec.shape, dtype=getattr(torch, spec.dtype)) for spec in self.signature.inputs
        )

    def noise(self) -> tuple[torch.Tensor, ...]:
        """Return two samples of random inputs, the same every time."""
        from edgepack.models.checks.trial import some_inputs

        return tuple(tensor[:2] for tensor in some_inputs(self.signature))

    def program(self, batch: int | None = None) -> "ExportedProgram":
        """Export the model with torch.export, at a fixed batch size or with a dynamic one.

        Raises StageError naming the module and the line that cannot be exported.
        """
        from edgepack.models.source_lines import check_shapes, exporting
        from edgepack.models.structure.encoder import first_token_only

        module = self.module if self.form == "exported" else self.module.eval()
        if isinstance(module, nn.Sequential):
            # ExecuTorch's batch norm fusion fails on parameters whose names begin with a digit.
            module = nn.Sequential(OrderedDict(model=module)).eval()
        # Export would specialise an example of 1 for ever: use two, even where the batch is dynamic.
        inputs = self.example_inputs(batch or 2)
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if batch is None else None
        with first_token_only(module), exporting(module):
            program = torch.export.export(module, inputs, dynamic_shapes=shapes)
        check_shapes(program)
        return program

    def save(self, folder: Path) -> None:
        """Write `candidate.json` and the weights, or the program, into an empty folder."""
        facts = {
            "form": self.form,
            "factory": self.factory.model_dump(),
            "surgery": [e.model_dump() for e in self.surgery],
        }
        (folder / "candidate.json").write_text(json.dumps(facts, indent=1))
        if self.form == "exported":
            program = self.program()
            program._example_inputs = None  # the only part of the archive that would be pickled
            torch.export.save(program, folder / "program.pt2")
        else:
            from safetensors.torch import save_model

            save_model(self.module, str(folder / "weights.safetensors"))

    @classmethod
    def load(cls, folder: Path) -> "Candidate":
        facts = json.loads((folder / "candidate.json").read_text())
        factory = Factory.model_validate_json(json.dumps(facts["factory"]))
        surgery = tuple(Edit(**edit) for edit in facts["surgery"])
        if facts["form"] == "exported":
            import torchao.quantization.pt2e  # noqa: F401  (registers the operators that quantized programs use)

            with _hints_read_once():
                module = torch.export.load(folder / "program.pt2").module(check_guards=False)
        else:
            module = rebuild(factory, surgery)
            load_weights(module, folder / "weights.safetensors")
        return cls(module=module, factory=factory, form=facts["form"], surgery=surgery)


def _built(source: Any, config: Any, signature: Signature) -> nn.Module:
    """Build a model; attention is made of separate layers where it is an encoder's."""
    from edgepack.models.checks.trial import some_inputs

    built: nn.Module = source.build(config, signature)
    return separated(built, some_inputs(signature))


def rebuild(factory: Factory, surgery: tuple[Edit, ...]) -> nn.Module:
    """Rebuild the structure of a candidate, without its weights."""
    module = factory.build()
    repeat(module, surgery)
    return module


@contextmanager
def _hints_read_once() -> Iterator[None]:
    """Read the types of torch's records once a class; to do so each time is a quarter of the time of a load."""
    import typing
    from types import SimpleNamespace
    from unittest.mock import patch

    from torch._export.serde import serialize

    known: dict[type, dict[str, Any]] = {}

    def hints(cls: type, **scope: Any) -> dict[str, Any]:
        if cls not in known:
            known[cls] = typing.get_type_hints(cls, **scope)
        return known[cls]

    with patch.object(serialize, "typing", SimpleNamespace(**vars(typing) | {"get_type_hints": hints})):
        yield
