"""Streams of random numbers: one for each seed, purpose and index, and no two alike."""

from itertools import product
from typing import get_args

import pytest
import torch

from mdrelax.base.seeds import Purpose, generator
from mdrelax.forces.loader import Batch, Loader, rotate_batch
from mdrelax.forces.loss import Targets
from mdrelax.structures.rotate import random_rotations
from molecules import ethanol, graph_of

PURPOSES = get_args(Purpose)


def first_numbers(source: torch.Generator) -> tuple[int, ...]:
    """Enough of a stream to know it by."""
    return tuple(torch.randint(2**62, (2,), generator=source).tolist())


def test_no_two_purposes_share_a_stream():
    """Nor do two steps of one purpose, two seeds, or any of them and the weights, drawn from the seed itself."""
    streams = [first_numbers(generator(*each)) for each in product(range(3), PURPOSES, range(200))]
    streams += [first_numbers(torch.Generator().manual_seed(seed)) for seed in range(3)]
    assert len(set(streams)) == len(streams)


def test_a_stream_begins_anew_each_time_it_is_asked_for():
    """Nothing random is kept between steps, so a resumed run draws what an uninterrupted one draws."""
    assert first_numbers(generator(4, "rotations", 7)) == first_numbers(generator(4, "rotations", 7))


@pytest.mark.parametrize(
    ("purpose", "number"), [("free maps", 822914), ("noise", 870170), ("order", 284756), ("rotations", 667526)]
)
def test_streams_stay_the_same_between_versions(purpose: Purpose, number: int):
    """A run that was begun with one version and is resumed with the next sees the same frames and rotations."""
    assert int(torch.randint(10**6, (), generator=generator(0, purpose, 3))) == number


def test_the_global_generator_is_left_alone():
    """It belongs to the user."""
    before = torch.random.get_rng_state()
    torch.rand(3, generator=generator(0, "noise"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_order_and_rotations_of_a_run_come_from_their_own_streams():
    """The order of epoch k and the rotations of step k used to be drawn from one and the same stream."""
    nothing = torch.full((1,), torch.nan, dtype=torch.float64)
    frame = Batch(graph_of(ethanol()), Targets(nothing, nothing.expand(9, 3), nothing.expand(1, 3, 3)))
    order = torch.randperm(5, generator=generator(3, "order", 2)).tolist()
    assert Loader([frame] * 5, batch_size=2, seed=3).order(2) == order
    rotations = random_rotations(1, generator(3, "rotations", 2))
    turned = rotate_batch(frame, seed=3, step=2).graph.positions
    torch.testing.assert_close(turned, frame.graph.positions @ rotations[0].mT)
