"""Tiny decoders with random weights, which write text: `gpt2` is one of learned positions, `llama` one of rotary ones
with fewer heads of keys and values than of queries.

This module is a plugin of models too: where `decoders` is imported, {"tiny_decoder": "llama"} names one of them.
"""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from caching import cached
from factories import published
from torch_factories import SATURATES

from edgepack.config.device import Quantization
from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate, Factory
from edgepack.models.structure.decoder import Decoder, Shape

Kind = Literal["gpt2", "llama"]
How = Literal["eager", "quantized"]
PLACES, VOCABULARY, END = 32, 120, 0
_LETTERS = [chr(code) for code in range(33, 127)]
_TEXT = "the cat sat on the mat and the dog ate the hat so that the cat had the mat and the dog had the hat"


class Config(Frozen):
    tiny_decoder: Kind


def trained(config: Config, signature: Signature) -> bool:
    return False


def build(config: Config, signature: Signature) -> Decoder:
    shared: dict[str, Any] = {"vocabulary": VOCABULARY, "places": PLACES, "width": 32, "heads": 4, "layers": 2}
    kinds: dict[Kind, dict[str, Any]] = {
        "gpt2": {"ffn": 48},
        "llama": {
            "ffn": 64,
            "key_value_heads": 2,
            "positions": "rotary",
            "norm": "rms",
            "activation": "silu",
            "gated": True,
            "query_bias": False,
            "attention_output_bias": False,
            "output_bias": False,
        },
    }
    return Decoder(Shape(**shared, **kinds[config.tiny_decoder]))


@pytest.fixture(autouse=True)
def tiny_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an installed package published this module as the source of models `tiny_decoder`."""
    published(monkeypatch, "models", "tiny_decoder", __name__)


@cached
def decoder(kind: Kind, how: How = "eager") -> Candidate:
    """A decoder whose next tokens are far apart, as it is or in int8; shared, so not to be changed."""
    from edgepack.compress.stages import quantize

    signature = Signature(
        inputs=(TensorSpec(name="input_ids", shape=(PLACES,), dtype="int64"),),
        outputs=(TensorSpec(name="logits", shape=(PLACES, VOCABULARY)),),
        preprocessing={"kind": "tokens", "vocabulary": VOCABULARY, "window": PLACES, "end_id": END},
    )
    torch.manual_seed(0)
    config = Config(tiny_decoder=kind)
    factory = Factory(model="tiny_decoder", config=config.model_dump(mode="json"), signature=signature)
    made = Candidate(module=build(config, signature).eval(), factory=factory)
    with torch.no_grad():
        for weight in made.module.parameters():
            if weight.dim() == 2:
                weight.mul_(10)
    if how == "eager":
        return made
    return quantize.dry_run(made, quantize.Config(), Quantization(int8_saturates=SATURATES))


def prompts(count: int = 4) -> list[list[int]]:
    """Texts of a few tokens, none of which ends a text."""
    random = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (3 + each,), generator=random).tolist() for each in range(count)]


def tokenizer(path: Path) -> Any:
    """A BPE tokenizer of printable letters and some words, saved and returned."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    settings: dict[str, Any] = {"special_tokens": ["<|end|>"], "initial_alphabet": _LETTERS, "show_progress": False}
    made.train_from_iterator([_TEXT] * 3, trainers.BpeTrainer(vocab_size=VOCABULARY, **settings))
    made.save(str(path))
    return made
