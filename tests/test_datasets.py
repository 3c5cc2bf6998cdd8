from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from edgepack.datasets import Data, Split, digits
from edgepack.datasets.digits import Config


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
