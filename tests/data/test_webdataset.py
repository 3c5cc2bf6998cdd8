"""Shards that the library webdataset wrote become data sets; what is wrong with them is said before training."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import webdataset as library
from factories import texts, tokenizer
from picture_factories import COLORS, check_colors, stored, write_folder

from edgepack.core.errors import RecipeError
from edgepack.data.contract import Loading
from edgepack.data.datasets import image_folder, webdataset
from edgepack.data.datasets.webdataset import shards

NAMES = (*COLORS,)


def _config(names: str = "shards/{0..2}.tar", **settings: Any) -> webdataset.Config:
    return webdataset.Config(shards=names, **{"size": 16, **settings})


def _samples() -> list[dict[str, Any]]:
    """Ten pictures of each class, in the order of their number."""
    write_folder("pets")
    return [
        {
            "__key__": f"{name}{i}",
            "jpg" if i % 2 else "png": Path(f"pets/{name}/{i}.{'jpg' if i % 2 else 'png'}").read_bytes(),
            "cls": NAMES.index(name),
            "json": {"label": name, "width": 30 + i},
        }
        for i in range(10)
        for name in NAMES
    ]


def _write(samples: list[dict[str, Any]], names: str = "shards/%d.tar", each: int = 12) -> None:
    Path(names).parent.mkdir(exist_ok=True)
    with library.ShardWriter(names, maxcount=each, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)


def _tar(name: str, members: Iterable[tuple[str, bytes]], links: Iterable[tuple[str, str]] = ()) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    with tarfile.open(name, "w") as archive:
        for path, content in members:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for path, target in links:
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)


def _changed(shard: str, change: Any) -> None:
    Path(shard).write_bytes(change(Path(shard).read_bytes()))


def test_shards_of_the_library_are_read() -> None:
    _write(_samples())
    assert sorted(file.name for file in Path("shards").iterdir()) == ["0.tar", "1.tar", "2.tar"]
    for config in (_config(labels=NAMES), _config("shards/*.tar", label="json")):
        assert webdataset.describe(config).labels == NAMES
        data = webdataset.load(config)
        assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 6]
        check_colors(data)
    assert webdataset.describe(_config()).labels == ("0", "1", "2")


def test_the_pictures_are_those_of_a_folder_with_the_same_files() -> None:
    _write(_samples(), each=100)
    ours, theirs = (
        webdataset.load(_config("shards/0.tar")),
        image_folder.load(image_folder.Config(folder="pets", size=16)),
    )
    seen = [
        {row.numpy().tobytes() for row in stored(part)} for data in (ours, theirs) for part in (data.train, data.test)
    ]
    assert seen[0] | seen[1] == seen[2] | seen[3]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_any_number_of_workers_gives_the_same_samples_wherever_they_are_kept(cache: str) -> None:
    _write(_samples())
    held = webdataset.load(_config(cache="memory"))
    kept = webdataset.load(_config(cache=cache)).read_by(2)
    for seed in (1, None):
        for one, other in zip(held.train.batches(5, seed=seed), kept.train.batches(5, seed=seed), strict=True):
            assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.targets, other.targets)


def test_each_split_may_have_shards() -> None:
    samples = _samples()
    _write(samples[:15], "shards/train-%d.tar")
    _write(samples[15:21], "shards/validation-%d.tar")
    _write(samples[21:], "shards/test-%d.tar")
    config = _config("shards/train-*.tar", validation_shards="shards/validation-0.tar", test_shards="shards/test-0.tar")
    data = webdataset.load(config)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 6, 9]
    check_colors(data)


def test_texts_are_read() -> None:
    texts()
    files = [*enumerate(sorted(Path("news").rglob("*.txt")))]
    _write([{"__key__": f"a/{i:03}", "txt": file.read_text(), "cls": file.parent.name} for i, file in files])
    config = webdataset.Config(shards="shards/*.tar", text="txt", tokenizer=tokenizer(), max_length=12)
    assert webdataset.describe(config).labels == ("money", "sport")
    data = webdataset.load(config)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert all("bank" in text or "team" in text for text in data.examples)
    assert webdataset.attachments(config)


def test_the_fingerprint_is_that_of_the_shards_wherever_they_are() -> None:
    _write(_samples())
    before = webdataset.fingerprint(_config())
    Path("shards").rename("elsewhere")
    assert webdataset.fingerprint(_config("elsewhere/*.tar")) == before
    assert webdataset.fingerprint(_config("elsewhere/*.tar", cache="none")) == before
    others = [_config("elsewhere/*.tar", **more) for more in ({"label": "json"}, {"labels": NAMES}, {"size": 24})]
    assert len({before, *map(webdataset.fingerprint, others)}) == 4
    _changed("elsewhere/0.tar", lambda content: content.replace(b"ant0", b"ant_"))
    assert webdataset.fingerprint(_config("elsewhere/*.tar")) != before


def test_shards_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_samples())
    asked: list[Path] = []
    real = shards.index

    def counted(shard: Path, *more: Any) -> shards.Index:
        asked.append(shard)
        return real(shard, *more)

    monkeypatch.setattr(shards, "index", counted)
    for _ in range(2):
        webdataset.describe(_config())
        assert len(asked) == 3
    kept: list[str] = []

    def keep(name: str, made_of: Any, fill: Any) -> Path:
        kept.append(name)
        return Loading().kept(name, made_of, fill)

    webdataset.load(_config(), Loading(kept=keep))
    assert kept == ["shard"] * 3


def test_names_stand_for_many_shards() -> None:
    assert [str(each) for each in shards.expanded("a/{000..002}-{x,y}.tar")][::3] == ["a/000-x.tar", "a/001-y.tar"]
    assert shards.expanded("plain.tar") == [Path("plain.tar")]
    for many in ("{0..99999}/{0..99999}.tar", "{0..99999}-{a,b}.tar"):
        with pytest.raises(RecipeError, match=r"names \d+ shards\n.*at most 100000"):
            shards.expanded(many)
    for bad in ("{3..1}.tar", "{0..999999999}.tar"):
        with pytest.raises(RecipeError, match="the range"):
            shards.expanded(bad)


@pytest.mark.parametrize(
    ("names", "why"),
    [("shards/{0..3}.tar", "there is no shard 'shards/3.tar'"), ("shards/x*.tar", "there is no shard 'shards/x")],
)
def test_a_shard_that_is_not_there_is_named(names: str, why: str) -> None:
    _write(_samples())
    with pytest.raises(RecipeError, match=why):
        webdataset.describe(_config(names))


@pytest.mark.parametrize("names", ["https://example.org/a.tar", "pipe:cat a.tar", "s3://bucket/a.tar"])
def test_a_remote_shard_is_refused(names: str) -> None:
    with pytest.raises(ValueError, match="shards are files on this computer"):
        _config(names)


def _header(content: bytes, number: int) -> int:
    """The byte at which a member of a shard begins."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmembers()[number].offset


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content[:20_000], r"shards/1.tar cannot be read after .*: it is cut off"),
        (lambda content: content[: _header(content, 5)], r"shards/1.tar cannot be read after .*\.\w+: it is cut off"),
        (lambda content: content[:-10_240], "it is cut off"),
        (lambda content: content[:100], "it is cut off"),
        (lambda content: b"", "empty file"),
        (lambda content: b"no archive" * 1000, "shards/1.tar cannot be read: "),
        (
            lambda content: content.replace(b"bee5.cls", b"\0\1\2\3\4\5\6\7"),
            "after ant5.json: bad checksum",
        ),
        (lambda content: content + content, "another archive follows"),
        (gzip.compress, r"shards/1.tar is compressed \(gzip\)"),
    ],
    ids=["inside", "between", "end", "header", "empty", "text", "name", "joined", "gzip"],
)
def test_a_shard_that_is_damaged_is_named(change: Any, why: str) -> None:
    _write(_samples())
    _changed("shards/1.tar", change)
    with pytest.raises(RecipeError, match=why):
        webdataset.describe(_config())


