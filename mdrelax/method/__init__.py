"""method: relaxed equivariance itself; needs torch, e3nn and base, and knows nothing of atoms."""
