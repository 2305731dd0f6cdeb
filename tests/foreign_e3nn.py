"""The method on networks of plain e3nn, in a process that needs nothing of ours but mdrelax/method and mdrelax/base.

`python tests/foreign_e3nn.py` in any environment with torch and e3nn; it prints numbers as JSON, which
test_foreign_environments.py judges. With the argument `alone` every other package that mdrelax depends on is refused.
"""

import importlib
import json
import pkgutil
import sys
from importlib.abc import MetaPathFinder

import torch
from torch import Tensor, nn

# Sections of a config file need YAML and pydantic, model files need safetensors. The method imports neither.
EXEMPT = {"mdrelax.base.sections", "mdrelax.base.containers", "mdrelax.base.documents"}
OURS = {  # what mdrelax installs beside torch and e3nn, by the names of the imports
    "ase", "equiformer_pytorch", "jinja2", "matplotlib", "pandas", "pooch", "pydantic", "rich", "safetensors",
    "torch_geometric", "typer", "vesin", "yaml",
}  # fmt: skip
SCALARS_AND_VECTORS = "2x0e+2x1o"


class Refuse(MetaPathFinder):
    """Imports of the packages in OURS fail, as where they are not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Nothing, or ``ModuleNotFoundError``."""
        if name.partition(".")[0] in OURS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_every_module() -> list[str]:
    """The modules of the method and of base that were imported."""
    names = []
    for room in ("mdrelax.method", "mdrelax.base"):
        package = importlib.import_module(room)
        for module in pkgutil.iter_modules(package.__path__, room + "."):
            if module.name not in EXEMPT:
                importlib.import_module(module.name)
                names.append(module.name)
    return names


def small_network() -> nn.Module:
    """A linear map of irreps, a norm activation and a fully connected tensor product with a vector."""
    from mdrelax.base import o3

    class Small(nn.Module):
        """Features (..., 8) and vectors (..., 3) to features (..., 8)."""

        def __init__(self) -> None:
            super().__init__()
            self.up = o3.Linear(SCALARS_AND_VECTORS, "4x0e+4x1o")
            self.product = o3.FullyConnectedTensorProduct("4x0e+4x1o", "0e+1o", SCALARS_AND_VECTORS)

        def forward(self, x: Tensor, vector: Tensor) -> Tensor:
            hidden = self.up(x)
            assert hidden.shape[-1] == self.up.irreps_out.dim
            hidden = hidden * hidden.square().mean(-1, keepdim=True).tanh()
            return self.product(hidden, torch.cat([torch.ones_like(vector[..., :1]), vector], dim=-1))

    torch.manual_seed(0)
    return Small().double()


def turn(x: Tensor, matrix: Tensor) -> Tensor:
    """Two scalars and vectors: e3nn's 1o is (x, y, z)."""
    return torch.cat([x[..., :2], (x[..., 2:].unflatten(-1, (-1, 3)) @ matrix.T).flatten(-2)], dim=-1)


def relax_penalise_project_and_certify() -> dict[str, object]:
    """What each step of the method says of the small network."""
    from mdrelax.method.certificate import EquivarianceError, certificate_of
    from mdrelax.method.penalty import penalty, record_inputs
    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta

    model, said = small_network(), {}
    generator = torch.Generator().manual_seed(0)
    x, vector = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (8, 3))
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation, plain = matrix * matrix.det(), model(x, vector)

    def error(sign: int, dtype: torch.dtype) -> float:
        g, cast = sign * rotation, model.to(dtype)
        expected = turn(cast(x.to(dtype), vector.to(dtype)).double(), g)
        found = cast(turn(x, g).to(dtype), (vector @ g.T).to(dtype)).double()
        return (found - expected).abs().max().item()

    said["relaxed"] = relax_constraints(model, initial_std=0.1, generator=generator).names
    set_theta(model, 0.0)
    said["unchanged at theta = 0"] = torch.equal(model(x, vector), plain)
    set_theta(model, 1.0)
    with record_inputs(model) as inputs:
        said["moved at theta = 1"] = (model(x, vector) - plain).abs().max().item()
    for kind in ("activation", "weight"):
        value = penalty(model, inputs, kind=kind)
        value.backward()
        said[f"{kind} penalty"] = value.item()
    said["penalty reaches"] = sorted({n for n, p in model.named_parameters() if p.grad is not None})
    said["broken by"] = error(1, torch.float64)
    records = project(model, how="fold")
    said["projected"] = [record.how for record in records]

    def measure(dtype: torch.dtype) -> EquivarianceError:
        return EquivarianceError(error(1, dtype), error(-1, dtype), 0.0, 0.0)

    said["certificate"] = certificate_of(model, measure, symmetry="E(3)", n_structures=5, layers=records).to_dict()
    return said


def relax_e3nns_own_network() -> dict[str, object]:
    """``SimpleNetwork`` of e3nn.nn.models.v2106 with every place of it relaxed."""
    from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta
    from mdrelax.method.sites import relaxable_sites

    torch.manual_seed(0)
    model = SimpleNetwork("2x0e", "1x1o", max_radius=3.0, num_neighbors=3.0, num_nodes=5, mul=4, layers=1, lmax=1)
    data = {"pos": torch.randn(5, 3), "x": torch.randn(5, 2)}
    plain = model(data)
    names = relax_constraints(model, where=list(relaxable_sites(model)), initial_std=0.1).names
    moved = (model(data) - plain).abs().max().item()
    set_theta(model, 0.0)
    same = torch.equal(model(data), plain)
    project(model)
    return {"places": names, "moved": moved, "same": same and torch.equal(model(data), plain)}


def main() -> None:
    """Everything, as one line of JSON."""
    if "alone" in sys.argv:
        sys.meta_path.insert(0, Refuse())
    modules = import_every_module()
    import e3nn

    print(
        json.dumps(
            {
                "e3nn": e3nn.__version__,
                "modules": modules,
                "ours": sorted(OURS & sys.modules.keys()),
                "small": relax_penalise_project_and_certify(),
                "e3nn's own": relax_e3nns_own_network(),
            }
        )
    )


if __name__ == "__main__":
    main()