@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize("size", [-1, -512, -1024, -(2**40)])
def test_a_negative_size_is_damage_and_no_endless_loop(number: int, size: int) -> None:
    _write(_samples())

    def change(content: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            at = archive.getmembers()[number].offset_data - 512  # other headers may come before this one
        info = tarfile.TarInfo.frombuf(content[at : at + 512], "utf-8", "strict")
        info.size = size
        return content[:at] + info.tobuf(tarfile.GNU_FORMAT) + content[at + 512 :]

    _changed("shards/1.tar", change)
    with pytest.raises(RecipeError, match=r"the shard shards/1.tar cannot be read"):
        webdataset.describe(_config())


@pytest.mark.parametrize("names", [None, NAMES])
def test_minus_one_marks_samples_without_a_label_in_text_too(names: Any) -> None:
    _write(_samples())
    _tar("shards/more.tar", [("x.png", _picture()), ("x.cls", b"-1")])
    with pytest.raises(RecipeError, match=r"x\.png: its label is -1, which marks samples without one"):
        webdataset.describe(_config("shards/*.tar", labels=names))


def _picture(name: str = "ant") -> bytes:
    return Path(f"pets/{name}/0.png").read_bytes()


BAD: list[tuple[list[tuple[str, bytes]], str]] = [
    ([("x.png", b"")], "more.tar: x: it has no cls file, only png"),
    ([("x.cls", b"1")], "more.tar: x: it has no picture, only cls"),
    ([("x.png", b""), ("x.jpg", b""), ("x.cls", b"1")], "x: it has several pictures, png and jpg: name one"),
    ([("x.png", b""), ("x.cls", b"7")], "x.png: its label is 7, but the labels are 0 to 2"),
    ([("x.png", b""), ("x.cls", b"1.5")], "x.png: its label is '1.5', which is none of ant, bee, cow"),
    ([("x.png", b""), ("x.cls", b"-1")], "x.png: its label is -1, which marks samples without one"),
    ([("x.png", b""), ("x.cls", b" \n")], "x.png: it has no label"),
    ([("x.png", b""), ("x.cls", b"\xff")], "x: its cls file is no UTF-8 text"),
    ([("x.png", b""), ("x.cls", b"1"), ("x.png", b"")], "more.tar: x.png: there are two files of this name"),
]


@pytest.mark.parametrize(("members", "why"), BAD)
def test_a_sample_that_cannot_be_used_is_named_before_training(members: list[tuple[str, bytes]], why: str) -> None:
    _write(_samples())
    _tar("shards/more.tar", [("good.png", _picture()), ("good.cls", b"0"), *members])
    with pytest.raises(RecipeError, match=why):
        webdataset.describe(_config("shards/*.tar", labels=NAMES))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "its json file cannot be read"),
        (b"[]", "its json file has no field 'label'"),
        (b'{"kind": 1}', "its json file has no field 'label'"),
        (b'{"label": 1.0}', "its label is 1.0, of the type float"),
        (b'{"label": true}', "its label is True, of the type bool"),
        (b'{"label": null}', "it has no label"),
        (b'{"label": "dog\\ncat"}', "is not a valid label: it holds a line end"),
    ],
)
def test_a_json_file_without_a_label_is_named(content: bytes, why: str) -> None:
    _write(_samples())
    _tar("shards/more.tar", [("x.png", _picture()), ("x.json", content)])
    with pytest.raises(RecipeError, match=why):
        webdataset.describe(_config("shards/*.tar", label="json"))


