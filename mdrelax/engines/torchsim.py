"""MDRelaxModel: a projected model in torch-sim, which moves many structures at once on one device.

    model = MDRelaxModel.from_file("model.safetensors", dtype=torch.float32)
    state = torch_sim.integrate(structures, model, integrator=torch_sim.nve, n_steps=1000, timestep=0.0005, ...)

A batch may mix sizes, elements and cells; torch-sim has one `pbc` for all of them. Energies in eV, forces in eV/A,
stress in eV/A^3 with ASE's sign. torch-sim's cells have the lattice vectors as columns, ours and ASE's as rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdrelax.compiled import compile_force_field
from mdrelax.engines.results import own_copy, refuse_relaxed
from mdrelax.forces.dispersion import D3
from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.modelfile import load_model
from mdrelax.structures.graph import Graph, collate
from mdrelax.structures.neighbors import VerletList

try:
    import torch_sim
    from torch_sim.models.interface import ModelInterface
except ImportError as missing:
    raise ImportError(
        f"torch-sim is not installed ({missing}); it is an extra: pip install 'mdrelax[torchsim]'."
    ) from missing

__all__ = ["MDRelaxModel"]


class MDRelaxModel(ModelInterface):
    """A force field as a torch-sim model.

    Args:
        force_field: A projected model; it is copied.
        dtype: Of the network and of the states; None keeps the model's own.
        device: Where the network is evaluated. Neighbours are found on the CPU.
        compute_stress: Whether results have a stress, zero for systems without a volume.
        skin: Reach (Angstrom) of the neighbour lists beyond the cut-off.

    Raises ``UnprojectedModelError`` for a model with relaxed layers, and ``ValueError`` for a dtype or device that
    cannot be used and for a stress of a model with direct forces. Calls raise ``ValueError`` for coinciding atoms and
    positions that are not finite, and ``UnknownElementError``.
    """

    def __init__(
        self,
        force_field: ForceField,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        compute_stress: bool = True,
        skin: float = 0.5,
    ) -> None:
        super().__init__()
        refuse_relaxed(force_field)
        if compute_stress and not force_field.conservative:
            raise ValueError("This model has direct forces and no stress; set `compute_stress=False`.")
        name = None if dtype is None else str(dtype).removeprefix("torch.")
        self.force_field = own_copy(force_field, name, device)
        functional = self.force_field.physics.dispersion
        self.dispersion = None if functional is None else D3(functional)
        self.skin = skin
        self._device, self._dtype = torch.device(device), self.force_field.dtype
        self._compute_stress, self._compute_forces = compute_stress, True
        self._neighbors: list[VerletList] = []  # of the systems, in the order of the batch

    @classmethod
    def from_file(cls, path: str | Path, *, compile: bool = False, **options: Any) -> "MDRelaxModel":
        """The model of a finished model file; ``options`` are those of the class.

        ``compile=True`` compiles the network for this process, on the CPU, which takes a minute or more. Raises the
        errors of ``load_model`` and ``compile_force_field``.
        """
        force_field = load_model(path).force_field
        if compile:
            dtype = options.get("dtype")
            name = None if dtype is None else str(dtype).removeprefix("torch.")
            force_field = compile_force_field(force_field, dtype=name)
        return cls(force_field, **options)

    def forward(self, state: "torch_sim.SimState | dict[str, Any]", **_: Any) -> dict[str, Tensor]:
        """Results for a batch of S systems with N atoms: ``energy`` (S,), ``forces`` (N, 3), ``stress`` (S, 3, 3).

        The state is not changed.
        """
        if isinstance(state, dict):
            state = torch_sim.SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        graph = self._graph(state)
        prediction = self.force_field(graph.to(self._device), stress=self._compute_stress)
        if self.dispersion is not None:
            prediction = _with_dispersion(self.dispersion, prediction, graph, state.pbc)
        results = {"energy": prediction.energy, "forces": prediction.forces}
        if prediction.stress is not None:
            results["stress"] = prediction.stress
        return {name: tensor.to(state.positions) for name, tensor in results.items()}

    def _graph(self, state: "torch_sim.SimState") -> Graph:
        """The systems of a batch as one graph. A neighbour list notices by itself that its system is another one."""
        sizes = torch.bincount(state.system_idx, minlength=state.n_systems).tolist()
        cells = state.cell.detach().mT.double().cpu().numpy()
        positions = state.positions.detach().double().cpu().split(sizes)
        numbers = state.atomic_numbers.cpu().split(sizes)
        while len(self._neighbors) < len(sizes):
            self._neighbors.append(VerletList(self.force_field.cutoff, self.skin))
        systems = zip(self._neighbors, positions, numbers, cells, strict=False)  # a batch may have become smaller
        return collate([near.graph(x, z, cell, state.pbc) for near, x, z, cell in systems])


def _with_dispersion(d3: D3, learnt: Prediction, graph: Graph, pbc: "Tensor | bool") -> Prediction:
    """The prediction for the systems of a graph on the CPU with their dispersion, computed there one by one."""
    periodic = np.broadcast_to(np.asarray(torch.as_tensor(pbc).cpu()), 3)
    sizes = torch.bincount(graph.batch, minlength=graph.n_graphs).tolist()
    systems = zip(graph.numbers.split(sizes), graph.positions.split(sizes), graph.cell, strict=True)
    parts = [d3(z.numpy(), x.numpy(), cell.numpy(), periodic) for z, x, cell in systems]
    nothing = np.zeros((3, 3))
    energy = torch.tensor([part.energy for part in parts], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([part.forces for part in parts]))
    stress = torch.from_numpy(np.stack([nothing if part.stress is None else part.stress for part in parts]))
    return learnt._replace(
        energy=learnt.energy + energy.to(learnt.energy),
        forces=learnt.forces + forces.to(learnt.forces),
        stress=None if learnt.stress is None else learnt.stress + stress.to(learnt.stress),
    )
