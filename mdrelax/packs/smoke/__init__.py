"""smoke: the relaxation paper's plumes, flows whose rotation or scale symmetry is only approximate."""
