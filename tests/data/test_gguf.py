"""GGUF files as models and tokenizers: the same numbers as of transformers, and what is refused before any work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import python
from gguf_factories import END, PLACES, gguf_file, pieces, windows

from edgepack.config import plugins
from edgepack.config.document import Nested
from edgepack.core.errors import ExitCode, RecipeError
from edgepack.core.process.libraries import transformers
from edgepack.data.datasets import corpus
from edgepack.data.texts import gguf
from edgepack.models.candidate import Candidate

_CHECK = """
import sys
from edgepack.cli.main import main
sys.argv = ["edgepack", "check", "mine.yaml"]
try:
    main()
except SystemExit as end:
    code = end.code
print([name for name in ("torch", "numpy", "transformers", "gguf") if name in sys.modules])
raise SystemExit(code)
"""


def choose(name: str) -> Any:
    return plugins.choose("models", {"huggingface": name})


def recipe(name: str, window: int = 16, tokenizer: str = "") -> None:
    Path("texts").mkdir(exist_ok=True)
    for i in range(60):
        Path("texts", f"{i}.txt").write_text(f"{i} the thin tin thing in the inn " * 4)
    data = {"corpus": {"texts": "texts", "tokenizer": tokenizer or name, "window": window}}
    whole = {"edgepack": 1, "task": "language_modelling", "model": {"huggingface": name}, "data": data}
    rest = {
        "device": "host",
        "stages": [{"quantize": {"mode": "ptq"}}],
        "export": ["onnx"],
        "budgets": {"size": "1 MB"},
    }
    Path("mine.yaml").write_text("".join(f"{key}: {json.dumps(each)}\n" for key, each in {**whole, **rest}.items()))


def test_the_logits_are_those_of_transformers() -> None:
    name = gguf_file("models/tiny.gguf")
    theirs = transformers().AutoModelForCausalLM.from_pretrained("models", gguf_file="tiny.gguf", dtype="float32")
    ids = torch.randint(0, len(pieces()), (3, 16), generator=torch.Generator().manual_seed(0))
    for named in (name, "models"):
        ours = Candidate.start(choose(named), windows()).module
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_it_starts_trained_and_other_content_is_another_model() -> None:
    choice = choose(gguf_file())
    assert choice.module.trained(choice.config, windows())
    assert choice.module.files(choice.config) == (Path("tiny.gguf"),)


def test_its_tokenizer_cuts_texts_as_transformers_does_and_says_what_ends_one() -> None:
    name = gguf_file("models/tiny.gguf")
    recipe(name)
    signature = corpus.describe(corpus.Config(texts="texts", tokenizer=name, window=16))
    assert (signature.preprocessing["vocabulary"], signature.preprocessing["end"]) == (len(pieces()), END)
    content = corpus.attachments(corpus.Config(texts="texts", tokenizer=name))["tokenizer.json"]
    theirs = transformers().AutoTokenizer.from_pretrained("models", gguf_file="tiny.gguf")
    text = f"the thin  12 things{END}"
    from tokenizers import Tokenizer

    assert Tokenizer.from_str(content.decode()).encode(text).ids == theirs(text).input_ids


def test_digits_are_cut_apart_where_the_file_says_so() -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(gguf.about(Path(gguf_file(pre="smollm"))).tokenizer)
    assert [piece for piece, _ in made.pre_tokenizer.pre_tokenize_str("in  12")] == ["in", "ĠĠ", "1", "2"]


def test_what_was_read_once_is_checked_without_torch() -> None:
    recipe(gguf_file())
    assert python(_CHECK).code == ExitCode.OK
    again = python(_CHECK)
    assert again.code == ExitCode.OK
    assert again.out.splitlines()[-1] == "[]"
    gguf_file(scaling="linear")  # other content is read anew
    changed = python(_CHECK)
    assert changed.code == ExitCode.USAGE
    assert "rotary positions of the kind linear" in changed.err + changed.out


def test_what_does_not_fit_is_refused_by_check(capfd: pytest.CaptureFixture[str]) -> None:
    recipe(gguf_file(), window=PLACES + 1)
    ran = python(_CHECK)
    assert ran.code == ExitCode.USAGE
    assert f"reads at most {PLACES} tokens, but a window of the data has {PLACES + 1}" in ran.err + ran.out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "mamba9"}, "transformers cannot read.*mamba9"),
        ({"architecture": "qwen3"}, "'qwen3'; edgepack knows"),
        ({"extra": "rope_freqs.weight"}, "a tensor 'rope_freqs.weight', which edgepack does not know"),
        ({"extra": "blk.0.ffn_gate_inp.weight"}, "a tensor 'blk.0.ffn_gate_inp.weight'"),
        ({"scaling": "yarn"}, "rotary positions of the kind yarn"),
    ],
)
def test_a_model_that_would_be_read_in_part_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Nested, match=message):
        choose(gguf_file(**changes))


def test_a_type_of_weights_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(data: object, kind: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("gguf.quants.dequantize", unknown)
    with pytest.raises(Nested, match="weights of the type Q8_0, which cannot be read"):
        choose(gguf_file())


def test_a_file_that_is_none_or_cut_short_is_refused() -> None:
    Path("text.gguf").write_text("no model")
    with pytest.raises(Nested, match=r"text.gguf cannot be read as a GGUF file"):
        choose("text.gguf")
    whole = Path(gguf_file()).read_bytes()
    Path("half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Nested, match=r"half.gguf cannot be read as a GGUF file"):
        choose("half.gguf")


def test_a_file_that_is_not_there_and_a_folder_of_several() -> None:
    gguf_file("models/a.gguf")
    with pytest.raises(Nested, match=r"there is no file 'models/b.gguf'.*there are a.gguf in models"):
        choose("models/b.gguf")
    gguf_file("models/b.gguf")
    with pytest.raises(Nested, match=r"'models' has 2 files .gguf: name one of them: a.gguf, b.gguf"):
        choose("models")


def test_without_the_package_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    name = gguf_file()
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(Nested, match=r"the package gguf is not installed: pip install 'edgepack\[gguf\]'"):
        choose(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": False}, "has no tokenizer that transformers can read"),
        ({"pre": "klingon"}, "has a tokenizer that cuts texts as 'klingon', which is not known"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe("none")
    with pytest.raises(RecipeError, match=message):
        corpus.describe(corpus.Config(texts="texts", tokenizer=gguf_file(**changes)))


def test_a_tokenizer_of_another_model_is_refused() -> None:
    choice = choose(gguf_file())
    for changes, message in (
        ({"vocabulary": len(pieces()) + 1}, "but the tokenizer of the data has 261: it is of another model"),
        ({"words": "0" * 64}, "comes with a tokenizer of other words than that of the data: tokenizer: tiny.gguf"),
    ):
        assert message in choice.module.incompatibility(choice.config, windows(**changes))
    alone = choose(gguf_file("alone.gguf", pre="klingon"))  # whose tokenizer cannot be compared
    assert alone.module.incompatibility(alone.config, windows(words="0" * 64, end_id=0)) == ""
    other = alone.module.incompatibility(alone.config, windows(words="0" * 64, end_id=5))
    assert "ends a text with token 0, the tokenizer of the data with 5: it is of another model" in other
