"""Units against ASE's and scipy's constants."""

import ase.units
import pytest
from scipy import constants

from mdrelax.base.names import nearest_name
from mdrelax.base.units import (
    ELEMENTARY_CHARGE,
    ENERGY_UNITS,
    EV_PER_KCAL_MOL,
    FORCE_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    energy_unit,
    force_unit,
    length_unit,
    stress_unit,
)

ADJUSTMENT = 1e-7  # CODATA 2014 (ASE), 2018 (ours) and 2022 (scipy) differ in the ninth digit


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("kcal/mol", ase.units.kcal / ase.units.mol),
        ("kJ/mol", ase.units.kJ / ase.units.mol),
        ("Hartree", ase.units.Hartree),
        ("mHartree", ase.units.Hartree / 1000),
        ("Rydberg", ase.units.Rydberg),
    ],
)
def test_energies_are_ases(name: str, expected: float):
    """Every energy unit, in eV; a kilocalorie is the thermochemical one in both."""
    assert energy_unit(name) == pytest.approx(expected, rel=ADJUSTMENT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Angstrom", 1.0), ("Bohr", ase.units.Bohr), ("nm", ase.units.nm), ("pm", ase.units.nm / 1000)],
)
def test_lengths_are_ases(name: str, expected: float):
    """Every length unit, in Angstrom."""
    assert length_unit(name) == pytest.approx(expected, rel=ADJUSTMENT)


FORCES = {
    "eV/Angstrom": 1.0,
    "meV/Angstrom": 1e-3,
    "kcal/mol/Angstrom": ase.units.kcal / ase.units.mol,
    "kJ/mol/Angstrom": ase.units.kJ / ase.units.mol,
    "kJ/mol/nm": ase.units.kJ / ase.units.mol / ase.units.nm,
    "Hartree/Angstrom": ase.units.Hartree,
    "Hartree/Bohr": ase.units.Hartree / ase.units.Bohr,
    "Rydberg/Bohr": ase.units.Rydberg / ase.units.Bohr,
}
STRESSES = {
    "eV/Angstrom^3": 1.0,
    "Hartree/Bohr^3": ase.units.Hartree / ase.units.Bohr**3,
    "Rydberg/Bohr^3": ase.units.Rydberg / ase.units.Bohr**3,
    "GPa": ase.units.GPa,
    "MPa": ase.units.GPa / 1e3,
    "Pa": ase.units.Pascal,
    "kbar": ase.units.bar * 1e3,
    "bar": ase.units.bar,
    "atm": 101325 * ase.units.Pascal,
}


@pytest.mark.parametrize("name", FORCES)
def test_forces_are_ases(name: str):
    """Every force unit, in eV/Angstrom."""
    assert force_unit(name) == pytest.approx(FORCES[name], rel=ADJUSTMENT)
    assert FORCE_UNITS[name] == pytest.approx(FORCES[name], rel=ADJUSTMENT)


@pytest.mark.parametrize("name", STRESSES)
def test_stresses_are_ases(name: str):
    """Every unit of stress, in eV/Angstrom^3."""
    assert stress_unit(name) == pytest.approx(STRESSES[name], rel=ADJUSTMENT)
    assert STRESS_UNITS[name] == pytest.approx(STRESSES[name], rel=ADJUSTMENT)


def test_every_unit_is_checked_here():
    """A unit added to the tables has to be added to these tests."""
    assert set(ENERGY_UNITS) == {"eV", "meV", "kcal/mol", "kJ/mol", "Hartree", "mHartree", "Rydberg"}
    assert set(LENGTH_UNITS) == {"Angstrom", "Bohr", "nm", "pm"}
    assert set(FORCE_UNITS) == set(FORCES)
    assert set(STRESS_UNITS) == set(STRESSES)


