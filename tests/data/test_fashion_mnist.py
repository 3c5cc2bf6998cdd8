"""Fashion-MNIST is read from its IDX files, wherever they are; here small ones that are made for the test."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch

from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.process import libraries
from edgepack.data.datasets import _fashion_files as files
from edgepack.data.datasets.fashion_mnist import Config, describe, fingerprint, load
from edgepack.data.splits import Data

REAL = files._DEBIAN


def _idx(values: "numpy.typing.NDArray[numpy.uint8]") -> bytes:
    return bytes([0, 0, 8, values.ndim]) + numpy.array(values.shape, ">u4").tobytes() + values.tobytes()


def _write(folder: Path, *, packed: bool = True, samples: int = 200, side: int = 28) -> Path:
    """The four files with random pictures, the first pixel of each its label."""
    random = numpy.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", samples), ("t10k", samples // 4)):
        targets = (numpy.arange(count) % 10).astype(numpy.uint8)
        pictures = random.integers(0, 256, (count, side, side), numpy.uint8)
        pictures[:, 0, 0] = targets
        for kind, values in (("images-idx3-ubyte", pictures), ("labels-idx1-ubyte", targets)):
            path = folder / f"{name}-{kind}"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(_idx(values)))
            else:
                path.write_bytes(_idx(values))
    return folder


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_DEBIAN", Path("nowhere"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(_write(tmp_path / "fashion"))


def _samples(data: Data) -> list[bytes]:
    return [x.numpy().tobytes() for split in (data.train, data.validation) for x in split.inputs[0]]


def test_the_splits_hold_every_picture_once_with_its_label(folder: str) -> None:
    data = load(Config(folder=folder))
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 50)
    assert data.train.targets.bincount().tolist() == [18] * 10
    assert data.validation.targets.bincount().tolist() == [2] * 10
    assert len({*_samples(data)}) == 200
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.inputs[0][:, 0, 0, 0].long(), split.targets)
    assert _samples(data) == _samples(load(Config(folder=folder)))


@pytest.mark.parametrize("size", [28, 32])
def test_pictures_come_as_described(folder: str, size: int) -> None:
    config = Config(folder=folder, size=size)
    data, (spec,) = load(config), describe(config).inputs
    [batch] = data.validation.batches(100)
    assert batch.inputs[0].shape == (20, *spec.shape)
    assert str(batch.inputs[0].dtype) == f"torch.{spec.dtype}"
    assert 0 <= float(batch.inputs[0].min()) < float(batch.inputs[0].max()) <= 1
    assert data.validation.inputs[0].dtype == torch.uint8  # a quarter of the memory
    preprocessing = describe(config).preprocessing
    assert preprocessing["scale"] == {"from": [0, 255], "to": [0, 1]}
    assert ("resize" in preprocessing) == (size != 28)


def test_augmented_pictures_are_shifted_and_mirrored_in_training_alone(folder: str) -> None:
    data = load(Config(folder=folder, augment=True))
    assert data.augmented and data.validation.augment is None
    one, two = (next(data.train.batches(180, seed=seed)) for seed in (1, 1))
    assert torch.equal(one.inputs[0], two.inputs[0])
    plain = data.train.head(180)[0][one.indices]
    assert not torch.equal(one.inputs[0], plain)
    middle = one.inputs[0][0, 0, 2:-2, 2:-2]
    windows = [plain[0, 0, y : y + 24, x : x + 24] for y in range(5) for x in range(5)]
    assert any(torch.equal(middle, place) or torch.equal(middle, place.flip(1)) for place in windows)


def test_a_trial_takes_fewer_pictures_of_every_class(folder: str) -> None:
    few = load(Config(folder=folder, samples=35))
    assert few.train.targets.bincount().tolist() == [4] * 5 + [3] * 5
    assert len(few.validation) == 20
    with pytest.raises(RecipeError, match="samples is 500, but there are only 180"):
        load(Config(folder=folder, samples=500))


def test_the_fingerprint_is_that_of_the_content_however_it_is_packed(tmp_path: Path, folder: str) -> None:
    plain = str(_write(tmp_path / "plain", packed=False))
    assert fingerprint(Config(folder=folder)) == fingerprint(Config(folder=plain))
    other = str(_write(tmp_path / "other", samples=240))
    changed = [Config(folder=other), Config(folder=folder, size=30), Config(folder=folder, samples=30)]
    assert len({fingerprint(config) for config in (Config(folder=folder), *changed)}) == 4


def test_the_fingerprint_of_the_known_files_needs_no_files(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    known = {name: files._content(Path(folder, f"{name}.gz")) for name in files._FILES}
    monkeypatch.setattr(files, "_FILES", known)
    assert fingerprint(Config()) == fingerprint(Config(folder=folder))


def test_an_installed_package_is_found(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(files, "_DEBIAN", Path(folder))
    assert _samples(load(Config())) == _samples(load(Config(folder=folder)))


def test_what_is_nowhere_is_downloaded_once(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    asked = []

    def download(root: str, *, download: bool) -> SimpleNamespace:
        asked.append(root)
        return SimpleNamespace(raw_folder=str(_write(Path(root, "FashionMNIST", "raw"), packed=False)))

    _torchvision(monkeypatch, download)
    assert _samples(load(Config())) == _samples(load(Config())) == _samples(load(Config(folder=folder)))
    assert len(asked) == 1
    assert sorted(path.name for path in Path(".edgepack/data").iterdir()) == ["fashion-mnist"]


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Error downloading")])
def test_without_a_network_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(root: str, *, download: bool) -> None:
        Path(root, "half").write_bytes(b"")
        raise error

    _torchvision(monkeypatch, download)
    with pytest.raises(DeviceError, match=f"cannot be downloaded: {error}") as caught:
        load(Config())
    for remedy in ("connect to the network", "dataset-fashion-mnist", "fashion_mnist: {folder: ...}"):
        assert remedy in caught.value.hint
    assert not list(Path(".edgepack/data").iterdir())


def _torchvision(monkeypatch: pytest.MonkeyPatch, download: object) -> None:
    fake = SimpleNamespace(datasets=SimpleNamespace(FashionMNIST=download))
    monkeypatch.setattr(libraries, "torchvision", lambda: fake)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        (f"{IMAGES}.gz", b"not gzip", "Not a gzipped file"),
        (f"{IMAGES}.gz", gzip.compress(bytes(5000), mtime=0)[:-10], "ended before the end-of-stream marker"),
        (IMAGES, b"\0\0", "it is not an IDX file of bytes with 3 dimensions"),
        (IMAGES, _idx(numpy.zeros(200, numpy.uint8)), "it is not an IDX file of bytes with 3 dimensions"),
        (IMAGES, _idx(numpy.zeros((200, 28, 28), numpy.uint8))[:-9], "announces 200 x 28 x 28 values and has 156791"),
        (IMAGES, _idx(numpy.zeros((200, 32, 32), numpy.uint8)), "its pictures are 32 x 32, not 28 x 28"),
        (LABELS, _idx(numpy.zeros(199, numpy.uint8)), "it has 199 labels for 200 pictures"),
        (LABELS, _idx((numpy.arange(200) % 11).astype(numpy.uint8)), "it has a label 10, not 0 to 9"),
        (LABELS, _idx((numpy.arange(200) % 9).astype(numpy.uint8)), "it lacks the class 'Ankle boot'"),
    ],
)
def test_a_damaged_file_is_named(folder: str, name: str, content: bytes, why: str) -> None:
    Path(folder, f"{name.removesuffix('.gz')}.gz").unlink()
    Path(folder, name).write_bytes(content)
    with pytest.raises(RecipeError, match=f"{name} is damaged: .*{why}"):
        load(Config(folder=folder))


def test_a_folder_without_the_files_is_refused_before_anything_runs(folder: str) -> None:
    Path(folder, f"{LABELS}.gz").unlink()
    with pytest.raises(RecipeError, match="does not hold the four files"):
        describe(Config(folder=folder))


@pytest.mark.skipif(not REAL.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded = fingerprint(Config())
    monkeypatch.setattr(files, "_DEBIAN", REAL)
    assert fingerprint(Config()) == downloaded
    data = load(Config())
    assert (len(data.train), len(data.validation), len(data.test)) == (54_000, 6_000, 10_000)
    assert data.test.targets[:5].tolist() == [9, 2, 1, 1, 6]
    assert 0.28 < float(data.train.head(5000)[0].mean()) < 0.29  # the mean that is known of this data set
