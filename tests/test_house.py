"""The plan of the house, as a test: who may import whom.

The tables below are the plan. A new module of the ground gets its floor in ``FLOORS``. A failure names file and line.
"""

import ast

from blueprint import ROOMS, ROOT, Import, absolute, broken, imports, package_sources, sources_of_tests, top_level_names

# The ground, floor upon floor: a module imports from its own floor and those before it.
FLOORS: list[set[str]] = [
    {"units", "graph", "groups", "schedule", "provenance", "memory", "o3"},
    {"relaxation", "neighbors", "forcefield", "equivariance", "config", "savedconfig", "sharededges"},
    {"projection", "forcegraph", "layerlog", "loss", "loader", "blockwise", "optim", "checkpoint", "modelfile"},
    {"forcematching", "training"},
    {"calculator", "deploy", "dynamics", "hessian"},
]
DOOR = {"cli", "__main__"}

# Who may import whom, beside itself. The door may import everything, and nobody imports the door.
MAY_IMPORT: dict[str, set[str]] = {
    "face": {"ground"},
    "ground": set(),  # floor by floor, see above
    "datasets": {"mdrelax.graph", "mdrelax.units"},
    "potentials": {"mdrelax.graph", "mdrelax.groups", "mdrelax.o3", "mdrelax.relaxation", "mdrelax.units"},
    "packs": {"ground", "datasets"},
    "analysis": {"ground", "datasets", "potentials", "packs"},
}

# The one arrow out of the ground: a model file is read back into its network, which only the registry can build.
EXCEPTIONS = {("mdrelax.modelfile", "mdrelax.potentials")}


def room(module: str) -> str:
    """The room a module stands in: face, door, ground, packs, datasets, potentials or analysis."""
    parts = module.split(".")
    if len(parts) == 1:
        return "face"
    if parts[1] in DOOR:
        return "door"
    return parts[1] if parts[1] in MAY_IMPORT else "ground"


def floor(module: str) -> int | None:
    """The floor of a module of the ground; None where the plan does not know it."""
    name = module.split(".")[1]
    return next((height for height, names in enumerate(FLOORS) if name in names), None)


def test_every_module_of_the_ground_has_its_floor():
    """The ground's order is written down: a module that is on no floor could import anything."""
    lost = [
        str(s.path.relative_to(ROOT))
        for s in package_sources()
        if room(s.module) == "ground" and floor(s.module) is None
    ]
    assert not lost, broken("These modules stand on no floor; add them to FLOORS in this file:", lost)


def test_the_ground_imports_downwards_only():
    """A module of the ground imports from its own floor or from one below, and from no other room."""

    def allowed(found: Import) -> bool:
        here, there = floor(found.source.module), floor(found.target) if room(found.target) == "ground" else None
        return here is None or (there is not None and there <= here)

    inside = [
        found
        for found in imports()
        if room(found.source.module) == "ground"
        and found.target != "mdrelax"
        and (found.source.module, found.target) not in EXCEPTIONS
    ]
    upward = [str(found) for found in inside if not allowed(found)]
    assert not upward, broken("The ground imports downwards only:", upward)


def test_each_room_imports_what_the_plan_allows():
    """The table of the plan; the door may import everything and nobody imports the door."""

    def allowed(found: Import) -> bool:
        here, there = room(found.source.module), room(found.target)
        if here in ("door", "ground") or found.target == "mdrelax":
            return here == "door" or there != "door"  # the ground's floors and the face have laws of their own
        return here == there or bool(MAY_IMPORT[here] & {there, ".".join(found.target.split(".")[:2])})

    wrong = [str(found) for found in imports() if not allowed(found)]
    assert not wrong, broken("A room imports what it may not:", wrong)


def test_no_module_imports_the_packages_face():
    """``import mdrelax`` inside the package is a circle, and hides where a thing comes from; the door is outside."""
    wrong = [str(found) for found in imports() if found.target == "mdrelax" and room(found.source.module) != "door"]
    assert not wrong, broken("Import the module, not the package's face:", wrong)


def test_no_import_goes_round_in_a_circle():
    """Modules form a directed graph without circles, imports inside functions included."""
    edges: dict[str, set[str]] = {source.module: set() for source in package_sources()}
    for found in imports():
        if found.target in edges and found.target != found.source.module:
            edges[found.source.module].add(found.target)
    while free := [module for module, targets in edges.items() if not targets & edges.keys()]:
        for module in free:
            del edges[module]
    circles = [f"{module} -> {', '.join(sorted(targets & edges.keys()))}" for module, targets in sorted(edges.items())]
    assert not circles, broken("These modules import each other in a circle, or hang on one:", circles)


def test_relative_imports_stay_in_their_room():
    """``from ..graph import Graph`` breaks when a room is moved: rooms call each other by their full names."""
    wrong = [
        f"{source.at(node.lineno)} {'.' * node.level}{node.module or ''}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level and room(absolute(source, node)) != room(source.module)
    ]
    assert not wrong, broken("A relative import leaves its room:", wrong)


def test_rooms_are_not_imported_by_their_folder_names():
    """``import datasets`` would be another package, or ours a second time."""
    wrong = [
        f"{source.at(node.lineno)} {name}"
        for source in (*package_sources(), *sources_of_tests())
        for node in ast.walk(source.tree)
        for name in top_level_names(node)
        if name in ROOMS.keys() - {"mdrelax"}
    ]
    assert not wrong, broken("Import a room as mdrelax.<room>:", wrong)
