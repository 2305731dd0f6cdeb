"""nbody: the relaxation paper's N-body task: where will charged particles be after a while?"""
