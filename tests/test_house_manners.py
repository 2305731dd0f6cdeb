"""The manners of the house: sizes, names, docstrings, and what is never written. A failure names file and line."""

import ast
from collections.abc import Callable, Iterator
from statistics import median

from blueprint import (
    ROOMS,
    ROOT,
    Function,
    Source,
    broken,
    dotted,
    functions,
    modules,
    package_sources,
    sources_of_tests,
    top_level_names,
)

DOOR = {"cli", "__main__"}  # the modules of mdrelax that talk to a person
FILE_LINES = 400  # under
FUNCTION_LINES = 60  # at most, signature included, docstring not
MOST_FUNCTION_LINES = 40  # under, for 95 of 100
MEDIAN_FUNCTION_LINES = 10  # under
VAGUE_NAMES = {"common", "helpers", "misc", "util", "utilities", "utils"}
FORBIDDEN_IMPORTS = {"cloudpickle", "dill", "joblib", "pickle", "shelve"}  # reading such a file runs its code
SETTERS = {
    "set_default_device",
    "set_default_dtype",
    "set_default_tensor_type",
    "set_num_interop_threads",
    "set_num_threads",
}
SEEDERS = {
    "np.random.seed",
    "numpy.random.seed",
    "random.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "torch.manual_seed",
    "torch.random.manual_seed",
}


