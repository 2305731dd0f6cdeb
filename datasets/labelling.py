"""Labelling: energy and forces at a level of theory, GFN1-xTB or GFN2-xTB (tblite) or DFT (pyscf)."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase import units as ase_units

__all__ = ["XTB", "XTB_HEAVIEST", "XTB_METHODS", "Label", "Labeller", "lowest_spin", "make_labeller", "xtb_calculator"]

XTB = "GFN2-xTB"
XTB_METHODS = (XTB, "GFN1-xTB")
XTB_HEAVIEST = 86  # atomic number of the last element with parameters, radon

# Unpaired electrons of the neutral atoms' ground states (NIST Atomic Spectra Database).
GROUND_STATE_SPIN = {
    "H": 1, "He": 0, "Li": 1, "Be": 0, "B": 1, "C": 2, "N": 3, "O": 2, "F": 1, "Ne": 0,
    "Na": 1, "Mg": 0, "Al": 1, "Si": 2, "P": 3, "S": 2, "Cl": 1, "Ar": 0, "Br": 1, "I": 1,
}  # fmt: skip

Label = tuple[float, np.ndarray]  # energy (eV), forces (N, 3) (eV/Angstrom)
Labeller = Callable[[Atoms], Label]


def make_labeller(method: str, *, symbols: list[str], grid_level: int = 3) -> Labeller:
    """A function that labels molecules of the elements ``symbols`` by xTB or ``FUNCTIONAL/BASIS``.

    Everything is looked up first, so that a wrong name is reported before the work begins: raises ``ValueError`` for an
    unknown functional, basis or element, ``ImportError`` if the extra ``generate`` is not installed.
    """
    for symbol in symbols:
        _ground_state_spin(symbol)
    if method in XTB_METHODS:
        xtb_calculator(method)
        return partial(_label_xtb, method)
    functional, basis = method.split("/")
    return _Dft(functional, basis, symbols, grid_level)


def xtb_calculator(method: str = XTB, *, charge: int | None = None, spin: int = 0) -> Any:
    """A method of ``XTB_METHODS`` as an ASE calculator, for ``spin`` unpaired electrons.

    ``charge`` is that of the whole structure; None: the sum of the atoms' initial charges, mostly zero.
    """
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise ImportError(f"{method} needs tblite; install it with `pip install 'mdrelax[generate]'`.") from error
    return TBLite(method=method, verbosity=0, charge=charge, multiplicity=spin + 1)


def lowest_spin(atoms: Atoms, charge: int = 0) -> int:
    """The smallest number of unpaired electrons that a structure of this charge can have: 0 or 1."""
    return (int(atoms.numbers.sum()) - charge) % 2


def _ground_state_spin(symbol: str) -> int:
    if symbol not in GROUND_STATE_SPIN:
        raise ValueError(
            f"The ground-state spin of an isolated {symbol} atom is not tabulated; known are "
            f"{', '.join(GROUND_STATE_SPIN)}."
        )
    return GROUND_STATE_SPIN[symbol]


def _spin(atoms: Atoms) -> int:
    """Unpaired electrons: the ground state of a single atom, the lowest possible of a molecule."""
    return _ground_state_spin(str(atoms.symbols[0])) if len(atoms) == 1 else lowest_spin(atoms)


def _label_xtb(method: str, atoms: Atoms) -> Label:
    atoms = atoms.copy()
    atoms.calc = xtb_calculator(method, spin=_spin(atoms))
    return float(atoms.get_potential_energy()), np.array(atoms.get_forces())


class _Dft:
    """Kohn-Sham DFT with density fitting; starts each frame from the last one's density.

    Forces are exact derivatives of the energy: the response of the integration grid is included.
    """

    def __init__(self, functional: str, basis: str, symbols: list[str], grid_level: int) -> None:
        try:
            from pyscf import dft, gto
        except ImportError as error:
            raise ImportError("DFT labels need pyscf; install it with `pip install 'mdrelax[generate]'`.") from error
        try:
            with warnings.catch_warnings():  # pyscf advertises another package before it gives up on a basis
                warnings.simplefilter("ignore")
                dft.libxc.parse_xc(functional)
                for symbol in symbols:
                    gto.basis.load(basis, symbol)
        except (KeyError, ValueError, RuntimeError) as error:  # pyscf's BasisNotFoundError is a RuntimeError
            raise ValueError(
                f"pyscf does not know `{functional}/{basis}` for {', '.join(symbols)} ({error}); an example of a "
                "functional and a basis set is PBE/def2-SVP."
            ) from error
        self.functional, self.basis, self.grid_level = functional, basis, grid_level
        self.last: tuple[tuple[int, ...], np.ndarray] | None = None

    def __call__(self, atoms: Atoms) -> Label:
        """Energy (eV) and forces (eV/Angstrom); raises ``RuntimeError`` if the SCF does not converge."""
        solver = self._solver(atoms)
        key = tuple(atoms.numbers)
        guess = self.last[1] if self.last and self.last[0] == key else None
        energy = float(solver.kernel(guess))
        if not solver.converged:
            raise RuntimeError(
                f"The SCF of {atoms.get_chemical_formula()} did not converge; the journal keeps the finished frames."
            )
        self.last = (key, solver.make_rdm1())
        if len(atoms) == 1:
            return energy * ase_units.Hartree, np.zeros((1, 3))
        gradient = solver.nuc_grad_method()
        gradient.grid_response = True
        return energy * ase_units.Hartree, -gradient.kernel() * (ase_units.Hartree / ase_units.Bohr)

    def _solver(self, atoms: Atoms) -> Any:
        """The restricted solver for closed shells, else the unrestricted one."""
        from pyscf import dft, gto

        spin = _spin(atoms)
        geometry = list(zip(atoms.symbols, atoms.positions, strict=True))
        molecule = gto.M(atom=geometry, basis=self.basis, spin=spin, unit="Angstrom", verbose=0)
        solver = (dft.UKS if spin else dft.RKS)(molecule, xc=self.functional).density_fit()
        solver.grids.level = self.grid_level
        return solver
