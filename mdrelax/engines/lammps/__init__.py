"""LAMMPS: a trained model in the user's own input script, on one or more MPI ranks.

    mpirun -n 4 python -m mpi4py -m mdrelax.engines.lammps -in in.lmp --model model.safetensors --elements H,O

The input is any LAMMPS script with `units metal` or `units real`; the model takes over at the line

    fix ID all external pf/callback 1 1

``exchange`` copies rows of atoms between ranks, ``domain`` evaluates the atoms of one rank, ``script`` reads and checks
the input, ``driver`` connects the model to a running LAMMPS, and ``__main__`` is the command. Docs: docs/scale.md.
"""
