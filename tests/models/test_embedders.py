"""Encoders of texts as models of embeddings: how tokens are pooled, and how many numbers come of it."""

import json
from pathlib import Path
from typing import Any

import factories
import pytest
import text_factories as make
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor

from edgepack.compress.stages.distill.encoder_siblings import narrowed
from edgepack.config import plugins
from edgepack.config.plugins import Choice
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.process.libraries import transformers
from edgepack.data import hub
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs
from edgepack.models.structure import encoder

MINILM = "all-MiniLM-L6-v2"


def choose(**config: Any) -> Choice:
    return plugins.choose("models", config)


def saved() -> str:
    """What save_pretrained() writes of an encoder alone."""
    transformers().BertModel(transformers().BertConfig(**make._BERT)).save_pretrained("saved")
    return "saved"


def pooled_by(folder: str, **modes: Any) -> None:
    file = Path(folder, hub.POOLING)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"word_embedding_dimension": 32, **modes}))


def incompatibility(name: str, **settings: Any) -> str:
    choice = choose(huggingface=name, **settings)
    found: str = choice.module.incompatibility(choice.config, make.embeds())
    return found


def outputs(made: Candidate, count: int = 8) -> Tensor:
    with torch.no_grad():
        found: Tensor = made.module.eval()(*make.text().train.head(count))
    return found


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_embeddings_are_those_of_transformers_pooled_as_the_folder_says(mode: str) -> None:
    name = saved()
    pooled_by(name, pooling_mode_mean_tokens=mode == "mean", pooling_mode_cls_token=mode == "cls")
    ids, mask = make.text().train.head(8)
    theirs = transformers().BertModel.from_pretrained(name).eval()
    with torch.no_grad():
        states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    pooled = states[:, 0] if mode == "cls" else (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    given = outputs(Candidate.start(choose(huggingface=name), make.embeds()))
    torch.testing.assert_close(given, torch.nn.functional.normalize(pooled))


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_kind_gives_embeddings_of_length_one_and_is_rebuilt(kind: str, tmp_path: Path) -> None:
    made = make.embedder(kind)
    given = outputs(made)
    torch.testing.assert_close(given.norm(dim=1), torch.ones(8))
    made.save(tmp_path)
    torch.testing.assert_close(outputs(Candidate.load(tmp_path)), given, rtol=0, atol=0)


@pytest.mark.parametrize("kind", make.KINDS)
def test_padding_changes_no_embedding(kind: str) -> None:
    made = make.embedder(kind)
    ids, mask = make.text().train.head(8)
    noise = torch.where(mask.bool(), ids, torch.randint(10, make.TOKENS, ids.shape))
    with torch.no_grad():
        torch.testing.assert_close(made.module(noise, mask), made.module(ids, mask))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_exported_last_layer_computes_what_is_pooled(pooling: str) -> None:
    made = make.embedder(pooling=pooling)
    inputs, whole = make.text().train.head(8), outputs(made)
    torch.testing.assert_close(made.program(batch=8).module()(*inputs), whole)
    with encoder.first_token_only(made.module), torch.no_grad():
        torch.testing.assert_close(made.module(*inputs), whole)
    assert macs(make.embedder(pooling="cls")) < 0.7 * macs(make.embedder(pooling="mean"))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("size", [32, 8])
def test_a_text_of_nothing_but_padding_has_an_embedding_and_gradients(pooling: str, size: int) -> None:
    made = make.embedder(size=size, pooling=pooling)
    nothing = torch.zeros(2, make.LENGTH, dtype=torch.int64)
    given = made.module(nothing, nothing)
    given[:, 0].sum().backward()
    assert given.isfinite().all()
    assert pooling == "cls" or not given.any()
    assert all(each.grad.isfinite().all() for each in made.module.parameters() if each.grad is not None)


def test_a_narrower_student_keeps_the_size_of_embeddings(tmp_path: Path) -> None:
    teacher = make.embedder()
    student = narrowed(teacher, heads=2, multiple=4)
    student.check_rebuilt()
    assert student.module.projection.weight.shape == (32, 16)
    assert (outputs(student) * outputs(teacher)).sum(1).mean() > 0.5  # it has the teacher's weights
    student.save(tmp_path)
    torch.testing.assert_close(outputs(Candidate.load(tmp_path)), outputs(student), rtol=0, atol=0)
    assert narrowed(student, heads=1, multiple=4).module.projection.weight.shape == (32, 8)


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        ({}, ""),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ""),
        ({"pooling_mode": "mean", "include_prompt": True}, ""),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ""),
        ({"pooling_mode_max_tokens": True}, "'saved' pools by 'max_tokens', edgepack by mean and cls only"),
        ({"pooling_mode": "lasttoken"}, "pools by 'lasttoken'"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "joins the mean and the first token"),
    ],
)
def test_pooling_that_edgepack_does_not_know_is_told(modes: dict[str, Any], message: str) -> None:
    name = saved()
    pooled_by(name, **modes)
    assert message in (incompatibility(name) or message)
    assert bool(incompatibility(name)) is bool(message)
    assert incompatibility(name, pooling="mean") == ""


