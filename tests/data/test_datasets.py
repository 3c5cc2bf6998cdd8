import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pydantic import ValidationError
from torch_factories import task

from edgepack.config import plugins
from edgepack.core.errors import RecipeError
from edgepack.data import splits
from edgepack.data.datasets import digits
from edgepack.data.datasets.digits import Config
from edgepack.data.partition import drawn
from edgepack.data.pictures.moving import moved
from edgepack.data.splits import Data, Split
from edgepack.measure import evaluate


@pytest.fixture(scope="module")
def small() -> Data:
    return digits.load(Config(size=8))


def parts(data: Data) -> dict[str, Split]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def test_every_picture_is_in_exactly_one_split(small: Data) -> None:
    from sklearn.datasets import load_digits

    pictures = [picture.numpy().tobytes() for split in parts(small).values() for picture in split.inputs[0]]
    everything = torch.tensor(load_digits().images, dtype=torch.float32) / 16
    assert Counter(pictures) == Counter(picture.numpy().tobytes() for picture in everything)
    assert {name: len(split) for name, split in parts(small).items()} == {"train": 1077, "validation": 270, "test": 450}


def test_augmented_digits_are_shifted_in_training_alone_and_never_mirrored() -> None:
    data = digits.load(Config(size=16, augment=True))
    assert data.augmented and data.validation.augment is None and data.test.augment is None
    one, two = (next(data.train.batches(300, seed=1)) for _ in range(2))
    assert torch.equal(one.inputs[0], two.inputs[0])
    plain = data.train.inputs[0][one.indices]
    assert not torch.equal(one.inputs[0], plain)
    windows = [plain[:, :, y : y + 14, x : x + 14] for y in range(3) for x in range(3)]
    found = torch.stack([(window == one.inputs[0][:, :, 1:-1, 1:-1]).flatten(1).all(1) for window in windows])
    assert found.any(0).all() and found.any(1).all(), "every picture is a shifted one, and every shift comes"


def test_every_class_has_the_same_share_of_each_split(small: Data) -> None:
    everything = torch.cat([split.targets for split in parts(small).values()])
    for split in parts(small).values():
        expected = everything.bincount() * len(split) / len(everything)
        assert float((split.targets.bincount(minlength=10) - expected).abs().max()) <= 1


def test_the_same_splits_come_every_time(small: Data) -> None:
    again = parts(digits.load(Config(size=8)))
    for name, split in parts(small).items():
        assert torch.equal(split.inputs[0], again[name].inputs[0])
        assert torch.equal(split.targets, again[name].targets)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_pictures_are_as_described(size: int) -> None:
    [spec] = digits.describe(Config(size=size)).inputs
    for split in parts(digits.load(Config(size=size))).values():
        assert split.inputs[0].shape[1:] == spec.shape == (1, size, size)
        assert str(split.inputs[0].dtype) == f"torch.{spec.dtype}"
        assert 0 <= float(split.inputs[0].min()) < float(split.inputs[0].max()) <= 1


def test_an_app_is_told_how_to_prepare_its_pictures() -> None:
    signature = digits.describe(Config(size=16))
    assert signature.labels == tuple("0123456789")
    assert signature.preprocessing["resize"]["to"] == [16, 16]
    assert signature.preprocessing["scale"] == {"from": [0, 16], "to": [0, 1]}


def test_the_fingerprint_changes_with_the_data_and_only_then() -> None:
    assert digits.fingerprint(Config(size=8)) == digits.fingerprint(Config(size=8))
    assert len({digits.fingerprint(Config(size=size)) for size in (8, 9, 32)}) == 3


def test_the_fingerprint_is_that_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digits.fingerprint(Config())
    monkeypatch.setattr(digits, "file_digest", lambda path: "another file")
    assert digits.fingerprint(Config()) != before


@pytest.mark.parametrize("size", [7, 225, "32 px"])
def test_sizes_that_make_no_sense_are_refused(size: object) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({"size": size})


@pytest.fixture
def seven() -> Split:
    return Split(inputs=(torch.arange(7.0)[:, None],), targets=torch.arange(7))


