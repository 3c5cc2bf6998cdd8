"""A folder of sounds becomes a data set, and what is wrong with it is said before anything is trained."""

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from pydantic import ValidationError
from sound_factories import PITCHES, RATE, configured, tone, write_folder, write_sound

from edgepack.core.errors import RecipeError
from edgepack.core.signature import TensorSpec
from edgepack.data.datasets.audio_folder import attachments, describe, fingerprint, load
from edgepack.data.sounds import decoding, front_end
from edgepack.data.sounds.log_mel import log_mel
from edgepack.models.log_mel import LogMel

FIRST = "sounds/high/0.wav"


@pytest.fixture(autouse=True)
def sounds() -> str:
    return write_folder()


def refused(**settings: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(configured(**settings))
    return str(caught.value)


def test_every_class_is_split_and_labelled_by_its_folder() -> None:
    signature = describe(configured())
    assert signature.labels == ("high", "low", "middle")
    assert signature.inputs == (TensorSpec(name="input", shape=(2000,)),)
    data = load(configured())
    for split in (data.train, data.validation, data.test):
        [given] = split.head(len(split))
        assert given.dtype == torch.float32 and given.shape[1:] == (2000,) and given.abs().max() <= 1
        loudest = torch.fft.rfft(given).abs().argmax(1) * RATE / 2000
        for pitch, label in zip(loudest.tolist(), split.targets.tolist(), strict=True):
            assert abs(pitch - [*PITCHES.values()][label]) < 10
    assert [len(split) for split in (data.train, data.validation, data.test)] == [18, 6, 6]


def test_splits_that_are_made_already_are_kept() -> None:
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(f"words/{part}", count)
    data = load(configured("words"))
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 6, 9)


def test_a_sound_is_cut_at_its_end_or_filled_with_silence() -> None:
    shutil.rmtree("sounds")
    for part in ("train", "validation", "test"):
        for name in ("long", "short"):
            write_sound(f"sounds/{part}/{name}/1.wav", tone(500 + len(part), 0.3 if name == "long" else 0.1))
            write_sound(f"sounds/{part}/{name}/2.wav", tone(900 + len(part), 0.3 if name == "long" else 0.1))
    data = load(configured())
    for given, label in zip(data.test.head(4)[0], data.test.targets.tolist(), strict=True):
        assert bool((given[800:] == 0).all()) == bool(label)
        assert not (given[:800] == 0).all()


def test_training_sounds_are_shifted_at_random_and_others_never() -> None:
    data = load(configured())
    for split, moved in ((data.train, True), (data.validation, False)):
        one, again, other = (next(split.batches(6, seed=seed)).inputs[0] for seed in (1, 1, 2))
        assert torch.equal(one, again) and not torch.equal(one, other)
        kept = split.head(len(split))[0]
        assert (one[:, None] == kept).all(2).any() != moved
    assert not load(configured(augment=False)).train.augmented


