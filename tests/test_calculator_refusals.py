"""What the calculator refuses: structures without an energy, models without certified symmetry."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from e3nn import o3

from lennard_jones import SmoothLennardJones, assert_like_ase, cluster, crystal, lj_calculator, lj_force_field
from mdrelax.engines.ase import MDRelaxCalculator, UnprojectedModelError
from mdrelax.forces.forcefield import UnknownElementError
from mdrelax.method.free_maps import FreeLinear
from mdrelax.method.groups import IrrepsRepresentation
from mdrelax.method.relaxation import Relaxed
from molecules import ethanol, tiny_force_field


@pytest.mark.parametrize(
    ("atoms", "error", "sentence"),
    [
        (Atoms(), ValueError, "The structure has no atoms"),
        (Atoms("HO", [[0, 0, 0], [0, 0, 1]]), UnknownElementError, r"\[8\] are unknown to this model"),
        (Atoms("H", pbc=True), ValueError, "singular cell"),
        (Atoms("H", pbc=[0, 0, 1], cell=[4, 4, 0]), ValueError, "periodic along c"),
        (Atoms("H", [[0, 0, np.inf]]), ValueError, "NaN or infinite"),
    ],
)
def test_impossible_structures_raise_a_sentence(atoms: Atoms, error: type[Exception], sentence: str) -> None:
    """No atoms, unknown elements, singular cells and broken positions are errors, never numbers."""
    atoms.calc = lj_calculator()
    with pytest.raises(error, match=sentence):
        atoms.get_potential_energy()


def test_stress_without_volume_is_refused_and_forces_remain() -> None:
    """Stress exists for cells of three independent vectors; asking for it elsewhere does not spoil the rest."""
    atoms = crystal()
    atoms.pbc, atoms.cell = False, np.diag([10.0, 10.0, 0.0])
    atoms.calc = lj_calculator()
    atoms.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="needs a cell with a volume"):
        atoms.get_stress()
    assert "stress" not in atoms.calc.results
    assert_like_ase(atoms)


def test_a_model_with_relaxed_layers_is_refused() -> None:
    """Relaxed layers break the symmetry of the forces, whatever theta is: the constructor names the first."""
    force_field = lj_force_field()
    scalar = IrrepsRepresentation(o3.Irreps("0e"), "mul_ir")
    force_field.potential = Relaxed(SmoothLennardJones(), FreeLinear(scalar, scalar))
    force_field.potential.theta = 0.0
    with pytest.raises(UnprojectedModelError, match=r"1 relaxed layers \(the first: `potential`\).*project"):
        MDRelaxCalculator(force_field)


def test_atoms_at_one_point_are_named() -> None:
    """No direction lies between them; the network's NaN becomes a sentence."""
    atoms = ethanol()
    atoms.positions[4] = atoms.positions[1]
    atoms.calc = MDRelaxCalculator(tiny_force_field())
    with pytest.raises(ValueError, match="Atoms 1 and 4 lie at one point"):
        atoms.get_potential_energy()


def test_unknown_dtype_names_the_known_ones() -> None:
    """A misspelt precision is an error with the nearest name."""
    with pytest.raises(ValueError, match="did you mean `float64`"):
        lj_calculator(dtype="flaot64")


@pytest.mark.parametrize("directions", [np.zeros((2, 2)), np.full((1, 3, 3), np.nan), "x"])
def test_directions_of_a_hessian_are_real_numbers_of_its_shape(directions: object) -> None:
    """NaN gave products of NaN, a word an error of numpy."""
    with pytest.raises(ValueError, match=r"^`directions` "):
        lj_calculator().get_hessian_products(Atoms("H3", [[0, 0, 0], [0, 0, 3], [0, 3, 0]]), directions)


def test_what_is_no_structure_is_named() -> None:
    """A file's name in place of its content, and a length that is a word."""
    with pytest.raises(TypeError, match=r"A structure is an `ase.Atoms`, got str; read a file with `ase.io.read`."):
        lj_calculator().calculate_many(["water.xyz"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="`skin` must be a length >= 0 in Angstrom, got 'wide'"):
        lj_calculator(skin="wide")


def test_a_refused_structure_leaves_no_results_behind() -> None:
    """After an error the same structure raises again, and a good one is right."""
    calculator = lj_calculator()
    good, bad = cluster(), cluster()
    good.calc = bad.calc = calculator
    good.get_potential_energy()
    bad.numbers[2] = 8
    for _ in range(2):
        with pytest.raises(UnknownElementError):
            calculator.calculate(bad, ["energy"])
        with pytest.raises(UnknownElementError):
            bad.get_potential_energy()
    assert_like_ase(good)
