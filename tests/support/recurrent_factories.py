"""Tiny recurrent nets over sounds, texts and series of numbers."""

from typing import Any

import torch
from text_factories import signature as texts

from edgepack.config import plugins
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.checks.trial import some_inputs

FEATURES = {"rate": 8000, "window": 320, "hop": 160, "mels": 16}
LABELS = ("yes", "no", "other")


def sounds(*shape: int) -> Signature:
    sound = TensorSpec(name="input", shape=shape)
    return Signature(inputs=(sound,), labels=LABELS, preprocessing={"kind": "sound", "log_mel": FEATURES})


def series(steps: int = 7, numbers: int = 5) -> Signature:
    return Signature(inputs=(TensorSpec(name="input", shape=(steps, numbers)),), labels=LABELS)


def signature(what: str) -> Signature:
    return {"sounds": sounds(1120), "texts": texts(), "series": series()}[what]


def net(of: Signature, kind: str = "lstm", hidden: int = 16, **settings: Any) -> Candidate:
    torch.manual_seed(0)
    return Candidate.start(plugins.choose("models", {"recurrent": kind, "hidden": hidden, **settings}), of)


def one(candidate: Candidate) -> tuple[torch.Tensor, ...]:
    """The inputs of one sample."""
    return tuple(each[:1].contiguous() for each in some_inputs(candidate.signature))
