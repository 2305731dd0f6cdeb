"""testing: the laws that every potential must satisfy, for testing a network of your own.

    from mdrelax.testing import check_potential
    check_potential(ForceField(MyPotential(...), elements=(1, 6, 8)))

A law is a function of a force field that raises ``BrokenLawError`` with one sentence. All laws run in float64 on a
copy, on a cluster of nine atoms and a skewed cell of three, made of the model's own elements with distances in
proportion to its cut-off. Untrained networks satisfy the laws as well as trained ones do; perturb every parameter from
its initial value first, so that no bias of zero hides a fault.

Differences up to 1e-10 of the largest force or energy count as rounding: about 1e-16 per sum, times the gains of a few
layers.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.structures.graph import Edges, Graph, collate, edge_vectors
from mdrelax.testing.structures import Structure, cell, cluster, numbers_of, tetrahedron

__all__ = ["LAWS", "BrokenLawError", "Law", "check_potential"]

Law = Callable[[ForceField], None]
ROUNDING = 1e-10
ROTATION = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()


class BrokenLawError(AssertionError):
    """A potential violates a law; the message gives the law and the numbers."""


def check_potential(force_field: ForceField, laws: Mapping[str, Law] | None = None) -> list[str]:
    """Check a potential against all laws that apply to it, or against ``laws``; returns the names of those that hold.

    Raises ``BrokenLawError`` with one sentence per violated law.
    """
    chosen = LAWS if laws is None else laws
    broken = {}
    for name, law in chosen.items():
        try:
            law(force_field)
        except BrokenLawError as error:
            broken[name] = str(error)
    if broken:
        sentences = "\n".join(f"  {name}: {sentence}" for name, sentence in broken.items())
        raise BrokenLawError(f"The potential breaks {len(broken)} of {len(chosen)} laws:\n{sentences}")
    return list(chosen)


def _double(model: ForceField) -> ForceField:
    return copy.deepcopy(model).to_dtype(torch.float64).eval().requires_grad_(False)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise BrokenLawError(sentence)


def _require_same(found: Prediction, expected: Prediction, doing: str) -> None:
    """Energies of the atoms and forces equal to rounding."""
    size = max(1.0, float(expected.forces.abs().max()))
    forces = float((found.forces - expected.forces).abs().max()) / size
    energies = float(((found.energies - expected.energies).abs() / expected.energies.abs().clamp(min=1)).max())
    _require(
        max(forces, energies) < ROUNDING,
        f"{doing} changes forces by {forces:.1e} and energies by {energies:.1e} (relative; limit {ROUNDING:.0e}).",
    )


# --- symmetry ---------------------------------------------------------------------------------------------------------


def forces_turn_with_the_structure(force_field: ForceField) -> None:
    """F(Q x) = Q F(x) and E(Q x) = E(x) for a rotation, and for a reflection where E(3) is claimed."""
    model = _double(force_field)
    names = {"a rotation": ROTATION}
    if model.potential.symmetry == "E(3)":
        names["a rotation with a reflection"] = -ROTATION
    for structure in (cluster(model), cell(model)):
        before = model(structure.graph(model.cutoff))
        for name, matrix in names.items():
            after = model(structure.mapped(matrix).graph(model.cutoff))
            turned = before._replace(forces=before.forces @ torch.from_numpy(matrix).T)
            _require_same(after, turned, f"{name.capitalize()} of the structure, undone,")


def nothing_depends_on_place_or_order(force_field: ForceField) -> None:
    """Translating the structure changes nothing; permuting the atoms permutes the results."""
    model = _double(force_field)
    structure, order = cluster(model), np.random.default_rng(0).permutation(9)
    before = model(structure.graph(model.cutoff))
    _require_same(model(structure.moved(np.array([30.0, -7.0, 11.0])).graph(model.cutoff)), before, "A translation")
    permuted = Structure(structure.positions[order], structure.numbers[order])
    expected = before._replace(energies=before.energies[order], forces=before.forces[order])
    _require_same(model(permuted.graph(model.cutoff)), expected, "Another order of the atoms")


def the_order_of_the_edges_does_not_matter(force_field: ForceField) -> None:
    """Edges shuffled, no longer sorted by target."""
    model = _double(force_field)
    graph = cluster(model).graph(model.cutoff)
    order = torch.from_numpy(np.random.default_rng(0).permutation(graph.edge_index.shape[1]))
    shuffled = graph._replace(edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order])
    _require_same(model(shuffled), model(graph), "Another order of the edges")


# --- locality ---------------------------------------------------------------------------------------------------------


def a_batch_is_its_structures_one_by_one(force_field: ForceField) -> None:
    """A batch of a cluster, an atom without neighbours and a cell gives the same results as each of them alone."""
    model = _double(force_field)
    lonely = Structure(np.zeros((1, 3)), numbers_of(model, 1))
    graphs = [s.graph(model.cutoff) for s in (cluster(model), lonely, cell(model))]
    _require_same(model(collate(graphs)), Prediction.join([model(graph) for graph in graphs]), "Batching")


def fragments_out_of_reach_do_not_know_of_each_other(force_field: ForceField) -> None:
    """Two clusters ten cut-offs apart in one structure have the energies and forces of each alone."""
    model = _double(force_field)
    near, far = cluster(model), cluster(model, seed=1).moved(np.array([10 * model.cutoff, 0, 0]))
    both = Structure(np.concatenate([near.positions, far.positions]), np.concatenate([near.numbers, far.numbers]))
    alone = Prediction.join([model(each.graph(model.cutoff)) for each in (near, far)])
    _require_same(model(both.graph(model.cutoff)), alone, "Another fragment, ten cut-offs away,")


def atoms_without_neighbours_have_no_force(force_field: ForceField) -> None:
    """Without edges, the energy depends on the element only, the force is exactly zero, and training runs."""
    model = _double(force_field).requires_grad_(True)
    lonely = [Structure(np.full((1, 3), x), numbers_of(model, 1)).graph(model.cutoff) for x in (0.0, 2.0)]
    prediction = model(collate(lonely), create_graph=True)
    first, second = prediction.energy.tolist()
    _require(bool(np.isclose(first, second, rtol=ROUNDING)), f"A lone atom has the energies {first} and {second}.")
    _require(not bool(prediction.forces.any()), "A lone atom has a force.")
    gradients = torch.autograd.grad(prediction.energy.sum(), list(model.parameters()), allow_unused=True)
    _require(all(g is None or bool(g.isfinite().all()) for g in gradients), "A lone atom has a gradient of NaN.")


def every_pair_within_the_cutoff_counts(force_field: ForceField) -> None:
    """In a dense cluster of 40 atoms the energy depends on every single edge: none is capped."""
    model = _double(force_field)
    positions = np.random.default_rng(5).uniform(0, 0.56 * model.cutoff, (40, 3))
    graph = Structure(positions, numbers_of(model, 40)).graph(model.cutoff)
    _, gradient = model.potential.energies_and_gradient(
        model.species_of(graph.numbers), Edges(graph.edge_index, edge_vectors(graph))
    )
    unseen = int((gradient.norm(dim=1) == 0).sum())
    _require(unseen == 0, f"The energy does not depend on {unseen} of {len(gradient)} edges.")


def ghosts_stand_for_their_owners(force_field: ForceField) -> None:
    """With ``Edges.exchange`` a domain whose images are ghosts has the periodic energies and gradient."""
    model = _double(force_field)
    graph = cell(model).graph(model.cutoff)
    n_local, species = len(graph.numbers), model.species_of(graph.numbers)
    owners, index = _with_ghosts(graph)
    plain = Edges(graph.edge_index, edge_vectors(graph))
    shared = replace(plain, index=index, n_local=n_local, exchange=lambda x: x.index_select(0, owners))
    expected = [x.detach() for x in model.potential.energies_and_gradient(species, plain)]
    found = [x.detach() for x in model.potential.energies_and_gradient(species[owners], shared)]
    for name, ours, theirs in zip(("energies", "gradient"), found, expected, strict=True):
        size = max(1.0, float(theirs.abs().max()))
        _require(ours.shape == theirs.shape, f"With ghosts there are {len(ours)} {name}, not {len(theirs)}.")
        error = float((ours - theirs).abs().max()) / size
        _require(error < ROUNDING, f"With ghosts in place of images the {name} change by {error:.1e}.")


def a_wide_halo_gives_the_local_atoms(force_field: ForceField) -> None:
    """Without an exchange all atoms are computed, and the energies of the first ``n_local`` are returned."""
    model = _double(force_field)
    graph = cell(model).graph(model.cutoff)
    species, plain = model.species_of(graph.numbers), Edges(graph.edge_index, edge_vectors(graph))
    wide = replace(plain, n_local=2)
    energies, gradient = (x.detach() for x in model.potential.energies_and_gradient(species, wide))
    expected = model.potential(species, plain)[:2]
    _require(energies.shape == (2,), f"With `n_local` = 2 there are {len(energies)} energies.")
    error = float((energies - expected).abs().max())
    _require(error < ROUNDING, f"With a wide halo the energies of the local atoms change by {error:.1e}.")
    total, _ = model.in_eV(species, graph.edge_index, plain.vectors, energies, gradient)
    _require(bool(total.isfinite().all()), "With a wide halo energies are not finite.")


def energies_reach_no_further_than_stated(force_field: ForceField) -> None:
    """Beyond ``n_rounds`` cut-offs along a chain, an atom has no influence; a wide halo is that wide.

    Networks that do not state it pass: they are refused where a wide halo is needed.
    """
    model, rounds = _double(force_field), force_field.potential.n_rounds
    if rounds is None:
        return
    line = np.array([[0.9 * model.cutoff * k, 0.1 * (k % 2), 0.0] for k in range(rounds + 3)])
    structure = Structure(line, numbers_of(model, len(line)))
    graph = structure.graph(model.cutoff)
    edges = Edges(graph.edge_index, edge_vectors(graph), n_local=1)
    _, gradient = model.potential.energies_and_gradient(model.species_of(graph.numbers), edges)
    felt = graph.edge_index[:, gradient.abs().amax(1) > 0]
    furthest = int(felt.max()) if felt.numel() else 0
    _require(
        furthest <= rounds, f"The energy depends on atoms {furthest} cut-offs away, further than `n_rounds` = {rounds}."
    )


def _with_ghosts(graph: Graph) -> tuple[Tensor, Tensor]:
    """Owners (N + ghosts,) of the atoms of a domain, and edges (2, E) that start at a ghost for each image."""
    source, target = graph.edge_index
    crossing = graph.edge_shift.any(1)
    images = torch.cat([source[:, None], graph.edge_shift.long()], dim=1)[crossing]
    ghosts, which = torch.unique(images, dim=0, return_inverse=True)
    from_ghosts = source.clone()
    from_ghosts[crossing] = len(graph.numbers) + which
    owners = torch.cat([torch.arange(len(graph.numbers)), ghosts[:, 0]])
    return owners, torch.stack([from_ghosts, target])


# --- derivatives ------------------------------------------------------------------------------------------------------


def forces_are_minus_the_derivative_of_the_energy(force_field: ForceField) -> None:
    """Along six random directions of all atoms, against central differences, to 1e-6 of the largest slope."""
    model = _double(force_field)
    for structure in (cluster(model), cell(model)):
        directions = _normal(6, len(structure.numbers), 3, seed=1)
        expected = _slopes(model, structure.moved, directions)
        found = -(directions * model(structure.graph(model.cutoff)).forces).sum((1, 2))
        _require_slopes(found, expected, "Forces")


def stress_is_the_derivative_with_strain_over_the_volume(force_field: ForceField) -> None:
    """Along six random symmetric strains of the whole cell, in ASE's sign, to 1e-6 of the largest slope."""
    model, structure = _double(force_field), cell(force_field)
    strains = _normal(6, 3, 3, seed=2)
    strains = (strains + strains.mT) / 2
    expected = _slopes(model, lambda step: structure.mapped(np.eye(3) + step), strains)
    stress = model(structure.graph(model.cutoff), stress=True).stress
    assert structure.cell is not None and stress is not None  # noqa: S101, PT018 - for the type checker
    _require_slopes((strains * stress).sum((1, 2)) * abs(float(np.linalg.det(structure.cell))), expected, "The stress")


