"""packs: tasks other than interatomic potentials, each with its networks, training task and measure of symmetry."""
