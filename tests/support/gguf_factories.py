"""Tiny GGUF files as llama.cpp writes them: a Llama of two layers with a tokenizer of bytes."""

from pathlib import Path
from typing import Any

import numpy

from edgepack.core.signature import Signature, TensorSpec

WIDTH, HEADS, PAIRS, FFN, LAYERS, PLACES = 32, 4, 2, 64, 2, 48
END = "<|im_end|>"
_MERGES = ("t h", "th e", "i n")


def pieces() -> list[str]:
    """The tokens: one that ends a text, every byte, and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [END, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in _MERGES)]


def gguf_file(path: str = "tiny.gguf", tokens: bool = True, extra: str = "", **settings: Any) -> str:
    """A file with random weights, the matrices in 8 bits; `settings` are its architecture, how its tokenizer cuts texts
    (`pre`), and the kind of its rotary positions (`scaling`). `extra` is the name of one more tensor.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    writer, random = GGUFWriter(path, settings.pop("architecture", "llama")), numpy.random.default_rng(0)
    _describe(writer, settings)
    if tokens:
        _add_tokenizer(writer, settings.get("pre", "gpt-2"))
    for name, shape in _tensors(extra):
        weight = random.normal(0, 0.3, shape).astype("float32")
        if len(shape) == 1:
            writer.add_tensor(name, weight + 1)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any, settings: dict[str, Any]) -> None:
    writer.add_name("tiny")
    writer.add_context_length(PLACES)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(pieces()))
    if "scaling" in settings:
        writer.add_string("llama.rope.scaling.type", settings["scaling"])


def _add_tokenizer(writer: Any, pre: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces())
    writer.add_token_types([3, *([1] * (len(pieces()) - 1))])
    writer.add_token_merges([*_MERGES])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)


def _tensors(extra: str) -> list[tuple[str, tuple[int, ...]]]:
    narrow = WIDTH // HEADS * PAIRS
    of_layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (narrow, WIDTH),
        "attn_v": (narrow, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (FFN, WIDTH),
        "ffn_up": (FFN, WIDTH),
        "ffn_down": (WIDTH, FFN),
    }
    layers = [(f"blk.{i}.{name}.weight", shape) for i in range(LAYERS) for name, shape in of_layer.items()]
    ends = [("token_embd.weight", (len(pieces()), WIDTH)), ("output_norm.weight", (WIDTH,))]
    return [*ends, *layers, *([(extra, (WIDTH,))] if extra else [])]


def windows(length: int = 16, **changes: Any) -> Signature:
    """What windows of tokens tell of themselves."""
    about: dict[str, Any] = {"kind": "tokens", "vocabulary": len(pieces()), "end": END, **changes}
    inputs = (TensorSpec(name="input_ids", shape=(length,), dtype="int64"),)
    outputs = (TensorSpec(name="logits", shape=(length, about["vocabulary"])),)
    return Signature(inputs=inputs, outputs=outputs, preprocessing=about)
