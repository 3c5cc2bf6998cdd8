"""Tables of pictures and texts become data sets, through the library datasets; no network is used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets as library
import huggingface_hub
import pyarrow
import pytest
import torch
from factories import edgepack, recipe_text, texts, tokenizer
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from picture_factories import COLORS, check_colors, write_folder

from edgepack.config import plugins
from edgepack.core.errors import DeviceError, RecipeError
from edgepack.data.contract import Loading
from edgepack.data.datasets import huggingface
from edgepack.data.datasets.huggingface import locating, tables
from edgepack.data.pictures.samples import InFiles

NAMES = (*COLORS,)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()


def _config(path: str = "tables", **settings: Any) -> huggingface.Config:
    kind = {"size": 16} | ({} if "image" in settings else {"image": "image"})
    return huggingface.Config(path=path, **{**kind, **settings})


def _pictures(**more: Any) -> library.Dataset:
    """Ten pictures of each class as an Image feature, with the names of their labels."""
    write_folder("pets")
    found = [
        (Path(f"pets/{name}/{i}.{'jpg' if i % 2 else 'png'}"), NAMES.index(name)) for i in range(10) for name in NAMES
    ]
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file, _ in found],
        "label": [label for _, label in found],
    }
    kinds = {
        "image": library.Image(),
        "label": library.ClassLabel(names=[*NAMES]),
        **{name: kind for name, (_, kind) in more.items()},
    }
    return library.Dataset.from_dict(
        {**rows, **{name: values for name, (values, _) in more.items()}}, library.Features(kinds)
    )


def _write(table: library.Dataset, *names: str) -> None:
    """As parquet, in as many files as there are names."""
    for i, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        table.shard(len(names), i, contiguous=True).to_parquet(name)


def _rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _texts(name: str = "news.jsonl", **more: Any) -> None:
    texts()
    rows = [
        {"text": file.read_text(), "label": file.parent.name, **more} for file in sorted(Path("news").rglob("*.txt"))
    ]
    _rows(name, rows)


def _of_texts(path: str, **settings: Any) -> huggingface.Config:
    return huggingface.Config(path=path, text="text", tokenizer=tokenizer(), max_length=12, **settings)


def test_files_of_parquet_are_read() -> None:
    _write(_pictures(), "tables/train-00000-of-00002.parquet", "tables/train-00001-of-00002.parquet")
    for config in (_config(), _config("tables/*.parquet")):
        assert huggingface.describe(config).labels == NAMES
        data = huggingface.load(config)
        assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 6]
        check_colors(data)


def test_what_save_to_disk_wrote_is_read_where_it_is() -> None:
    parts = _pictures().train_test_split(0.3, seed=1, shuffle=True)
    parts.save_to_disk("tables")
    parts["train"].save_to_disk("one")
    kept: list[str] = []

    def keep(name: str, made_of: Any, fill: Any) -> Path:
        kept.append(name)
        return Loading().kept(name, made_of, fill)

    data = huggingface.load(_config(cache="none"), Loading(kept=keep))
    assert len(data.test) == 9 and len(data.train) + len(data.validation) == 21 and kept == ["pictures"]
    check_colors(data)
    assert len(huggingface.load(_config("one")).train) < 21


def test_a_compressed_table_is_refused() -> None:
    table = _pictures().with_format("arrow")[:]
    how = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.OSFile("a.arrow", "wb") as file, pyarrow.ipc.new_file(file, table.schema, options=how) as writer:
        writer.write_table(table)
    with pytest.raises(RecipeError, match=r"a.arrow cannot be read: ValueError: it is compressed"):
        huggingface.load(_config("a.arrow"))


@pytest.mark.parametrize("kind", ["new_stream", "new_file"])
def test_files_of_arrow_are_read(kind: str) -> None:
    table = _pictures().with_format("arrow")[:]
    with pyarrow.OSFile("a.arrow", "wb") as file, getattr(pyarrow.ipc, kind)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
        writer.write_batch(table.to_batches()[0].slice(0, 0))
    assert huggingface.describe(_config("a.arrow")).labels == NAMES
    check_colors(huggingface.load(_config("a.arrow", cache="none")))


def test_tables_are_converted_once_and_may_be_moved_with_the_store() -> None:
    _write(_pictures(), "tables/train.parquet")
    made: list[str] = []

    def keep(name: str, made_of: Any, fill: Any) -> Path:
        folder = Path("store", name)
        if not folder.exists():
            made.append(name)
            Path("store/tmp").mkdir(parents=True)
            fill(Path("store/tmp"))
            Path("store/tmp").rename(folder)
        return folder

    for _ in range(2):
        check_colors(huggingface.load(_config(cache="memory"), Loading(kept=keep)))
    assert made == ["tables"] and not [*Path("store").rglob("*.lock")]


def test_splits_are_found_by_their_names_or_named() -> None:
    table = _pictures()
    for name, rows in (("train", range(15)), ("dev", range(15, 21)), ("test", range(21, 30))):
        _write(table.select(rows), f"tables/data/{name}.parquet")
    data = huggingface.load(_config())
    assert [len(split) for split in (data.train, data.validation, data.test)] == [15, 6, 9]
    named = huggingface.load(_config(splits={"train": "train", "test": "validation"}))
    assert len(named.test) == 6 and len(named.train) + len(named.validation) == 15
    with pytest.raises(RecipeError, match="tables has no split 'extra'"):
        huggingface.describe(_config(splits={"train": "extra"}))
    with pytest.raises(ValueError, match="splits must name the one to train on"):
        _config(splits={"test": "test"})


def test_a_column_of_bytes_and_labels_of_text_or_numbers_are_read() -> None:
    table = _pictures()
    encoded = [each["bytes"] for each in table.cast_column("image", library.Image(decode=False))["image"]]
    numbers = [*table["label"]]
    pyarrow.parquet.write_table(
        pyarrow.table({"photo": encoded, "kind": [NAMES[i] for i in numbers], "n": numbers}), "a.parquet"
    )
    named, numbered = _config("a.parquet", image="photo", label="kind"), _config("a.parquet", image="photo", label="n")
    assert huggingface.describe(named).labels == NAMES
    assert huggingface.describe(numbered).labels == ("0", "1", "2")
    assert huggingface.describe(_config("a.parquet", image="photo", label="n", labels=NAMES)).labels == NAMES
    check_colors(huggingface.load(named))


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_any_number_of_workers_gives_the_same_samples_wherever_they_are_kept(cache: str) -> None:
    _write(_pictures(), "tables/train.parquet")
    held = huggingface.load(_config(cache="memory"))
    kept = huggingface.load(_config(cache=cache)).read_by(2)
    for seed in (1, None):
        for one, other in zip(held.train.batches(5, seed=seed), kept.train.batches(5, seed=seed), strict=True):
            assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.targets, other.targets)


def _kept(name: str, made_of: Any, fill: Any) -> Path:
    """A store of the test's own."""
    folder = Path("store", name)
    folder.mkdir(parents=True)
    fill(folder)
    return folder


