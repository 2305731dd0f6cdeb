"""The model file: what is saved is what is loaded, and what is not a model is refused in one sentence."""

import inspect
import json
import os
import pickle
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import certify
from mdrelax.method.certificate import Certificate, CertificateError, EquivarianceError
from mdrelax.method.relaxation import relax_constraints
from mdrelax.modelfile import FORMAT_VERSION, ModelFileError, RoughPotentialWarning, load_model, save_model
from mdrelax.potentials import Equiformer
from molecules import ELEMENTS, batch_of, ethanol, rattled, tiny_force_field, water

ARGUMENTS: dict[str, Any] = {
    "irreps": "4x0e+2x1o", "n_blocks": 1, "cutoff": 4.0, "n_heads": 2, "n_features": 4, "expansion": 1,
    "nonlinear_messages": False, "radial_basis": "bessel", "n_basis": 4, "radial_hidden": 4, "average_neighbors": 5.0,
}  # fmt: skip
GOLDEN = Path(__file__).parent / "golden"
STRUCTURES = rattled(ethanol(), 2, 0) + rattled(water(), 2, 1)


def force_field(dtype: torch.dtype = torch.float32) -> ForceField:
    """A seeded network for H, C and O."""
    return tiny_force_field(seed=3, scale=0.8, **ARGUMENTS).to_dtype(dtype).eval()


def certificate(model: ForceField) -> Certificate:
    """Of four molecules."""
    return certify(model, batch_of(*STRUCTURES, cutoff=model.cutoff))


def saved(path: Path, model: ForceField | None = None, **card: Any) -> Path:
    """A model file."""
    model = model or force_field()
    return save_model(
        path, model, potential="equiformer", arguments=ARGUMENTS, certificate=certificate(model), card=card
    )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a model file."""
    return saved(tmp_path_factory.mktemp("model") / "model.safetensors").read_bytes()


def rewritten(content: bytes, change: Any) -> bytes:
    """The file with its mdrelax header changed by ``change(header)``, otherwise a valid safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    outer = json.loads(content[8 : 8 + size])
    header = json.loads(outer["__metadata__"]["mdrelax"])
    outer["__metadata__"]["mdrelax"] = json.dumps(change(header))
    head = json.dumps(outer).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + content[8 + size :]


# --- saved and loaded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_model_gives_the_same_numbers_bit_for_bit(tmp_path, dtype):
    """Weights, reference energies and scale are in the file as they were; the network keeps its precision."""
    model = force_field(dtype)
    loaded = load_model(saved(tmp_path / "model.safetensors", model))
    graph = batch_of(*STRUCTURES, cutoff=model.cutoff)
    before, after = model(graph, stress=True), loaded.force_field(graph, stress=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert loaded.force_field.dtype == dtype
    assert not loaded.force_field.training
    assert {tensor.device.type for tensor in loaded.force_field.state_dict().values()} == {"cpu"}


def test_the_header_says_what_a_user_needs(tmp_path):
    """Elements, units, versions, citation, certificate and card, readable without building the network."""
    loaded = load_model(saved(tmp_path / "model.safetensors", source="made up"))
    header = loaded.header
    assert header["elements"] == list(ELEMENTS)
    assert header["units"] == {
        "energy": "eV", "length": "Angstrom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3",
    }  # fmt: skip
    assert header["card"] == {"source": "made up"}
    assert header["versions"]["torch"] == torch.__version__
    assert "2408.13242" in header["citation"]
    assert loaded.certificate.passed


def test_the_calculator_of_a_file_agrees_with_the_model(tmp_path):
    """`MDRelaxCalculator.from_file` on a real file: energy and forces of the force field that was saved."""
    model = force_field(torch.float64)
    path = saved(tmp_path / "model.safetensors", model)
    atoms = STRUCTURES[0].copy()
    atoms.calc = MDRelaxCalculator.from_file(path)
    expected = model(batch_of(atoms, cutoff=model.cutoff))
    assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces.numpy(), rtol=0, atol=1e-12)
    assert atoms.calc.certificate.passed


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_golden_files_give_their_numbers(version):
    """Files of every version stay readable: energies (eV) noted when the file was made, to 1e-6 of 1 eV.

    Version 1 did not name its layer norm, which was the published one; such a model says that it is not smooth.
    Versions 1 and 2 had no binding energy of atoms, and version 3 no physics beside what is learnt.
    """
    path = GOLDEN / f"model_v{version}.safetensors"
    noted = json.loads(path.with_suffix(".json").read_text())
    with pytest.warns(RoughPotentialWarning, match="is not smooth: its layer norm") if version == 1 else nullcontext():
        loaded = load_model(path)
    assert loaded.header["format_version"] == FORMAT_VERSION
    assert loaded.header["potential"]["arguments"]["norm"] == ("separable" if version == 1 else "joint")
    assert float(loaded.force_field.binding) == (-4.5 if version >= 3 else 0.0)
    assert loaded.force_field.physics.zbl == (1.0 if version == 4 else 0.0)
    graph = batch_of(*STRUCTURES, cutoff=loaded.force_field.cutoff)
    np.testing.assert_allclose(loaded.force_field(graph).energy.numpy(), noted["energies_eV"], rtol=0, atol=1e-6)


def test_a_file_names_every_argument_of_its_network(tmp_path):
    """Defaults too, so that another default some day does not change its numbers."""
    arguments = load_model(saved(tmp_path / "m.safetensors")).header["potential"]["arguments"]
    assert arguments.items() >= ARGUMENTS.items()
    assert set(arguments) == set(inspect.signature(Equiformer).parameters) - {"n_species"}
    assert (arguments["norm"], arguments["norm_eps"]) == ("joint", 1e-5)


