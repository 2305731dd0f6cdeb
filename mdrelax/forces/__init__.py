"""forces: from per-atom energies to energy, forces and stress, and how they are fitted, measured and certified."""
