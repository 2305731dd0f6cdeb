"""What a caller has switched on in torch decides no number: inference mode, no_grad, autocast, the default dtype."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mdrelax import potentials
from mdrelax.base.ambient import default_float32
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import load_model
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from molecules import batch_of, crystal, ethanol, graph_of, rattled, tiny_force_field
from small_runs import clusters, document, write_frames
from untrained_models import saved

AMBIENT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "nothing": nullcontext,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default dtype float64": lambda: Default(torch.float64),
    "default device meta": lambda: torch.device("meta"),  # as with `torch.set_default_device("cuda")`, without a GPU
}


class Default:
    """Another default dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        """Set it."""
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        """Put the other one back."""
        torch.set_default_dtype(self.before)


@pytest.fixture(params=AMBIENT)
def ambient(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[object]]:
    """What is switched on."""
    return AMBIENT[request.param]


def _float32() -> ForceField:
    return tiny_force_field().to_dtype(torch.float32)


def _numbers(calculator: MDRelaxCalculator, atoms: Atoms) -> list[np.ndarray]:
    copied = atoms.copy()
    copied.calc = calculator
    several = calculator.calculate_many([copied, copied])[1]
    return [copied.get_potential_energy(), copied.get_forces(), copied.get_stress(), several["forces"]]


def test_a_calculators_results_are_the_usual_ones(ambient: Callable[[], AbstractContextManager[object]]) -> None:
    """Energy, forces, stress and many structures at once, bit for bit; made inside or outside."""
    model = _float32()
    expected = _numbers(MDRelaxCalculator(model), crystal())
    outside = MDRelaxCalculator(model)
    with ambient():
        found = _numbers(outside, crystal()), _numbers(MDRelaxCalculator(model), crystal())
    assert np.abs(expected[1]).max() > 0.1
    for numbers in found:
        for ours, theirs in zip(numbers, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_hessians_and_certificates_are_the_usual_ones(ambient: Callable[[], AbstractContextManager[object]]) -> None:
    """Second derivatives bit for bit; a certificate with the same errors."""
    graph, model = batch_of(*rattled(ethanol(), 2, seed=0)), _float32()
    calculator = MDRelaxCalculator(model)
    expected = calculator.get_hessian(ethanol()), certify(model, graph, n_operations=2)
    with ambient():
        found = calculator.get_hessian(ethanol()), certify(model, graph, n_operations=2)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_a_model_that_was_loaded_inside_works_outside(
    ambient: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    """Its parameters can be differentiated: it can be trained on, and has forces."""
    path = saved(tmp_path / "model.safetensors", 1, 6, 8)
    with ambient():
        model = load_model(path).force_field
        calculator = MDRelaxCalculator.from_file(path)
    prediction = model.requires_grad_(True)(graph_of(ethanol()), create_graph=True)
    prediction.forces.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    atoms = ethanol()
    atoms.calc = calculator
    assert np.abs(atoms.get_forces()).max() > 0


def test_training_gives_the_usual_numbers(
    ambient: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    """Initial weights, steps, validation and test, bit for bit."""
    source = write_frames(tmp_path / "clusters.extxyz", clusters(32))
    config = load_config(document(source, training={"steps": 8, "validate_every": 4}))
    expected = run_training(config, tmp_path / "usual", potentials).results["test"]
    with ambient():
        found = run_training(config, tmp_path / "ambient", potentials).results["test"]
    assert found == expected


def test_the_default_dtype_is_left_as_it_was() -> None:
    """Also where the body fails."""
    with Default(torch.float64):
        with pytest.raises(ZeroDivisionError), default_float32():
            raise ZeroDivisionError
        assert torch.get_default_dtype() is torch.float64
