"""Peers without their packages: the proof by a calculator, the training task, and what cannot be fine-tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from pydantic import ValidationError
from torch import Tensor, nn

from mdrelax.method.certificate import CertificateError, EquivarianceError
from mdrelax.peers.fine_tune import PeerFineTuning
from mdrelax.peers.peer import PeerPrediction, open_peer, open_stored_peer
from mdrelax.peers.proof import PeerProof, require_proof, symmetry_errors, turned
from mdrelax.peers.task import Labelled, PeerTask, energy_offsets, errors_of


class Springs(nn.Module):
    """Energies of springs of length 1 between all atoms, and one energy per atom, with parameters to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness, self.shift = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, batch: Sequence[Tensor]) -> PeerPrediction:
        """Energies and forces of molecules of any size."""
        energies, forces = [], []
        for positions in batch:
            x = positions.detach().requires_grad_()
            i, j = torch.triu_indices(len(x), len(x), 1)
            energy = self.stiffness * ((x[i] - x[j]).norm(dim=1) - 1).square().sum() + len(x) * self.shift
            (slope,) = torch.autograd.grad(energy, x, create_graph=True)
            energies.append(energy)
            forces.append(-slope)
        return PeerPrediction(torch.stack(energies), torch.cat(forces), None)


class SpringPeer:
    """The peer of such a network."""

    def symmetry(self, model: nn.Module) -> str:
        """Distances know no mirror."""
        return "E(3)"

    def batch_of(self, model: nn.Module, structures: Sequence[Atoms]) -> list[Tensor]:
        """Positions."""
        return [torch.tensor(atoms.positions, dtype=torch.float32) for atoms in structures]

    def predict(self, model: nn.Module, batch: Any) -> PeerPrediction:
        """The network's own result."""
        return model(batch)

    def calculator(self, model: nn.Module) -> Calculator:
        """Not needed here."""
        raise NotImplementedError


class AlongX(Calculator):
    """A force field that prefers an axis of space: E = sum of x^2 from the centre."""

    implemented_properties = ("energy", "forces")  # type: ignore[assignment]

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        """Energy and forces."""
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions - atoms.positions.mean(0)
        self.results = {"energy": 1 + (x[:, 0] ** 2).sum(), "forces": -2 * x * np.array([1.0, 0, 0])}


def molecules(n: int) -> list[Labelled]:
    """Four atoms each, labelled by springs of stiffness 3 and an energy of -0.5 per atom."""
    stream, truth, peer = np.random.default_rng(0), Springs(), SpringPeer()
    with torch.no_grad():
        truth.stiffness.fill_(3.0)
        truth.shift.fill_(-0.5)
    found = []
    for _ in range(n):
        atoms = Atoms("CO2H", stream.normal(size=(4, 3)))
        energy, forces, _ = peer.predict(truth, peer.batch_of(truth, [atoms]))
        found.append(Labelled(atoms, energy.item(), forces.detach().double().numpy(), np.diag([1.0, 2, 3])))
    return found


def test_the_proof_sees_a_force_field_that_is_not_symmetric():
    """EMT of a rattled crystal is exact to rounding of its float64; a field along x is not invariant to rotations."""
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.rattle(0.1, seed=0)
    exact = symmetry_errors(EMT(), [crystal])
    assert exact.worst(reflections=True) < 1e-9
    broken = symmetry_errors(AlongX(), [Atoms("CO2", np.random.default_rng(0).normal(size=(3, 3)))])
    assert min(broken.rotation, broken.reflection) > 0.1
    assert max(broken.translation, broken.permutation) < 1e-12


def test_a_network_that_lost_its_symmetry_is_refused():
    """The limit is 1e-4, or three times the original's error if that is larger; reflections count under E(3) only."""
    fine, rough, bad = (EquivarianceError(e, 0.9, 0.0, 0.0) for e in (1e-6, 1e-3, 2e-3))
    assert PeerProof("SE(3)", fine, fine, 1, []).passed
    assert PeerProof("SE(3)", rough, bad, 1, []).limit == pytest.approx(3e-3)
    assert require_proof(PeerProof("SE(3)", rough, bad, 1, [])).passed
    with pytest.raises(CertificateError, match=r"not SE\(3\)-equivariant: .* 2.0e-03, where the original has 1.0e-06"):
        require_proof(PeerProof("SE(3)", fine, bad, 1, []))
    mirrored = fine._replace(reflection=0.0)
    assert not PeerProof("E(3)", mirrored, fine, 1, []).passed


