"""Check labels: each is one line of a bundle's io/labels.txt, where an app finds it by its number.

Every data set's labels are held to this, wherever they come from: `Signature` asks for it. A line end in one label
would give every later class the name of another.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from edgepack.core.errors import listed

_JOINERS = "\u200c\u200d"  # not printable, but Persian and Hindi words and emoji need them
_LINE_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"  # all line ends of Python, Java and Swift
# Never assigned, or reserved for invisible characters (Unicode's Noncharacter and Default_Ignorable_Code_Point).
_NEVER = re.compile("[\u2065\ufdd0-\ufdef\ufff0-\uffff\U000e0000-\U000e0fff]")
_UNNAMED = {"Cc": "a control character", "Co": "a character of private use"}
_REPLACED = "\ufffd"  # replaces bytes that could not be decoded


def flaw(label: str) -> str:
    """Return why an app could not read or show the label unchanged, or "".

    >>> flaw("T-shirt/top"), flaw("cat ")
    ('', 'it begins or ends with a blank')
    >>> print(flaw("a" + chr(10) + "b"))
    it holds a line end (U+000A)
    """
    odd = next((letter for letter in label if _is_odd(letter)), "")
    if odd:
        return f"it holds {_named(odd)}"
    if not label.strip().strip(_JOINERS):
        return "it is blank" if label else "it is empty"
    return "it begins or ends with a blank" if label != label.strip() else ""


def problem(labels: Sequence[str]) -> str:
    """Return the first problem of a data set's labels, or "".

    >>> problem(["cat", "dog", "cat"])
    "the label 'cat' is given twice"
    """
    seen: dict[str, str] = {}
    for label in labels:
        if why := flaw(label):
            return f"{label!r} is not a valid label: {why}"
        if (first := seen.get(_look(label))) == label:
            return f"the label {label!r} is given twice"
        if first is not None:
            return f"two labels look the same, {first!a} and {label!a}: no reader could tell them apart"
        seen[_look(label)] = label
    return ""


def doubts(labels: Iterable[str]) -> Iterator[str]:
    """Yield warnings: labels that differ only in case (single letters may), numeric labels of ambiguous order.

    >>> list(doubts(["A", "a", "Cat", "cat", "dog"]))
    ["the labels 'Cat' and 'cat' differ in case alone"]
    >>> list(doubts(["1", "10", "2"]))
    ['the labels are numbers in the order of their text, not of their values: 1, 10, 2']
    """
    labels = [*labels]
    if taken := order_of_numbers(labels):
        other = {"text": "values", "values": "text"}[taken]
        yield f"the labels are numbers in the order of their {taken}, not of their {other}: {listed(labels)}"
    written = defaultdict(list)
    for label in labels:
        written[_look(label).casefold()].append(label)
    for same in written.values():
        if len(same) > 1 and len(same[0]) > 1:
            yield f"the labels {' and '.join(map(repr, same))} differ in case alone"


def order_of_numbers(labels: Sequence[str]) -> str:
    """Return whether numeric labels are in the order of their "text" or of their "values"; "" if both orders are the
    same or a label is no number.
    """
    if not all(label.isdecimal() for label in labels) or sorted(labels) == sorted(labels, key=int):
        return ""
    return "text" if [*labels] == sorted(labels) else "values"


def twin(label: str, others: Iterable[str]) -> str | None:
    """Return the label of `others` that differs only in case or in the composition of accents, or None."""
    return next((other for other in others if _look(other).casefold() == _look(label).casefold()), None)


def lines(labels: Iterable[str]) -> bytes:
    """Return the content of io/labels.txt."""
    return "".join(f"{label}\n" for label in labels).encode()


def read(content: bytes) -> list[str]:
    """Return the labels in the content of io/labels.txt. Raises ValueError if other readers may split lines
    differently.
    """
    text = content.decode()
    found = text.splitlines()
    if lines(found) != content:
        raise ValueError("its lines do not end in one line feed each")
    if why := problem(found):
        raise ValueError(why)
    return found


def _is_odd(letter: str) -> bool:
    return letter == _REPLACED or not (letter.isprintable() or letter in _JOINERS or _may_be_new(letter))


def _may_be_new(letter: str) -> bool:
    """Return whether newer Unicode versions than Python's tables may have assigned it, as happens with emoji."""
    never = ord(letter) & 0xFFFE == 0xFFFE or _NEVER.match(letter)  # the last two of every 65536 are never characters
    return unicodedata.category(letter) == "Cn" and not never


def _named(letter: str) -> str:
    if unicodedata.category(letter) == "Cs":
        return "bytes that are not UTF-8"
    code = f"U+{ord(letter):04X}"
    if letter in _LINE_ENDS:
        return f"a line end ({code})"
    return f"{unicodedata.name(letter, _UNNAMED.get(unicodedata.category(letter), 'no character'))} ({code})"


def _look(label: str) -> str:
    """Return the same text for labels that look the same: composed accents, without invisible joiners."""
    return unicodedata.normalize("NFC", label.translate({ord(letter): None for letter in _JOINERS}))
