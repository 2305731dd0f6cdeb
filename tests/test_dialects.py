"""Dialects: the same two crystals as six programs write them are the same frames; periodicity is read or refused."""

from pathlib import Path

import numpy as np
import pytest

from mdrelax.datasets import load_frames

CELL = np.array([[3.7, 0.1, 0.0], [0.0, 3.9, 0.2], [0.3, 0.0, 4.1]])  # rows are lattice vectors
POSITIONS = np.array([[0.0, 0.1, 0.2], [1.9, 2.0, 2.1]])
FORCES = np.array([[0.5, -0.25, 0.125], [-0.5, 0.25, -0.125]])
STRESS = np.array([[0.01, 0.002, -0.003], [0.002, -0.02, 0.004], [-0.003, 0.004, 0.03]])  # eV/A^3, tension positive
VIRIAL = -STRESS * np.linalg.det(CELL)
ENERGY, FREE_ENERGY = -7.5, -7.625


def numbers(values: np.ndarray) -> str:
    """Numbers in one line."""
    return " ".join(f"{x:.10f}" for x in np.ravel(values))


def xyz(comment: str, *, species: str = "Cu", column: str = "{0} {1} {2}") -> str:
    """A frame of two atoms: symbol, positions and forces in each row, as ``column`` orders them."""
    rows = [
        column.format(species, numbers(x), numbers(f), 29) for x, f in zip(POSITIONS, FORCES, strict=True)
    ]  # fmt: skip
    return "\n".join(["2", comment, *rows, ""])


LATTICE = f'"{numbers(CELL)}"'
ISOLATED = "1\n{}\nCu 0 0 0 0 0 0\n"
ASE_COLUMNS = "Properties=species:S:1:pos:R:3:forces:R:3"
OUTCAR = f""" vasp.6.3.0 20Jan22
 POTCAR:    PAW_PBE Cu 22Jun2005
 POTCAR:    PAW_PBE Cu 22Jun2005
   ions per type =               2
   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=      1
 k-points in reciprocal lattice and weights: K-Points
   0.00000000  0.00000000  0.00000000       1.000
   ISPIN  =      1    spin polarized calculation?
--------------------------------------- Iteration      1(   1)  ---------------------------------------
  in kB     {" ".join(f"{-STRESS[i, j] / 0.0006241509074460764:.8f}" for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)))}
      direct lattice vectors                 reciprocal lattice vectors
{chr(10).join(f"     {numbers(row)}     0.1 0.0 0.0" for row in CELL)}
 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
{chr(10).join(f"  {numbers(x)}  {numbers(f)}" for x, f in zip(POSITIONS, FORCES, strict=True))}
 -----------------------------------------------------------------------------------
  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =       {FREE_ENERGY} eV

  energy  without entropy=      {ENERGY - 0.1}  energy(sigma->0) =      {ENERGY}
"""  # noqa: E501 - as VASP writes it
FILES = {
    "GAP (QUIP)": (
        "gap.xyz",
        ISOLATED.format(f"{ASE_COLUMNS} config_type=isolated_atom dft_energy=-0.5")
        + xyz(
            f"dft_energy={ENERGY} dft_virial={{{numbers(VIRIAL)}}} config_type=bulk cutoff=-1.0 nneightol=1.2 "
            f'pbc="T T T" Lattice={LATTICE} Properties=species:S:1:pos:R:3:Z:I:1:dft_force:R:3',
            column="{0} {1} {3} {2}",
        ),
        {"energy_key": "dft_energy", "forces_key": "dft_force", "stress_key": "dft_virial"},
    ),
    "GPUMD (NEP)": (
        "train.xyz",
        xyz(
            f"energy={ENERGY} lattice={LATTICE} virial={{{numbers(VIRIAL)}}} config_type=bulk weight=1.0 "
            "properties=species:S:1:pos:R:3:force:R:3".replace("{", '"').replace("}", '"')
        ),
        {},
    ),
    "MACE": (
        "mace.xyz",
        ISOLATED.format("Properties=species:S:1:pos:R:3:REF_forces:R:3 config_type=IsolatedAtom REF_energy=-0.5")
        + xyz(
            f"REF_energy={ENERGY} REF_stress={LATTICE.replace(numbers(CELL), numbers(STRESS))} head=pbe "
            f'config_weight=1.0 Lattice={LATTICE} pbc="T T T" Properties=species:S:1:pos:R:3:REF_forces:R:3'
        ),
        {},
    ),
    "ASE's extxyz of VASP": (
        "vasp.extxyz",
        xyz(
            f'Lattice={LATTICE} {ASE_COLUMNS} energy={ENERGY} free_energy={FREE_ENERGY} stress="{numbers(STRESS)}" '
            'pbc="T T T"'
        ),
        {},
    ),
    "OUTCAR": ("OUTCAR", OUTCAR, {}),
}


