"""Random numbers by sample are those of SplitMix64, and depend on nothing else."""

import torch

from edgepack.data.loading import draws


def test_the_generator_is_the_published_one() -> None:
    """The first five outputs from the seed 1234567, as https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    gives them.
    """
    expected = (
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    )
    bound = 2**31 - 1
    found = [int(draws.integers(torch.tensor([1234567]), draw, bound)) for draw in range(5)]
    assert found == [number % bound for number in expected]


def test_a_sample_has_its_own_numbers_in_whatever_company() -> None:
    together = draws.of_samples(7, torch.arange(100))
    assert torch.equal(together[[3, 50]], draws.of_samples(7, torch.tensor([3, 50])))
    assert len({*together.tolist(), *draws.of_samples(8, torch.arange(100)).tolist()}) == 200
    assert int(together.min()) >= 0


def test_numbers_are_spread_evenly() -> None:
    counts = draws.integers(draws.of_samples(0, torch.arange(70_000)), 1, 7).bincount()
    assert len(counts) == 7 and bool(((counts - 10_000).abs() < 500).all())
