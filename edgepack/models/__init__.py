"""A source of models is a module with

Config                                     has a field of the plugin's own name: `torchvision: resnet18`
trained(config) -> bool                    whether the model starts with trained weights
misfit(config, signature) -> str           why it cannot take this data, or ""; no torch
build(config, signature) -> nn.Module      the model, with the right inputs and number of classes
"""

from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from edgepack.config import Frozen
from edgepack.datasets import Signature
from edgepack.plugins import Choice, choose

if TYPE_CHECKING:
    from torch import nn

_REF = {"type": "object", "description": "a model: {torchvision: resnet18, width: 25 %}"}

ModelChoice = Annotated[
    Choice,
    PlainValidator(lambda value: choose("models", value)),
    PlainSerializer(lambda choice: choice.plain()),
    WithJsonSchema(_REF),
]


class ModelSource(Protocol):
    Config: type[Frozen]

    def trained(self, config: Any) -> bool: ...
    def misfit(self, config: Any, signature: Signature) -> str: ...
    def build(self, config: Any, signature: Signature) -> "nn.Module": ...
