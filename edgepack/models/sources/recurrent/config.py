"""Define the settings of a recurrent net in a recipe."""

from typing import Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.models.contract import CheckpointKey, OwnCheckpoint


class Config(Frozen):
    recurrent: Literal["lstm", "gru"] = Field(description="kind of its layers")
    hidden: int = Field(default=128, ge=1, le=4096, description="numbers that a layer remembers, in each direction")
    layers: int = Field(default=1, ge=1, le=16, description="layers, each of which reads the one before it")
    bidirectional: bool = Field(default=False, description="read from both ends; a stream has no other end")
    embedding: int = Field(default=128, ge=1, le=4096, description="texts: numbers that stand for a token")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="after each layer, in training")
    checkpoint: OwnCheckpoint = None
    checkpoint_key: CheckpointKey = None
