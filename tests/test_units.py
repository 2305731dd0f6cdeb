"""Units against ASE's and scipy's constants."""

import ase.units
import pytest
from scipy import constants

from mdrelax.base.names import nearest_name
from mdrelax.base.units import ELEMENTARY_CHARGE, ENERGY_UNITS, EV_PER_KCAL_MOL, LENGTH_UNITS, energy_unit, length_unit

ADJUSTMENT = 1e-7  # CODATA 2014 (ASE), 2018 (ours) and 2022 (scipy) differ in the ninth digit


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eV", 1.0),
        ("meV", 1e-3),
        ("kcal/mol", ase.units.kcal / ase.units.mol),
        ("kJ/mol", ase.units.kJ / ase.units.mol),
        ("Hartree", ase.units.Hartree),
    ],
)
def test_energies_are_ases(name: str, expected: float):
    """Every energy unit, in eV; a kilocalorie is the thermochemical one in both."""
    assert energy_unit(name) == pytest.approx(expected, rel=ADJUSTMENT)


@pytest.mark.parametrize(("name", "expected"), [("Angstrom", 1.0), ("Bohr", ase.units.Bohr), ("nm", ase.units.nm)])
def test_lengths_are_ases(name: str, expected: float):
    """Every length unit, in Angstrom."""
    assert length_unit(name) == pytest.approx(expected, rel=ADJUSTMENT)


def test_every_unit_is_checked_here():
    """A unit added to the tables has to be added to these tests."""
    assert set(ENERGY_UNITS) == {"eV", "meV", "kcal/mol", "kJ/mol", "Hartree"}
    assert set(LENGTH_UNITS) == {"Angstrom", "Bohr", "nm"}


def test_the_kilocalorie_is_scipys():
    """4184 J a mole over N_A e, the latter two exact since 2019; MD17's numbers hang on this one."""
    expected = 1000 * constants.calorie / (constants.N_A * constants.e)
    assert pytest.approx(expected, rel=1e-14) == EV_PER_KCAL_MOL
    assert pytest.approx(constants.e, rel=1e-15) == ELEMENTARY_CHARGE
    assert pytest.approx(0.0433641, abs=1e-7) == EV_PER_KCAL_MOL


def test_an_unknown_unit_names_the_nearest():
    """Units are never guessed: case and spelling count, and the error lists them all."""
    with pytest.raises(ValueError, match=r"Unknown energy unit `kcal/mole`; did you mean `kcal/mol`\? Known: Hartree"):
        energy_unit("kcal/mole")
    with pytest.raises(ValueError, match=r"Unknown length unit `angstrom`; did you mean `Angstrom`\?"):
        length_unit("angstrom")


def test_no_name_is_suggested_where_none_is_near():
    """A far-fetched guess would mislead; the known names are listed all the same."""
    assert nearest_name("parsec", ["nm", "Bohr"]) == "Known: Bohr, nm."