def test_pictures_are_read_from_where_they_lie_in_a_table() -> None:
    _write(_pictures(), "tables/train.parquet")
    data = huggingface.load(_config(cache="none"), Loading(kept=_kept))
    pixels = data.train.samples.pixels  # type: ignore[union-attr]
    assert isinstance(pixels, InFiles)
    row = pixels.files[0]
    assert isinstance(row, tables.Row) and isinstance(row.rows.values, tables.Column)
    assert row.read() in {file.read_bytes() for file in Path("pets").rglob("*.*")}
    for file in row.rows.values.files:
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RecipeError, match=r"tables/train.parquet, row \d+: the file is shorter than it was"):
        list(data.train.batches(8))


@pytest.mark.parametrize("name", ["news.jsonl", "news.csv", "news.parquet", "news.tsv", "news[1].csv"])
def test_texts_are_read(name: str) -> None:
    _texts()
    table = library.Dataset.from_list([json.loads(line) for line in Path("news.jsonl").read_text().splitlines()])
    if name.endswith("sv"):
        table.to_csv(name, sep="\t" if name == "news.tsv" else ",", index=False)
    elif name.endswith("parquet"):
        table.to_parquet(name)
    config = _of_texts(name)
    assert huggingface.describe(config).labels == ("money", "sport")
    data = huggingface.load(config)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert all("bank" in text or "team" in text for text in data.examples)
    assert huggingface.attachments(config)


def test_the_fingerprint_is_that_of_the_files_wherever_they_are() -> None:
    _write(_pictures(), "tables/train.parquet")
    before = huggingface.fingerprint(_config())
    Path("tables").rename("elsewhere")
    assert huggingface.fingerprint(_config("elsewhere")) == before
    assert huggingface.fingerprint(_config("elsewhere/train.parquet")) == before
    assert huggingface.fingerprint(_config("elsewhere", cache="none")) == before
    assert huggingface.fingerprint(_config("elsewhere", size=24)) != before
    _write(_pictures().select(range(29)), "elsewhere/train.parquet")
    assert huggingface.fingerprint(_config("elsewhere")) != before


