"""Compiled models: ASE's numbers for every kind of structure, the same refusals, and files that are what they say."""

import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor, nn

from lennard_jones import assert_like_ase, cluster, crystal, lj_calculator, lj_force_field
from mdrelax.compiled import CompileError, compile_force_field, export_model, file_hash, files, load_compiled
from mdrelax.compiled.parity import Parity, example_graphs, measure_parity, require_parity
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField, UnknownElementError
from mdrelax.forces.potential import Potential
from mdrelax.forces.symmetry import certify
from mdrelax.method.relaxation import relax_constraints
from mdrelax.modelfile import LoadedModel, ModelFileError, load_model
from mdrelax.structures.graph import Edges, collate
from molecules import ELEMENTS, batch_of, graph_of, tiny_equiformer_pytorch, tiny_force_field

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lennard-Jones as a `.pt2` file, renamed after it was written."""
    force_field = lj_force_field()
    certificate = certify(force_field, batch_of(cluster(), cutoff=force_field.cutoff), n_operations=1)
    header = {"certificate": certificate.to_dict(), "card": {"data": "none"}, "content": "0" * 64}
    header |= {"citation": "", "versions": {}, "units": {}}
    folder = tmp_path_factory.mktemp("deploy")
    export_model(LoadedModel(force_field, certificate, header), folder / "first.pt2")
    return (folder / "first.pt2").rename(folder / "lennard-jones.pt2")


@pytest.fixture
def calculator(exported: Path) -> MDRelaxCalculator:
    """The compiled calculator."""
    return MDRelaxCalculator.from_compiled(exported)


def far_apart() -> Atoms:
    """Two atoms that do not see each other."""
    return Atoms("ArH", [[0, 0, 0], [0, 0, 50.0]])


# --- the numbers ---


@needs_compiler
@pytest.mark.parametrize(
    "make",
    [cluster, crystal, lambda: bulk("Cu"), lambda: bulk("Cu") * (3, 3, 2), lambda: Atoms("Ar"), far_apart,
     lambda: Atoms("Ar2", [[0, 0, 0], [0, 0, 2.9]]), lambda: cluster() + Atoms("H", [[90.0, 0, 0]])],
)  # fmt: skip
def test_compiled_results_are_those_of_ase(calculator: MDRelaxCalculator, make: Callable[[], Atoms]) -> None:
    """One compiled graph serves every number of atoms and edges: crystals, pairs, lone atoms, none alike."""
    atoms = make()
    atoms.calc = calculator
    assert_like_ase(atoms)


@needs_compiler
def test_compiled_and_uncompiled_calculators_offer_the_same(calculator: MDRelaxCalculator) -> None:
    """Results of a batch have the same names and numbers, rounding apart."""
    structures = [cluster(1), crystal(1), Atoms("H"), cluster(2)]
    ours, plain = (each.calculate_many(structures) for each in (calculator, lj_calculator()))
    for compiled, eager in zip(ours, plain, strict=True):
        assert compiled.keys() == eager.keys()
        for name, value in eager.items():
            np.testing.assert_allclose(compiled[name], value, atol=1e-10)


@needs_compiler
def test_a_compiled_calculator_refuses_what_the_model_does_not_know(calculator: MDRelaxCalculator) -> None:
    """The checks stay the force field's."""
    with pytest.raises(UnknownElementError, match=r"\[8\] are unknown"):
        calculator.calculate(Atoms("O"))
    with pytest.raises(ValueError, match="no atoms"):
        calculator.calculate(Atoms())