@pytest.mark.parametrize("spoil", ["empty", "no sound", "cut off", "no samples", "a pointer"])
def test_a_sound_that_cannot_be_used_is_named(spoil: str) -> None:
    file = Path(FIRST)
    whole = file.read_bytes()
    content, reason = {
        "empty": (b"", "it is empty"),
        "no sound": (b"RIFF, or so they say", "it is no sound that can be decoded"),
        "cut off": (whole[:-200], "it is cut off: 1500 of 1600 samples are there"),
        "no samples": (whole[:40] + bytes(4), "it is empty"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer to a file that is not here"),
    }[spoil]
    file.write_bytes(content)
    assert f"{FIRST}: {reason}" in refused()
    assert "10 sounds" not in refused()
    data = load(configured(bad_samples={"skip": 1}))
    assert any(f"1 of 30 sounds are left out, such as {FIRST}" in note for note in data.notes)
    Path("sounds/low/0.wav").write_bytes(b"")
    assert "2 sounds cannot be read, more than the 1 that bad_samples leaves out" in refused(bad_samples={"skip": 1})


def test_a_sound_of_another_rate_is_refused_unless_it_is_to_be_converted() -> None:
    write_sound(FIRST, tone(3000, rate=16_000), 16_000)
    assert f"{FIRST}: its rate is 16000 Hz, not 8000 Hz: resample: true converts it" in refused()
    converted = decoding.decoded(Path(FIRST), RATE, resample=True)
    assert len(converted) == 2400
    assert numpy.abs(numpy.fft.rfft(converted / 32768)).argmax() * RATE / 2400 == pytest.approx(3000, abs=5)
    assert fingerprint(configured()) != fingerprint(configured(resample=True))
    load(configured(resample=True))


def test_channels_are_averaged() -> None:
    both = numpy.stack([numpy.full(1600, 300, "<i2"), numpy.full(1600, -101, "<i2")], axis=1)
    write_sound(FIRST, both, channels=2)
    assert decoding.decoded(Path(FIRST), RATE, resample=False).tolist() == [100] * 1600


def test_other_formats_need_soundfile(monkeypatch: pytest.MonkeyPatch) -> None:
    write_sound(FIRST, numpy.zeros(900, numpy.uint8), width=3)
    Path("sounds/high/1.flac").write_bytes(b"fLaC")
    monkeypatch.setattr(decoding, "_has_soundfile", lambda: False)
    assert (
        f"{FIRST}: it is not 16-bit PCM in a .wav file, which needs soundfile: pip install 'edgepack[audio]'"
        in refused()
    )
    assert any("1 file is left out by ending: .flac 1 (needs soundfile)" in note for note in describe_notes())
    monkeypatch.setattr(decoding, "_has_soundfile", lambda: True)
    known: Any = ModuleType("soundfile")
    known.SoundFileError = type("SoundFileError", (RuntimeError,), {})
    known.read = lambda file, dtype, **_: (numpy.full((1600, 1), 7 / 32768, dtype), RATE)
    monkeypatch.setitem(sys.modules, "soundfile", known)
    assert decoding.decoded(Path(FIRST), RATE, resample=False).tolist() == [7] * 1600


def test_sounds_of_floats_are_neither_silent_nor_not_finite() -> None:
    """libsndfile cuts floats to integers where it is asked for those: every sound would be silent."""
    soundfile = pytest.importorskip("soundfile")
    waves = numpy.array([0.5, -0.25, 1.5, 0.0])
    for subtype in ("FLOAT", "DOUBLE", "PCM_24"):
        soundfile.write(FIRST, waves, RATE, subtype=subtype)
        assert decoding.decoded(Path(FIRST), RATE, resample=False).tolist() == [16384, -8192, 32767, 0]
    soundfile.write(FIRST, numpy.array([0.5, numpy.nan]), RATE, subtype="FLOAT")
    assert f"{FIRST}: it has samples that are not finite" in refused()


def test_a_sound_of_24_bits_that_is_cut_off_is_told() -> None:
    pytest.importorskip("soundfile")
    file = write_sound(FIRST, numpy.ones(900, numpy.uint8), width=3)
    file.write_bytes(file.read_bytes()[:-300])
    assert f"{FIRST}: it is cut off: 200 of 300 samples are there" in refused()


@pytest.mark.parametrize("rate", [0, 4_000_000_007])
def test_a_rate_that_no_sound_has_is_told(rate: int) -> None:
    whole = write_sound(FIRST, tone(3000)).read_bytes()
    Path(FIRST).write_bytes(whole[:24] + rate.to_bytes(4, "little") + whole[28:])
    assert f"{FIRST}: it is no sound that can be decoded: its rate is {rate} Hz" in refused(resample=True)


def describe_notes() -> tuple[str, ...]:
    from edgepack.data.datasets.audio_folder import notes

    return notes(configured())


def test_equal_sounds_are_in_one_split_and_one_class() -> None:
    shutil.copy(FIRST, "sounds/high/copy.wav")
    for name in PITCHES:
        write_sound(f"sounds/{name}/silence.wav", numpy.zeros(300 + 10 * len(name), "<i2"))
    data = load(configured())
    assert sum(map(len, (data.train, data.validation, data.test))) == 30
    assert any("1 of 34 sounds begin like others: one of each is kept" in note for note in data.notes)
    assert any("3 of 34 sounds begin like others with another label" in note for note in data.notes)


def test_a_class_with_too_few_different_sounds_is_named() -> None:
    for i in range(1, 10):
        shutil.copy(FIRST, f"sounds/high/{i}.wav")
    assert "the class 'high' has 1 different sound, too few to be split" in refused()


def test_the_fingerprint_covers_settings_names_and_contents_but_not_the_place() -> None:
    before = fingerprint(configured())
    Path("elsewhere").mkdir()
    shutil.copytree("sounds", "elsewhere/sounds")
    assert fingerprint(configured("elsewhere/sounds")) == before
    assert fingerprint(configured(seconds=0.2)) != before
    write_sound(FIRST, tone(3000, 0.21))
    assert fingerprint(configured()) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": "15 ms"}, "a window of 40 ms must be one, two or more hops of 15 ms"),
        ({"rate": 1001}, "a hop of 20 ms is no whole number of samples at 1001 Hz"),
        ({"seconds": 0.03}, "a window has 320 samples, more than the 240 of a sound"),
        ({"mels": 200}, "mels hold no frequency of so short a window"),
        ({"validation": "60 %", "test": "40 %"}, "leave some sounds for training"),
        ({"hop": 20}, "20 has no unit|has no unit"),
    ],
)
def test_settings_that_fit_no_sound_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        configured(**settings)


def test_features_beside_the_model_are_those_that_the_shipped_file_makes() -> None:
    config = configured(front_end="beside", augment=False)
    [spec] = describe(config).inputs
    raw, made = (load(configured(front_end=where, augment=False)).test.head(6)[0] for where in ("in_file", "beside"))
    assert made.shape[1:] == spec.shape == (16, 11)
    shipped: dict[str, Any] = {}
    exec(attachments(config)[front_end.FILE], shipped)  # noqa: S102
    given = front_end.of(describe(config).preprocessing)
    assert given is not None
    assert numpy.array_equal(shipped["log_mel"](raw.numpy(), **given), made.numpy())
    assert numpy.array_equal(shipped["log_mel"](raw[0].numpy(), **given), made[0].numpy())
    assert not attachments(configured())


@pytest.mark.parametrize(("window", "hop"), [(320, 160), (250, 125), (480, 160), (251, 251)])
def test_a_model_makes_the_same_features(window: int, hop: int) -> None:
    given = {"rate": RATE, "window": window, "hop": hop, "mels": 20}
    heard = numpy.stack([tone(440, 1, seed=1), tone(3300, 1, seed=2) // 100, numpy.zeros(RATE)]).astype("f4") / 32768
    features = LogMel(**given)(torch.from_numpy(heard)).numpy()
    assert features.shape[1:] == front_end.shape(RATE, given)
    numpy.testing.assert_allclose(features, log_mel(heard, **given), atol=1e-4)
    assert features.min() > -1.1 and features.max() < 1
