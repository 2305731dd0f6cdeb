"""Units: inside the package only eV, Angstrom, fs and amu; every conversion happens at the door, with its source.

Constants are CODATA 2018 values (https://physics.nist.gov/cuu/Constants), except the thermochemical calorie, which is
4.184 J by definition.
"""

__all__ = ["ENERGY_UNITS", "EV_PER_KCAL_MOL", "LENGTH_UNITS", "energy_unit", "length_unit"]

from mdrelax.base.names import nearest_name

AVOGADRO = 6.02214076e23  # 1/mol, exact
ELEMENTARY_CHARGE = 1.602176634e-19  # J per eV, exact
JOULE_PER_CALORIE = 4.184  # thermochemical, exact
EV_PER_KCAL_MOL = 1000.0 * JOULE_PER_CALORIE / (AVOGADRO * ELEMENTARY_CHARGE)
EV_PER_KJ_MOL = 1000.0 / (AVOGADRO * ELEMENTARY_CHARGE)
EV_PER_HARTREE = 27.211386245988  # CODATA 2018
ANGSTROM_PER_BOHR = 0.529177210903  # CODATA 2018

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": EV_PER_KCAL_MOL,
    "kJ/mol": EV_PER_KJ_MOL,
    "Hartree": EV_PER_HARTREE,
}
LENGTH_UNITS = {"Angstrom": 1.0, "Bohr": ANGSTROM_PER_BOHR, "nm": 10.0}


def energy_unit(name: str) -> float:
    """The size of an energy unit in eV; raises ``ValueError`` naming the known ones."""
    return _lookup("energy unit", name, ENERGY_UNITS)


def length_unit(name: str) -> float:
    """The size of a length unit in Angstrom; raises ``ValueError`` naming the known ones."""
    return _lookup("length unit", name, LENGTH_UNITS)


def _lookup(kind: str, name: str, table: dict[str, float]) -> float:
    if name not in table:
        raise ValueError(f"Unknown {kind} `{name}`; {nearest_name(name, table)}")
    return table[name]
