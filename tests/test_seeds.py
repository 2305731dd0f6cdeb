"""Random streams: one for each (seed, purpose, index), the same on every machine and in every version."""

import numpy as np
import pytest
import torch

from mdrelax.base.seeds import PURPOSES, default_stream, generator, numpy_generator
from mdrelax.forces.loader import Loader, frames_from_data
from small_runs import clusters, data_of


def first_words(stream: torch.Generator) -> tuple[int, ...]:
    """The first 128 random bits of a stream."""
    return tuple(torch.randint(2**32, (4,), generator=stream).tolist())


def test_a_seed_is_a_whole_number():
    """1.5 was the same as 1."""
    with pytest.raises(ValueError, match=r"A seed must be a whole number, got 1\.5\."):
        generator(1.5, "order")  # type: ignore[arg-type]


def test_no_two_purposes_share_a_random_stream():
    """No two of 3,600 streams (9 purposes, 4 seeds, 100 indices) begin alike; one seed of 32 bits each could."""
    triples = [(seed, purpose, index) for seed in range(4) for purpose in PURPOSES for index in range(100)]
    drawn = {first_words(generator(*each)) for each in triples}
    assert len(drawn) == len(triples)
    assert len({numpy_generator(*each).integers(2**63) for each in triples}) == len(triples)


def test_no_stream_is_that_of_the_initial_weights_or_of_the_split():
    """These two keep their plain seeds, 0 by default, because published numbers hang on them."""
    weights = {first_words(torch.Generator().manual_seed(seed)) for seed in range(50)}
    splits = {np.random.default_rng(seed).integers(2**63) for seed in range(50)}
    for purpose in PURPOSES:
        assert first_words(generator(0, purpose)) not in weights
        assert numpy_generator(0, purpose).integers(2**63) not in splits


def test_streams_never_change():
    """Pinned values: the next version and another machine draw these numbers too."""
    order = torch.randperm(6, generator=generator(3, "order", 2)).tolist()
    assert order == [2, 3, 5, 1, 0, 4]
    assert first_words(generator(0, "rotations", 7)) == (1766421030, 1435371321, 2662475534, 2952473112)
    assert numpy_generator(1, "dynamics").integers(1000, size=4).tolist() == [223, 578, 328, 475]


def test_a_stream_is_uniform_and_uncorrelated_with_the_next():
    """Mean 1/2 and variance 1/12 of 10^5 numbers; streams of neighbouring steps are independent (3 in 1000)."""
    one, two = (torch.rand(100_000, dtype=torch.float64, generator=generator(0, "noise", k)) for k in (0, 1))
    assert abs(float(one.mean()) - 0.5) < 4 * (1 / 12 / 1e5) ** 0.5
    assert abs(float(one.var()) * 12 - 1) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 4 / 1e5**0.5


def test_frames_of_an_epoch_do_not_follow_the_rotations_of_a_step(tmp_path):
    """What used to coincide: the order of epoch k was drawn from the generator of the rotations of step k."""
    frames = frames_from_data(data_of(tmp_path / "c.extxyz", clusters(12)), cutoff=3.0)
    order = Loader(frames, batch_size=4, seed=5).order(2)
    assert order != torch.randperm(12, generator=generator(5, "rotations", 2)).tolist()
    assert order != Loader(frames, batch_size=4, seed=5).order(3)
    assert sorted(order) == list(range(12))


def test_an_unknown_purpose_names_the_nearest():
    """A purpose of one's own would be a stream that nobody knows of."""
    with pytest.raises(ValueError, match="did you mean `rotations`"):
        generator(0, "rotation")  # type: ignore[arg-type]


def test_code_without_a_generator_draws_from_a_stream_and_disturbs_nobody():
    """Inside ``default_stream`` torch's own generator gives that stream's numbers; after it, also an error, its own."""
    torch.manual_seed(7)
    undisturbed = torch.rand(4)
    torch.manual_seed(7)
    first = torch.rand(2)
    inside = []

    def fail() -> None:
        with default_stream(3, "dropout", 5):
            inside.append(torch.rand(6))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.cat([first, torch.rand(2)]), undisturbed)
    assert torch.equal(inside[0], torch.rand(6, generator=generator(3, "dropout", 5)))