@needs_compiler
@pytest.mark.slow
def test_compiling_in_memory_gives_the_models_numbers_in_either_precision() -> None:
    """``compile_force_field`` leaves the original as it is, and checks itself against it."""
    model = lj_force_field()
    compiled = compile_force_field(model, dtype="float32")
    graph = graph_of(crystal(), cutoff=model.cutoff)
    assert (compiled.dtype, model.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(compiled(graph).forces, model(graph).forces, atol=1e-5, rtol=0)


# --- what a compiled model is not ---


@needs_compiler
def test_a_compiled_model_is_neither_cast_nor_trained(calculator: MDRelaxCalculator) -> None:
    """Its precision is compiled in, and it has no parameters."""
    with pytest.raises(ValueError, match="compiled for float64"):
        MDRelaxCalculator(calculator.force_field, dtype="float32")
    with pytest.raises(ValueError, match="cannot be trained"):
        calculator.force_field(graph_of(crystal(), cutoff=6.0), create_graph=True)


def test_models_are_compiled_for_the_cpu_only() -> None:
    """Another device is refused before minutes are spent."""
    with pytest.raises(ValueError, match="for the CPU only"):
        MDRelaxCalculator.from_file("model.safetensors", device="cuda", compile=True)


def test_direct_forces_are_not_compiled() -> None:
    """They are no gradient."""
    network = tiny_equiformer_pytorch(forces="direct")
    with pytest.raises(CompileError, match="predicts forces directly"):
        compile_force_field(ForceField(network, elements=ELEMENTS))


def test_relaxed_models_are_not_compiled() -> None:
    """What is not equivariant drives no simulation."""
    model = tiny_force_field()
    relax_constraints(model.potential)
    with pytest.raises(ValueError, match="`project` it before"):
        compile_force_field(model)


class Counting(Potential):
    """Computes something else where the first atom has more than three edges."""

    cutoff = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """A number for each atom."""
        total = edges.vectors.square().sum() * self.factor
        return total.expand(len(species)) * (2.0 if bool((edges.index[1] == 0).sum() > 3) else 1.0)


@needs_compiler
def test_networks_that_look_at_the_structure_are_refused_in_one_sentence() -> None:
    """A branch on data would be baked in: the network is named, and nothing is compiled."""
    with pytest.raises(CompileError, match="`Counting` cannot be compiled for every number of atoms") as error:
        compile_force_field(ForceField(Counting(), elements=ELEMENTS))
    assert "\n" not in str(error.value)


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""

    def missing() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(CompileError, match=r"needs a C\+\+ compiler, and none was found: install"):
        compile_force_field(lj_force_field())


def test_a_compiled_model_with_other_numbers_is_refused() -> None:
    """A difference of 1e-5 of the forces passes in float32 and not in float64; NaN never passes."""
    model, other = lj_force_field(), lj_force_field()
    with torch.no_grad():
        other.potential.epsilon.mul_(1 + 1e-5)  # type: ignore[operator, union-attr]
    parity = measure_parity(other, model, example_graphs(model.elements, model.cutoff))
    assert 1e-6 < max(parity) < 1e-4
    assert require_parity(parity, torch.float32) == parity
    with pytest.raises(CompileError, match="1e-10 and 1e-10 are allowed in float64; it is refused"):
        require_parity(parity, torch.float64)
    with pytest.raises(CompileError):
        require_parity(parity._replace(gradient=math.nan), torch.float32)


def test_a_compiled_model_may_differ_by_the_originals_own_rounding() -> None:
    """Where float32 is 5e-4 from float64, 1.5e-4 between two forms of float32 says nothing; 1.1e-3 does."""
    parity, rounding = Parity(5e-7, 1.5e-4), Parity(5e-7, 5e-4)
    with pytest.raises(CompileError, match="1e-04 and 1e-04 are allowed"):
        require_parity(parity, torch.float32)
    assert require_parity(parity, torch.float32, rounding=rounding) == parity
    for worse in (parity._replace(gradient=1.1e-3), parity._replace(energies=2e-4), Parity(math.nan, 0.0)):
        with pytest.raises(CompileError, match="1e-04 and 1e-03 are allowed"):
            require_parity(worse, torch.float32, rounding=rounding)


def test_the_structures_of_the_check_leave_nothing_for_granted() -> None:
    """Among them: one atom, two, no edges at all, an atom without neighbours, and unlike numbers of edges."""
    graphs = example_graphs(ELEMENTS, 5.0)
    sizes = [(len(graph.numbers), graph.edge_index.shape[1]) for graph in graphs]
    degrees = torch.bincount(collate(graphs).edge_index[1], minlength=sum(n for n, _ in sizes))
    assert {1, 2} <= {n for n, _ in sizes}
    assert 0 in {e for _, e in sizes}
    assert len(set(degrees[:12].tolist())) > 1
    assert degrees[24] == 0


# --- the file ---


@needs_compiler
def test_the_file_carries_what_a_calculator_needs(exported: Path) -> None:
    """Elements, reference energies, certificate and the check's result; nothing else is asked for."""
    loaded = load_compiled(exported, sha256=file_hash(exported))
    assert loaded.header["elements"] == [1, 18, 29]
    assert loaded.header["card"] == {"data": "none"}
    assert loaded.certificate.passed
    assert max(loaded.header["parity"].values()) < 1e-10
    assert loaded.force_field.cutoff == 6.0


@needs_compiler
def test_a_model_loader_never_touches_a_compiled_file(exported: Path) -> None:
    """``load_model`` is for files that run nothing."""
    with pytest.raises(ModelFileError, match="would run the code"):
        load_model(exported)


@needs_compiler
def test_another_file_than_the_trusted_one_is_refused(exported: Path) -> None:
    """Its code is not loaded."""
    with pytest.raises(ModelFileError, match="not the file you trust"):
        load_compiled(exported, sha256="0" * 64)


@needs_compiler
def test_altered_and_truncated_files_are_refused(exported: Path, tmp_path: Path) -> None:
    """One changed number in the document, one byte in the library, half a file, another file."""
    for number, change in enumerate([(b'"scale": 1.0', b'"scale": 2.0'), (b"\x7fELF", b"\x7fELG")]):
        altered = tmp_path / f"{number}.pt2"
        with zipfile.ZipFile(exported) as old, zipfile.ZipFile(altered, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(*change))
        with pytest.raises(ModelFileError, match="was altered"):
            load_compiled(altered)
    for content in (exported.read_bytes()[:5000], b"no archive", b""):
        (tmp_path / "broken.pt2").write_bytes(content)
        with pytest.raises(ModelFileError, match="damaged, or not a compiled model"):
            load_compiled(tmp_path / "broken.pt2")
    with pytest.raises(ModelFileError, match="There is no compiled model"):
        load_compiled(tmp_path / "none.pt2")


@needs_compiler
def test_a_file_for_another_machine_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code of another processor or torch would crash or, worse, not crash."""
    other: dict[str, Any] = {**files.this_machine(), "torch": "1.0"}
    monkeypatch.setattr(files, "this_machine", lambda: other)
    with pytest.raises(ModelFileError, match="runs on like machines only"):
        load_compiled(exported)