def _slopes(
    model: ForceField, displaced: Callable[[np.ndarray], Structure], directions: Tensor, h: float = 3e-6
) -> Tensor:
    """Central differences of the energy along each direction; their errors, h^2 and rounding / h, are 1e-8 or less."""
    steps = [sign * h * direction.numpy() for direction in directions for sign in (1, -1)]
    energy = model(collate([displaced(step).graph(model.cutoff) for step in steps])).energy.view(-1, 2)
    return (energy[:, 0] - energy[:, 1]) / (2 * h)


def _require_slopes(found: Tensor, expected: Tensor, what: str) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    _require(error < 1e-6, f"{what} differ from the derivative of the energy by {error:.1e} of it (limit 1e-6).")


def nothing_jumps_when_an_atom_crosses_the_cutoff(force_field: ForceField) -> None:
    """Energy, gradient and second derivatives are continuous (C2), for one of several neighbours and for a single one.

    From 1e-7 A on one side to 1e-7 A on the other they change by the next derivative times 2e-7 A: less than 5e-5 of
    their size inside, even where the third derivatives are 250 times (1/A) the second.
    """
    model = _double(force_field)
    for others in (cluster(model), Structure(np.zeros((1, 3)), numbers_of(model, 1))):
        inside = [_derivatives(model, others, x * model.cutoff) for x in (0.6, 0.7, 0.8, 0.9)]
        before, after = (_derivatives(model, others, model.cutoff + x) for x in (-1e-7, 1e-7))
        for order, name in enumerate(("energy", "gradient", "second derivative")):
            size = max(float(values[order].abs().max()) for values in inside)
            jump = float((before[order] - after[order]).abs().max())
            _require(jump < 5e-5 * size, f"The {name} jumps by {jump / size:.1e} of its size at the cut-off.")