def test_what_else_does_not_fit_is_told() -> None:
    name = saved()
    Path(name, hub.MODULES).write_text('[{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Dense"}]')
    assert "has a module Dense after its encoder" in incompatibility(name)
    Path(name, hub.MODULES).write_text("{")
    assert "cannot be read as JSON" in incompatibility(name)
    choice = choose(huggingface=name, pooling="mean")
    assert "`pooling`, which is for embeddings of texts" in choice.module.incompatibility(
        choice.config, make.signature()
    )


def test_another_pooling_is_another_model() -> None:
    name = saved()
    pooled_by(name, pooling_mode_cls_token=True)
    choice = choose(huggingface=name)
    assert Path(name, hub.POOLING) in choice.module.files(choice.config)


def test_an_encoder_is_trained_for_embeddings_of_its_own_width_only() -> None:
    name = saved()
    for settings, size, trained in [({}, 32, True), ({}, 16, False), ({"layers": 1}, 32, False)]:
        choice = choose(huggingface=name, **settings)
        assert choice.module.trained(choice.config, make.embeds(size)) is trained
    fresh = choose(huggingface=name, weights=None)
    assert not fresh.module.trained(fresh.config, make.embeds())


def recipe(task: Any, **parts: Any) -> Path:
    data = {"text_folder": {"folder": factories.texts(), "tokenizer": MINILM, "max_length": 12}}
    model = {"huggingface": MINILM}
    return factories.recipe_file(task=task, data=data, model=model, export=["onnx"], budgets=None, **parts)


def test_embeddings_are_as_wide_as_a_pretrained_model_where_the_recipe_says_nothing() -> None:
    quantized = [{"quantize": {"mode": "ptq"}}]
    found = load_recipe(recipe("embedding", stages=quantized))
    assert found.plain()["task"]["embedding"]["size"] == 384
    with pytest.raises(RecipeError, match=r"its embeddings have 384 numbers, not 64: leave out size, or add the stage"):
        load_recipe(recipe({"embedding": {"size": 64}}, stages=quantized))
    trained = [{"train": {"epochs": 1}}, *quantized]
    assert load_recipe(recipe({"embedding": {"size": 64}}, stages=trained)).task.config.size == 64


def test_a_file_that_the_hub_does_not_have_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(name: str, file: str) -> str:
        asked.append(file)
        raise EntryNotFoundError("404")

    def unreachable(name: str, file: str) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", missing)
    assert hub.optional("some-owner/some-bert", hub.POOLING) is None
    assert hub.optional("some-owner/some-bert", hub.POOLING, fetch=False) is None
    assert asked == [hub.POOLING]
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(DeviceError, match=r"1_Pooling/config.json of 'some-owner/some-bert' cannot be downloaded"):
        hub.optional("some-owner/some-bert", hub.POOLING)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.optional("some-owner/some-bert", hub.POOLING) is None


@pytest.mark.parametrize("pooler", [True, False])
def test_a_checkpoint_may_come_with_or_without_the_pooler(pooler: bool) -> None:
    name = saved()
    whole = outputs(Candidate.start(choose(huggingface=name), make.embeds()))
    state = transformers().BertModel.from_pretrained(name).state_dict()
    save_file({key: value for key, value in state.items() if pooler or "pooler" not in key}, "weights.safetensors")
    again = choose(huggingface=make.described(folder=Path("other")), checkpoint="weights.safetensors")
    torch.testing.assert_close(outputs(Candidate.start(again, make.embeds())), whole)
