"""The tokenizer of a model, fixed to one length: text in, exactly the model's inputs out, in one JSON file.

tokenizer = load("all-MiniLM-L6-v2", max_length=128)
tokenizer.json()                    what the bundle ships: cutting and padding are part of it
encode(read(content), texts)        what an app does with that file, in Python
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest
from edgepack.data import hub

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer

    Ids = numpy.typing.NDArray[numpy.int32]
    Mask = numpy.typing.NDArray[numpy.uint8]
    Rows = numpy.typing.NDArray[numpy.int64]

FILE = "tokenizer.json"
INPUTS = ("input_ids", "attention_mask")
_BATCH = 1000  # texts
_ROLES = ("pad", "unk", "cls", "sep", "bos", "eos", "mask")
# Many published models do not say which special tokens have which role, but their transformers classes know it.
_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A tokenizer that truncates and pads every text, on the right, to `max_length` tokens.

    `special_tokens` are by role: {"pad": {"token": "[PAD]", "id": 0}, ...}; ids go from 0 to `vocabulary` - 1.
    """

    tokenizer: "Tokenizer"
    max_length: int
    special_tokens: dict[str, dict[str, Any]]

    @property
    def vocabulary(self) -> int:
        return max(self.tokenizer.get_vocab().values()) + 1

    def json(self) -> bytes:
        content: str = self.tokenizer.to_str()
        return content.encode()

    def preprocessing(self) -> dict[str, Any]:
        """Return what an app needs to make the inputs, and a model to see whether it fits."""
        return {
            "kind": "text",
            "tokenizer": FILE,
            "vocabulary": self.vocabulary,
            "words": words(self.tokenizer),
            "max_length": self.max_length,
            "truncation": "right",
            "padding": "right",
            "special_tokens": self.special_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """`ids` and `mask` of shape [n, max_length], the index of each row's text, and how many texts were longer."""

    ids: "Ids"
    mask: "Mask"
    texts: "Rows"
    cut: int

    def inputs(self) -> dict[str, Any]:
        """Return the inputs of a model, by the names of INPUTS: int64 [n, max_length]."""
        return dict(zip(INPUTS, (self.ids.astype("int64"), self.mask.astype("int64")), strict=True))


def load(name: str, max_length: int) -> Fixed:
    """Return the tokenizer with this name (see hub.folder).

    Raises RecipeError if it is missing, is damaged, cannot pad, or cannot take texts of `max_length` tokens.
    """
    folder = hub.folder(name, hub.TOKENIZER)
    tokenizer = read_file(folder / FILE)
    settings = {**_settings(folder / "special_tokens_map.json"), **_settings(folder / "tokenizer_config.json")}
    special = _special_tokens(tokenizer, settings)
    if "pad" not in special:
        raise RecipeError(
            f"the tokenizer {name!r} has no padding token, but exported files take texts of one length",
            "add one with tokenizer.add_special_tokens({'pad_token': '[PAD]'}) and save the tokenizer again",
        )
    if not tokenizer.num_special_tokens_to_add(False):
        raise RecipeError(
            f"the tokenizer {name!r} adds no special tokens to a text, but encoders classify by the first one",
            "add a post_processor, as AutoTokenizer of the model's own class has, and save the tokenizer again",
        )
    _possible(max_length, added=tokenizer.num_special_tokens_to_add(False), most=settings.get("model_max_length"))
    tokenizer.enable_truncation(max_length, stride=0, strategy="longest_first", direction="right")
    pad = special["pad"]
    tokenizer.enable_padding(
        direction="right", pad_id=pad["id"], pad_type_id=0, pad_token=pad["token"], length=max_length
    )
    return Fixed(tokenizer=tokenizer, max_length=max_length, special_tokens=special)


def read(content: bytes) -> "Tokenizer":
    """Return a tokenizer from its JSON. Raises ValueError if it is not valid."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(str(error)) from error


def encode(tokenizer: "Tokenizer", texts: Sequence[str], *, windows: int = 1) -> Encoded:
    """Return what the model gets for each text, truncated and padded.

    The rest of a longer text gives more rows, up to `windows` rows in total; extra rows must be at least half full.
    """
    import numpy

    ids, mask, rows, cut = [], [], [], 0
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer.encode_batch(list(texts[start : start + _BATCH]))
        for row, encoding in enumerate(batch, start):
            further = [each for each in encoding.overflowing if 2 * sum(each.attention_mask) >= len(each.ids)]
            for each in [encoding, *further][:windows]:
                ids.append(numpy.array(each.ids, numpy.int32))
                mask.append(numpy.array(each.attention_mask, numpy.uint8))
                rows.append(row)
            cut += bool(encoding.overflowing)
    return Encoded(ids=numpy.stack(ids), mask=numpy.stack(mask), texts=numpy.array(rows), cut=cut)


def words(tokenizer: "Tokenizer") -> str:
    """Return a hash of its tokens with their ids."""
    return digest(tokenizer.get_vocab())


def read_file(file: Path) -> "Tokenizer":
    """Return the tokenizer in a file. Raises RecipeError if it is not valid."""
    try:
        return read(file.read_bytes())
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(
            f"{file} is not a tokenizer: {error}", "download it again, or save the tokenizer again"
        ) from error


def _settings(file: Path) -> dict[str, Any]:
    """Return a settings file that transformers writes next to tokenizer.json; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{file} cannot be read as JSON: {error}", "download it again, or remove it") from error
    return settings if isinstance(settings, dict) else {}


def _special_tokens(tokenizer: "Tokenizer", settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for role in _ROLES:
        entry = settings.get(f"{role}_token")
        token = entry.get("content") if isinstance(entry, dict) else entry
        for candidate in (token,) if isinstance(token, str) else _USUAL.get(role, ()):
            if (id := tokenizer.token_to_id(candidate)) is not None:
                found.setdefault(role, {"token": candidate, "id": id})
    return found


def _possible(max_length: int, *, added: int, most: Any) -> None:
    if max_length <= added:
        raise RecipeError(
            f"max_length is {max_length}, but the tokenizer adds {added} special tokens to every text",
            f"use at least {added + 1}",
        )
    if isinstance(most, int | float) and max_length > most:
        raise RecipeError(f"max_length is {max_length}, but the tokenizer allows at most {most:.0f} tokens")