def _derivatives(model: ForceField, others: Structure, distance: float) -> list[Tensor]:
    """Energy, its gradient, and its second derivatives along the path of an atom that leaves the first one."""
    unit = np.array([0.6, 0.48, 0.64])
    positions = np.concatenate([others.positions, others.positions[:1] + distance * unit])
    numbers = np.concatenate([others.numbers, others.numbers[:1]])
    graph = Structure(positions, numbers).graph(model.cutoff)
    direction = torch.zeros(len(numbers), 3, dtype=torch.float64)
    direction[-1] = torch.from_numpy(unit)
    leaf = graph.positions.clone().requires_grad_()
    edges = Edges(graph.edge_index, edge_vectors(graph._replace(positions=leaf)))
    energy = model.potential(model.species_of(graph.numbers), edges).sum() + 0 * leaf.sum()
    (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum() + 0 * leaf.sum(), leaf)
    return [energy.detach(), gradient.detach(), second]


def force_constants_do_not_depend_on_a_small_displacement(force_field: ForceField) -> None:
    """At a site where symmetry makes vectors vanish, they change by less than 1 % from 1e-4 to 1e-3 A."""
    model, structure = _double(force_field), tetrahedron(force_field)
    direction = np.array([0.6, -0.48, 0.64])

    def constants(distance: float) -> Tensor:
        step = np.zeros_like(structure.positions)
        step[0] = distance * direction
        ahead, behind = (model(structure.moved(s * step).graph(model.cutoff)).forces for s in (1, -1))
        return -(ahead - behind) / (2 * distance)

    near, far = constants(1e-4), constants(1e-3)
    change = float((far - near).norm(dim=1).max() / near.norm(dim=1).max())
    _require(change < 0.01, f"Force constants change by {change:.1%} from 1e-4 to 1e-3 A (limit 1 %).")


