"""modelnet: the relaxation paper's point clouds: which of ten or forty things is a rotated shape?"""
