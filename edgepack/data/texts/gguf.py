"""A GGUF file of llama.cpp: what it tells of its model, and its tokenizer, as transformers reads them.

    file = located("models/smollm2.gguf")    # or a folder with one such file and no config.json; None for other names
    about(file).config                       # what config.json would say
    about(file).tokenizer                    # what tokenizer.json would hold

To read one takes seconds, and torch: what was found out is remembered by the content of the file.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgepack.core.errors import RecipeError, listed, not_installed, reason
from edgepack.core.files import digests, made_once
from edgepack.core.provenance import versions

ENDING = ".gguf"
LIBRARIES = ("gguf", "transformers")  # their versions decide what is read
_TOKENS = "tokenizer.ggml.tokens"
_VERSION = 1  # bump when something else is remembered of a file
_ANOTHER = "convert it again, from a model and with a version of llama.cpp that transformers can read"

# Parts of decoders that edgepack knows. What is not among them, such as experts or factors of rotary positions, would
# be left out in silence.
_PARTS = re.compile(
    r"(token_embd|position_embd|output|output_norm|"
    r"blk\.\d+\.(attn_norm|attn_qkv|attn_q|attn_k|attn_v|attn_output|ffn_norm|ffn_gate|ffn_up|ffn_down))\.(weight|bias)"
)

# How texts are cut before pieces are merged. Transformers takes kinds that it does not know for GPT-2's in silence.
_AS_GPT2 = ("", "default", "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jais")
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


@dataclass(frozen=True, kw_only=True)
class About:
    """`config` is what config.json would say, and `tokenizer` the content of tokenizer.json, or empty with a `problem`
    where it cannot be read; `end` is the token that ends a text.
    """

    config: dict[str, Any]
    tokenizer: str
    problem: str
    end: int | None


def located(name: str) -> Path | None:
    """Return the GGUF file that a name is, or None for other names of models.

    Raises RecipeError if it is not there, or if a folder has several.
    """
    path = Path(name)
    if path.suffix.lower() == ENDING and not path.is_dir():
        if not path.is_file():
            raise RecipeError(f"there is no file {name!r}", _beside(path))
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = _inside(path)
    if len(found) > 1:
        raise RecipeError(f"{name!r} has {len(found)} files {ENDING}", f"name one of them: {listed(found)}")
    return path / found[0] if found else None


def _inside(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix.lower() == ENDING and file.is_file())


def _beside(path: Path) -> str:
    found = _inside(path.parent) if path.parent.is_dir() else []
    return f"there are {listed(found)} in {path.parent}" if found else "check the path"


def about(file: Path) -> About:
    """Raises RecipeError if the package gguf is not installed, or naming what cannot be read, or is not known."""
    if find_spec("gguf") is None:
        raise RecipeError(f"to read {file}, {not_installed('gguf', 'gguf')}")
    status = file.stat()
    return _about(file, status.st_size, status.st_mtime_ns)


@cache
def _about(file: Path, size: int, changed: int) -> About:
    content = digests({"file": file}, of=str(file.resolve()))
    made_of = {**content, "versions": versions(*LIBRARIES, "tokenizers"), "version": _VERSION}
    return About(**made_once("gguf", made_of, lambda: _read(file)))


def _read(file: Path) -> dict[str, Any]:
    fields = _checked(file)
    try:
        config = _config(file)
    except Exception as error:  # the libraries raise many kinds
        raise RecipeError(f"{file} is of a model that transformers cannot read: {reason(error)}", _ANOTHER) from error
    tokenizer, problem = _tokenizer(file, fields)
    return {"config": config, "tokenizer": tokenizer, "problem": problem, "end": config.get("eos_token_id")}


def _checked(file: Path) -> dict[str, Any]:
    """Return the settings in a file whose tensors are all known. Raises RecipeError."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except Exception as error:  # of a damaged file nearly anything
        raise RecipeError(f"{file} cannot be read as a GGUF file: {reason(error)}", "download it again") from error
    # Lists are long, and of that of tokens only the length counts.
    fields = {name: len(each.data) if name == _TOKENS else each.contents() for name, each in reader.fields.items()}
    if problem := next(_problems(reader.tensors, fields), ""):
        raise RecipeError(f"{file} {problem}", _ANOTHER)
    return fields


def _problems(tensors: Any, fields: dict[str, Any]) -> Iterator[str]:
    if int(fields.get("split.count", 0)) > 1:
        yield f"is one of {fields['split.count']} parts of a model: join them with llama-gguf-split --merge"
    scaled = next((key for key in fields if key.endswith("rope.scaling.type")), "")
    if scaled and fields[scaled] != "none":
        yield f"has rotary positions of the kind {fields[scaled]}, which edgepack does not know"
    if strange := next((each.name for each in tensors if not _PARTS.fullmatch(each.name)), ""):
        yield f"has a tensor {strange!r}, which edgepack does not know"
    yield from (f"has weights of the type {kind}, which cannot be read" for kind in _unreadable(tensors))


def _unreadable(tensors: Any) -> Iterator[str]:
    from gguf.quants import dequantize

    for tensor in {each.tensor_type: each for each in tensors}.values():
        try:
            dequantize(tensor.data[:1], tensor.tensor_type)
        except (NotImplementedError, ValueError):
            yield tensor.tensor_type.name


def _config(file: Path) -> dict[str, Any]:
    from edgepack.core.process.libraries import transformers

    settings = transformers().AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    known: dict[str, Any] = json.loads(settings.to_json_string(use_diff=False))
    if "n_ctx" in known:  # GPT-2 has its number of positions under another name
        known["n_positions"] = known["n_ctx"]
    return known


def _tokenizer(file: Path, fields: dict[str, Any]) -> tuple[str, str]:
    """Return the content of tokenizer.json, or "" and why there is none."""
    from edgepack.core.process.libraries import transformers

    try:
        made = transformers().AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        problem = _cutting(made.backend_tokenizer, str(fields.get("tokenizer.ggml.pre", "")))
        content = json.loads(made.backend_tokenizer.to_str())
    except Exception as error:  # a file without a tokenizer, or with one of another kind
        return "", f"has no tokenizer that transformers can read: {reason(error)}"
    # The class of a tokenizer may add special tokens of its own, which the model has not.
    content["added_tokens"] = [each for each in content["added_tokens"] if each["id"] < fields[_TOKENS]]
    return ("", problem) if problem else (json.dumps(content, ensure_ascii=False), "")


def _cutting(tokenizer: Any, cut: str) -> str:
    """Let a tokenizer cut texts as its file says, where transformers does not. Return why that cannot be, or ""."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if cut in _DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    known = cut in _DIGITS_APART or cut in _AS_GPT2 or cut in GGUF_PRE_TOKENIZER_SPLITS
    return "" if known else f"has a tokenizer that cuts texts as {cut!r}, which is not known"
