"""A user's own function as a data set: what it returns is looked through before anything is trained."""

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from factories import python

from edgepack.config.plugins import choose
from edgepack.core.errors import RecipeError, StageError
from edgepack.data.datasets.python import Config, describe, fingerprint, load
from edgepack.data.splits import Data, Split

CODE = """
import numpy
import own_numbers

def load(count=6):
    return {part: own_numbers.pair(count) for part in ("train", "validation", "test")}
"""
NUMBERS = """
import numpy

def pair(count):
    targets = numpy.arange(count) % 2
    return targets[:, None, None] + numpy.random.default_rng(0).random((count, 2, 3)), targets
"""


@pytest.fixture(autouse=True)
def shop() -> Iterator[None]:
    """A module `shop_data` in the current folder, that imports another one beside it."""
    path = [*sys.path]
    Path("shop_data.py").write_text(CODE)
    Path("own_numbers.py").write_text(NUMBERS)
    yield
    sys.path[:] = path
    for name in ("shop_data", "own_numbers"):
        sys.modules.pop(name, None)


def _config(**settings: Any) -> Config:
    needed = {"function": "shop_data:load", "shape": (2, 3), "labels": ("cat", "dog")}
    return Config.model_validate({**needed, **settings})


def _arrays(count: int = 6, **changes: Any) -> tuple[Any, Any]:
    """Inputs of [n, 2, 3] and their targets, as numpy makes them."""
    targets = numpy.arange(count) % 2
    given = {"inputs": numpy.random.default_rng(0).random((count, 2, 3)), "targets": targets, **changes}
    return given["inputs"], given["targets"]


def _loaded(given: object, **settings: Any) -> Data:
    """What becomes of `given`, returned by the user's function."""
    Path("shop_data.py").write_text("def load(): raise NotImplementedError")
    sys.modules["shop_data"] = module = type(sys)("shop_data")
    module.load = lambda: given  # type: ignore[attr-defined]
    return load(_config(**settings))


def _parts(**changed: Any) -> dict[str, Any]:
    return {"train": _arrays(), "validation": _arrays(), "test": _arrays(), **changed}


def test_arrays_become_splits() -> None:
    signature = describe(_config(preprocessing={"scale": 2}))
    assert "shop_data" not in sys.modules
    data = load(_config(args={"count": 8}))
    for split in (data.train, data.validation, data.test):
        assert split.head(8)[0].shape == (8, *signature.inputs[0].shape)
        assert split.head(1)[0].dtype == torch.float32
        assert torch.equal((split.inputs[0].mean((1, 2)) > 1).long(), split.targets)  # each with its own target
    assert data.test.targets.tolist() == [0, 1] * 4  # in the user's order
    assert (signature.labels, signature.preprocessing) == (("cat", "dog"), {"scale": 2})


def test_files_of_equal_size_and_time_that_change_places_are_another_fingerprint() -> None:
    """As `tar --mtime` and nix leave them."""
    for name in ("a.bin", "b.bin"):
        Path(name).write_text(name)
        os.utime(name, (1, 1))
    before = fingerprint(_config(files=("a.bin",)))
    Path("b.bin").replace("a.bin")
    swapped = fingerprint(_config(files=("a.bin",)))
    Path("a.bin").write_text("c.bin")  # the same inode
    os.utime("a.bin", (1, 1))
    assert len({before, swapped, fingerprint(_config(files=("a.bin",)))}) == 3


