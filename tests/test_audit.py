"""The audit agrees with computations of others: e3nn's error of a module, scipy's rotations; and broken layers show."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from e3nn import o3
from e3nn.util.test import equivariance_error as e3nn_error
from torch import nn

from command_line import mdrelax
from mdrelax.analysis.audit import ANGLES, angle_errors, draw_angles, draw_layers, layer_errors
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.potential import Potential
from mdrelax.forces.symmetry import certify, equivariance_error
from mdrelax.method.free_conv import FreeConv2d
from mdrelax.method.free_maps import AxesView
from mdrelax.method.groups import IrrepsRepresentation, cyclic_regular
from mdrelax.method.relaxation import relax_constraints, set_theta
from mdrelax.method.sites import Site
from mdrelax.modelfile import save_model
from mdrelax.potentials import build_potential
from mdrelax.structures.graph import Edges
from molecules import (
    ELEMENTS,
    batch_of,
    ethanol,
    normal,
    rattled,
    tiny_equiformer_pytorch,
    tiny_force_field,
    tiny_segnn,
)
from small_runs import NETWORK, clusters, document, write_config, write_frames

GRAPH = batch_of(*rattled(ethanol(), 2, seed=0))


def relaxed(theta: float, where: list[str] | None = None) -> ForceField:
    """An Equiformer with free maps that are seen."""
    model = tiny_force_field()
    relax_constraints(model, where=where, initial_std=0.05, generator=torch.Generator().manual_seed(0))
    set_theta(model, theta)
    return model


def test_every_layer_of_an_equivariant_network_is_equivariant() -> None:
    """To rounding, in both precisions, rotations and reflections."""
    exact, rough = (layer_errors(tiny_force_field(), GRAPH, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert len(exact) >= 10
    assert exact[["rotation", "reflection"]].to_numpy().max() < 1e-12
    assert 1e-9 < rough[["rotation", "reflection"]].to_numpy().max() < 1e-4


def test_only_the_relaxed_layer_shows() -> None:
    """A free map in one place: that layer breaks rotations, its neighbours do not, and nothing does at theta = 0."""
    name = "potential.blocks.0.feed_forward"
    errors = layer_errors(relaxed(0.5, [name]), GRAPH).set_index("layer").rotation
    assert errors[name] > 1e-2
    assert errors.drop(name).max() < 1e-12
    assert layer_errors(relaxed(0.0, [name]), GRAPH).rotation.max() < 1e-12


@pytest.mark.parametrize("build", [tiny_segnn, tiny_equiformer_pytorch])
def test_layers_with_attributes_or_features_by_degree_are_measured_too(build: Callable[[], nn.Module]) -> None:
    """SEGNN's products take attributes, equiformer-pytorch's maps a dict: all at rounding, and a free map shows."""
    model = ForceField(build(), elements=ELEMENTS)
    exact = layer_errors(model, GRAPH, n_operations=2)
    assert len(exact) >= 14
    assert exact[["rotation", "reflection"]].to_numpy().max() < 1e-12
    name = exact.layer[len(exact) // 2]
    relax_constraints(model, where=[name], initial_std=0.1, generator=torch.Generator().manual_seed(0))
    errors = layer_errors(model, GRAPH, n_operations=2).set_index("layer").rotation
    assert errors[name] > 1e-2
    assert errors.drop([each for each in errors.index if name.startswith(each)]).max() < 1e-12


class Foreign(Potential):
    """A potential of layers by others: e3nn's product of irreps with harmonics, and mixed 3-vectors (N, C, 3)."""

    cutoff = 5.0

    class Vectors(nn.Module):
        """V -> M V, and a vector that is added where it should not."""

        def __init__(self) -> None:
            super().__init__()
            self.mixing, self.bias = nn.Parameter(normal(3, 2, seed=0)), nn.Parameter(torch.zeros(3).double())

        def relaxable(self) -> Site:
            """Vectors on the last axis, channels before it."""
            return Site(*(IrrepsRepresentation(f"{n}x1o", "mul_ir") for n in (2, 3)), view=AxesView(-2, -1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(N, 2, 3) to (N, 3, 3)."""
            return self.mixing @ x + self.bias

    class Image(nn.Conv2d):
        """A layer of another group, which does not act in space."""

        def relaxable(self) -> Site:
            """Channels are fibres of C4."""
            side = cyclic_regular(4)
            return Site(side, side, make_free=partial(FreeConv2d, kernel_size=1))

    def __init__(self) -> None:
        super().__init__()
        self.product, self.vectors = o3.FullyConnectedTensorProduct("0e+1o", "0e+1o", "2x1o"), self.Vectors()
        self.image = self.Image(4, 4, 1)

    def forward(self, species: torch.Tensor, edges: Edges) -> torch.Tensor:
        """Energies (N,)."""
        lengths = edges.vectors.norm(dim=1, keepdim=True)
        x = torch.cat([lengths, edges.vectors], 1)
        harmonics = o3.spherical_harmonics([0, 1], edges.vectors, normalize=True)
        vectors = self.vectors(self.product(x, harmonics).unflatten(1, (2, 3)))
        scale = self.image(lengths.mean().expand(1, 4, 1, 1)).mean()
        energies = vectors.square().sum((1, 2)) * scale
        return energies.new_zeros(len(species)).index_add(0, edges.index[1], energies)


def test_the_layers_of_others_are_measured_as_their_sites_say() -> None:
    """A vector neuron and e3nn's product at rounding; of them only the one with a bias shows; C4 is left out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ForceField(Foreign().double(), elements=ELEMENTS)
    exact = layer_errors(model, GRAPH, n_operations=2)
    assert list(exact.layer) == ["potential.product", "potential.vectors"]
    assert exact[["rotation", "reflection"]].to_numpy().max() < 1e-12
    model.potential.vectors.bias.data[0] = 0.1  # type: ignore[union-attr]
    errors = layer_errors(model, GRAPH, n_operations=2).set_index("layer").rotation
    assert errors["potential.vectors"] > 1e-3
    assert errors["potential.product"] < 1e-12


def test_a_linear_layers_error_is_that_of_e3nn() -> None:
    """e3nn's own measure (absolute, largest, on random inputs) finds the same layers whole and broken."""
    linear = o3.Linear("4x0e+3x1o", "2x0e+5x1o").double()

    class Wrapped(Potential):
        """The map as a potential's only layer between irreps, on features made of the edge vectors."""

        cutoff = 5.0

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, species: torch.Tensor, edges: Edges) -> torch.Tensor:
            lengths = edges.vectors.norm(dim=1, keepdim=True)
            turned = edges.vectors[:, [1, 2, 0]]
            x = torch.cat([lengths, lengths**2, lengths**3, lengths**4, *(turned * k for k in (1, 2, 3))], 1)
            return species.new_zeros(len(species), dtype=x.dtype).index_add(0, edges.index[1], self.inner(x)[:, 0])

    def turned_e3nn(module: nn.Module) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = e3nn_error(
                lambda x: module(x), [torch.randn(20, 13, dtype=torch.float64)],
                irreps_in=["4x0e+3x1o"], irreps_out=["2x0e+5x1o"], do_parity=False, do_translation=False,
            )  # fmt: skip
        return max(float(each.max()) for each in found.values())

    model = ForceField(Wrapped(linear), elements=ELEMENTS)
    assert layer_errors(model, GRAPH).rotation.max() < 1e-12
    # e3nn draws its rotations in torch's default precision and converts them: float32's rounding.
    assert turned_e3nn(linear) < 1e-5
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    set_theta(model, 1.0)
    assert layer_errors(model, GRAPH).rotation.max() > 1e-2
    assert turned_e3nn(model.potential.inner) > 1e-2


def test_errors_at_an_angle_are_the_certificates_and_grow_with_it() -> None:
    """Rounding at every angle where the network is equivariant; else linear in small angles, as for any smooth map."""
    assert angle_errors(tiny_force_field(), GRAPH, angles=(1.0, 90.0, 180.0)).error.max() < 1e-12
    model = relaxed(0.3)
    table = angle_errors(model, GRAPH, n_axes=16).set_index("angle_deg").error
    assert list(table.index) == list(ANGLES)
    assert table[1.0] == pytest.approx(10 * table[0.1], rel=0.3)  # linear to first order; axes are drawn anew
    whole = equivariance_error(model, GRAPH, n_operations=8).rotation
    assert 0.3 * whole < table.max() < 3 * whole


def test_the_pictures_hold_the_numbers() -> None:
    """A cell for each layer and operation, and a point for each angle."""
    errors = layer_errors(relaxed(0.5), GRAPH)
    texts = [text.get_text() for text in draw_layers(errors).axes[0].texts]
    assert len(texts) == 2 * len(errors)
    line = draw_angles(angle_errors(relaxed(0.5), GRAPH, angles=(10.0, 20.0))).axes[0].lines[0]
    assert np.array_equal(line.get_xdata(), [10.0, 20.0])


def test_the_network_of_a_run_is_audited_with_its_free_maps(tmp_path: Path) -> None:
    """`mdrelax audit RUN --theta 1`: the unprojected network's error beside the projected one's, and every layer's."""
    source = write_frames(tmp_path / "frames.xyz", clusters(34))
    training = {"steps": 4, "batch_size": 4, "validate_every": 2, "warmup_steps": 1}
    config = document(source, training=training, potential={"arguments": {**NETWORK, "n_blocks": 2}},
                      relaxation={"initial_std": 0.1})  # fmt: skip
    assert mdrelax("train", write_config(tmp_path / "config.yaml", config), "--out", tmp_path / "run").code == 0
    said = mdrelax("audit", tmp_path / "run", "--operations", "2", "--out", tmp_path / "audit")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert found["float64"]["rotation"] > 1e-4
    assert found["projected"]["float64"]["rotation"] < 1e-9
    assert found["projected"]["passed"]
    assert all(layer["distance"] <= layer["bound"] + 1e-12 for layer in found["layers"])
    assert {path.name for path in (tmp_path / "audit").iterdir()} == {
        "audit.json", "layers.csv", "angles.csv", "layers.png", "angles.png",
    }  # fmt: skip
    zero = mdrelax("audit", tmp_path / "run", "--operations", "2", "--theta", "0", "--output", tmp_path / "zero.json")
    assert zero.code == 0
    assert json.loads((tmp_path / "zero.json").read_text())["float64"]["rotation"] < 1e-9


def test_a_checkpoint_is_audited_as_its_run_is_projected(tmp_path: Path) -> None:
    """`mdrelax audit RUN/checkpoints/last.pt` of a run that folds its maps: what is left of them is folded in."""
    source = write_frames(tmp_path / "frames.xyz", clusters(34))
    training = {"steps": 2, "batch_size": 4, "validate_every": 2, "warmup_steps": 1}
    config = document(source, training=training, potential={"arguments": {**NETWORK, "n_blocks": 2}},
                      relaxation={"schedule": "constant", "projection": "fold", "where": ["blocks.*.attention.out"]},
                      )  # fmt: skip
    assert mdrelax("train", write_config(tmp_path / "config.yaml", config), "--out", tmp_path / "run").code == 0
    said = mdrelax("audit", tmp_path / "run/checkpoints/last.pt", "--operations", "1", "--output", tmp_path / "a.json")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "a.json").read_text())
    assert {layer["how"] for layer in found["layers"]} == {"folded"}
    assert found["projected"]["passed"]