def test_batches_come_in_order_and_leave_nothing_out(seven: Split) -> None:
    batches = list(seven.batches(3))
    assert [batch.targets.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_shuffled_batches_differ_by_seed_and_never_hold_one_sample(seven: Split) -> None:
    def order(seed: int) -> list[list[int]]:
        return [batch.indices.tolist() for batch in seven.batches(3, seed=seed)]

    assert order(1) == order(1) != order(2)
    assert [len(batch) for batch in order(1)] == [3, 3]
    for batch in seven.batches(3, seed=1):
        assert batch.inputs[0][:, 0].tolist() == batch.targets.tolist() == batch.indices.tolist()


@pytest.fixture
def stored() -> Split:
    """Bytes that a model takes as shares of one; in shuffled passes each is raised at random."""

    def raised(inputs: tuple[torch.Tensor, ...], random: torch.Generator) -> tuple[torch.Tensor, ...]:
        return (inputs[0] + torch.randint(100, inputs[0].shape, generator=random, dtype=torch.uint8),)

    return Split(
        inputs=(torch.arange(7, dtype=torch.uint8)[:, None],),
        targets=torch.arange(7),
        prepare=lambda inputs: (inputs[0] / 255,),
        augment=raised,
    )


def test_what_is_stored_is_prepared_for_the_model(stored: Split) -> None:
    expected = torch.arange(7.0)[:, None] / 255
    assert torch.equal(torch.cat([batch.inputs[0] for batch in stored.batches(3)]), expected)
    assert torch.equal(stored.head(2)[0], expected[:2])
    assert torch.equal(stored.head(100)[0], expected)


def test_shuffled_passes_are_augmented_the_same_for_the_same_seed(stored: Split) -> None:
    def seen(seed: int) -> torch.Tensor:
        return torch.cat([batch.inputs[0] for batch in stored.batches(3, seed=seed)])

    assert torch.equal(seen(1), seen(1))
    assert not torch.equal(seen(1), seen(2))
    assert float(seen(1).max()) > 7 / 255
    assert stored.inputs[0].max() == 6  # what is stored stays


def test_the_first_samples_of_a_split_are_a_split(stored: Split) -> None:
    assert len(stored.first(3)) == 3
    assert torch.equal(stored.first(3).head(3)[0], stored.head(3)[0])
    assert len(stored.first(100)) == 7


def test_a_split_that_is_augmented_makes_the_data_so(stored: Split, seven: Split) -> None:
    assert Data(train=stored, validation=seven, test=seven).for_stages().augmented
    assert not Data(train=seven, validation=stored, test=stored).for_stages().augmented


@pytest.mark.parametrize(
    ("most", "parts"),
    [
        (1000, [(0, 7)]),  # samples that may be written at once, and the rows of each part
        (4, [(0, 3), (3, 3), (6, 1)]),
        (3, [(0, 3), (3, 3), (6, 1)]),
        (2, [(0, 2), (2, 2), (4, 2), (6, 1)]),
        (0.5, [(row, 1) for row in range(7)]),
    ],
)
def test_a_runner_is_given_the_whole_prepared_split_in_parts(
    most: float, parts: list[tuple[int, int]], stored: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written batch by batch, read row by row: a test split need not fit into the memory, nor on the disk."""
    monkeypatch.setattr(splits, "_MOST", 3)
    monkeypatch.setattr(evaluate, "CHUNK", int(most * stored.head(1)[0].nbytes))
    asked, told = [], []

    def run(job: dict[str, Any]) -> dict[str, Any]:
        (given,) = [numpy.load(file, mmap_mode="r", allow_pickle=False) for file in job["inputs"]]
        asked.append((job["row"], job["rows"]))
        assert len(given) == job["rows"]
        numpy.savez(job["output"], numpy.array(given))
        return {"rows": len(given)}

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    (logits,) = evaluate.outputs(
        run, file=Path("model"), runtime="none", split=stored, folder=Path(), progress=progress
    )
    assert asked == parts and told == [(row + count, 7) for row, count in parts]
    assert logits.dtype == numpy.float32
    assert (logits == stored.head(7)[0].numpy()).all()
    assert [file.name for file in Path().glob("*.npy")] == ["outputs-0.npy"]


def test_splits_are_drawn_from_every_class() -> None:
    classes = [0] * 40 + [1] * 20 + [2] * 3
    parts = drawn(classes, {"validation": 0.15, "test": 0.15})
    assert sorted(numpy.concatenate([*parts.values()])) == [*range(63)]
    assert {name: Counter(classes[i] for i in part) for name, part in parts.items()} == {
        "train": {0: 28, 1: 14, 2: 1},
        "validation": {0: 6, 1: 3, 2: 1},
        "test": {0: 6, 1: 3, 2: 1},
    }
    assert parts["train"].tolist() == drawn(classes, {"validation": 0.15, "test": 0.15})["train"].tolist()
    assert len({classes[i] for i in parts["train"][:10]}) > 1  # shuffled: calibration takes the first ones


def test_windows_are_parts_of_their_pictures() -> None:
    picture = torch.arange(36, dtype=torch.uint8).reshape(1, 1, 6, 6)
    windows = moved(picture.expand(200, 2, 6, 6), 5, torch.Generator().manual_seed(0))
    places = [picture[0, 0, y : y + 5, x : x + 5] for y in (0, 1) for x in (0, 1)]
    allowed = {place.numpy().tobytes() for whole in places for place in (whole, whole.flip(1))}
    assert windows.shape == (200, 2, 5, 5)
    assert {window.numpy().tobytes() for window in windows[:, 1]} == allowed


@pytest.mark.parametrize(
    ("inputs", "targets", "problem"),
    [
        (torch.zeros(4, 2, 8, 8), torch.arange(4), "a sample is float32 of shape [2, 8, 8], described as float32 of"),
        (torch.zeros(4, 1, 8, 8).double(), torch.arange(4), "a sample is float64 of shape [1, 8, 8], described as"),
        (torch.zeros(4, 1, 8, 8), torch.arange(4) + 7, "targets go from 7 to 10, but the labels are 0 to 9"),
        (torch.zeros(4, 1, 8, 8), torch.arange(4).int(), "targets are int32 of shape [4], expected int64"),
        (torch.zeros(3, 1, 8, 8), torch.arange(4), "it has 4 targets for 3 inputs"),
    ],
    ids=["shape", "type", "range", "type of targets", "number"],
)
def test_samples_that_are_not_as_described_are_told_before_any_step(
    inputs: torch.Tensor, targets: torch.Tensor, problem: str
) -> None:
    good = Split(inputs=(torch.zeros(4, 1, 8, 8),), targets=torch.arange(4))
    bad = Split(inputs=(inputs,), targets=targets)
    signature = plugins.load("datasets", "digits").describe(plugins.choose("datasets", {"digits": {"size": 8}}).config)
    with pytest.raises(RecipeError, match=re.escape(f"the split 'validation' of the data is wrong: {problem}")):
        Data(train=good, validation=bad, test=good).check(task(signature))
    Data(train=good, validation=good, test=good).check(task(signature))
