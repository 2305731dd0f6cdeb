"""engines: adapters that let a trained model move atoms.

A new engine is a module here. For a program that has whole structures: ``ForceField(graph)``, as ``engines.ase``. For
one with a neighbour list and a domain decomposition of its own, in this order:

1. ``modelfile.load_model`` (certificate, hash) and ``modelfile.frozen_copy`` for the precision; refuse models that are
   not ``conservative``;
2. ``ForceField.species_of(numbers)`` of local atoms and, behind them, ghosts;
3. ``Edges(index, vectors, n_local, exchange)``: vectors from target to source, edges sorted by target;
4. ``force_field.potential.energies_and_gradient(species, edges)``;
5. ``ForceField.in_eV(...)``, with the species of ghosts too; then F[target] += g, F[source] -= g, virial = sum r (x) g,
   ghosts' forces to their owners;
6. ``ForceField.physics.dispersion``: add ``mdrelax.forces.dispersion.D3``, or refuse the model.

``testing.ghosts_stand_for_their_owners`` is the law behind steps 3 to 5. Every domain has to come to every exchange.
"""