def test_a_finished_model_is_audited_layer_by_layer(tmp_path: Path) -> None:
    """`mdrelax audit MODEL --out`: all layers and angles at rounding."""
    arguments = {"n_blocks": 1, "irreps": "8x0e+4x1o", "n_features": 8, "n_heads": 2, "cutoff": 5.0}
    model = ForceField(build_potential("equiformer", 3, arguments), elements=ELEMENTS)
    path = tmp_path / "model.safetensors"
    save_model(path, model, potential="equiformer", arguments=arguments, certificate=certify(model, GRAPH), card={})
    said = mdrelax("audit", path, "--structures", "2", "--operations", "1", "--out", tmp_path / "audit")
    assert said.code == 0, said.err
    assert "PASSED" in said.out
    rows = json.loads((tmp_path / "audit" / "audit.json").read_text())["layer_errors"]
    assert max(row["rotation_float64"] for row in rows) < 1e-9


@pytest.mark.filterwarnings("default::mdrelax.modelfile.RoughPotentialWarning")
def test_a_network_with_the_published_norm_says_that_it_is_not_smooth(tmp_path: Path) -> None:
    """When it is trained, when its run is audited and when its file is read: one sentence with the remedy.

    A run of version 1, whose config does not name the norm, is projected to the network that it was.
    """
    source = write_frames(tmp_path / "frames.xyz", clusters(34))
    arguments = {**NETWORK, "norm": "separable", "norm_eps": 1e-2}
    config = document(source, training={"steps": 2, "batch_size": 4}, potential={"arguments": arguments})
    run, says = tmp_path / "run", "is not smooth: its layer norm is `separable`"
    trained = mdrelax("train", write_config(tmp_path / "config.yaml", config), "--out", run)
    assert f"The network {says}" in trained.out
    assert f"The network {says}" in mdrelax("audit", run, "--operations", "1").out
    read = mdrelax("info", run / "model.safetensors")
    assert read.err.startswith(f"Warning: `{run / 'model.safetensors'}` {says}")
    assert read.err.rstrip().endswith("train again with `potential.arguments.norm: joint`.")

    saved = yaml.safe_load((run / "config.yaml").read_text())
    del saved["format_version"], saved["potential"]["arguments"]["norm"]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    assert mdrelax("project", run, "--output", tmp_path / "again.safetensors").code == 0
    before, after = (
        json.loads(mdrelax("info", path).out) for path in (run / "model.safetensors", tmp_path / "again.safetensors")
    )
    assert before["potential"] == after["potential"]
