"""Units: inside the package only eV, Angstrom, fs and amu; readers (``datasets.labels``, ``datasets.md17``) convert.

Constants are CODATA 2018 values (https://physics.nist.gov/cuu/Constants), except the thermochemical calorie, which is
4.184 J by definition.

A unit is written by its usual name or as a product of such names: ``Ha``, ``kcal/mol``, ``eV/A^3``, ``kJ/(mol nm)``,
``Hartree/Bohr``, ``GPa``. Upper and lower case are the same, except that ``MeV`` is not ``meV``.
"""

import re
import unicodedata
from typing import NamedTuple

from mdrelax.base.names import nearest_name

__all__ = [
    "ENERGY_UNITS",
    "EV_PER_KCAL_MOL",
    "FORCE_UNITS",
    "LENGTH_UNITS",
    "STRESS_UNITS",
    "energy_unit",
    "force_unit",
    "is_energy_unit",
    "length_unit",
    "stress_unit",
]

AVOGADRO = 6.02214076e23  # 1/mol, exact
ELEMENTARY_CHARGE = 1.602176634e-19  # J per eV, exact
JOULE_PER_CALORIE = 4.184  # thermochemical, exact
EV_PER_KCAL_MOL = 1000.0 * JOULE_PER_CALORIE / (AVOGADRO * ELEMENTARY_CHARGE)
EV_PER_KJ_MOL = 1000.0 / (AVOGADRO * ELEMENTARY_CHARGE)
EV_PER_HARTREE = 27.211386245988  # CODATA 2018
ANGSTROM_PER_BOHR = 0.529177210903  # CODATA 2018
EV_A3_PER_GPA = 1e9 * 1e-30 / ELEMENTARY_CHARGE  # 1 GPa = 1e9 J/m^3

ENERGY_UNITS = {
    "eV": 1.0,
    "meV": 1e-3,
    "kcal/mol": EV_PER_KCAL_MOL,
    "kJ/mol": EV_PER_KJ_MOL,
    "Hartree": EV_PER_HARTREE,
    "mHartree": EV_PER_HARTREE / 1000,
    "Rydberg": EV_PER_HARTREE / 2,
}
LENGTH_UNITS = {"Angstrom": 1.0, "Bohr": ANGSTROM_PER_BOHR, "nm": 10.0, "pm": 0.01}
FORCE_UNITS = {
    "eV/Angstrom": 1.0,
    "meV/Angstrom": 1e-3,
    "kcal/mol/Angstrom": EV_PER_KCAL_MOL,
    "kJ/mol/Angstrom": EV_PER_KJ_MOL,
    "kJ/mol/nm": EV_PER_KJ_MOL / 10,
    "Hartree/Angstrom": EV_PER_HARTREE,
    "Hartree/Bohr": EV_PER_HARTREE / ANGSTROM_PER_BOHR,
    "Rydberg/Bohr": EV_PER_HARTREE / 2 / ANGSTROM_PER_BOHR,
}
STRESS_UNITS = {
    "eV/Angstrom^3": 1.0,
    "Hartree/Bohr^3": EV_PER_HARTREE / ANGSTROM_PER_BOHR**3,
    "Rydberg/Bohr^3": EV_PER_HARTREE / 2 / ANGSTROM_PER_BOHR**3,
    "GPa": EV_A3_PER_GPA,
    "MPa": EV_A3_PER_GPA * 1e-3,
    "Pa": EV_A3_PER_GPA * 1e-9,
    "kbar": EV_A3_PER_GPA * 0.1,
    "bar": EV_A3_PER_GPA * 1e-4,
    "atm": EV_A3_PER_GPA * 1.01325e-4,
}


class _Unit(NamedTuple):
    """A size in eV and Angstrom, with its powers of energy, length and (still undivided) amount of substance."""

    size: float
    energy: int = 0
    length: int = 0
    mol: int = 0

    def times(self, other: "_Unit", power: int) -> "_Unit":
        """The product with another unit to a power."""
        return _Unit(self.size * other.size**power, *(a + power * b for a, b in zip(self[1:], other[1:], strict=True)))


