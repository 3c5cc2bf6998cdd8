"""Detect the kind of a file from its bytes, whatever its name."""

import json
import zipfile
from pathlib import Path

# What downloads and checkouts leave in place of a file, by its first bytes.
_STAND_INS = {
    b"version https://git-lfs.github.com/spec/": "a pointer of git-lfs, not the file: fetch it with `git lfs pull`",
    b"<!doctype html": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
}
_MOST_HEADER = 100_000_000  # bytes: the limit of safetensors itself


def stand_in(path: Path) -> str:
    """Say what is there in place of a file, or ""."""
    with path.open("rb") as file:
        head = file.read(64).lower()
    if not head:
        return "empty"
    return next((words for start, words in _STAND_INS.items() if head.startswith(start)), "")


def not_weights(path: Path) -> str:
    """Say why a file is no checkpoint, or "" if nothing shows it."""
    if found := stand_in(path):
        return found
    if is_safetensors(path):
        size, whole = path.stat().st_size, _whole_safetensors(path)
        return f"truncated: it has {size:,} of {whole:,} bytes" if size < whole else ""
    return _of_zip(path)


def is_safetensors(path: Path) -> bool:
    """Return whether it begins as a safetensors file: the length of a header, and its opening brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER


def is_executorch(path: Path) -> bool:
    """Return whether it has the mark of a .pte file after its first four bytes: ET, and two digits."""
    with path.open("rb") as file:
        mark = file.read(8)[4:]
    return mark[:2] == b"ET" and mark[2:].isdigit()


def _whole_safetensors(path: Path) -> int:
    """Return the number of bytes it should have, as far as its header is complete."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
    whole = 8 + length
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(header).values() if "data_offsets" in entry]
        return whole + max(ends, default=0)
    except (ValueError, TypeError, LookupError, AttributeError):
        return whole  # cut off within the header, or damaged: its reader reports it


def _of_zip(path: Path) -> str:
    """Distinguish zip archives: torch.save writes them, and torch.jit.save too."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return "truncated, or damaged at its end: copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which is code: torch.jit.load(...).state_dict() has its weights"
    if not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive that torch.save did not write ({', '.join(names[:3])}): unpack it"
    return ""
