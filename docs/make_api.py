"""Write docs/api.md: the public names of the package with their signatures and docstrings.

    python docs/make_api.py

A test compares the page with the docstrings, so it is never older than they are.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)  # up to the next empty line
LONG_SIGNATURE = 90  # characters
PAGE = Path(__file__).with_name("api.md")
SECTIONS: dict[str, list[str]] = {  # heading: names, most used first
    "Train, load, save": ["mdrelax.train", "mdrelax.train_committee", "mdrelax.load_model", "mdrelax.save_model"],
    "Simulate": [
        "mdrelax.MDRelaxCalculator", "mdrelax.CommitteeCalculator", "mdrelax.engines.hessian.hessian",
        "mdrelax.engines.hessian.hessian_products",
    ],
    "Relax the constraint of any network": [
        "mdrelax.relax_constraints", "mdrelax.set_theta", "mdrelax.Schedule", "mdrelax.record_inputs",
        "mdrelax.penalty", "mdrelax.project", "mdrelax.method.relaxation.Placement", "mdrelax.method.controllers.Ace",
        "mdrelax.method.controllers.AceSettings",
    ],
    "Certify": [
        "mdrelax.certify", "mdrelax.equivariance_error", "mdrelax.Certificate",
        "mdrelax.method.certificate.certificate_of", "mdrelax.method.certificate.require",
    ],
    "A network of your own": [
        "mdrelax.forces.potential.Potential", "mdrelax.structures.graph.Edges", "mdrelax.ForceField",
        "mdrelax.testing.check_potential", "mdrelax.method.sites.Site", "mdrelax.method.free_maps.FreeMap",
    ],
    "A task of your own": [
        "mdrelax.runs.experiment.Experiment", "mdrelax.runs.experiment.run", "mdrelax.training.trainer.Task",
        "mdrelax.training.ranks.Divisible",
    ],
}  # fmt: skip
METHODS = {
    "begin_step",
    "after_backward",
    "from_file",
    "from_compiled",
    "calculate_many",
    "get_hessian",
    "features",
    "forward",
    "finish",
    "energies_and_gradient",
}


def page() -> str:
    """The whole page."""
    lines = ["# API", "", "Made from the docstrings by `python docs/make_api.py`. Units are eV, Angstrom and fs.", ""]
    lines += [
        f"- [{title}](#{anchor(title)}): " + ", ".join(f"`{short(n)}`" for n in SECTIONS[title]) for title in SECTIONS
    ]
    for title, names in SECTIONS.items():
        lines += ["", f"## {title}"]
        for name in names:
            lines += entry(name, found(name))
    return "\n".join(lines) + "\n"


def entry(name: str, thing: Any) -> Iterator[str]:
    """Heading, signature and docstring of a function or class, and those of its main methods, inherited ones last."""
    yield from ("", f"### {short(name)}", "", f"`{import_line(name)}`", "")
    yield from ("```python", f"{short(name)}{signature(thing)}", "```", "")
    yield from words(thing)
    if inspect.isclass(thing):
        ours = [vars(each) for each in reversed(thing.__mro__) if each.__module__.startswith("mdrelax")]
        methods = {name: function for each in ours for name, function in each.items() if name in METHODS}
        for method, function in sorted(methods.items(), key=lambda item: item[0] not in vars(thing)):
            own = getattr(function, "__func__", function)
            yield from ("", f"#### {short(name)}.{method}", "", "```python", f"{method}{signature(own)}", "```")
            yield ""
            yield from words(own)


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def signature(thing: Any) -> str:
    """The signature, one argument per line where it is long."""
    parameters = [p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    shown = [argument(p) for p in parameters]
    keyword_only = [p.kind is p.KEYWORD_ONLY for p in parameters]
    if any(keyword_only) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        shown.insert(keyword_only.index(True), "*")
    flat = f"({', '.join(shown)})"
    return flat if len(flat) < LONG_SIGNATURE else "(\n" + "".join(f"    {each},\n" for each in shown) + ")"


def argument(parameter: inspect.Parameter) -> str:
    """Name, type without the modules it comes from, and default; a function as default is three dots."""
    text = re.sub(r"['\"]|\b(?:[a-z_][\w]*\.)+(?=[A-Za-z_])", "", str(parameter.replace(default=parameter.empty)))
    if parameter.default is parameter.empty:
        return text
    default = repr(parameter.default)
    return f"{text} = {'...' if default.startswith('<') else default}"


def words(thing: Any) -> Iterator[str]:
    """The docstring as Markdown: literals in single backticks, arguments as a list, examples as code."""
    in_arguments = False
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    for line in EXAMPLE.sub(r"```python\n\g<0>\n```", text).splitlines():
        if line == "Args:":
            in_arguments = True
        elif in_arguments and re.match(r"    \w+: ", line):
            name, _, text = line.strip().partition(": ")
            yield f"- `{name}`: {text}"
        elif in_arguments and line.startswith("        "):
            yield line[6:]
        else:
            in_arguments = in_arguments and not line
            yield line


def import_line(name: str) -> str:
    """How the name is imported."""
    module, _, attribute = name.rpartition(".")
    return f"from {module} import {attribute}"


def short(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def anchor(title: str) -> str:
    """The link of a heading."""
    return title.lower().replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
