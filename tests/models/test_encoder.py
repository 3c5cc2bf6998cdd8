"""The anatomy of encoders, and what the exported last layer computes."""

import pytest
import text_factories as make
import torch
from torch import nn

from edgepack.models.complexity import macs
from edgepack.models.structure import encoder


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_kind_has_its_layers_found(kind: str) -> None:
    module = make.encoder(kind).module
    first, second = encoder.blocks(module)
    assert (first.heads(module), first.head_size(module)) == (4, 8)
    assert (first.name[-2:], second.name[-2:]) == (".0", ".1")
    for name in (first.query, first.key, first.value, first.output, first.ffn_in, first.ffn_out):
        assert isinstance(module.get_submodule(name), nn.Linear)
    assert module.get_submodule(first.ffn_in).out_features == 64


def test_a_net_of_convolutions_is_no_encoder() -> None:
    assert encoder.blocks(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ModuleList([nn.Linear(2, 2)]))) == ()


@pytest.mark.parametrize("kind", make.KINDS)
def test_padding_changes_nothing(kind: str) -> None:
    made, data = make.encoder(kind), make.text(pad=1 if kind == "roberta" else 0)
    ids, mask = data.train.head(8)
    noise = torch.where(mask.bool(), ids, torch.randint(10, make.TOKENS, ids.shape))
    with torch.no_grad():
        torch.testing.assert_close(made.module(noise, mask), made.module(ids, mask))


@pytest.mark.parametrize("kind", make.KINDS)
def test_the_last_layer_answers_the_same_for_the_first_token_alone(kind: str) -> None:
    made, data = make.encoder(kind), make.text()
    inputs = data.train.head(8)
    with torch.no_grad():
        whole = made.module(*inputs)
        with encoder.first_token_only(made.module):
            torch.testing.assert_close(made.module(*inputs), whole)
        torch.testing.assert_close(made.program(batch=8).module()(*inputs), whole)
        torch.testing.assert_close(made.module(*inputs), whole)  # and it is whole again


def test_macs_are_those_that_the_exported_file_does() -> None:
    one, two = (make.encoder(num_hidden_layers=number) for number in (1, 2))
    assert macs(one) < 0.4 * macs(two)  # the last layer computes keys and values for all tokens, the rest for one


@pytest.mark.parametrize("layers", [1, (1,)])
def test_layers_are_kept_with_their_weights_and_numbered_anew(layers: int | tuple[int, ...]) -> None:
    module = make.encoder().module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    encoder.keep_layers(module, layers)
    (left,) = encoder.blocks(module)
    assert left.name.endswith(".0")
    was = left.query.replace(".0.", ".1.") if layers == (1,) else left.query
    torch.testing.assert_close(module.get_submodule(left.query).weight, before[f"{was}.weight"])