def test_labels_turn_with_the_structure():
    """Forces as vectors, stress as a tensor, the energy not at all; the cell with the atoms."""
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # x -> y
    (given,) = molecules(1)
    found = given.turned(quarter)
    np.testing.assert_allclose(found.forces[:, 1], given.forces[:, 0])
    np.testing.assert_allclose(found.stress, np.diag([2.0, 1, 3]))
    assert found.energy == given.energy
    crystal = turned(bulk("Cu", cubic=True), quarter)
    np.testing.assert_allclose(crystal.cell[0], [0, 3.61, 0], atol=1e-12)


def test_the_task_is_solved_by_the_network_that_made_the_labels():
    """Its loss is zero to rounding of float32 under random rotations, and descent leads there."""
    data, peer, model = molecules(8), SpringPeer(), Springs()
    task = PeerTask(peer, data[:6], data[6:], batch_size=2, seed=0)
    assert [len(batch) for batch in task.batches(0, start=0)] == [2, 2, 2]
    offsets = energy_offsets(peer, model, data)
    optimizer, step = torch.optim.Adam(model.parameters(), lr=0.1), 0
    for epoch in range(60):
        for batch in task.batches(epoch, start=0):
            loss, (mae,) = task.loss(model, batch, step=step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    assert model.stiffness.item() == pytest.approx(3.0, abs=1e-2)
    assert model.shift.item() == pytest.approx(-0.5, abs=1e-2)
    assert loss < 1e-3
    assert mae < 50
    found = task.validate(model)
    assert list(found.values()) == list(errors_of(peer, model, data[6:]))
    assert set(offsets) == {1, 6, 8}


def test_references_are_the_differences_per_element():
    """Two levels of theory that differ by 1 eV per O and 2 eV per H, and nothing else, are told apart exactly."""
    peer, model, stream = SpringPeer(), Springs(), np.random.default_rng(0)
    data = []
    for formula in ("O2H", "OH3", "O3H2", "OH"):
        atoms = Atoms(formula)
        atoms.positions = stream.normal(size=(len(atoms), 3))
        energy = peer.predict(model, peer.batch_of(model, [atoms])).energy.item()
        n_oxygen = sum(atoms.numbers == 8)
        n_hydrogen = len(atoms) - n_oxygen
        data.append(Labelled(atoms, energy + n_oxygen + 2 * n_hydrogen, np.zeros((len(atoms), 3)), None))
    assert energy_offsets(peer, model, data) == pytest.approx({1: 2.0, 8: 1.0}, abs=1e-5)


def test_an_unknown_peer_names_the_nearest():
    """And a peer without files says what to do instead."""
    with pytest.raises(ValueError, match="did you mean `sevenn`"):
        open_peer("sevennet")
    with pytest.raises(ValueError, match=r"needs its package: pip install|neither read nor written here"):
        open_stored_peer("nequip")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"peer": "sevennet"}, "there is no peer `sevennet`"),
        ({"relaxation": {"schedule": "constant", "projection": "keep"}}, "has to be exactly equivariant"),
        ({"training": {"steps": 1, "dtype": "float64"}}, "leave out `training.dtype`, got float64"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(keys: dict[str, Any], sentence: str):
    """When they are read, before anything is loaded."""
    given = {"peer": "sevenn", "model": "7net-0", "data": "a.extxyz", "training": {"steps": 1}}
    with pytest.raises(ValidationError, match=sentence):
        PeerFineTuning(**{**given, **keys})


@pytest.mark.peer
def test_a_fine_tuned_file_is_loaded_by_sevenn_alone(tmp_path: Path):
    """The shipped proof in miniature: two relaxed steps on silicon, then sevenn's calculator of the file."""
    pytest.importorskip("sevenn")
    from ase.io import write

    from mdrelax.peers.fine_tune import fine_tune_peer

    frames, stream = [], np.random.default_rng(0)
    for _ in range(4):
        atoms = bulk("Si", cubic=True)
        atoms.positions += 0.05 * stream.normal(size=(8, 3))
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = -30.0, 0.5 * stream.normal(size=(8, 3))
        frames.append(atoms)
    write(tmp_path / "si.extxyz", frames, format="extxyz")
    training = {"steps": 2, "batch_size": 1, "validate_every": 1, "warmup_steps": 0}
    settings = PeerFineTuning(
        peer="sevenn", model="7net-0", data=str(tmp_path / "si.extxyz"), validation=1, training=training,
        relaxation={"rank": 4, "initial_std": 0.01},
    )  # fmt: skip
    said: list[str] = []
    found = fine_tune_peer(settings, tmp_path / "run", tell=said.append)
    assert any("are pickles" in line for line in said)
    assert found.proof.passed

    from sevenn.calculator import SevenNetCalculator

    with pytest.warns(UserWarning, match="accelerator"):
        frames[0].calc = SevenNetCalculator(str(found.model_file), device="cpu")
    assert frames[0].get_potential_energy() == pytest.approx(-30.0, abs=2.0)  # the references of the data
