"""peers: other packages of the field as workers of the benchmarks of speed and accuracy, each in its own environment.

Nothing here imports mdrelax: a peer's environment does not have it. ``protocol``, ``steps``, ``counting`` and
``training`` are shared by all peers, the first three with our own workers, too; a requirements file next to each peer's
script pins what `make peers` installs.
"""
