"""peers: other packages of the field as workers of the speed benchmark, each run from its own virtual environment.

Nothing here imports mdrelax: a peer's environment does not have it. ``protocol``, ``steps`` and ``counting`` are shared
by all workers, including ours; a requirements file next to each peer's script pins what `make peers` installs.
"""
