"""Decoders: GPT-2, Llama and their kind by one module, which all stages know."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepack.compress.stages.distill import encoder_siblings
from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.core.process.libraries import transformers
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks import language_modelling
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.sources.huggingface import decoders
from edgepack.models.sources.huggingface.facts import facts
from edgepack.models.structure.decoder import Decoder, Shape
from edgepack.models.structure.dependency_groups import survey
from edgepack.models.structure.encoder import blocks

LENGTH, VOCABULARY = 12, 90
DATA = Signature(
    inputs=(TensorSpec(name="input_ids", shape=(LENGTH,), dtype="int64"),),
    preprocessing={"kind": "tokens", "vocabulary": VOCABULARY},
)
SIGNATURE = language_modelling.task(language_modelling.Config(), DATA).signature
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 96}
LLAMA = {**SMALL, "intermediate_size": 80, "max_position_embeddings": 64}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": GPT2,
    "Llama": {**LLAMA, "num_key_value_heads": 2, "rope_theta": 1e5, "tie_word_embeddings": True},
    "Qwen2": {**LLAMA, "num_key_value_heads": 3},
    "Mistral": {**LLAMA, "num_key_value_heads": 3, "sliding_window": None},
}
GROUPED = Shape(
    vocabulary=VOCABULARY,
    places=LENGTH,
    width=48,
    heads=6,
    key_value_heads=3,
    layers=2,
    ffn=64,
    positions="rotary",
    norm="rms",
    gated=True,
)


def saved(family: str, folder: Path, **settings: Any) -> Any:
    """A small model of transformers with random weights, in a folder."""
    library = transformers()
    torch.manual_seed(0)
    kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(library, kind)(getattr(library, f"{family}Config")(**{**FAMILIES[family], **settings})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def some_tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_gives_what_it_gave(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path)
    choice = plugins.choose("models", {"huggingface": str(tmp_path)})
    assert choice.module.trained(choice.config, SIGNATURE)
    module = choice.module.build(choice.config, SIGNATURE)
    with torch.no_grad():
        wanted = model(some_tokens()).logits[..., :VOCABULARY]
        assert torch.allclose(module(some_tokens()), wanted, atol=1e-4)
    assert len(blocks(module)) == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_position_embeddings": 8}, "reads at most 8 tokens, but a window of the data has 12"),
        ({"vocab_size": 80}, "knows 80 tokens, but the tokenizer of the data has 90: it is of another model"),
        ({"hidden_act": "mish"}, "has the activation mish, which edgepack does not know"),
        ({"num_key_value_heads": 4}, "has 4 heads of keys, which do not divide its 6 of queries"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "has rotary positions of the kind yarn"),
    ],
)
def test_what_does_not_fit_is_told_before_it_is_loaded(changes: Any, problem: str, tmp_path: Path) -> None:
    settings = {"model_type": "llama", **LLAMA, "hidden_act": "silu", **changes}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    choice = plugins.choose("models", {"huggingface": str(tmp_path), "weights": None})
    assert problem in choice.module.incompatibility(choice.config, SIGNATURE)


def test_a_language_model_does_not_classify(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **GPT2}))
    choice = plugins.choose("models", {"huggingface": str(tmp_path)})
    other = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("a", "b"))
    assert "is a language model" in choice.module.incompatibility(choice.config, other)
    assert not facts(str(tmp_path)).is_classifier


def test_other_tensors_than_those_of_its_kind_are_told(tmp_path: Path) -> None:
    model = saved("GPT2", tmp_path)
    model.transformer.extra = torch.nn.Linear(2, 2)
    with pytest.raises(StageError, match=r"'extra.*not those of a gpt2|'transformer.extra"):
        decoders.adapted(model, facts(str(tmp_path)), SIGNATURE)  # type: ignore[arg-type]


def test_no_token_sees_a_later_one() -> None:
    module, tokens = Decoder(GROUPED).eval(), some_tokens()
    later = tokens.clone()
    later[:, 7:] = (later[:, 7:] + 1) % VOCABULARY
    before, after = (module(each) for each in (tokens, later))
    assert torch.equal(before[:, :7], after[:, :7]) and not torch.equal(before[:, 7], after[:, 7])


def test_heads_that_share_keys_go_together() -> None:
    """What is left computes what the whole computes when the removed heads give nothing."""
    module, tokens = Decoder(GROUPED).eval(), some_tokens()
    heads = next(group for group in survey(module, (tokens,)).groups if group.is_heads)
    assert heads.size == 48 and heads.width == 16  # three pairs of heads of 8
    silent = Decoder(GROUPED).eval()
    silent.load_state_dict(module.state_dict())
    silent.layers[0].attention.output.weight.data[:, 16:32] = 0
    heads.remove([1])
    attention: Any = module.layers[0].attention
    assert (attention.num_attention_heads, attention.num_key_value_heads) == (4, 2)
    assert attention.key.out_features == 16 and attention.query.out_features == 32
    assert torch.allclose(module(tokens), silent(tokens), atol=1e-6)


def test_a_narrower_student_is_rebuilt_with_its_tied_table(tmp_path: Path) -> None:
    choice = plugins.choose("models", {"gpt2": {"width": 48, "layers": 2, "heads": 6}})
    teacher = Candidate.start(choice, SIGNATURE)
    student = encoder_siblings.narrower(teacher, parameters(teacher.module) / 2, 8)
    module: Any = student.module
    assert module.head.weight is module.embedding.weight and module.embedding.embedding_dim < 48
    assert parameters(module) <= parameters(teacher.module) / 2
    student.save(tmp_path)
    again = Candidate.load(tmp_path).module
    assert torch.equal(again.eval()(some_tokens()), module.eval()(some_tokens()))


def test_a_student_of_a_model_with_shared_keys_keeps_whole_groups(tmp_path: Path) -> None:
    saved("Llama", tmp_path)
    teacher = Candidate.start(plugins.choose("models", {"huggingface": str(tmp_path)}), SIGNATURE)
    student = encoder_siblings.narrowed(teacher, 3, 8)
    student.check_rebuilt()
    attention: Any = student.module.layers[0].attention
    assert (attention.num_attention_heads, attention.num_key_value_heads) == (3, 1)
    assert student.module.embedding.embedding_dim == 24


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(Exception, match="7 heads do not divide a width of 48: 6 do"):
        plugins.choose("models", {"gpt2": {"width": 48, "layers": 2, "heads": 7}})
    choice = plugins.choose("models", {"gpt2": {"width": 48, "layers": 2, "heads": 6}})
    other = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("a", "b"))
    assert "reads windows of tokens" in choice.module.incompatibility(choice.config, other)