USUAL_NAMES = {
    energy_unit: {
        "eV": ["ev", "EV", " eV "],
        "Hartree": ["Ha", "hartree", "Eh", "a.u.", "au"],
        "Rydberg": ["Ry", "rydberg"],
        "kcal/mol": ["kcal", "KCAL/MOL", "kcal mol^-1", "kcal mol-1"],
        "kJ/mol": ["kJ", "kj/mol", "kJ*mol**-1"],
    },
    length_unit: {
        "Angstrom": ["A", "a", "angstrom", "Angstroms", "Ang", "\u00c5", "\u212b"],
        "Bohr": ["a0", "bohr", "a_0", "A0", "au"],
        "nm": ["NANOMETER"],
    },
    force_unit: {
        "eV/Angstrom": ["eV/A", "ev/ang", "eV A^-1", "eV/\u00c5"],
        "Hartree/Bohr": ["Ha/Bohr", "hartree/a0", "au", "Eh/a_0"],
        "kcal/mol/Angstrom": ["kcal/mol/A", "kcal/(mol A)", "kcal/(mol*Angstrom)", "kcal mol^-1 A^-1"],
        "kJ/mol/nm": ["kJ/(mol nm)", "kJ mol-1 nm-1"],
    },
    stress_unit: {
        "eV/Angstrom^3": ["eV/A^3", "eV/A3", "ev/ang**3", "eV/\u00c5\u00b3"],
        "GPa": ["gpa", "GPA"],
        "kbar": ["kB", "Kbar", "kilobar"],
        "Hartree/Bohr^3": ["Ha/a0^3", "au"],
    },
}


@pytest.mark.parametrize(
    ("read", "name", "usual"),
    [(read, name, usual) for read, table in USUAL_NAMES.items() for name, those in table.items() for usual in those],
)
def test_units_have_their_usual_names(read, name, usual):
    """Whatever case, symbol or way of writing a product: the same number (products of factors: 1e-14)."""
    assert read(usual) == pytest.approx(read(name), rel=1e-14)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (energy_unit, "MeV"),  # a million eV, or a thousandth of one?
        (energy_unit, "eV/atom"),  # energies per atom are not energies
        (energy_unit, "kcal/A"),
        (energy_unit, "eV/mol"),
        (energy_unit, ""),
        (length_unit, "eV"),
        (length_unit, "A^2"),
        (force_unit, "Ha"),
        (force_unit, "kcal/mol A"),  # kcal A/mol, read literally
        (force_unit, "Hartree/Bohr^2"),
        (stress_unit, "eV/A"),
        (stress_unit, "mPa"),
        (stress_unit, "eV/(A^3"),
    ],
)
def test_what_is_no_unit_of_the_quantity_is_refused(read, name):
    """Dimensions are checked, and a name that its case makes ambiguous is not guessed."""
    with pytest.raises(ValueError, match=r"^Unknown \w+ unit `.*`; (did you mean `.*`\? Known|known): .*\.$"):
        read(name)


def test_the_kilocalorie_is_scipys():
    """4184 J a mole over N_A e, the latter two exact since 2019; MD17's numbers hang on this one."""
    expected = 1000 * constants.calorie / (constants.N_A * constants.e)
    assert pytest.approx(expected, rel=1e-14) == EV_PER_KCAL_MOL
    assert pytest.approx(constants.e, rel=1e-15) == ELEMENTARY_CHARGE
    assert pytest.approx(0.0433641, abs=1e-7) == EV_PER_KCAL_MOL


def test_an_unknown_unit_names_the_nearest():
    """Units are never guessed, and the error lists them all; its length is bounded."""
    with pytest.raises(ValueError, match=r"Unknown energy unit `kcal/mole`; did you mean `kcal/mol`\? Known: Hartree"):
        energy_unit("kcal/mole")
    with pytest.raises(ValueError, match=r"Unknown length unit `angstrm`; did you mean `Angstrom`\?"):
        length_unit("angstrm")
    with pytest.raises(ValueError, match="Unknown length unit `xxx") as caught:
        length_unit("x" * 10_000)
    assert len(str(caught.value)) < 200


def test_no_name_is_suggested_where_none_is_near():
    """A far-fetched guess would mislead; the known names are listed all the same."""
    assert nearest_name("parsec", ["nm", "Bohr"]) == "known: Bohr, nm."
