"""Read a file of instances in COCO's format: pictures, categories, and the box of each object.

    {"images": [{"id": 9, "file_name": "9.jpg", "width": 640, "height": 480}, ...],
     "categories": [{"id": 18, "name": "dog"}, ...],
     "annotations": [{"id": 1, "image_id": 9, "category_id": 18, "bbox": [left, top, width, height]}, ...]}

Source: https://cocodataset.org/#format-data
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Json
from edgepack.data.folders import counted, shown
from edgepack.data.pictures.decoding import needed, reads

_LISTS = ("images", "annotations", "categories")
_ROUNDING = 1.0  # pixels by which a box may go beyond its picture: it is cut there
_NARROWEST = 0.01  # pixels: less is lost by rounding when the picture is resized
_HINT = "give the annotations of instances, such as instances_train2017.json"
_IDS = "give each entry an id of its own"
_REQUIRED = {"images": ("id", "file_name", "width", "height"), "annotations": ("id", "image_id"), "categories": ("id",)}


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """A picture as the file describes it, and the boxes in it: left, top, right and bottom in pixels, and label."""

    name: str
    size: tuple[int, int]
    boxes: list[tuple[float, float, float, float, int]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Instances:
    """What one file holds, and what is wrong with it: each with the place in the file."""

    labels: list[str]
    pictures: list[Pictured]
    problems: list[str]
    crowds: int  # regions with many objects, which are left out


def read(file: Path, folder: Path) -> Instances:
    """Return the content of a file whose pictures are in a folder. Raises RecipeError unless it is one of COCO."""
    lists = _lists(file)
    labels = {each["id"]: str(each.get("name", each["id"])) for each in sorted(lists["categories"], key=_order)}
    numbers = {category: number for number, category in enumerate(labels)}
    problems: list[str] = []
    pictures: dict[Any, Pictured] = {}
    for each in lists["images"]:
        if why := _picture_flaw(each, folder):
            problems.append(f"{shown(file)}: picture {each['id']}: {why}")
        else:
            pictures[each["id"]] = Pictured(name=str(each["file_name"]), size=(each["width"], each["height"]))
    missing = {each["id"] for each in lists["images"]} - {*pictures}  # these were told already
    single = [each for each in lists["annotations"] if not _is_crowd(each)]
    boxes = [each for each in single if each["image_id"] not in missing]
    for each in boxes:
        try:
            pictures_of, box = _box(each, pictures, numbers)
            pictures_of.boxes.append(box)
        except ValueError as error:
            problems.append(f"{shown(file)}: annotation {each['id']}: {error}")
    return Instances(
        labels=[*labels.values()],
        pictures=[*pictures.values()],
        problems=problems,
        crowds=len(lists["annotations"]) - len(single),
    )


def _order(entry: Mapping[str, Any]) -> tuple[bool, Any]:
    """Return what categories are sorted by: their ids, numbers before texts."""
    return isinstance(entry["id"], str), entry["id"]


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("iscrowd") or 0) not in ("0", "False", "false")


def _lists(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        found: Json = json.loads(file.read_bytes())
    except OSError as error:
        raise RecipeError(f"cannot read {shown(file)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{shown(file)} is not JSON: {error}", _HINT) from error
    lacking = [name for name in _LISTS if not isinstance(found, dict) or not isinstance(found.get(name), list)]
    if lacking:
        raise RecipeError(f"{shown(file)} is no file of COCO: it has no list of {' and '.join(lacking)}", _HINT)
    for name in _LISTS:
        _check_entries(file, name, found[name])
    return {name: found[name] for name in _LISTS}


def _check_entries(file: Path, name: str, entries: Sequence[Any]) -> None:
    for place, each in enumerate(entries):
        wanted = [
            key for key in _REQUIRED[name] if not isinstance(each, dict) or not isinstance(each.get(key), int | str)
        ]
        if wanted:
            raise RecipeError(f"{shown(file)} is no file of COCO: {name}[{place}] has no {' and '.join(wanted)}", _HINT)
    if name != "annotations":
        _check_ids(file, name, (each["id"] for each in entries))


def _check_ids(file: Path, name: str, ids: Iterable[Any]) -> None:
    """Raises RecipeError if two have the same id: which of them an annotation is for is not known."""
    if twice := [each for each, count in Counter(ids).items() if count > 1]:
        raise RecipeError(f"{shown(file)}: {counted(len(twice), 'id')} twice in {name}, such as {twice[0]!r}", _IDS)


def _picture_flaw(entry: Mapping[str, Any], folder: Path) -> str:
    path = folder / str(entry["file_name"])
    if not all(isinstance(entry[key], int) and entry[key] > 0 for key in ("width", "height")):
        return f"its size is {entry['width']} x {entry['height']}"
    if not reads(path.suffix.lower()):
        return f"{shown(path)} is no picture that can be read ({needed(path.suffix.lower()) or 'unknown'})"
    return "" if _is_file(path) else f"there is no file {shown(path)}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _box(
    entry: Mapping[str, Any], pictures: Mapping[Any, Pictured], numbers: Mapping[Any, int]
) -> tuple[Pictured, tuple[float, float, float, float, int]]:
    """Return the picture of an annotation, and its box, which is cut at the picture's edges. Raises ValueError."""
    if entry["image_id"] not in pictures:
        raise ValueError(f"there is no picture {entry['image_id']}")
    if not isinstance(entry.get("category_id"), int | str) or entry["category_id"] not in numbers:
        raise ValueError(f"there is no category {entry.get('category_id')}")
    picture, given = pictures[entry["image_id"]], entry.get("bbox")
    if not isinstance(given, list) or len(given) != 4 or not all(isinstance(each, int | float) for each in given):
        raise ValueError(f"its bbox is {given}, not [left, top, width, height]")
    shape, what = f"the box {given}", f"{shown(picture.name)}, of {picture.size[0]} x {picture.size[1]} pixels"
    if not all(map(_is_finite, given)):
        raise ValueError(f"{shape:.80} is not of finite numbers")
    left, top, width, height = map(float, given)
    if width < _NARROWEST or height < _NARROWEST:
        raise ValueError(f"{shape} has no area")
    right, bottom = left + width, top + height
    if min(left, top) < -_ROUNDING or right > picture.size[0] + _ROUNDING or bottom > picture.size[1] + _ROUNDING:
        raise ValueError(f"{shape} goes beyond its picture {what}")
    inside = max(left, 0.0), max(top, 0.0), min(right, picture.size[0]), min(bottom, picture.size[1])
    if min(inside[2] - inside[0], inside[3] - inside[1]) < _NARROWEST:
        raise ValueError(f"{shape} is at the edge of its picture {what}, and has no area there")
    return picture, (*inside, numbers[entry["category_id"]])


def _is_finite(number: float) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # an integer of 309 or more digits
        return False