def test_bad_samples_may_be_left_out_and_are_counted() -> None:
    _write(_samples())
    _tar("shards/more.tar", [("a.png", b"no picture"), ("a.cls", b"0"), ("b.png", _picture())])
    with pytest.raises(RecipeError, match="2 pictures cannot be read, more than the 1 that bad_samples leaves out"):
        webdataset.load(_config("shards/*.tar", bad_samples={"skip": 1}))
    with pytest.raises(RecipeError, match=r"one picture cannot be read:\n  shards/more.tar: b: it has no cls file"):
        webdataset.describe(_config("shards/*.tar"))
    data = webdataset.load(_config("shards/*.tar", bad_samples={"skip": 2}))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 6]
    assert data.notes[-1].startswith("2 of 32 pictures cannot be read, and are left out, such as shards/more.tar: b:")


def test_only_regular_files_are_read_and_nothing_is_unpacked() -> None:
    _write(_samples())
    secret = Path("secret.png")
    secret.write_bytes(_picture())
    members = [
        ("../../escape.png", _picture("bee")),
        ("../../escape.cls", b"1"),
        ("README", b"about"),
        (".hidden", b""),
    ]
    _tar("shards/more.tar", members, links=[("linked.png", "../secret.png"), ("linked.cls", "/etc/hostname")])
    before = {*Path().rglob("*")}
    assert webdataset.notes(_config("shards/*.tar"))[0].startswith("4 members are left out of the shards: links")
    data = webdataset.load(_config("shards/*.tar"))
    assert sum(map(len, (data.train, data.validation, data.test))) == 30  # the one more is a copy
    assert {path for path in {*Path().rglob("*")} - before if ".edgepack" not in path.parts} == set()


def test_a_shard_that_is_cut_off_while_a_build_runs_is_told() -> None:
    _write(_samples())
    data = webdataset.load(_config(cache="none"))
    for shard in Path("shards").iterdir():
        _changed(str(shard), lambda content: content[:2000])
    with pytest.raises(RecipeError, match=r"shards/\d.tar: \w+.\w+: the shard is shorter than it was"):
        list(data.train.batches(8))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"image": "jpg", "text": "txt"}, "give image or text"),
        ({"text": "txt"}, "texts need a tokenizer"),
        ({"tokenizer": "words"}, "a tokenizer is for texts"),
        ({"max_length": 8}, "max_length is no setting of pictures"),
        ({"labels": ("a", "a")}, "the label 'a' is given twice"),
        ({"validation": "60 %", "test": "40 %"}, "validation and test must be above 0 %"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _config(**settings)


def test_samples_with_other_files_are_read_by_their_ending() -> None:
    """Masks and numbers beside a picture, in a folder, with upper case."""
    picture = io.BytesIO()
    numpy.save(picture, numpy.zeros(3))
    _write(_samples())
    rows = [(f"part/{i}.JPG", Path(f"pets/cow/{1 + 2 * (i % 5)}.jpg").read_bytes()) for i in range(3)]
    more = [
        (f"part/{i}.{end}", content)
        for i in range(3)
        for end, content in (("seg.npy", picture.getvalue()), ("cls", b"2"))
    ]
    _tar("shards/more.tar", sorted(rows + more))
    assert json.loads(json.dumps(webdataset.describe(_config("shards/*.tar")).labels)) == ["0", "1", "2"]
