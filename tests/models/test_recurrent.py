"""Recurrent nets read sounds, texts and series; padding changes nothing, and the length of a text is its own."""

import pytest
import torch
from recurrent_factories import net, series, signature, sounds
from text_factories import LENGTH, TOKENS
from text_factories import signature as texts

from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import rebuild
from edgepack.models.complexity import macs
from edgepack.models.log_mel import LogMel

KINDS = ("lstm", "gru")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["sounds", "texts", "series"])
def test_every_kind_of_data_is_read_and_learned_from(what: str, kind: str) -> None:
    candidate = net(signature(what), kind, layers=2, bidirectional=True, dropout=0.1)
    outputs = candidate.module.train()(*candidate.example_inputs(4))
    assert outputs.shape == (4, 3)
    outputs.square().sum().backward()
    assert all(each.grad is not None for each in candidate.module.parameters())
    fresh = rebuild(candidate.factory, candidate.surgery)
    assert fresh.state_dict().keys() == candidate.module.state_dict().keys()


def test_it_hears_raw_sound_or_features() -> None:
    raw, apart = net(sounds(2000)).module.eval(), net(sounds(16, 11)).module.eval()
    apart.load_state_dict(raw.state_dict())
    sound = torch.rand(2, 2000) - 0.5
    features = LogMel(rate=8000, window=320, hop=160, mels=16)(sound)
    torch.testing.assert_close(apart(features), raw(sound))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    module = net(texts(), kind, layers=2, bidirectional=True).module.eval()
    ids = torch.randint(1, TOKENS, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < torch.tensor([[9], [5]])).long()
    outputs = module(ids, mask)
    assert torch.equal(module(torch.where(mask.bool(), ids, 7), mask), outputs)
    torch.testing.assert_close(module(ids[:1, :9], mask[:1, :9]), outputs[:1])  # without any padding
    assert not torch.allclose(module(ids, torch.ones_like(mask)), outputs)


def test_a_text_is_read_from_its_end_too() -> None:
    """What the layer for the other direction gives is what it gives for the turned text, turned back."""
    layer = net(texts(), bidirectional=True, hidden=8).module.eval().layers[0]
    from edgepack.models.sources.recurrent.net import turned

    tokens, mask = torch.rand(1, 6, 128), torch.tensor([[1, 1, 1, 1, 0, 0]])
    found = layer(tokens, turned(mask))[:, :4, 8:]
    expected = layer.back(tokens[:, :4].flip(1))[0].flip(1)
    torch.testing.assert_close(found, expected)


def test_multiplications_of_a_layer_are_counted() -> None:
    steps, numbers, hidden = 7, 5, 16
    for kind, gates in (("lstm", 4), ("gru", 3)):
        each = steps * gates * hidden * (numbers + hidden)
        assert macs(net(series(steps, numbers), kind)) == each + 3 * hidden


def test_data_without_steps_is_refused() -> None:
    pictures = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("a", "b"))
    with pytest.raises(StageError, match=r"reads sounds, texts or series \[steps, numbers\].* \[1, 8, 8\]"):
        net(pictures)