@pytest.mark.parametrize("dialect", FILES)
def test_every_programs_file_is_the_same_crystal(tmp_path, dialect):
    """Cell, periodicity, energy, forces and stress in ASE's sign (text of 10 decimals, kbar of 8: 1e-7)."""
    name, content, options = FILES[dialect]
    (tmp_path / name).write_text(content)
    frames = load_frames(tmp_path / name, **options)
    (frame,) = frames.data
    assert frame.z.tolist() == [29, 29]
    assert frame.pbc.all()
    np.testing.assert_allclose(frame.cell[0].numpy(), CELL, atol=1e-9)
    np.testing.assert_allclose(frame.pos.numpy(), POSITIONS, atol=1e-9)
    np.testing.assert_allclose(frame.forces.numpy(), FORCES, atol=1e-9)
    np.testing.assert_allclose(frame.stress[0].numpy(), STRESS, atol=1e-7)
    assert frame.energy.item() == ENERGY
    assert "1 of 1 frames are periodic along abc" in str(frames.report)
    assert frames.isolated_energies == ({29: -0.5} if content.startswith("1\n") else {})


@pytest.mark.parametrize("dialect", ["ASE's extxyz of VASP", "OUTCAR"])
def test_the_free_energy_is_offered_where_forces_are_its_gradient(tmp_path, dialect):
    """With smeared occupations VASP's forces belong to the free energy: the report says by how much it differs."""
    name, content, _ = FILES[dialect]
    (tmp_path / name).write_text(content)
    report = str(load_frames(tmp_path / name).report)
    assert "`free_energy` differs from `energy` by up to 0.125" in report
    assert "`energy_key: free_energy`" in report
    free = load_frames(tmp_path / name, energy_key="free_energy")
    assert free.data[0].energy.item() == FREE_ENERGY
    assert "differs" not in str(free.report)


def npz(folder: Path, **extra: object) -> Path:
    """Two frames of the crystal in sGDML's layout."""
    path = folder / "crystal.npz"
    arrays = {"R": np.stack([POSITIONS] * 2), "E": np.array([ENERGY, ENERGY]), "F": np.stack([FORCES] * 2)}
    np.savez(path, type="d", name="cu", z=np.array([29, 29]), e_unit="eV", r_unit="Ang", **arrays, **extra)
    return path


@pytest.mark.parametrize(
    "extra",
    [
        {"lattice": CELL.T},
        {"cell": CELL},
        {"cell": np.stack([CELL] * 2), "pbc": np.array([True, True, True])},
    ],
    ids=["sGDML's lattice, vectors as columns", "cell, vectors as rows", "one cell for each frame"],
)
def test_an_npz_keeps_its_cell(tmp_path, extra):
    """sGDML writes lattice vectors as the columns of `lattice`; a `cell` has rows, as ASE's."""
    frames = load_frames(npz(tmp_path, **extra))
    for frame in frames.data:
        np.testing.assert_array_equal(frame.cell[0].numpy(), CELL)
        assert frame.pbc.all()
    assert "2 of 2 frames are periodic along abc" in str(frames.report)


