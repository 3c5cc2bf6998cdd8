"""The pieces of a tokenizer that some texts use, without the others: a smaller table and last layer for its model.

    cut = used(content, documents)     # of a tokenizer.json of the kind BPE
    cut.tokenizer                      # the same for these documents, with fewer pieces, numbered anew from 0
    cut.kept                           # which of the pieces that were there, in the new order

Pieces stay that a document has, those that they are merged from, and all that are merged from none: letters, bytes
and special tokens. So these documents have the same pieces as before, and any other text can still be written, rare
words in more pieces than before.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import RecipeError
from edgepack.data.texts import tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 200  # documents that are tokenized at a time


@dataclass(frozen=True, kw_only=True)
class Cut:
    tokenizer: str
    kept: tuple[int, ...]


def used(content: str, documents: Sequence[str]) -> Cut:
    """Raises RecipeError for tokenizers of another kind than BPE."""
    made: dict[str, Any] = json.loads(content)
    if made["model"]["type"] != "BPE":
        advice = "remove `pieces: used`"
        raise RecipeError(f"pieces can be left out of BPE tokenizers only, not of {made['model']['type']}", advice)
    whole = tokenizer.read(content.encode())
    kept = tuple(sorted(_needed(made, {id for ids in _encoded(whole, documents) for id in ids})))
    _keep(made, kept)
    cut = Cut(tokenizer=json.dumps(made, ensure_ascii=False), kept=kept)
    _check(whole, cut, documents)
    return cut


def _encoded(found: "Tokenizer", documents: Sequence[str]) -> Iterator[list[int]]:
    for start in range(0, len(documents), _BATCH):
        for encoding in found.encode_batch(list(documents[start : start + _BATCH]), add_special_tokens=False):
            yield encoding.ids


def _needed(made: dict[str, Any], ids: set[int]) -> set[int]:
    """Return the pieces with these ids, those that they are merged from, and those that are merged from none."""
    vocabulary: dict[str, int] = made["model"]["vocab"]
    parts: dict[int, list[int]] = defaultdict(list)
    for left, right in _merges(made):
        parts[vocabulary[left + right]] += [vocabulary[left], vocabulary[right]]
    always = {id for id in vocabulary.values() if id not in parts} | {each["id"] for each in made["added_tokens"]}
    found: set[int] = set()
    left_over = [*ids, *always]
    while left_over:
        id = left_over.pop()
        if id not in found:
            found.add(id)
            left_over += parts[id]
    return found


def _merges(made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield merges, which older files have as texts with a blank between."""
    for merge in made["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _keep(made: dict[str, Any], kept: Sequence[int]) -> None:
    """Leave these pieces in a tokenizer, numbered anew."""
    new = {id: place for place, id in enumerate(kept)}
    model = made["model"]
    vocabulary = {piece: new[id] for piece, id in model["vocab"].items() if id in new}
    model["merges"] = [
        [*pair] for pair in _merges(made) if "".join(pair) in vocabulary and vocabulary.keys() >= {*pair}
    ]
    model["vocab"] = vocabulary
    for each in made["added_tokens"]:
        each["id"] = new[each["id"]]
    _renumber(made["post_processor"] or {}, new)


def _renumber(step: dict[str, Any], new: dict[int, int]) -> None:
    """Renumber the special tokens that a tokenizer puts around a text."""
    for each in step.get("processors", ()):
        _renumber(each, new)
    for name in {"cls", "sep"} & {*step}:
        step[name] = [step[name][0], new[step[name][1]]]
    for each in (step.get("special_tokens") or {}).values():
        each["ids"] = [new[id] for id in each["ids"]]


def _check(whole: "Tokenizer", cut: Cut, documents: Sequence[str]) -> None:
    fewer = tokenizer.read(cut.tokenizer.encode())
    pairs = zip(_encoded(whole, documents), _encoded(fewer, documents), strict=True)
    if any(before != [cut.kept[id] for id in after] for before, after in pairs):
        message = "without the pieces that no text uses, the tokenizer gives other pieces"
        raise RecipeError(message, "remove `pieces: used`, and please report this")


def packed(ids: Iterable[int]) -> str:
    """Return increasing ids as a short text, a bit for each number.

    >>> packed([0, 1, 9])
    'AwI='
    """
    octets = bytearray()
    for id in ids:
        octets.extend(bytes(id // 8 + 1 - len(octets)))
        octets[id // 8] |= 1 << id % 8
    return base64.b64encode(octets).decode()


def unpacked(text: str) -> list[int]:
    """
    >>> unpacked("AwI=")
    [0, 1, 9]
    """
    octets = base64.b64decode(text)
    return [8 * place + bit for place, octet in enumerate(octets) for bit in range(8) if octet >> bit & 1]