def length(function: Function) -> int:
    """Lines from ``def`` to the end, docstring not counted."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def offending_calls(wrong: Callable[[ast.Call, str], bool], *, door: bool = True) -> list[str]:
    """The places of the calls for which ``wrong(call, dotted name)`` holds; ``door=False`` leaves the door out."""
    return [
        f"{source.at(node.lineno)} {dotted(node.func)}(...)"
        for source in package_sources()
        if door or source.module.partition(".")[2].partition(".")[0] not in DOOR
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and wrong(node, dotted(node.func))
    ]


# --- names and sizes -------------------------------------------------------------------------------------------------


def test_no_room_is_called_utils():
    """A name says what is inside."""
    rooms = [ROOT / folder for folder in (*ROOMS, "tests")]
    wrong = [str(path.relative_to(ROOT)) for folder in rooms for path in folder.rglob("*") if path.stem in VAGUE_NAMES]
    assert not wrong, broken("These names say nothing:", wrong)


def test_files_are_under_400_lines():
    """A file holds one whole story, and no more than one."""
    sources = (*package_sources(), *sources_of_tests())
    long = [f"{source.at(1)} has {source.n_lines} lines" for source in sources if source.n_lines >= FILE_LINES]
    assert not long, broken(f"Files stay under {FILE_LINES} lines:", long)


def test_no_function_is_longer_than_60_lines():
    """Quality shows in the tail: there is no ``train`` or ``parse`` monster."""
    sources = (*package_sources(), *sources_of_tests())
    long = [
        f"{s.at(f.lineno)} {f.name} has {length(f)} lines"
        for s in sources
        for f in functions(s)
        if length(f) > FUNCTION_LINES
    ]
    assert not long, broken(f"No function is longer than {FUNCTION_LINES} lines (docstring not counted):", long)


def test_most_functions_are_short():
    """Half the functions have under 10 lines, and 95 of 100 under 40."""
    lengths = sorted((length(f), f"{s.at(f.lineno)} {f.name}") for s in package_sources() for f in functions(s))
    long = [f"{place} has {lines} lines" for lines, place in lengths if lines >= MOST_FUNCTION_LINES]
    assert len(long) <= 0.05 * len(lengths), broken(f"More than 5 % have {MOST_FUNCTION_LINES} lines or more:", long)
    middle = median(lines for lines, _ in lengths)
    assert middle < MEDIAN_FUNCTION_LINES, (
        f"The median function has {middle} lines; the plan asks for under {MEDIAN_FUNCTION_LINES}."
    )


# --- docstrings and exports ------------------------------------------------------------------------------------------


def test_everything_public_has_its_docstring():
    """Every module, class and public function says what it is, in the tests too: there it says the law."""
    bare = [
        f"{source.at(getattr(node, 'lineno', 1))} {getattr(node, 'name', 'the module')}"
        for source in (*package_sources(), *sources_of_tests())
        for node in _public(source.tree)
        if not ast.get_docstring(node)
    ]
    assert not bare, broken("A docstring is missing:", bare)


def _public(node: ast.Module | ast.ClassDef | Function) -> Iterator[ast.Module | ast.ClassDef | Function]:
    """The node itself, and the public classes, functions and methods in it; nothing inside functions."""
    yield node
    if not isinstance(node, Function):
        for child in node.body:
            if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
                yield from _public(child)


def test_exports_are_sorted_and_exist():
    """``__all__`` is a plain list of names the module has: CONSTANTS, then Classes, then functions, each sorted."""
    wrong = [
        f"{source.at(node.lineno)} {problem}"
        for source in package_sources()
        for node in source.tree.body
        if isinstance(node, ast.Assign) and dotted(node.targets[0]) == "__all__"
        for problem in _problems_of_exports(source, ast.literal_eval(node.value))
    ]
    assert not wrong, broken("Exports are sorted and exist:", wrong)


def _problems_of_exports(source: Source, names: list[str]) -> Iterator[str]:
    in_order = sorted(names, key=lambda name: (0 if name.isupper() else 1 if name[:1].isupper() else 2, name))
    if names != in_order:
        yield f"should read {in_order}"
    unknown = sorted(set(names) - _names_of(source))
    if unknown:
        yield f"names what the module has not: {', '.join(unknown)}"


def _names_of(source: Source) -> set[str]:
    """Every name that a module binds, whatever its depth; and the modules beside a face."""
    names = {module.rpartition(".")[2] for module in modules() if module.rpartition(".")[0] == source.module}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef | Function):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


# --- what is never written -------------------------------------------------------------------------------------------


def test_nothing_is_pickled():
    """A file that comes from elsewhere is data: reading it must not run code."""
    wrong = [
        f"{source.at(node.lineno)} imports {name}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        for name in top_level_names(node)
        if name in FORBIDDEN_IMPORTS
    ]
    assert not wrong, broken("No pickles:", wrong)


def test_torch_and_numpy_load_data_only():
    """``torch.load(..., weights_only=True)`` is spelt out, and ``numpy.load`` never gets ``allow_pickle``."""

    def keyword(call: ast.Call, name: str) -> object:
        return next((getattr(k.value, "value", "?") for k in call.keywords if k.arg == name), None)

    unsafe = offending_calls(lambda call, name: name == "torch.load" and keyword(call, "weights_only") is not True)
    unsafe += offending_calls(lambda call, _: keyword(call, "allow_pickle") not in (None, False))
    assert not unsafe, broken("Load tensors, not code:", unsafe)


def test_only_the_door_prints():
    """A library returns and logs; the command line talks."""
    wrong = offending_calls(lambda _, name: name == "print", door=False)
    assert not wrong, broken("`print` belongs to the door:", wrong)


def test_global_settings_are_the_users():
    """The package changes neither the global dtype nor the thread count.

    One context does, and puts the dtype back: weights would otherwise be other random numbers under another dtype.
    """
    wrong = offending_calls(lambda _, name: name.rpartition(".")[2] in SETTERS, door=False)
    wrong = [call for call in wrong if not call.startswith("mdrelax/base/ambient.py")]
    assert not wrong, broken("Global settings belong to the user:", wrong)


def test_the_global_seed_is_the_users():
    """Randomness comes from an explicit generator; inside ``fork_rng()``, which restores it, seeding is no harm."""
    wrong = [
        f"{source.at(node.lineno)} {dotted(node.func)}(...)"
        for source in package_sources()
        for node in _outside_fork_rng(source.tree)
        if isinstance(node, ast.Call) and dotted(node.func) in SEEDERS
    ]
    assert not wrong, broken("The global seed belongs to the user; hand a generator on, or fork the state:", wrong)


def _outside_fork_rng(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items):
        return
    for child in ast.iter_child_nodes(node):
        yield from _outside_fork_rng(child)
