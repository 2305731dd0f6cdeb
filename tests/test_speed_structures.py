"""What the speed benchmark times on and counts with: molecules, water boxes, operations, bytes."""

import numpy as np
import pytest
import torch
from ase import units

from mdrelax.analysis.benchmarks.implementations import CASES, structures_of
from mdrelax.analysis.benchmarks.peers import counting
from mdrelax.analysis.benchmarks.peers.counting import count
from mdrelax.analysis.benchmarks.peers.steps import to_atoms
from mdrelax.analysis.benchmarks.structures import MOLECULES, shaken, water_box
from mdrelax.structures.neighbors import build_graph


@pytest.mark.parametrize("side", [4, 6])
def test_water_boxes_have_the_density_of_water_and_no_overlapping_atoms(side):
    """0.997 g/cm^3; molecules are whole, and atoms of two molecules are at least an Angstrom apart."""
    atoms = water_box(side)
    assert len(atoms) == 3 * side**3
    grams = atoms.get_masses().sum() / units.kg * 1e3
    assert grams / (atoms.get_volume() * 1e-24) == pytest.approx(0.997)
    graph = build_graph(atoms.positions, atoms.numbers, atoms.cell[:], atoms.pbc, 3.0)
    i, j = graph.edge_index.numpy()
    distances = np.linalg.norm(
        atoms.positions[i] - atoms.positions[j] + graph.edge_shift.numpy() @ atoms.cell.array, axis=1
    )
    same = i // 3 == j // 3
    assert distances[same].max() < 1.6
    assert distances[~same].min() > 1.0


def test_water_boxes_are_the_same_every_time():
    """A fixed seed, and molecules that are turned differently."""
    assert np.array_equal(water_box(4).positions, water_box(4).positions)
    oxygen_to_hydrogen = (water_box(4).positions[1::3] - water_box(4).positions[0::3]).round(6)
    assert len(np.unique(oxygen_to_hydrogen, axis=0)) == 64


def test_aspirin_is_aspirin_and_says_where_it_comes_from():
    """C9H8O4, at the bond lengths of a molecule; the shipped file's comment names the method."""
    atoms = MOLECULES["aspirin"]()
    assert atoms.get_chemical_formula() == "C9H8O4"
    distances = atoms.get_all_distances() + 9 * np.eye(21)
    assert 0.9 < distances.min() < 1.1  # O-H, C-H
    assert (distances < 1.6).sum() // 2 == 21  # bonds: one ring in 21 atoms


def test_a_case_sends_as_many_molecules_as_its_name_says():
    """Eight different ethanols of 9 atoms; an MD case sends one, as it is."""
    sent = structures_of(CASES["ethanol-b8"])
    assert len(sent) == 8
    assert CASES["ethanol-b8"].n_atoms == sum(len(each.numbers) for each in sent) == 72
    assert sent[0].positions != sent[1].positions
    (alone,) = structures_of(CASES["md-ethanol"])
    assert np.allclose(to_atoms(alone).positions, MOLECULES["ethanol"]().positions)


def test_shaken_copies_leave_the_original_alone():
    """And differ from it by less than a bond."""
    atoms = MOLECULES["ethanol"]()
    before = atoms.positions.copy()
    (copy,) = shaken(atoms, 1)
    assert np.array_equal(atoms.positions, before)
    assert 0 < np.abs(copy.positions - before).max() < 0.3


def test_operations_of_a_linear_layer_are_those_counted_by_hand():
    """Forward 2 m k n; backward the same for the weights, and none for an input that needs no gradient."""
    linear = torch.nn.Linear(5, 7, bias=False)
    x = torch.ones(3, 5)
    assert count(lambda: linear(x)).gflop == pytest.approx(2 * 3 * 5 * 7 / 1e9)
    assert count(lambda: linear(x).sum().backward()).gflop == pytest.approx(4 * 3 * 5 * 7 / 1e9)


def test_bytes_of_an_operation_are_what_it_reads_and_writes():
    """float32: a + b reads two and writes one; a view moves nothing; an expanded tensor is read once."""
    a, b = torch.ones(10, 4), torch.ones(10, 4)
    assert count(lambda: a + b).gbyte == pytest.approx(3 * 40 * 4 / 1e9)
    assert count(lambda: a.T.reshape(4, 10)[1:]).gbyte == 0
    assert count(lambda: torch.ones(4).expand(10, 4) + b).gbyte == pytest.approx((4 + 4 + 40 + 40) * 4 / 1e9)


def test_the_machines_limits_are_measured_at_the_present_number_of_threads(monkeypatch):
    """Small sizes here: that it gives rates is all that a busy machine lets one claim."""
    monkeypatch.setattr(counting, "MATRIX", 64)
    monkeypatch.setattr(counting, "TRIAD", 1024)
    found = counting.limits("float64")
    assert found.gflop_per_s > 0
    assert found.gbyte_per_s > 0
    assert found.threads == torch.get_num_threads()