# --- precision and training -------------------------------------------------------------------------------------------


def float32_is_close_to_float64(force_field: ForceField) -> None:
    """Single precision keeps forces to 1e-4 of their root mean square: 1e-7 per sum, times the gains of the layers."""
    model = _double(force_field)
    graph = collate([cluster(model).graph(model.cutoff), cell(model).graph(model.cutoff)])
    exact, single = model(graph), copy.deepcopy(model).to_dtype(torch.float32)(graph)
    error = float((single.forces - exact.forces).abs().max() / exact.forces.square().mean().sqrt())
    _require(error < 1e-4, f"Forces in float32 and float64 differ by {error:.1e} of their size (limit 1e-4).")


def the_gradient_of_the_force_loss_is_right(force_field: ForceField) -> None:
    """Against a central difference along a random direction of all weights, to 1e-6: h^2 times third derivatives."""
    model = _double(force_field).requires_grad_(True)
    graph, h = collate([cluster(model).graph(model.cutoff), cell(model).graph(model.cutoff)]), 1e-5
    targets, starts = _normal(len(graph.numbers), 3, seed=6), [p.detach().clone() for p in model.parameters()]
    directions = [_normal(*p.shape, seed=k) for k, p in enumerate(starts)]

    def loss_at(step: float) -> Tensor:
        for p, start, direction in zip(model.parameters(), starts, directions, strict=True):
            p.data.copy_(start + step * direction)
        prediction = model(graph, create_graph=True)
        return (prediction.forces - targets).square().mean() + prediction.energy.square().mean()

    gradients = torch.autograd.grad(loss_at(0), list(model.parameters()), materialize_grads=True, allow_unused=True)
    _require(all(bool(g.isfinite().all()) for g in gradients), "The gradient of a loss on forces is not finite.")
    parts = torch.cat([(g * d).flatten() for g, d in zip(gradients, directions, strict=True)])
    expected = (loss_at(h) - loss_at(-h)).detach() / (2 * h)
    error = float((parts.sum() - expected).abs() / parts.norm())
    _require(error < 1e-6, f"The gradient of a loss on forces differs from its difference quotient by {error:.1e}.")