@pytest.mark.parametrize(("name", "parsed"), [("a.jsonl", True), ("a.csv", True), ("a.parquet", False)])
def test_what_parses_texts_is_part_of_the_fingerprint(name: str, parsed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer()
    Path(name).write_bytes(b"a,b")
    before = huggingface.fingerprint(_of_texts(name))
    monkeypatch.setattr(huggingface, "versions", lambda *packages: dict.fromkeys(packages, "99"))
    assert (huggingface.fingerprint(_of_texts(name)) != before) == parsed


def test_labels_are_read_once_and_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_pictures(), "tables/train.parquet")
    Path("recipe.yaml").write_text(recipe_text(data={"huggingface": {"path": "tables", "image": "image", "size": 32}}))
    code = (
        "import sys; from edgepack.cli.main import cli; cli(['check', 'recipe.yaml'], standalone_mode=False); "
        "print(sorted({'torch', 'datasets', 'pyarrow'} & {*sys.modules}))"
    )
    for loaded in ("['datasets', 'pyarrow']", "[]"):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == loaded, ran.stdout


def _bad(**columns: Any) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), "a.parquet")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"photo": [b"1"], "label": [1]}, "a.parquet has no column 'image', its columns are 'photo', 'label'"),
        ({"image": [b"1"], "kind": [1]}, "a.parquet has no column 'label', its columns are 'image', 'kind'"),
        ({"image": [b"1"], "label": [1.0]}, "the column 'label' holds double, and labels are texts or whole numbers"),
        ({"image": [b"1"], "label": [True]}, "the column 'label' holds bool"),
        ({"image": [1], "label": [1]}, "the column 'image' holds int64, and no encoded pictures"),
        ({"image": ["1.png"], "label": [1]}, "the column 'image' holds string, and no encoded pictures\n.*image_csv"),
        (
            {"image": [b"1", b"2"], "label": ["a", None]},
            "one picture cannot be read:\n  a.parquet, row 2: it has no label",
        ),
        ({"image": [b"1"] * 2, "label": [0, -1]}, "row 2: its label is -1, which marks samples without one"),
        ({"image": [b"1"] * 2, "label": ["a", "a\nb"]}, "row 2: .* is not a valid label: it holds a line end"),
        ({"image": [b"1"] * 2, "label": ["a", "a"]}, "a.parquet has one label only, 'a'"),
        ({"image": [b"1"] * 2, "label": ["a", "b"]}, "the class 'a' has 1 picture, too few to be split"),
        (
            {"image": pyarrow.array([], pyarrow.binary()), "label": pyarrow.array([], pyarrow.int64())},
            "the train split of a.parquet has no pictures",
        ),
    ],
)
def test_a_table_that_cannot_be_used_is_named_before_training(columns: dict[str, Any], why: str) -> None:
    _bad(**columns)
    with pytest.raises(RecipeError, match=why):
        huggingface.describe(_config("a.parquet"))


def test_numbers_beyond_the_names_are_told() -> None:
    _bad(image=[b"1"] * 3, label=[0, 1, 2])
    with pytest.raises(RecipeError, match="row 3: its label is 2, but the labels are 0 to 1"):
        huggingface.describe(_config("a.parquet", labels=("cat", "dog")))


def test_a_class_without_training_samples_is_told() -> None:
    _write(_pictures().filter(lambda row: row["label"] != 1), "tables/train.parquet")
    with pytest.raises(RecipeError, match="the train split of tables has no sample of 'bee', which the names of its"):
        huggingface.describe(_config())