ONE = _Unit(1.0)
ENERGY, LENGTH, FORCE, STRESS = (1, 0, 0), (0, 1, 0), (1, -1, 0), (1, -3, 0)  # powers, as in ``_Unit``
ATOMIC = {
    ENERGY: EV_PER_HARTREE,
    LENGTH: ANGSTROM_PER_BOHR,
    FORCE: EV_PER_HARTREE / ANGSTROM_PER_BOHR,
    STRESS: EV_PER_HARTREE / ANGSTROM_PER_BOHR**3,
}
ATOMIC_NAMES = {"au", "a.u.", "a.u", "atomic", "atomic units"}
ELEMENTARY = {  # names in lower case
    **dict.fromkeys(("ev", "electronvolt", "electronvolts"), _Unit(1.0, 1)),
    "mev": _Unit(1e-3, 1),
    **dict.fromkeys(("ha", "hartree", "hartrees", "eh", "e_h", "hart"), _Unit(EV_PER_HARTREE, 1)),
    **dict.fromkeys(("mha", "mhartree", "meh"), _Unit(EV_PER_HARTREE / 1000, 1)),
    **dict.fromkeys(("ry", "ryd", "rydberg", "rydbergs"), _Unit(EV_PER_HARTREE / 2, 1)),
    "kcal": _Unit(EV_PER_KCAL_MOL, 1, 0, 1),
    "kj": _Unit(EV_PER_KJ_MOL, 1, 0, 1),
    "mol": _Unit(1.0, 0, 0, 1),
    **dict.fromkeys(("a", "å", "ang", "angs", "angstrom", "angstroms", "ångström", "ångstrom"), _Unit(1.0, 0, 1)),
    **dict.fromkeys(("bohr", "bohrs"), _Unit(ANGSTROM_PER_BOHR, 0, 1)),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), _Unit(10.0, 0, 1)),
    **dict.fromkeys(("pm", "picometer", "picometre"), _Unit(0.01, 0, 1)),
    **{name.lower(): _Unit(STRESS_UNITS[name], 1, -3) for name in ("GPa", "MPa", "Pa", "kbar", "bar", "atm")},
    **dict.fromkeys(("kb", "kilobar"), _Unit(STRESS_UNITS["kbar"], 1, -3)),
}
# Names that another case would turn into a unit of another size.
NOT_FOLDED = {"MeV", "MHa", "mPa", "mpa", "PM", "Nm", "NM", "mBar", "mbar"}
BOHR_RADIUS = re.compile(r"(?<![^\W_])a_?0(?!\w*\.)", re.IGNORECASE)  # a0, whose digit is no power
TOKEN = re.compile(r"\s*(?:(?P<name>[^\W\d][\w.]*?)(?:(?:\^|\*\*)?(?P<power>[+-]?\d+))?(?![\w.])|(?P<sign>[/()*·]))")


def energy_unit(name: str) -> float:
    """The size of an energy unit in eV; raises ``ValueError`` naming the nearest and the known ones."""
    return _lookup("energy unit", name, ENERGY, ENERGY_UNITS)


def length_unit(name: str) -> float:
    """The size of a length unit in Angstrom; raises ``ValueError`` naming the nearest and the known ones."""
    return _lookup("length unit", name, LENGTH, LENGTH_UNITS)


def force_unit(name: str) -> float:
    """The size of a force unit in eV/Angstrom; raises ``ValueError`` naming the nearest and the known ones."""
    return _lookup("force unit", name, FORCE, FORCE_UNITS)


def stress_unit(name: str) -> float:
    """The size of a unit of stress or pressure in eV/Angstrom^3; raises ``ValueError`` naming the known ones."""
    return _lookup("stress unit", name, STRESS, STRESS_UNITS)


def is_energy_unit(name: str) -> bool:
    """True for a unit of energy, such as that of a virial."""
    return _size(name, ENERGY) is not None


def _lookup(kind: str, name: str, powers: tuple[int, int, int], known: dict[str, float]) -> float:
    size = _size(name, powers)
    if size is None:
        raise ValueError(f"Unknown {kind} `{name:.40}`; {nearest_name(name[:40], known)}")
    return size


def _size(name: str, powers: tuple[int, int, int]) -> float | None:
    """The size of a unit of the given powers of energy, length and amount; None for any other text."""
    text = BOHR_RADIUS.sub("bohr", unicodedata.normalize("NFKC", name).strip())
    if text.lower() in ATOMIC_NAMES:
        return ATOMIC[powers]
    try:
        unit = _parse(text)
    except (KeyError, ValueError, OverflowError):
        return None
    per_mole = unit.mol in (0, 1) and ("kcal" in text.lower() or "kj" in text.lower())  # a bare `kcal` is one per mole
    return unit.size if unit[1:3] == powers[:2] and (unit.mol == 0 or per_mole) else None


def _parse(text: str) -> _Unit:
    """A product of elementary units; ``/`` divides by the next name or bracket. Raises ``KeyError``, ``ValueError``."""
    unit, signs, position, power = ONE, [1], 0, 1
    while position < len(text):
        token = TOKEN.match(text, position)
        if token is None:
            raise ValueError(text)
        position = token.end()
        sign = token["sign"]
        if sign == "/":
            power = -1
        elif sign == "(":
            signs.append(signs[-1] * power)
            power = 1
        elif sign == ")":
            signs.pop()
        elif sign is None:
            exponent = power * signs[-1] * int(token["power"] or 1)
            unit = unit.times(_elementary(token["name"], token["power"]), exponent)
            power = 1
    if len(signs) != 1:
        raise ValueError(text)
    return unit


def _elementary(name: str, power: str | None) -> _Unit:
    if name in NOT_FOLDED:
        raise KeyError(name)
    return ELEMENTARY[name.lower()]
