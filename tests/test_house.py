"""The plan of the house, as a test: who may import whom.

The table below is the plan. A new room gets its row in ``MAY_IMPORT``. A failure names file and line.
"""

import ast
import sys

from blueprint import ROOMS, ROOT, Import, absolute, broken, imports, package_sources, sources_of_tests, top_level_names

DOOR = {"cli", "__main__"}
FACE = {"mdrelax", "calculator"}  # the package's own names; nobody inside imports them
LOW = {"base", "method", "structures"}

# Who may import whom, beside itself. The door may import everything, and nobody imports the door.
MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "method": {"base"},
    "structures": {"base"},
    "datasets": {"base", "structures"},
    "training": LOW,
    "forces": LOW | {"training"},
    "potentials": LOW | {"mdrelax.forces.potential"},
    "testing": LOW | {"forces"},
    "modelfile": LOW | {"forces", "potentials"},
    "compiled": LOW | {"forces", "modelfile"},
    "engines": LOW | {"forces", "modelfile", "compiled"},
    "runs": LOW | {"datasets", "training", "forces", "modelfile", "compiled", "engines"},  # networks are handed in
    "peers": LOW | {"datasets", "training"},
    "packs": LOW | {"datasets", "potentials", "training", "runs"},
}
MAY_IMPORT["analysis"] = set(MAY_IMPORT) - {"testing"}  # which is for tests
MAY_IMPORT["face"] = set(MAY_IMPORT) - {"analysis"}


def room(module: str) -> str:
    """The room a module stands in: the first folder or module below the package, the face or the door."""
    name = [*module.split("."), "mdrelax"][1]
    return "door" if name in DOOR else "face" if name in FACE else name


def test_every_module_stands_in_a_room_of_the_plan():
    """A module in a room that is not in the table could import anything."""
    known = MAY_IMPORT.keys() | {"door"}
    lost = [str(s.path.relative_to(ROOT)) for s in package_sources() if room(s.module) not in known]
    assert not lost, broken("These modules stand in no room of the plan; add a row to MAY_IMPORT in this file:", lost)


def test_each_room_imports_what_the_plan_allows():
    """The table of the plan; the door may import everything and nobody imports the door."""

    def allowed(found: Import) -> bool:
        here, there = room(found.source.module), room(found.target)
        return here in (there, "door") or bool(MAY_IMPORT[here] & {there, ".".join(found.target.split(".")[:3])})

    wrong = [str(f) for f in imports() if not allowed(f)]
    assert not wrong, broken("A room imports what it may not:", wrong)


def test_the_method_needs_torch_and_e3nn_only():
    """It runs in the environment of any e3nn network: it imports nothing else, nor does what it takes from base."""
    ours = {source.module: source for source in package_sources()}
    taken = {found.target for found in imports() if room(found.source.module) == "method"} & ours.keys()
    allowed = sys.stdlib_module_names | {"torch", "e3nn", "mdrelax"}
    foreign = [
        f"{source.at(node.lineno)} imports {name}"
        for module, source in ours.items()
        if room(module) == "method" or module in taken
        for node in ast.walk(source.tree)
        for name in top_level_names(node)
        if name not in allowed
    ]
    assert not foreign, broken("The method imports torch, e3nn and base only:", foreign)


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
