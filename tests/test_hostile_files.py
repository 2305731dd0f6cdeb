"""Files made on purpose: nothing is run, nothing of absurd size is allocated, and each is refused in one sentence."""

import json
import resource
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toy_regression
from hostile import VALUES, changed, forged, forged_compiled, is_one_sentence, places, refusal
from mdrelax.base.budget import BudgetError, within_budget
from mdrelax.base.containers import read_container
from mdrelax.compiled import files, load_compiled
from mdrelax.compiled.files import DOCUMENT
from mdrelax.forces.physics import LEARNT_ALONE
from mdrelax.method.certificate import Certificate, EquivarianceError
from mdrelax.modelfile import ModelFileError, load_model
from mdrelax.packs.modelnet.model_file import load_network
from mdrelax.packs.smoke.model_file import FlowHeader, load_flow, save_flow
from mdrelax.packs.smoke.sizes import build_network
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from untrained_models import saved

Model = tuple[dict[str, Any], dict[str, Tensor]]
GOLDEN = Path(__file__).parent / "golden" / "2026-11"
FREE = {"card", "citation", "units", "content"}  # words for a reader, which loading does not need


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Header and tensors of a good file."""
    return read_container(saved(tmp_path_factory.mktemp("hostile") / "m.safetensors", 1, 8))


def every_tenth(header: dict[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """A tenth of the changes, spread over all places."""
    pairs = [(place, value) for place in places(header) if place[0] not in FREE for value in VALUES]
    return pairs[::10]


def test_a_broken_header_is_one_sentence_or_harmless(tmp_path: Path, model: Model) -> None:
    """Every key is given every wrong value in turn; nothing but our own errors comes out."""
    header, tensors = model
    path = tmp_path / "m.safetensors"
    for place, value in every_tenth(header):
        error = refusal(load_model, forged(path, changed(header, place, value), tensors))
        assert error is None or is_one_sentence(error), (place, value, error)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("elements",), [10**9]),
        (("elements",), [0, 8]),
        (("potential", "arguments", "n_blocks"), 10**9),
        (("potential", "arguments", "n_features"), 900),
        (("potential", "arguments", "irreps"), "1000000000x0e"),
        (("potential", "arguments", "irreps"), "4x0e+1x900o"),
        (("potential", "arguments", "cutoff"), 10**400),
        (("certificate", "float64", "rotation"), -1.0),
        (("certificate", "symmetry"), "none"),
        (("certificate", "n_structures"), 0),
    ],
)
def test_a_small_file_cannot_ask_for_a_large_network(tmp_path: Path, model: Model, place: Any, value: Any) -> None:
    """`elements: [10**9]` took 7.6 GB: sizes are compared before anything is allocated."""
    header, tensors = model
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ModelFileError) as caught:
        load_model(forged(tmp_path / "m.safetensors", changed(header, place, value), tensors))
    assert is_one_sentence(caught.value)
    assert time.monotonic() - start < 10  # seconds, on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_small_file_cannot_ask_for_a_large_grid(tmp_path: Path) -> None:
    """The same of a flow network, whose first layer has weights for each cell: this grid asks for 7.7 GB."""
    built = FlowHeader("mlp", "tiny", "C4", True, n_in=10, size=(8, 8), sampling="centres", dtype="float32")
    network = build_network(*built.names(), **built.arguments())
    errors = EquivarianceError(0.0, 0.0, 0.0, 0.0)
    path = save_flow(tmp_path / "m.safetensors", network, built, certificate=Certificate("none", errors, errors, 1, []))
    header, tensors = read_container(path)
    assert load_flow(path).built == built
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match="larger than the file") as caught:
        load_flow(forged(path, changed(header, ("size",), [2000, 2000]), tensors))
    assert is_one_sentence(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, model: Model, number: float) -> None:
    """They would make every energy NaN, in the middle of a simulation."""
    header, tensors = model
    name = next(name for name in tensors if tensors[name].numel() > 1)
    broken = {**tensors, name: tensors[name].clone()}
    broken[name].view(-1)[0] = number
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        load_model(forged(tmp_path / "m.safetensors", header, broken))


def _other_dtype(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64 if tensor.dtype == torch.float32 else torch.float32)


@pytest.mark.parametrize("change", [_other_dtype, lambda tensor: None, lambda tensor: tensor.reshape(*tensor.shape, 1)])
@pytest.mark.parametrize(("kind", "load"), [
    ("force-field-segnn", load_model), ("point-clouds", load_network), ("flow-kept", load_flow),
])  # fmt: skip
def test_tensors_are_taken_as_they_are_or_not_at_all(tmp_path: Path, kind: str, load: Any, change: Any) -> None:
    """Torch rounds another dtype, reshapes a counter and fills in one that is missing, without a word."""
    header, tensors = read_container(GOLDEN / f"{kind}.safetensors")
    for name in (next(iter(tensors)), *(name for name in tensors if name.endswith(("batches_tracked", "binding")))):
        others = {**tensors, name: change(tensors[name])}
        given = {key: tensor for key, tensor in others.items() if tensor is not None}
        with pytest.raises(ModelFileError, match=r"is missing|where the network has") as caught:
            load(forged(tmp_path / "m.safetensors", header, given))
        assert is_one_sentence(caught.value)


@pytest.mark.parametrize(("kind", "load", "place", "value"), [
    ("point-clouds", load_network, "classes", ["a", 1, []]), ("point-clouds", load_network, "n_points", "x"),
    ("point-clouds", load_network, "format_version", -3), ("flow-kept", load_flow, "norm", "x"),
    ("flow-kept", load_flow, "sampling", "corners"), ("flow-kept", load_flow, "theta", {"layers.0": float("nan")}),
    ("flow-exact", load_flow, "size", [8, 8, 8]), ("flow-exact", load_flow, "format_version", True),
])  # fmt: skip
def test_headers_of_task_models_have_a_form_too(tmp_path: Path, kind: str, load: Any, place: str, value: Any) -> None:
    """Some of these were accepted, and the network had other classes or a theta that is no number."""
    header, tensors = read_container(GOLDEN / f"{kind}.safetensors")
    with pytest.raises(ModelFileError, match=f"is damaged: `{place}") as caught:
        load(forged(tmp_path / "m.safetensors", {**header, place: value}, tensors))
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("letters", ["\x1b[2J\x07", "\ud800", "a\rb\u202e"])
def test_letters_of_a_file_do_not_reach_the_terminal(tmp_path: Path, model: Model, letters: str) -> None:
    """A message quotes what a file holds; a terminal would obey some letters, and others cannot be encoded."""
    header, tensors = model
    with pytest.raises(ModelFileError) as caught:
        load_model(forged(tmp_path / "m.safetensors", {**header, "kind": f"x{letters}"}, tensors))
    assert str(caught.value).isprintable()
    assert is_one_sentence(caught.value)


@pytest.mark.parametrize("word", ["1" * 5000, "[" * 100_000, '{"a":' * 100_000, '"' + "x" * 10])
def test_json_without_limits_is_one_sentence(tmp_path: Path, word: str) -> None:
    """Integers of thousands of digits, and brackets beyond the recursion limit."""
    outer = json.dumps({"__metadata__": {"mdrelax": word if word[0] == "[" else f'{{"format_version": 3, "x": {word}'}})
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(outer)) + outer.encode())
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    assert is_one_sentence(caught.value)


def test_a_network_of_the_files_size_is_within_its_budget() -> None:
    """What fits is built; a tensor or a number beyond the file is refused before it is made."""
    tensors = {"w": torch.zeros(3000, 1000)}
    with within_budget({"width": 3000}, tensors):
        torch.nn.Linear(1000, 3000, bias=False)
    with pytest.raises(BudgetError, match="larger than the file"), within_budget({}, tensors):
        torch.empty(10**6, 10**6)
    with (
        pytest.raises(BudgetError, match="is more than the 3000000 numbers"),
        within_budget([{"a": "5000000x0e"}], tensors),
    ):
        pass


# --- compiled models --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::mdrelax.modelfile.RoughPotentialWarning")
def test_everything_else_is_checked_before_a_library_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code in a `.pt2` file runs when it is loaded: a document that is refused must be refused before."""
    errors = dict.fromkeys(("rotation", "reflection", "translation", "permutation"), 0.0)
    header = {
        "format_version": files.FORMAT_VERSION, "elements": [1, 8], "reference_energies": [0.0, 1.0], "scale": 1.0,
        "binding": 0.0, "cutoff": 4.0, "dtype": "float32", "takes_table": False, "n_rounds": 2, "roughness": None,
        "physics": LEARNT_ALONE._asdict(),
        "card": {}, "built_for": {"torch": "x"},
        "certificate": {"symmetry": "E(3)", "float64": errors, "float32": errors, "n_structures": 1, "layers": []},
    }  # fmt: skip
    original = tmp_path / "original.pt2"
    with zipfile.ZipFile(original, "w") as archive:
        archive.writestr("m/code.so", b"code")
        archive.writestr(f"m/{DOCUMENT}", "{}")
    ran: list[Path] = []
    monkeypatch.setattr(files, "this_machine", lambda: {"torch": "x"})
    monkeypatch.setattr(files, "load_library", lambda path: ran.append(path) or (lambda arguments: arguments))
    load_compiled(forged_compiled(tmp_path / "m.pt2", original, header))
    assert len(ran) == 1
    for place, value in ((place, value) for place in places(header) for value in VALUES):
        ran.clear()
        error = refusal(load_compiled, forged_compiled(tmp_path / "m.pt2", original, changed(header, place, value)))
        assert error is None or is_one_sentence(error), (place, value, error)
        assert len(ran) == (error is None), (place, value)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_in_a_checkpoint_changes_a_number(tmp_path: Path) -> None:
    """29 of 100 flips loaded changed weights: torch compares no checksums."""
    path = tmp_path / "last.pt"
    state = {"step": 3, "weights": torch.arange(40.0), "best": {"error": 0.5}}
    save_checkpoint(path, state)
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 37):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        assert torch.equal(found.pop("weights"), state["weights"]), place
        assert found == {"step": 3, "best": {"error": 0.5}}


