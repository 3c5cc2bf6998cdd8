"""A split may be cut to some of its samples: the same ones every time, in the same share of every class."""

from collections import Counter

import pytest
import torch
from torch_factories import task

from edgepack.core.errors import RecipeError
from edgepack.core.signature import Signature
from edgepack.data.loading import Chosen
from edgepack.data.partition import fewer
from edgepack.data.splits import Data, Split

TASK = task(Signature(inputs=(), labels=tuple("abcdefghij")))


class _Read:
    """Samples that note which were read."""

    augmented = held = False

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def read(self, indices: torch.Tensor, seeds: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        self.asked += indices.tolist()
        return (indices.float()[:, None],)


def _split(targets: list[int]) -> Split:
    return Split(inputs=(torch.arange(float(len(targets)))[:, None],), targets=torch.tensor(targets))


@pytest.mark.parametrize(
    ("counts", "samples", "kept"),
    [
        ((60, 30, 10), 10, (6, 3, 1)),
        ((60, 30, 10), 13, (8, 4, 1)),
        ((97, 2, 1), 3, (1, 1, 1)),
        ((97, 2, 1), 10, (8, 1, 1)),
        ((5, 5), 10, (5, 5)),
        ((5, 4), 8, (4, 4)),
    ],
)
def test_every_class_keeps_its_share_and_one_sample_at_least(
    counts: tuple[int, ...], samples: int, kept: tuple[int, ...]
) -> None:
    classes = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = fewer(classes, samples)
    found = Counter(classes[row] for row in rows)
    assert tuple(found[label] for label in range(len(counts))) == kept
    assert rows.tolist() == sorted({*rows.tolist()}) == fewer(classes, samples).tolist()


def test_samples_are_not_only_the_first_ones_but_those_of_the_self_test_stay() -> None:
    rows = fewer([0, 1] * 500, 100, first=3).tolist()
    assert rows[:3] == [0, 1, 2] and rows[-1] > 900


def test_splits_are_cut_each_and_the_rest_is_as_it_was() -> None:
    whole = Data(train=_split([0, 1] * 50), validation=_split([0, 1] * 10), test=_split([0, 1] * 20), notes=("a",))
    data = whole.cut({"train": 20, "test": 10}, TASK)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 20, 10]
    assert data.train.targets.tolist() == [int(value) % 2 for value in data.train.inputs[0].flatten()]
    assert data.whole == {"train": 100, "validation": 20, "test": 40}
    assert data.notes == ("a", "20 of 100 train samples are used")


def test_samples_that_are_cut_away_are_never_read() -> None:
    samples = _Read(100)
    split = Split(samples=samples, targets=torch.arange(100) % 2)
    test = Data(train=split, validation=split, test=split).cut({"test": 8}, TASK).test
    assert isinstance(test.samples, Chosen)
    assert not samples.asked
    assert [batch.targets.tolist() for batch in test.batches(8)] == [[value % 2 for value in samples.asked]]
    assert len(samples.asked) == 8


@pytest.mark.parametrize(
    ("targets", "kept"), [([0, 1, 0, 1, 0, 1], ("a", "b")), ([0, 0, 0, 1, 1, 1], ("a",)), ([0, 1, 1, 1], ("a", "b"))]
)
def test_texts_stay_beside_their_samples(targets: list[int], kept: tuple[str, ...]) -> None:
    """A bundle ships the first samples with their texts."""
    split = _split(targets)
    data = Data(train=split, validation=split, test=split, examples=("a", "b", "c")).cut({"test": 2}, TASK)
    assert data.examples == kept
    assert data.test.inputs[0].flatten().tolist()[: len(kept)] == [float("abc".index(text)) for text in kept]


def test_targets_of_a_wrong_shape_are_told_before_a_split_is_cut() -> None:
    for targets, kind in ((torch.zeros(20, 2).long(), r"int64 of shape \[20, 2\]"), (torch.zeros(20), "float32")):
        split = Split(inputs=(torch.zeros(20, 1),), targets=targets)
        with pytest.raises(RecipeError, match=rf"the split 'test' of the data is wrong: targets are {kind}"):
            Data(train=split, validation=split, test=split).cut({"test": 10}, TASK)


def test_more_samples_than_there_are_is_an_error_with_its_key() -> None:
    split = _split([0, 1] * 10)
    with pytest.raises(RecipeError, match=r"data.test.samples is 21, but the test split has 20 samples"):
        Data(train=split, validation=split, test=split).cut({"test": 21}, TASK)