# --- refused when saved -----------------------------------------------------------------------------------------------


def test_a_network_with_free_maps_is_not_saved(tmp_path):
    """A model file is always equivariant."""
    model, proof = force_field(), certificate(force_field())
    relax_constraints(model)
    with pytest.raises(ValueError, match="project"):
        save_model(tmp_path / "m.safetensors", model, potential="equiformer", arguments=ARGUMENTS, certificate=proof)
    assert not list(tmp_path.iterdir())


def test_a_failed_certificate_is_not_saved(tmp_path):
    """A network that misses its limits is refused, not saved."""
    failed = certificate(force_field())._replace(float64=EquivarianceError(1e-3, 0.0, 0.0, 0.0))
    with pytest.raises(CertificateError, match=r"1\.0e-03 in float64"):
        save_model(
            tmp_path / "m.safetensors", force_field(), potential="equiformer", arguments=ARGUMENTS, certificate=failed
        )
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_model(tmp_path, monkeypatch):
    """The old file goes last."""
    path = saved(tmp_path / "model.safetensors")
    before = path.read_bytes()

    def no_space(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left on device"):
        saved(path, force_field(torch.float64))
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == before


# --- refused when loaded ----------------------------------------------------------------------------------------------


def refused(path: Path, content: bytes, match: str) -> None:
    """Loading the bytes raises one clear ``ModelFileError`` that names the file."""
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match) as caught:
        load_model(path)
    assert f"`{path}`" in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_refused(tmp_path, content, length):
    """Cut in the length field, in the header, and in the tensors, to the last byte."""
    end = int(length * len(content)) if isinstance(length, float) else length
    refused(tmp_path / "model.safetensors", content[:end], "truncated or not a safetensors file")


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(tmp_path, seed):
    """A foreign file is no model."""
    refused(tmp_path / "m.safetensors", np.random.default_rng(seed).bytes(5000), "truncated or not a safetensors file")


def test_someone_elses_safetensors_file_is_refused(tmp_path):
    """The format is shared by many programs."""
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(3, dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    refused(path, path.read_bytes(), "not one of mdrelax")


class Trap:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    """A model file never executes code, whatever is in it."""
    sprung = tmp_path / "sprung"
    refused(tmp_path / "model.safetensors", pickle.dumps(Trap(sprung)), "truncated or not a safetensors file")
    torch.save(Trap(sprung), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", (tmp_path / "model.pt").read_bytes(), "truncated or not a safetensors file")
    assert not sprung.exists()


@pytest.mark.parametrize("place", [-1, -100, -1000])
def test_an_altered_weight_is_noticed(tmp_path, content, place):
    """One bit of one tensor."""
    altered = bytearray(content)
    altered[place] ^= 1
    refused(tmp_path / "model.safetensors", bytes(altered), "altered")


@pytest.mark.parametrize(
    ("key", "value"), [("elements", [1, 6, 7]), ("dtype", "float64"), ("card", {"source": "better"}), ("content", "")]
)
def test_an_altered_header_is_noticed(tmp_path, content, key, value):
    """The hash covers what the header claims."""
    refused(tmp_path / "model.safetensors", rewritten(content, lambda header: {**header, key: value}), "altered")


def test_a_missing_hash_is_noticed(tmp_path, content):
    """Leaving the hash out does not get round it."""
    without = rewritten(content, lambda header: {k: v for k, v in header.items() if k != "content"})
    refused(tmp_path / "model.safetensors", without, "altered")


def test_a_newer_format_asks_for_an_upgrade(tmp_path, content):
    """Whatever else a newer version changed, its hash included."""
    newer = rewritten(content, lambda header: {"format_version": FORMAT_VERSION + 1, "something": "else"})
    refused(
        tmp_path / "model.safetensors",
        newer,
        f"format version {FORMAT_VERSION + 1}; this mdrelax reads up to {FORMAT_VERSION}: upgrade",
    )


@pytest.mark.parametrize("version", [None, 0, -3, "1", [1]])
def test_a_format_version_that_never_was_is_refused(tmp_path, content, version):
    """No crash on numbers that no mdrelax wrote."""
    other = rewritten(content, lambda header: {**header, "format_version": version})
    refused(tmp_path / "model.safetensors", other, "damaged")


@pytest.mark.parametrize("header", [[], 7, "text", None])
def test_a_header_that_is_no_object_is_refused(tmp_path, content, header):
    """The JSON may be valid and still be no header."""
    refused(tmp_path / "model.safetensors", rewritten(content, lambda _: header), "damaged")


def test_an_unknown_network_is_refused(tmp_path, monkeypatch):
    """A file that is whole, but whose network this version does not know."""
    path, model = tmp_path / "model.safetensors", force_field()
    monkeypatch.setattr("mdrelax.potentials.resolved_arguments", lambda name, arguments: arguments)
    save_model(path, model, potential="equiformr", arguments=ARGUMENTS, certificate=certificate(model))
    refused(path, path.read_bytes(), "did you mean `equiformer`")
    save_model(
        path, model, potential="equiformer", arguments={**ARGUMENTS, "n_basis": 5}, certificate=certificate(model)
    )
    refused(path, path.read_bytes(), "cannot build")


def test_other_clebsch_gordan_coefficients_are_refused(tmp_path, monkeypatch):
    """A change of e3nn's conventions would alter every number silently."""
    path = tmp_path / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("mdrelax.modelfile.coupling_fingerprint", lambda: "other")
        saved(path)
    refused(path, path.read_bytes(), "Clebsch-Gordan")


def test_a_missing_file_is_one_sentence(tmp_path):
    """Not found, and a folder in its place."""
    for path in (tmp_path / "model.safetensors", tmp_path):
        with pytest.raises(ModelFileError, match="There is no model file"):
            load_model(path)
