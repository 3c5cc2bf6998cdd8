"""Token windows for language modelling: documents end to end, cut into windows of one length, from a file on disk.

    pieces = of_model("models/gpt2")                       # or trained(4096, documents)
    with open("tokens.bin", "wb") as file:
        write(file, pieces, documents)
    Windows(Path("tokens.bin"), 128).read(indices, None)   # input_ids [n, 128], targets [n, 128, 2]

Every document is followed by the token that ends a text. Each token is kept with the bytes of text that it stands for,
so that models with different tokenizers can be compared: those of all tokens of a document add up to the document.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgepack.core.errors import RecipeError
from edgepack.core.files import made_once
from edgepack.core.provenance import versions
from edgepack.data import hub
from edgepack.data.texts import gguf, kept_pieces, tokenizer

if TYPE_CHECKING:
    import numpy
    from tokenizers import Tokenizer
    from torch import Tensor

    Rows = numpy.typing.NDArray[numpy.int32]

END = "<|end|>"  # of a tokenizer that is trained here
_VERSION = 1  # bump when other pieces would be kept of the same texts
_BATCH = 200  # documents that are tokenized at a time
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>", "[SEP]")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A tokenizer that neither cuts nor pads, the number of its tokens, and the one that ends a text.

    One with fewer tokens than its model has `kept` those of the `whole` one.
    """

    tokenizer: "Tokenizer"
    vocabulary: int
    end: int
    kept: tuple[int, ...] = ()
    whole: "Pieces | None" = None

    def json(self) -> bytes:
        return self._content.encode()

    @cached_property
    def _content(self) -> str:
        content: str = self.tokenizer.to_str()
        return content

    @cached_property
    def words(self) -> str:
        """Return a hash of the tokens of its model, which may have more."""
        return tokenizer.words(self.tokenizer) if self.whole is None else self.whole.words


def of_model(name: str) -> Pieces:
    """Return the tokenizer with this name (see hub.folder), or of a GGUF file.

    Raises RecipeError if it cannot be read, or no token of it ends a text.
    """
    if file := gguf.located(name):
        return _of_gguf(file)
    folder = hub.folder(name, hub.TOKENIZER)
    found = tokenizer.read_file(folder / tokenizer.FILE)
    found.no_truncation()
    found.no_padding()
    vocabulary = max(found.get_vocab().values()) + 1
    named = [*_named(folder / "tokenizer_config.json"), *_named(folder / "special_tokens_map.json"), *_ENDS]
    ends = [id for token in named if (id := found.token_to_id(token)) is not None]
    if not ends:
        message = f"the tokenizer {name!r} has no token that ends a text"
        raise RecipeError(message, "name it as eos_token in tokenizer_config.json")
    return Pieces(tokenizer=found, vocabulary=vocabulary, end=ends[0])


def _of_gguf(file: Path) -> Pieces:
    about = gguf.about(file)
    if about.problem:
        raise RecipeError(f"{file} {about.problem}", "name a folder with its tokenizer.json instead")
    if about.end is None:
        raise RecipeError(f"the tokenizer in {file} has no token that ends a text", "it is tokenizer.ggml.eos_token_id")
    return _read(about.tokenizer, about.end)


@cache
def _read(content: str, end: int) -> Pieces:
    found = tokenizer.read(content.encode())
    return Pieces(tokenizer=found, vocabulary=max(found.get_vocab().values()) + 1, end=end)


def used(whole: Pieces, made_of: Any, documents: Callable[[], Sequence[str]]) -> Pieces:
    """Return a tokenizer with those pieces only that the documents use; `made_of` says which documents they are.

    Raises RecipeError for a tokenizer that cannot be cut.
    """

    def make() -> dict[str, Any]:
        cut = kept_pieces.used(whole.json().decode(), documents())
        return {"tokenizer": cut.tokenizer, "kept": cut.kept}

    content = whole.json().decode()
    facts = {"documents": made_of, "tokenizer": content, "versions": versions("tokenizers"), "version": _VERSION}
    known = made_once("pieces", facts, make)
    kept = tuple(known["kept"])
    return replace(_read(known["tokenizer"], kept.index(whole.end)), kept=kept, whole=whole)


def _named(file: Path) -> Iterator[str]:
    """Yield the token that a settings file of transformers says ends a text."""
    try:
        entry = json.loads(file.read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return
    token = entry.get("content") if isinstance(entry, dict) else entry
    if isinstance(token, str):
        yield token


def trained(vocabulary: int, documents: Iterable[str]) -> Pieces:
    """Return a byte-level BPE tokenizer made of these documents.

    Raises RecipeError if they have fewer pieces. Source: R. Sennrich et al., Neural Machine Translation of Rare Words
    with Subword Units, ACL 2016, arXiv 1508.07909; on bytes, A. Radford et al., 2019 (GPT-2).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(documents, trainer)
    found = made.get_vocab_size()
    if found < vocabulary:
        message = f"the training texts give {found:,} different pieces, not {vocabulary:,}"
        raise RecipeError(message, f"use vocabulary: {found}, or more text")
    return Pieces(tokenizer=made, vocabulary=vocabulary, end=made.get_vocab()[END])


def write(file: IO[bytes], pieces: Pieces, documents: Sequence[str]) -> int:
    """Write each token and its bytes of text, int32 [tokens, 2]; return the number of tokens."""
    import numpy

    total = 0
    for start in range(0, len(documents), _BATCH):
        batch = list(documents[start : start + _BATCH])
        for text, encoding in zip(batch, pieces.tokenizer.encode_batch(batch, add_special_tokens=False), strict=True):
            rows = numpy.zeros((len(encoding.ids) + 1, 2), "<i4")
            rows[:-1, 0], rows[-1, 0] = encoding.ids, pieces.end
            rows[:-1, 1] = _bytes(text, encoding.offsets)
            file.write(rows.tobytes())
            total += len(rows)
    return total


def _bytes(text: str, offsets: Sequence[tuple[int, int]]) -> "numpy.typing.NDArray[numpy.int64]":
    """Return the bytes of each token: those from the end of the token before to its own end. Of several tokens for one
    letter the first has all its bytes, and what no token stands for belongs to the next one, or to the last.

    >>> _bytes("a \N{BULLET}", [(0, 1), (1, 3), (1, 3)]).tolist()
    [1, 4, 0]
    """
    import numpy

    until = numpy.concatenate(([0], numpy.cumsum([len(letter.encode("utf-8", "replace")) for letter in text])))
    ends = numpy.maximum.accumulate(numpy.array([0, *(end for _, end in offsets)], dtype=int))
    if len(ends) > 1:
        ends[-1] = len(text)
    return numpy.diff(until[ends])


@dataclass(frozen=True)
class Windows:
    """Samples of a file that `write` made: windows of `length` tokens, one after the other; the rest is left out."""

    path: Path
    length: int

    augmented = False
    held = True  # by the system's page cache: other processes would not read them faster

    def __len__(self) -> int:
        return self.path.stat().st_size // 8 // self.length

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        """Return input_ids int64 [n, length], and targets int64 [n, length, 2]: each token, and its bytes."""
        import numpy
        import torch

        rows: Any = numpy.memmap(self.path, "<i4", mode="r").reshape(-1, 2)[: len(self) * self.length]
        found = torch.from_numpy(rows.reshape(-1, self.length, 2)[indices.numpy()].astype("int64"))
        return found[..., 0].contiguous(), found
