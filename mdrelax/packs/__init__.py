"""packs: tasks other than interatomic potentials, each with its networks, its training task and its measure."""
