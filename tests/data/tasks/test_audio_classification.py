"""The task for sounds, and the data that it refuses."""

import pytest

from edgepack.config import plugins
from edgepack.core.signature import Signature, TensorSpec


def signature(*shape: int, **preprocessing: object) -> Signature:
    return Signature(inputs=(TensorSpec(name="input", shape=shape),), labels=("yes", "no"), preprocessing=preprocessing)


def refusal(task: str, given: Signature) -> str:
    choice = plugins.choose("tasks", task)
    return str(choice.module.incompatibility(choice.config, given))


@pytest.mark.parametrize("shape", [(8000,), (40, 49)])
def test_sound_and_features_of_it_are_accepted(shape: tuple[int, ...]) -> None:
    for about in ({"kind": "sound"}, {}):
        assert not refusal("audio_classification", signature(*shape, **about))


def test_other_data_is_refused_with_the_task_for_it() -> None:
    assert "use text_classification" in refusal("audio_classification", signature(128, kind="text"))
    assert "use image_classification" in refusal("audio_classification", signature(3, 8, 8))
    assert "use audio_classification" in refusal("image_classification", signature(8000, kind="sound"))


def test_it_is_a_classification() -> None:
    choice = plugins.choose("tasks", "audio_classification")
    task = choice.module.task(choice.config, signature(8000))
    assert [*task.metrics] == ["accuracy", "accuracy.top5"]
    assert task.outputs()[0].shape == (2,)