def test_the_cell_of_an_npz_is_a_length(tmp_path):
    """It is converted with the positions."""
    frame = load_frames(npz(tmp_path, lattice=CELL.T), length_unit="nm").data[0]
    np.testing.assert_allclose(frame.cell[0].numpy(), 10 * CELL)


def test_an_npz_of_molecules_stays_open(tmp_path):
    """No lattice, or one of zeros."""
    for extra in ({}, {"lattice": np.zeros((3, 3))}):
        assert not load_frames(npz(tmp_path, **extra)).data[0].pbc.any()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"lattice": np.ones(6)}, r"`lattice` of `crystal.npz` has shape \(6,\)"),
        ({"pbc": np.array([True] * 3)}, "is periodic .* but has no cell"),
        ({"pbc": np.array([True] * 5), "lattice": CELL}, r"`pbc` of `crystal.npz` has shape \(5,\)"),
        ({"lattice": np.diag([3.0, 3.0, 0.0]) + np.eye(3, k=1)}, "frame 0 of `crystal.npz`.* span no volume"),
    ],
)
def test_a_cell_of_an_npz_that_cannot_be_read_is_refused(tmp_path, extra, sentence):
    """Never a cluster in place of a crystal."""
    with pytest.raises(ValueError, match=sentence):
        load_frames(npz(tmp_path, **extra))


DIAGONAL = np.diag([3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("comment", "cell", "pbc"),
    [
        (f"lattice={LATTICE}", CELL, "abc"),
        (f"LATTICE={LATTICE} PBC='T T F'", CELL, "ab"),
        (f"cell={LATTICE} pbc=TTF", CELL, "ab"),
        (f"Cell={LATTICE} pbc='1 0 1'", CELL, "ac"),
        (f"Lattice={LATTICE} pbc='true true false'", CELL, "ab"),
        (f"Lattice={LATTICE} pbc=T", CELL, "abc"),
        (f"Lattice={LATTICE} pbc='F F F'", np.zeros((3, 3)), ""),
        ("box='3 4 5'", DIAGONAL, "abc"),
        ("cell=[3.0,4.0,5.0,90,90,90]", DIAGONAL, "abc"),
        ("cell=[[3,0,0],[0,4,0],[0,0,5]]", DIAGONAL, "abc"),
        ("cell='0 0 0 0 0 0 0 0 0'", np.zeros((3, 3)), ""),
        ("", np.zeros((3, 3)), ""),
    ],
)
def test_every_spelling_of_cell_and_pbc_is_read(tmp_path, comment, cell, pbc):
    """The report says how many frames are periodic, and along which axes."""
    path = tmp_path / "x.extxyz"
    path.write_text(xyz(f"energy=-1 {comment} {ASE_COLUMNS}"))
    frames = load_frames(path)
    np.testing.assert_allclose(frames.data[0].cell[0].numpy(), cell, atol=1e-9)
    assert [axis for axis, periodic in zip("abc", frames.data[0].pbc[0], strict=True) if periodic] == list(pbc)
    assert f"1 of 1 frames are {f'periodic along {pbc}' if pbc else 'open'}" in str(frames.report)


@pytest.mark.parametrize("comment", ["cell=cubic", "unit_cell='1 2 3 4'", "lattice_vectors='a b c'"])
def test_a_cell_in_an_unknown_form_is_refused(tmp_path, comment):
    """With the frame, counted from 0, and the spelling to use."""
    path = tmp_path / "x.extxyz"
    path.write_text(xyz(f"energy=-1 {ASE_COLUMNS}") + xyz(f"energy=-1 {ASE_COLUMNS} {comment}"))
    with pytest.raises(ValueError, match=r"of frame 1 of `x.extxyz` is no cell that can be read; .*Lattice="):
        load_frames(path)


def test_a_quoted_text_is_left_as_it_is(tmp_path):
    """A provenance that says cell=... is no cell."""
    path = tmp_path / "x.extxyz"
    path.write_text(xyz(f'energy=-1 {ASE_COLUMNS} note="pbc=T cell=3.0 \\"lattice=9\\" properties=x"'))
    assert not load_frames(path).data[0].pbc.any()
