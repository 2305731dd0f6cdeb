"""The catalogue of public data sets: complete, and certain of what it says."""

from ase.formula import Formula

from mdrelax.datasets.catalogue import CATALOGUE
from mdrelax.datasets.md17 import MD17_FORMULAS

# Atoms of each molecule, from the papers: Chmiela et al. 2017 (MD17) and 2023 (MD22).
N_ATOMS = {
    **{"aspirin": 21, "azobenzene": 24, "benzene": 12, "ethanol": 9, "malonaldehyde": 9, "naphthalene": 18},
    **{"paracetamol": 20, "salicylic": 16, "toluene": 15, "uracil": 12},
    **{"Ac-Ala3-NHMe": 42, "DHA": 56, "stachyose": 87, "AT-AT": 60, "AT-AT-CG-CG": 118, "buckyball-catcher": 148},
    "double-walled-nanotube": 370,
}


def test_every_molecule_has_its_formula():
    """The formula that a download is checked against has the number of atoms that the papers give."""
    molecules = {name: item for name, item in CATALOGUE.items() if item.formula is not None}
    assert {name.split(":")[1] for name in molecules} == set(N_ATOMS)
    assert {name.split(":")[1] for name in molecules if name.startswith("rmd17:")} == set(MD17_FORMULAS)
    for name, item in molecules.items():
        assert sum(Formula(item.formula).count().values()) == N_ATOMS[name.split(":")[1]], name


def test_rmd17_has_its_five_official_splits():
    """Index files come out of the same archive as the molecules."""
    indices = {name for name, item in CATALOGUE.items() if item.formula is None and item.holds is None}
    assert indices == {f"rmd17:index_{part}_0{k}" for part in ("train", "test") for k in range(1, 6)}


def test_every_checksum_in_the_catalogue_is_well_formed():
    """A sha256 has 64 hexadecimal digits and an md5 32; rMD17 is never fetched without one."""
    for name, item in CATALOGUE.items():
        for source in item.sources:
            assert source.url.startswith(("https://", "http://"))
            if source.checksum is None:
                assert name.startswith(("md17:", "md22:", "modelnet:"))
                continue
            kind, digits = source.checksum.split(":")
            assert len(bytes.fromhex(digits)) == {"sha256": 32, "md5": 16}[kind]