def test_training_samples_are_shuffled_once() -> None:
    sorted_by_class = (numpy.zeros((100, 2, 3), "float32"), numpy.arange(100) // 50)
    one, two = (_loaded(_parts(train=sorted_by_class)).train.targets for _ in range(2))
    assert torch.equal(one, two)
    assert 2 < int(one[:10].sum()) < 8


def test_data_may_be_kept_as_bytes_and_augmented() -> None:
    split = Split(
        inputs=(torch.full((6, 2, 3), 255, dtype=torch.uint8),),
        targets=torch.arange(6, dtype=torch.int32) % 2,
        prepare=lambda inputs: (inputs[0] / 255,),
    )
    data = _loaded(Data(train=replace(split, augment=lambda inputs, random: inputs), validation=split, test=split))
    assert data.augmented
    assert float(data.test.head(1)[0].max()) == 1.0
    assert data.test.targets.dtype == torch.int64


def test_the_fingerprint_changes_with_code_arguments_and_files() -> None:
    before = fingerprint(_config())
    assert fingerprint(_config()) == before
    Path("numbers.bin").write_bytes(b"1")
    with_file = fingerprint(_config(files=("*.bin",)))
    Path("numbers.bin").write_bytes(b"23")
    seen = [before, with_file, fingerprint(_config(files=("*.bin",))), fingerprint(_config(args={"count": 8}))]
    Path("shop_data.py").write_text(CODE + "\n")
    assert len({*seen, fingerprint(_config())}) == 5
    assert "shop_data" not in sys.modules


def test_a_function_that_fails_is_named() -> None:
    with pytest.raises(StageError, match=r"shop_data:load failed: TypeError: .*unexpected keyword argument 'cuont'"):
        load(_config(args={"cuont": 3}))
    Path("shop_data.py").write_text("def load(): raise SystemExit(3)")
    sys.modules.pop("shop_data")
    with pytest.raises(StageError, match="shop_data:load failed: SystemExit: 3"):
        load(_config())


def _drawn(seed: int, count: int = 6) -> tuple[Any, Any]:
    return _arrays(count, inputs=numpy.random.default_rng(seed).random((count, 2, 3)))


def test_samples_that_stand_in_two_splits_are_told() -> None:
    train, validation, test = (_drawn(seed) for seed in range(3))
    assert _loaded({"train": train, "validation": validation, "test": test}).notes == ()
    test[0][:2] = train[0][3:5]
    assert _loaded({"train": train, "validation": validation, "test": test}).notes == (
        "2 of 6 test samples are also in train: test scores are too high",
    )
    copies = _loaded({"train": train, "validation": train, "test": train}).notes
    assert [note.partition(":")[0] for note in copies] == [
        "6 of 6 test samples are also in train",
        "6 of 6 test samples are also in validation",
        "6 of 6 validation samples are also in train",
    ]


def test_samples_of_several_kinds_are_compared_as_they_are_stored() -> None:
    inputs = torch.arange(12, dtype=torch.uint8).reshape(6, 2)
    train = Split(inputs=(inputs,), targets=torch.arange(6) % 2, prepare=lambda given: (given[0].float()[:, :, None],))
    other = replace(train, inputs=(inputs + 100,))
    data = _loaded(Data(train=train, validation=other, test=train), shape=(2, 1))
    assert data.notes == ("6 of 6 test samples are also in train: test scores are too high",)


def test_a_class_that_a_split_lacks_is_told() -> None:
    given = {"train": _drawn(0), "validation": _drawn(1), "test": _drawn(2, 1)}
    assert _loaded(given, labels=("cat", "dog", "emu", "fox")).notes == (
        "the train split has no sample of 'emu', 'fox'",
        "the validation split has no sample of 'emu', 'fox'",
        "the test split has no sample of 'dog', 'emu', 'fox'",
    )


class Noisy(torch.utils.data.Dataset[Any]):  # type: ignore[misc]
    """A map-style data set of 6 samples that changes each at random, by all three generators."""

    def __init__(self, offset: float = 0.0) -> None:
        self.inputs, self.targets = _drawn(7)
        self.inputs = self.inputs + offset

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Any, int]:
        drawn = torch.rand(1).item() + numpy.random.rand() + random.random()
        return (self.inputs[index] + drawn).astype("float32"), int(self.targets[index])


def _noisy(**changed: Any) -> dict[str, Any]:
    return {"train": Noisy(), "validation": Noisy(10), "test": Noisy(20), **changed}


def test_a_torch_dataset_is_read_as_it_is_needed_and_the_same_by_any_number_of_processes() -> None:
    def seen(workers: int, seed: int | None) -> torch.Tensor:
        data = _loaded(_noisy()).read_by(workers)
        before = torch.get_rng_state()
        batches = sorted(
            (
                (int(at), each)
                for batch in data.train.batches(2, seed=seed)
                for at, each in zip(batch.indices, batch.inputs[0], strict=True)
            ),
            key=lambda each: each[0],
        )
        assert torch.equal(torch.get_rng_state(), before)
        return torch.stack([each for _, each in batches])

    data = _loaded(_noisy())
    assert data.augmented and not data.test.augmented
    assert data.test.targets.tolist() == [0, 1] * 3
    assert torch.equal(data.test.head(6)[0], data.test.head(6)[0])  # the same in every pass
    assert torch.equal(seen(0, 1), seen(2, 1))
    assert not torch.equal(seen(0, 1), seen(0, 2))


def test_a_users_module_may_import_torchvision() -> None:
    """Beside a torch without CUDA, which lacks operators that torchvision asks for."""
    Path("seen.py").write_text("from torchvision.transforms import v2\n\ndef load(): return v2.Identity")
    code = "from edgepack.config.user_code.references import resolve; print(resolve('seen:load')().__name__)"
    assert python(code).out == "Identity\n"


