"""Physics that is not learnt: nuclear repulsion (ZBL) at short range, and which dispersion a calculator adds.

    E = E_learnt + sum_(i<j) V_ij(r_ij) f(r_ij / s_ij) + E_D3

    V_ij(r) = k Z_i Z_j / r  sum_m c_m exp(-d_m r / a_ij)        a_ij = a / (Z_i^0.23 + Z_j^0.23)
    f(x)    = 1 - 28 x^6 + 48 x^7 - 21 x^8 below x = 1, then 0

    symbol   argument   unit
    k                   14.399645 eV Angstrom, e^2 / (4 pi epsilon_0), CODATA 2014 as in ASE
    s_ij     ``reach``  sums of the two covalent radii (ASE's, Cordero et al. 2008), at most the cut-off

V is the universal screened repulsion of Ziegler, Biersack and Littmark (1985) with the constants of LAMMPS's
``pair_style zbl``; f, with two derivatives that vanish at x = 1, is the envelope with which MACE fades it out. A
network sees few atoms at such distances in training, so its own energy there is a guess.
"""

from typing import Annotated, NamedTuple

import torch
from ase import units
from ase.data import covalent_radii
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["LEARNT_ALONE", "Physics", "PhysicsForm", "repulsion"]

COULOMB = units.Hartree * units.Bohr  # eV Angstrom
SCREENING_LENGTH = 0.46850  # Angstrom
EXPONENT = 0.23
WEIGHTS = (0.02817, 0.28022, 0.50986, 0.18175)
DECAYS = (0.20162, 0.40290, 0.94229, 3.19980)


class Physics(NamedTuple):
    """The terms that a force field adds to its network's energy."""

    zbl: float = 0.0  # where the repulsion has faded out, in sums of two covalent radii; 0: no repulsion
    dispersion: str | None = None  # functional whose D3(BJ) dispersion calculators add, such as "PBE"
    dispersion_in_labels: bool = True  # whether labels contain it, so that it is subtracted from them

    @property
    def subtracted(self) -> str | None:
        """The functional whose dispersion is subtracted from labels; None: labels are learnt as they are."""
        return self.dispersion if self.dispersion_in_labels else None


LEARNT_ALONE = Physics()


class PhysicsForm(BaseModel):
    """The form of ``Physics`` in the header of a model file."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")
    zbl: Annotated[float, Field(ge=0, le=1000)]
    dispersion: str | None
    dispersion_in_labels: bool


def repulsion(
    numbers: Tensor, edge_index: Tensor, vectors: Tensor, *, n_local: int, reach: float, cutoff: float
) -> tuple[Tensor, Tensor]:
    """Energies (n_local,) in eV of the atoms, half of each pair's, and their gradient (E, 3) in eV/Angstrom.

    Args:
        numbers: (N,) atomic numbers; ghosts, if any, follow the ``n_local`` atoms.
        edge_index: (2, E) as in ``Graph``; edges into ghosts count for nothing.
        vectors: (E, 3) edge vectors in Angstrom, float64.
        n_local: The number of atoms whose energies are returned.
        reach: Where the repulsion ends, in sums of two covalent radii.
        cutoff: The length in Angstrom of the longest edge, beyond which there is no repulsion either.
    """
    source, target = edge_index
    radii = vectors.new_tensor(covalent_radii)[numbers]
    ends = (reach * (radii[source] + radii[target])).clamp(max=cutoff)  # (E,)
    near = ((vectors.detach().square().sum(1) < ends**2) & (target < n_local)).nonzero().squeeze(1)
    energies, gradient = vectors.new_zeros(n_local), torch.zeros_like(vectors)
    if not len(near):
        return energies, gradient
    r = vectors[near]
    length = r.norm(dim=1)
    z = numbers.to(vectors.dtype)
    energy, slope = _faded_pair(length, z[source[near]], z[target[near]], ends[near])
    energies = energies.index_add(0, target[near], energy / 2)
    return energies, gradient.index_add(0, near, (slope / (2 * length)).unsqueeze(1) * r)


def _faded_pair(r: Tensor, z_source: Tensor, z_target: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """V f of pairs (P,) in eV and its derivative by r in eV/Angstrom."""
    length = SCREENING_LENGTH / (z_source**EXPONENT + z_target**EXPONENT)
    decays = r.new_tensor(DECAYS) / length.unsqueeze(1)  # (P, 4), 1/Angstrom
    terms = r.new_tensor(WEIGHTS) * torch.exp(-decays * r.unsqueeze(1))
    bare = COULOMB * z_source * z_target / r
    energy, slope = bare * terms.sum(1), -bare * (terms.sum(1) / r + (decays * terms).sum(1))
    x = r / end
    fade = 1 - x**6 * (28 - x * (48 - 21 * x))
    fall = -168 * x**5 * (1 - x) ** 2 / end
    return energy * fade, slope * fade + energy * fall
