"""forces: from per-atom energies to energy, forces and stress; fitting, errors and certificate."""
