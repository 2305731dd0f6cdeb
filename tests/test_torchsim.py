"""torch-sim with a model: many structures at once move as in ASE, one by one. Needs `[torchsim]`; `-m peer`."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE

from lammps_runs import NETWORKS, liquid, skewed
from mdrelax.engines.ase import MDRelaxCalculator, UnprojectedModelError
from mdrelax.forces.forcefield import UnknownElementError
from mdrelax.forces.physics import Physics
from mdrelax.method.relaxation import relax_constraints
from mdrelax.modelfile import load_model
from molecules import rattled, water
from untrained_models import saved

torch_sim = pytest.importorskip("torch_sim")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def model_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of each network, for H and O, with repulsion and, where its library is there, dispersion."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    physics = Physics(1.5, "PBE" if find_spec("dftd3") else None)
    return saved(path, 1, 8, potential=request.param, arguments=NETWORKS[request.param], binding=0.3, physics=physics)


def adapted(path: Path, **options: object):
    """The model in float64."""
    from mdrelax.engines.torchsim import MDRelaxModel

    return MDRelaxModel.from_file(path, dtype=torch.float64, **options)


def clusters() -> list[Atoms]:
    """Open molecules of different sizes, one of them a lone atom."""
    return [without_cell(atoms) for atoms in (*rattled(water(), 3, 0), liquid()[:6], Atoms("O"), liquid()[:12])]


def without_cell(atoms: Atoms) -> Atoms:
    """Open, with a cell that torch-sim can invert and that has no meaning."""
    atoms = atoms.copy()
    atoms.pbc, atoms.cell = False, np.eye(3)
    return atoms


@pytest.mark.parametrize("periodic", [True, False])
def test_a_batch_has_the_numbers_of_ase(model_file: Path, periodic: bool) -> None:
    """Energies, forces and stress of structures of several sizes and skewed cells, to 1e-10."""
    structures = [liquid(), skewed(), *rattled(skewed(), 2, 1, 0.05)] if periodic else clusters()
    state = torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    result = adapted(model_file)(state)
    start = 0
    for number, atoms in enumerate(structures):
        atoms.calc = MDRelaxCalculator.from_file(model_file, dtype="float64")
        end = start + len(atoms)
        assert result["energy"][number].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(result["forces"][start:end], atoms.get_forces(), rtol=0, atol=1e-10)
        if periodic:
            np.testing.assert_allclose(result["stress"][number], atoms.get_stress(voigt=False), rtol=0, atol=1e-10)
        start = end


def test_the_interface_is_torch_sims(model_file: Path, tmp_path: Path) -> None:
    """torch-sim's own check of a model: shapes, types, batching, and a state that stays as it was."""
    from torch_sim.models.interface import validate_model_outputs

    path = saved(tmp_path / "m.safetensors", 14, 26)
    validate_model_outputs(adapted(path), torch.device("cpu"), torch.float64)


def test_nve_of_many_is_nve_one_by_one(model_file: Path) -> None:
    """Thirty steps of molecules and clusters from ASE's momenta; rounding of sums in another order, 1e-9 A."""
    structures = clusters()
    rng = np.random.default_rng(3)
    for atoms in structures:
        atoms.set_momenta(rng.normal(scale=0.3, size=(len(atoms), 3)))
    model, dt = adapted(model_file, compute_stress=False), 0.5 * units.fs
    state = torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    state.momenta = torch.from_numpy(np.concatenate([atoms.get_momenta() for atoms in structures]))
    start, step = torch_sim.nve(model, dt=torch.tensor(dt, dtype=torch.float64), kT=torch.tensor(0.02))
    moving = start(state)
    for _ in range(30):
        moving = step(moving)
    for number, atoms in enumerate(structures):
        atoms.calc = MDRelaxCalculator.from_file(model_file, dtype="float64")
        VelocityVerlet(atoms, dt).run(30)
        found = moving.positions[moving.system_idx == number]
        np.testing.assert_allclose(found, atoms.positions, rtol=0, atol=1e-9)
        assert moving.energy[number].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def fire_steps(model, structures: list[Atoms], n: int) -> torch.Tensor:
    """Positions after ``n`` steps of torch-sim's minimiser in ASE's flavour."""
    state = torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    start, step = torch_sim.optimizers.fire(model, md_flavor="ase_fire")
    moving = start(state)
    for _ in range(n):
        moving = step(moving)
    return moving.positions


def test_fire_of_many_is_fire_one_by_one(model_file: Path) -> None:
    """Twenty steps are those of each molecule alone, and the first six ASE's.

    From the seventh on, torch-sim 0.3.0 mixes velocities with the next alpha, where ASE takes the last.
    """
    structures, model = clusters(), adapted(model_file, compute_stress=False)
    alone = torch.cat([fire_steps(model, [atoms], 20) for atoms in structures])
    torch.testing.assert_close(fire_steps(model, structures, 20), alone, rtol=0, atol=1e-9)
    for atoms in structures:
        atoms.calc = MDRelaxCalculator.from_file(model_file, dtype="float64")
        FIRE(atoms, logfile=None).run(fmax=0.0, steps=6)
    expected = np.concatenate([atoms.positions for atoms in structures])
    np.testing.assert_allclose(fire_steps(model, clusters(), 6), expected, rtol=0, atol=1e-9)


def test_a_smaller_batch_has_its_own_neighbours(model_file: Path) -> None:
    """Finished systems leave a batch: the neighbour lists of those before them do not serve the others."""
    structures = clusters()
    model = adapted(model_file)
    state = torch_sim.io.atoms_to_state(structures, torch.device("cpu"), torch.float64)
    whole = model(state)
    part = model(state[[1, 3, 5]])
    torch.testing.assert_close(part["energy"], whole["energy"][[1, 3, 5]], rtol=0, atol=1e-10)


def test_what_cannot_be_simulated_is_refused(model_file: Path) -> None:
    """Relaxed layers, unknown elements and dtypes: a sentence each."""
    from mdrelax.engines.torchsim import MDRelaxModel

    force_field = load_model(model_file).force_field
    with pytest.raises(ValueError, match="Unknown `dtype` 'int64'"):
        MDRelaxModel(force_field, dtype=torch.int64)
    state = torch_sim.io.atoms_to_state([without_cell(Atoms("He"))], torch.device("cpu"), torch.float64)
    with pytest.raises(UnknownElementError, match=r"\[2\] are unknown"):
        adapted(model_file)(state)
    relax_constraints(force_field.potential)
    with pytest.raises(UnprojectedModelError, match="relaxed layers"):
        MDRelaxModel(force_field)
