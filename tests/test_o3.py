"""e3nn comes in without torch's compiler, and the compiler finds it as e3nn meant it."""

import subprocess
import sys
from pathlib import Path

from blueprint import ROOT, package_sources
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import save_model
from mdrelax.potentials import build_potential
from molecules import ethanol, graph_of

ARGUMENTS = {"irreps": "4x0e+2x1o", "n_blocks": 1, "cutoff": 4.0, "n_heads": 2, "n_features": 4, "radial_hidden": 4}

ONE_STEP = """
import sys
from ase.build import molecule
from mdrelax.calculator import MDRelaxCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = MDRelaxCalculator.from_file(sys.argv[1])
atoms.get_forces()
print("torch._dynamo" in sys.modules)
"""

COMPILED = """
import sys
from mdrelax.base import o3
import torch
from e3nn.o3 import _wigner

def change_of_basis(x):
    return (x.sin() * _wigner.change_basis_real_to_complex(2).real.sum()).cos()

def rotation(angle):
    return _wigner.wigner_D(2, angle, 2 * angle, 3 * angle)

assert "torch._dynamo" not in sys.modules
expected = change_of_basis(torch.ones(3)), rotation(torch.ones(3))
import torch._dynamo

breaks = torch._dynamo.explain(change_of_basis)(torch.ones(3)).break_reasons
assert len(breaks) == 1 and "disable" in breaks[0].reason, breaks
compiled = [torch.compile(function, backend="eager")(torch.ones(3)) for function in (change_of_basis, rotation)]
torch.testing.assert_close(compiled, list(expected))
"""


def run(program: str, *arguments: str) -> str:
    """What a fresh process prints that runs ``program``."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_model_file_gives_its_first_forces_without_the_compiler(tmp_path: Path):
    """Loading the compiler takes longer than everything else that a calculator imports beside torch."""
    model = ForceField(build_potential("equiformer", 3, ARGUMENTS), elements=(1, 6, 8))
    proof = certify(model, graph_of(ethanol(), cutoff=4.0), n_operations=1)
    path = save_model(
        tmp_path / "model.safetensors", model, potential="equiformer", arguments=ARGUMENTS, certificate=proof
    )
    assert run(ONE_STEP, str(path)) == "False"


def test_dynamo_stops_where_e3nn_tells_it_to():
    """One graph break at the decorated function, as with torch's own decorator, and the numbers of the eager call."""
    run(COMPILED)


def test_the_package_takes_o3_from_one_place():
    """A module that imports e3nn.o3 itself, as the first one, would load the compiler."""
    wrong = [
        str(source.path.relative_to(ROOT))
        for source in package_sources()
        if "from e3nn import o3" in source.path.read_text() and "peers" not in source.path.parts
    ]
    assert not wrong, f"Import o3 from mdrelax: {wrong}"