def _where(applies: Callable[[ForceField], bool], law: Law) -> Law:
    """Decorate a law so that it passes for force fields to which it does not apply."""

    def conditional(force_field: ForceField) -> None:
        if applies(force_field):
            law(force_field)

    conditional.__doc__ = law.__doc__
    return conditional


ALWAYS = (
    forces_turn_with_the_structure,
    nothing_depends_on_place_or_order,
    the_order_of_the_edges_does_not_matter,
    a_batch_is_its_structures_one_by_one,
    fragments_out_of_reach_do_not_know_of_each_other,
    atoms_without_neighbours_have_no_force,
    every_pair_within_the_cutoff_counts,
    ghosts_stand_for_their_owners,
    a_wide_halo_gives_the_local_atoms,
    energies_reach_no_further_than_stated,
    float32_is_close_to_float64,
    the_gradient_of_the_force_loss_is_right,
)
OF_CONSERVATIVE_FORCES = (
    forces_are_minus_the_derivative_of_the_energy,
    stress_is_the_derivative_with_strain_over_the_volume,
    nothing_jumps_when_an_atom_crosses_the_cutoff,
)
LAWS: dict[str, Law] = {
    **{law.__name__: law for law in ALWAYS},
    **{law.__name__: _where(lambda model: model.conservative, law) for law in OF_CONSERVATIVE_FORCES},
    force_constants_do_not_depend_on_a_small_displacement.__name__: _where(
        lambda model: model.conservative and model.roughness is None,
        force_constants_do_not_depend_on_a_small_displacement,
    ),
}
