"""nbody: the N-body task of the relaxation paper: predict where charged particles will be."""
