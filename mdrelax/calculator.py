"""The ASE calculator under its short name; it is defined in ``mdrelax.engines.ase``."""

from mdrelax.engines.ase import MDRelaxCalculator

__all__ = ["MDRelaxCalculator"]
