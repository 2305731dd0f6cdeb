"""compiled: force fields compiled ahead of time to machine code, the fastest form for simulations.

`compile_force_field` compiles in memory for one process, `export_model` writes a `.pt2` file and `load_compiled` reads
one. Only the network's energies and their gradient are compiled; forces, stress, reference energies and the check for
unknown elements remain in the force field.
"""

from mdrelax.compiled.export import compile_force_field, export_model
from mdrelax.compiled.files import file_hash, load_compiled
from mdrelax.compiled.inference import CompiledPotential
from mdrelax.compiled.recording import CompileError

__all__ = ["CompileError", "CompiledPotential", "compile_force_field", "export_model", "file_hash", "load_compiled"]