@pytest.mark.parametrize(
    "named",
    [
        "data_files: ../elsewhere/t.csv",
        "data_files: {absolute}/elsewhere/t.csv",
        "data_files: [{{split: train, path: data/../../elsewhere/*.csv}}]",
        "data_files: https://example.org/t.csv",
        "data_files: zip://t.csv::https://example.org/t.zip",
        "data_dir: ../elsewhere",
    ],
)
@pytest.mark.parametrize("about", ["README.md", ".huggingface.yaml"])
def test_files_outside_of_the_folder_are_refused(named: str, about: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("tables", "elsewhere"):
        Path(folder).mkdir()
        Path(folder, "t.csv").write_text("text,label\na,x\nb,y\n")
    text = f"configs:\n- config_name: default\n  {named.format(absolute=Path.cwd())}\n"
    Path("tables", about).write_text(f"---\n{text}---\n" if about == "README.md" else text)
    monkeypatch.setattr(library, "load_dataset_builder", lambda *_, **__: pytest.fail("it may ask the network"))
    with pytest.raises(RecipeError, match=r"the data set tables names '.*', which is outside of its folder"):
        huggingface.describe(_of_texts("tables"))


def test_files_inside_of_the_folder_may_be_named_and_be_links() -> None:
    _texts("elsewhere/news.jsonl")
    Path("tables/data").mkdir(parents=True)
    Path("tables/data/a.jsonl").symlink_to(Path("elsewhere/news.jsonl").absolute())
    Path("tables/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/*.jsonl\n---\n")
    assert huggingface.describe(_of_texts("tables")).labels == ("money", "sport")


@pytest.mark.parametrize("split", ["../elsewhere", "/elsewhere"])
def test_splits_outside_of_a_saved_folder_are_refused(split: str) -> None:
    Path("tables").mkdir()
    Path("tables/dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    with pytest.raises(RecipeError, match=f"names '{split}', which is outside of its folder"):
        huggingface.describe(_config())


def test_bad_rows_may_be_left_out_and_are_counted() -> None:
    table = _pictures().cast_column("image", library.Image(decode=False))
    rows = table.to_list()
    rows[3]["image"] = {"bytes": b"no picture", "path": None}
    rows[4]["image"] = {"bytes": None, "path": "there.png"}
    rows[5]["label"] = None
    written = library.Dataset.from_list(rows, features=table.features).with_format("arrow")
    pyarrow.parquet.write_table(written[:], "a.parquet")
    with pytest.raises(RecipeError, match="3 pictures cannot be read, more than the 2"):
        huggingface.load(_config("a.parquet", bad_samples={"skip": 2}))
    data = huggingface.load(_config("a.parquet", bad_samples={"skip": 3}))
    assert sum(map(len, (data.train, data.validation, data.test))) == 27
    assert data.notes[-1].startswith("3 of 30 pictures cannot be read, and are left out, such as a.parquet, row 6:")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": ', "a.jsonl cannot be read: "),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "the column 'label' holds"),
        ("a.csv", b"text,label\na,1\nb,\n", "holds double, .*: an empty value makes numbers of a csv file such"),
        ("a.csv", b"", "a.csv cannot be read: "),
        ("a.parquet", b"PAR1 cut off", "a.parquet cannot be read: "),
        ("a.arrow", b"ARROW1 cut off", "a.arrow cannot be read: "),
        ("a.pkl", b"", "a.pkl is no table that can be read"),
    ],
)
def test_a_file_that_is_damaged_is_named(name: str, content: bytes, why: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(RecipeError, match=why):
        huggingface.describe(_of_texts(name))


def test_texts_that_are_missing_are_told() -> None:
    _texts()
    with Path("news.jsonl").open("a") as file:
        file.write('{"text": null, "label": "sport"}\n')
    with pytest.raises(RecipeError, match=r"news.jsonl, row 21: its value is missing"):
        huggingface.load(_of_texts("news.jsonl"))
    assert "1 documents cannot be read" in huggingface.load(_of_texts("news.jsonl", bad_samples={"skip": 1})).notes[0]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("gone", "there is no folder or file 'gone'"),
        ("owner/gone", "there is no folder 'owner/gone'\n.*give the commit too: revision"),
        ("empty", "no tables are found in empty: "),
        ("notes", "x.txt is no table that can be read|no tables are found"),
    ],
)
def test_a_folder_without_tables_is_told(path: str, why: str) -> None:
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/x.txt").write_text("hello")
    with pytest.raises(RecipeError, match=why):
        huggingface.describe(_config(path))