class Odd(Noisy):
    """One whose last sample is something else."""

    def __init__(self, sample: Any) -> None:
        super().__init__()
        self.sample = sample

    def __getitem__(self, index: int) -> Any:
        return self.sample if index == 5 else super().__getitem__(index)


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (None, "sample 5 of the split 'test' cannot be read: TypeError: cannot unpack"),
        (([[1.0]], "cat"), "sample 5 of the split 'test' cannot be read: TypeError: 'str' object"),
        (
            (numpy.zeros((2, 3)), 0.9),
            r"sample 5 .* its target is float32 of shape \[\], but that of sample 0 is int64 of shape \[\]",
        ),
        ((numpy.zeros((2, 3)), numpy.array([1, 2])), "sample 5 of the split 'test' cannot be read: TypeError"),
        (
            (numpy.zeros((2, 2)), 1),
            r"sample 5 .* it is float32 of shape \[2, 2\], but the recipe says float32 of shape \[2, 3\]",
        ),
        ((numpy.zeros((2, 3), int), 1), "sample 5 .* it is int64 of shape"),
        ((numpy.full((2, 3), numpy.inf), 1), "sample 5 .* it has NaN or Inf"),
        ((numpy.zeros((2, 3)), 2), "targets go from 0 to 2, but 2 labels are 0 to 1"),
    ],
)
def test_a_sample_of_a_torch_dataset_that_will_not_do_is_named_before_training(sample: Any, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        _loaded(_noisy(test=Odd(sample)))


def test_samples_of_torch_datasets_that_stand_in_two_splits_are_told() -> None:
    same = torch.utils.data.TensorDataset(torch.rand(6, 2, 3), torch.arange(6) % 2)
    given = {"train": Noisy(), "validation": same, "test": same}
    copies = "6 of 6 test samples are also in validation: test scores are too high"
    what = "files that data sets of shop_data:load read in other processes"
    unnoticed = f"{what} are not noticed when they change: name them in `files`"
    assert _loaded(given).notes == (copies, unnoticed)
    assert _loaded(given, files=("own_numbers.py",)).notes == (copies,)


def test_targets_are_floats_where_the_task_wants_them() -> None:
    def floats(count: int = 6) -> Any:
        return _arrays(count, targets=numpy.arange(2.0 * count).reshape(count, 2))

    data = _loaded(
        {
            "train": floats(),
            "validation": floats(),
            "test": torch.utils.data.TensorDataset(*map(torch.tensor, floats())),
        }
    )
    for part in (data.train, data.validation, data.test):
        assert part.targets.shape == (6, 2) and part.targets.dtype == torch.float32
    assert data.test.targets.tolist() == data.validation.targets.tolist()


@pytest.mark.parametrize("targets", [numpy.zeros(6), numpy.zeros((6, 2), int)])
def test_targets_that_are_none_of_the_task_are_named(targets: Any) -> None:
    task = choose("tasks", "image_classification").module.task(None, describe(_config()))
    with pytest.raises(
        RecipeError, match=r"'validation' .* targets are \w+ of shape .*, expected int64 of shape \[n\]"
    ):
        _loaded(_parts(validation=_arrays(targets=targets))).check(task)


BAD = numpy.full((6, 2, 3), numpy.nan)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (None, "returned NoneType"),
        ({}, "returned a dict with nothing"),
        ({"train": _arrays(), "val": _arrays()}, "returned a dict with 'train', 'val'"),
        (_parts(test=3), "'test' .* expected a pair of arrays"),
        (_parts(test=_arrays(inputs=[["a"]])), "'test' .* expected a pair of arrays"),
        (_parts(test=_arrays(0)), "'test' .* it is empty"),
        (_parts(train=_arrays(1)), "'train' .* one sample is not enough"),
        (_parts(validation=_arrays(targets=numpy.zeros(5, int))), "'validation' .* 5 targets for 6 inputs"),
        (
            _parts(validation=_arrays(targets=numpy.zeros(6) * 1j)),
            "'validation' .* targets are complex128 of shape .6.",
        ),
        (_parts(test=_arrays(targets=numpy.arange(6))), "'test' .* targets go from 0 to 5, but 2 labels are 0 to 1"),
        (_parts(test=_arrays(targets=numpy.arange(6) - 1)), "'test' .* targets go from -1 to 4"),
        (
            _parts(test=_arrays(inputs=numpy.zeros((6, 3, 2)))),
            "has the shape .3, 2., but the recipe says .2, 3.",
        ),
        (
            _parts(train=_arrays(inputs=numpy.zeros((6, 2, 3), "uint8"))),
            "are uint8, but the recipe says float32",
        ),
        (_parts(train=_arrays(inputs=BAD)), "'train' .* NaN or Inf"),
    ],
)
def test_what_is_not_as_described_is_named(given: object, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        _loaded(given)