def as_double(nest: Any) -> Any:
    """A nest with its tensors in double precision."""
    if isinstance(nest, dict):
        return {key: as_double(value) for key, value in nest.items()}
    if isinstance(nest, list):
        return [as_double(value) for value in nest]
    return nest.double() if isinstance(nest, Tensor) else nest


def with_steps(state: dict[str, Any], steps: float) -> dict[str, Any]:
    """The state of Adam after a number of steps, which is a tensor in it."""
    return {**state, "state": {key: {**each, "step": steps} for key, each in state["state"].items()}}


@pytest.mark.parametrize(("part", "change"), [
    ("controller", lambda found: {"gammas": []}), ("controller", lambda found: 7), ("optimizer", lambda found: None),
    ("ema", lambda found: {**found, "average": {name: a.double() for name, a in found["average"].items()}}),
    ("model", lambda found: {name: tensor.double() for name, tensor in found.items()}),
    ("optimizer", lambda found: as_double(found)), ("best", lambda found: 3), ("rows", lambda found: [7]),
    ("optimizer", lambda found: with_steps(found, 1e308)),
    ("optimizer", lambda found: {
        **found, "param_groups": [{**group, "decoupled_weight_decay": 118} for group in found["param_groups"]]}),
    ("rows", lambda found: [{**found[0], "step": [1]}, *found[1:]]), ("rows", lambda found: [{}, *found[1:]]),
    ("layer_rows", lambda found: [*found[:-1], {name: found[-1][name] for name in ("step", "layer", "norm")}]),
    ("best", lambda found: {**found, "state": [[[]]]}), ("best", lambda found: {**found, "state": {"weight": 2.0}}),
    ("best", lambda found: {**found, "state": dict(list(found["state"].items())[1:])}),
    ("best", lambda found: {**found, "step": 10**6}), ("best", lambda found: {**found, "error": "small"}),
    ("best", lambda found: {**found, "layers": [{"name": "a"}]}),
])  # fmt: skip
def test_a_state_that_fits_no_run_is_not_resumed(tmp_path: Path, part: str, change: Any) -> None:
    """Its hash fits, its parts do not: another controller's state was ignored, another precision was rounded.

    A number of steps that is no tensor was made one, and the best network was first loaded when the run had ended.
    """
    toy_regression.trainer(tmp_path).run()
    path = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(path)
    save_checkpoint(path, {**state, part: change(state[part])})
    with pytest.raises(CheckpointError) as caught:
        toy_regression.trainer(tmp_path).resume()
    assert is_one_sentence(caught.value)


def test_a_checkpoint_of_an_older_version_has_its_checksums_compared(tmp_path: Path) -> None:
    """Without a hash of ours, the zip archive's own."""
    path = tmp_path / "last.pt"
    torch.save({"weights": torch.full((40,), 2.0)}, path)
    assert load_checkpoint(path)["weights"].tolist() == [2.0] * 40
    content = path.read_bytes()
    path.write_bytes(content.replace(torch.tensor([2.0]).numpy().tobytes(), torch.tensor([3.0]).numpy().tobytes(), 1))
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_torch_itself_still_reads_a_checkpoint(tmp_path: Path) -> None:
    """The hash is the comment of the archive."""
    save_checkpoint(tmp_path / "last.pt", {"step": 3})
    assert torch.load(tmp_path / "last.pt", weights_only=True) == {"step": 3}