def test_no_code_of_a_data_set_runs_and_no_pickle_is_read() -> None:
    _write(_pictures(), "tables/train.parquet")
    Path("tables/tables.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(RecipeError, match=r"no tables are found in tables: .*scripts are no longer supported"):
        huggingface.describe(_config())
    Path("tables/tables.py").unlink()
    Path("tables/train.parquet").unlink()
    Path("tables/train.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(RecipeError, match="no table"):
        huggingface.describe(_config())
    assert not Path("ran").exists()


def test_one_of_the_hub_is_read_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_pictures(), "cached/data/train.parquet")
    asked = _hub(monkeypatch, "cached")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    config = _config("owner/name", revision=COMMIT, files=("data/*.parquet",))
    check_colors(huggingface.load(config))
    patterns = ["data/*.parquet", "README.md"]
    assert asked[0] == {
        "name": "owner/name",
        "repo_type": "dataset",
        "revision": COMMIT,
        "allow_patterns": patterns,
        "local_files_only": False,
    }
    assert huggingface.fingerprint(config) == huggingface.fingerprint(_config("cached"))
    assert len(asked) == 1, "a commit never changes"


def _hub(monkeypatch: pytest.MonkeyPatch, *folders: str) -> list[dict[str, Any]]:
    """Downloads lead to each of these folders in turn; what was asked of the hub is noted."""
    asked: list[dict[str, Any]] = []

    def download(name: str, **how: Any) -> str:
        asked.append({"name": name, **how})
        return str(Path(folders[len(asked) - 1]).absolute())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_what_was_removed_from_the_cache_is_downloaded_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two", "three"):
        _write(_pictures(), f"{folder}/train.parquet", f"{folder}/test.parquet")
    Path("one/notes.txt").write_text("of another recipe, whose files are in the same cache")
    asked = _hub(monkeypatch, "one", "two", "three", "three")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    config = _config("owner/name", revision=COMMIT)
    huggingface.describe(config)
    Path("one").rename("moved")
    for _ in range(2):
        huggingface.describe(config)
    assert len(asked) == 2, "the folder is gone"
    Path("two/test.parquet").unlink()
    for _ in range(2):
        huggingface.describe(config)
    assert len(asked) == 3, "a file is gone"
    Path("three/test.parquet").unlink()
    with pytest.raises(RecipeError, match=r"files of the data set 'owner/name' were removed from .*: test.parquet"):
        huggingface.describe(config)


def test_what_the_cache_has_without_the_network_is_not_taken_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_pictures(), "part/train.parquet")
    _write(_pictures(), "whole/train.parquet", "whole/test.parquet")
    asked = _hub(monkeypatch, "part", "whole")
    config = _config("owner/name", revision=COMMIT)
    before = huggingface.fingerprint(config)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert huggingface.fingerprint(config) != before
    assert len(asked) == 2


@pytest.mark.parametrize("revision", ["main", "v1.0", COMMIT[:7], COMMIT.upper()])
def test_a_revision_that_is_not_pinned_is_refused(revision: str) -> None:
    with pytest.raises(ValueError, match=f"the revision '{revision}' is not pinned, so the data may change"):
        _config("owner/name", revision=revision)
    with pytest.raises(ValueError, match="a revision is for a data set of the hub"):
        _config("some/folder/here", revision=COMMIT)


@pytest.mark.parametrize(
    ("error", "raised", "why"),
    [
        (
            ConnectionError("no route to host\nmore"),
            DeviceError,
            "cannot be downloaded from huggingface.co: ConnectionError: no route to host",
        ),
        (RevisionNotFoundError, RecipeError, "the data set has no such commit"),
        (RepositoryNotFoundError, RecipeError, "has no data set 'owner/name' that you can access"),
    ],
)
def test_a_hub_that_does_not_give_it_is_told(
    error: Any, raised: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    def fails(name: str, **how: Any) -> str:
        if isinstance(error, Exception):
            raise error
        raise error("gone", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(raised, match=why):
        huggingface.describe(_config("owner/name", revision=COMMIT))


def test_offline_only_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, **how: Any) -> str:
        assert how["local_files_only"]
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(RecipeError, match=r"is not in the cache .*, because HF_HUB_OFFLINE is set"):
        huggingface.describe(_config("owner/name", revision=COMMIT))


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_pictures(), "tables/train.parquet")
    monkeypatch.setattr(locating, "find_spec", lambda name: None)
    locating.library.cache_clear()
    with pytest.raises(RecipeError, match=r"pip install 'edgepack\[huggingface-data\]'"):
        huggingface.describe(_config())
    locating.library.cache_clear()


@pytest.mark.parametrize("kind", [{"image": "image", "size": 32}, {"text": "text", "tokenizer": "words"}])
def test_a_recipe_with_every_setting_written_out_says_the_same(kind: dict[str, Any]) -> None:
    tokenizer()
    for name, own in (("huggingface", {"path": "tables", **kind}), ("webdataset", {"shards": "a.tar", **kind})):
        config = plugins.choose("datasets", {name: own}).config
        written = json.loads(json.dumps(config.model_dump(mode="json")), object_hook=_as_yaml)
        assert plugins.choose("datasets", {name: written}).config == config


def _as_yaml(values: dict[str, Any]) -> dict[str, Any]:
    """Lists of a recipe are read as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def test_mistakes_are_told_with_their_place_in_the_recipe() -> None:
    Path("bad.yaml").write_text(
        recipe_text(data={"huggingface": {"path": "owner/name", "revision": "main", "image": "image"}})
    )
    ran = edgepack("check", "bad.yaml")
    assert ran.code == 2 and "the revision 'main' is not pinned" in ran.err and "at data.huggingface" in ran.err
