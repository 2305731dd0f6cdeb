"""Path integrals with i-PI: the example of docs/scale.md, as it stands there. Needs `[ipi]`; `-m "peer and slow"`."""

import re
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from blueprint import ROOT
from lammps_runs import NETWORKS, environment, liquid
from mdrelax.engines.ase import MDRelaxCalculator
from untrained_models import saved

pytest.importorskip("ipi")
pytestmark = [pytest.mark.peer, pytest.mark.slow]


def example(language: str) -> str:
    """The code of the i-PI section in one language."""
    section = (ROOT / "docs" / "scale.md").read_text().partition("**i-PI**")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_four_beads_move_with_the_energies_of_ase(tmp_path: Path) -> None:
    """Ten steps of eight water molecules: the mean energy of the last beads is ASE's, and the beads are apart."""
    model = saved(tmp_path / "model.safetensors", 1, 8, arguments=NETWORKS["equiformer"])
    liquid().write(tmp_path / "start.xyz")
    socket = f"mdrelax-{uuid.uuid4().hex}"
    (tmp_path / "input.xml").write_text(example("xml").replace("<address>mdrelax<", f"<address>{socket}<"))
    client = example("python").replace('unixsocket="mdrelax"', f'unixsocket="{socket}", ')
    client = f"import time\nwhile not __import__('os').path.exists('/tmp/ipi_{socket}'): time.sleep(0.2)\n{client}"
    server = subprocess.Popen(
        [Path(sys.executable).parent / "i-pi", "input.xml"], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        line = [sys.executable, "-c", client]
        subprocess.run(line, cwd=tmp_path, env=environment(), check=True, timeout=200, capture_output=True)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()
    beads = [read(tmp_path / f"water.pos_{k}.extxyz", index=-1) for k in range(4)]
    calculator = MDRelaxCalculator.from_file(model)
    expected = np.mean([calculator.get_potential_energy(bead) for bead in beads])
    last = (tmp_path / "water.out").read_text().splitlines()[-1].split()
    assert float(last[0]) == 10
    assert float(last[3]) == pytest.approx(expected, abs=1e-4)  # float32, eight digits of positions
    assert np.abs(beads[0].positions - beads[1].positions).max() > 0.01
