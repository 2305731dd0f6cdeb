"""peers: other packages' equivariant force fields, relaxed and trained here, projected and run by their own tools.

A peer is a module with the functions of ``mdrelax.peers.peer.Peer``. Except ``fine_tune`` and ``task``, the modules
need nothing of ours but ``mdrelax.method`` and ``mdrelax.base``: they work in the environment of the other package.
"""
