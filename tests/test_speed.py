"""The speed benchmark: it times what it says, its ratios are those of its medians, and who is missing is left out."""

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from command_line import mdrelax
from mdrelax.analysis.benchmarks import implementations as who
from mdrelax.analysis.benchmarks import mdrelax_worker
from mdrelax.analysis.benchmarks.backbones import backbone_times
from mdrelax.analysis.benchmarks.interleaved import Rules
from mdrelax.analysis.benchmarks.operators import operator_table
from mdrelax.analysis.benchmarks.peers.protocol import Task
from mdrelax.analysis.benchmarks.speed import Speed, measure, printed, with_limits, with_ratios, write_speed
from mdrelax.analysis.benchmarks.speed_figures import scaling
from mdrelax.analysis.benchmarks.structures import MOLECULES
from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.potentials import POTENTIALS
from mdrelax.structures.neighbors import build_graph
from speed_workers import in_process

NOWHERE = Path("no-such-folder")
QUICK = Rules(repeats=1, seconds=0.01)


def run(cases, implementations, **options):
    """The benchmark without processes of our own."""
    chosen = who.implementations(implementations, peers=options.pop("peers", False), venvs=NOWHERE)
    return measure(who.cases(cases), chosen, rules=QUICK, start=in_process, **options)


@pytest.fixture(scope="module")
def nbody() -> Speed:
    """The N-body case, timed once."""
    return run(["nbody"], ["segnn-nbody*"])


def test_the_nbody_table_names_every_network_and_its_ratios(nbody):
    """Plain form, standard, relaxed with either penalty, projected: parameters as published, ratios of medians."""
    table = nbody.table.set_index("contestant")
    assert list(table.index) == [
        "segnn-nbody:plain", "segnn-nbody", "segnn-nbody:relaxed", "segnn-nbody:relaxed-weight",
        "segnn-nbody:projected",
    ]  # fmt: skip
    assert table.n_parameters.tolist() == [147_424, 147_424, 344_032, 344_032, 147_424]
    assert table.ratio_to_standard["segnn-nbody"] == table.times_faster_than_plain["segnn-nbody:plain"] == 1
    expected = table.ms_median["segnn-nbody:plain"] / table.ms_median["segnn-nbody"]
    assert table.times_faster_than_plain["segnn-nbody"] == pytest.approx(expected)


def test_what_is_counted_is_a_fraction_of_the_machines_limits(nbody):
    """The same standard and projected step: the same operations, and more in the relaxed one."""
    table = nbody.table.set_index("contestant")
    assert table.gflop["segnn-nbody"] == table.gflop["segnn-nbody:projected"] < table.gflop["segnn-nbody:relaxed"]
    rate = table.gflop / (table.ms_median / 1e3)
    assert table.matrix_limit_used.tolist() == pytest.approx((rate / nbody.limits["gflop_per_s"]).tolist())
    assert (table.memory_limit_used > 0).all()


def test_the_files_tell_versions_machine_command_and_rules(nbody, tmp_path):
    """speed.csv is the table, speed.json has what is needed to check it, speed.md is read; no picture without MD."""
    csv, record, page = write_speed(nbody, tmp_path, command="mdrelax bench speed")
    text = page.read_text()
    assert "## Training step, ms" in text
    assert f"{nbody.table.ms_median[0]:,.1f} |" in text
    assert csv.read_text().startswith("case,contestant,kind,n_atoms,ms_lower_quartile,ms_median")
    content = json.loads(record.read_text())
    assert content["command"] == "mdrelax bench speed"
    assert content["versions"]["segnn-nbody"]["torch"] == torch.__version__
    assert content["rules"]["repeats"] == 1
    assert {"seed", "date", "platform"} <= content["environment"].keys()
    assert content["limits"]["threads"] == 1
    assert [row["n_parameters"] for row in content["rows"]][:2] == [147_424, 147_424]


def test_a_peer_that_is_not_installed_is_left_out_with_one_line():
    """The others are timed."""
    said = []
    result = run(["md-ethanol"], ["mace-64", "equiformer-tiny"], peers=True, tell=said.append)
    assert result.table.contestant.tolist() == ["equiformer-tiny"]
    assert [line for line in said if "mace" in line] == ["mace-64 is left out, it is not installed (`make peers`)"]


def test_nothing_to_time_is_an_error():
    """A relaxed network drives no MD."""
    with pytest.raises(ValueError, match="Nothing was timed"):
        run(["md-ethanol"], ["equiformer-tiny:relaxed"])


def test_ratios_compare_within_a_case():
    """Standard, relaxed, plain and a peer, twice, with times that are multiples."""
    names = ["equiformer-tiny", "equiformer-tiny:relaxed", "equiformer-tiny:plain", "mace-64"]
    rows = [
        {"case": case, "contestant": name, "ms_median": scale * ms, "n_atoms": 10}
        for case, scale in (("small", 1.0), ("large", 100.0))
        for name, ms in zip(names, (2.0, 3.0, 8.0, 6.0), strict=True)
    ]
    table = with_ratios(pd.DataFrame(rows), ["mace-64"])
    for _, case in table.groupby("case"):
        by_name = case.set_index("contestant")
        assert by_name.ratio_to_standard.dropna().to_dict() == {names[0]: 1.0, names[1]: 1.5, names[2]: 4.0}
        assert by_name.times_faster_than_plain.dropna().to_dict() == pytest.approx(
            {names[0]: 4.0, names[1]: 8 / 3, names[2]: 1.0}
        )
        assert by_name["times_faster_than_mace-64"].tolist() == pytest.approx([3.0, 2.0, 0.75, 1.0])
    assert table.ms_per_atom.tolist()[0] == 0.2


def test_a_compiled_form_is_compared_with_the_compiled_standard():
    """Its plain form stays the one e3nn form."""
    names = ["segnn-nbody", "segnn-nbody:compiled", "segnn-nbody:relaxed-compiled"]
    rows = [{"case": "nbody", "contestant": name, "ms_median": ms, "n_atoms": 500} for name, ms in
            zip(names, (4.0, 2.0, 3.0), strict=True)]  # fmt: skip
    assert with_ratios(pd.DataFrame(rows), []).ratio_to_standard.tolist() == [1.0, 1.0, 1.5]


def test_a_compiled_training_step_is_compared_with_its_like():
    """Relaxed and compiled over standard and compiled."""
    names = ["equiformer-small", "equiformer-small:compiled-training", "equiformer-small:relaxed-compiled-training"]
    rows = [{"case": "ethanol-b8", "contestant": name, "ms_median": ms, "n_atoms": 72} for name, ms in
            zip(names, (4.0, 2.0, 3.0), strict=True)]  # fmt: skip
    assert with_ratios(pd.DataFrame(rows), []).ratio_to_standard.tolist() == [1.0, 1.0, 1.5]


def test_each_form_takes_part_where_it_can():
    """Free maps only train, code compiled ahead of time only runs MD, and no network is no training."""
    names = [
        "equiformer-small", "equiformer-small:projected", "equiformer-small:relaxed", "equiformer-small:compiled",
        "equiformer-small:relaxed-weight-compiled-training", "no-network", "segnn-nbody:relaxed",
    ]  # fmt: skip
    kinds = [who.mdrelax_implementation(name).kinds for name in names]
    both, training, md = ("training", "md"), ("training",), ("md",)
    assert kinds == [both, both, training, md, training, md, ("nbody",)]


def test_a_batch_in_parts_makes_the_step_of_the_whole(monkeypatch):
    """32 structures are four parts: the mean of their losses is the loss of all."""
    task = Task("training", who.structures_of(who.CASES["ethanol-b32"]), dtype="float64")
    gradients = []
    for size in (mdrelax_worker.MICRO_BATCH, 32):
        model = mdrelax_worker.force_field("equiformer-tiny", "", task.dtype, task.cutoff)
        monkeypatch.setattr(mdrelax_worker, "MICRO_BATCH", size)
        monkeypatch.setattr(mdrelax_worker, "force_field", lambda *arguments, built=model: built)
        mdrelax_worker.prepare("equiformer-tiny", task).step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        monkeypatch.undo()
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)  # sums in another order


def test_a_relaxed_step_adds_the_penalty_of_its_own_inputs(monkeypatch):
    """Its gradient is that of the errors and the penalty at this step's calls, and no record is left open after it."""
    task = Task("training", who.structures_of(who.CASES["ethanol-b1"]), dtype="float64")
    model = mdrelax_worker.force_field("equiformer-tiny", "relaxed", task.dtype, task.cutoff)
    monkeypatch.setattr(mdrelax_worker, "force_field", lambda *arguments: model)
    work = mdrelax_worker.prepare("equiformer-tiny:relaxed", task)
    for _ in range(2):
        twin = copy.deepcopy(model)
        work.step()
        assert all(layer.calls is None for layer in relaxed_layers(model).values())
        with record_inputs(twin) as inputs:
            (structure,) = task.structures
            found = twin(build_graph(structure.positions, structure.numbers, cutoff=task.cutoff), create_graph=True)
        error = found.energy.square().mean() + found.forces.square().mean()
        (error + 0.01 * penalty(twin, inputs, rows=mdrelax_worker.PENALTY_ROWS)).backward()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)  # sums in another order


def test_the_largest_operators_are_listed_with_their_shares():
    """`bench operators`: the fast form calls fewer operations than the plain one."""
    table = operator_table(["equiformer-small:plain", "equiformer-small"], "ethanol-b1", steps=1, rows=5)
    assert table.groupby("contestant", sort=False).size().tolist() == [5, 5]
    assert table.share.between(0, 1).all()
    plain, fast = table.groupby("contestant", sort=False).all_calls.first()
    assert fast < plain
    assert {"mm", "bmm"} & set(table.operator)


def test_no_network_has_a_constant_energy():
    """What remains of its MD step is the calculator and ASE."""
    task = Task("md", who.structures_of(who.CASES["md-ethanol"]))
    assert mdrelax_worker.prepare(who.NO_NETWORK, task).n_parameters == 1
    atoms = MOLECULES["ethanol"]()
    prediction = mdrelax_worker.force_field(who.NO_NETWORK, "", "float64", 5.0)(
        build_graph(atoms.positions, atoms.numbers, cutoff=5.0)
    )
    assert not prediction.energy.any()
    assert not prediction.forces.any()


def test_the_picture_has_a_line_for_each_implementation_that_runs_md():
    """Milliseconds on the left, microseconds an atom on the right; without MD there is nothing to draw."""
    rows = [
        {"kind": "md", "contestant": name, "n_atoms": n, "ms_median": ms * n}
        for name, ms in (("equiformer-tiny", 0.5), ("mace-64", 2.0))
        for n in (9, 192)
    ]
    left, right = scaling(pd.DataFrame(rows)).axes
    assert {line.get_label() for line in left.lines} == {"equiformer-tiny", "mace-64"}
    assert right.lines[0].get_ydata().tolist() == [500.0, 500.0]
    with pytest.raises(NothingToDrawError):
        scaling(pd.DataFrame(rows).assign(kind="training"))


@pytest.mark.parametrize("form", ["", ":relaxed", ":relaxed-weight", ":projected", ":plain"])
def test_only_relaxed_forms_have_more_parameters(form):
    """Each form trains; what projection leaves has the standard network's size, and so has the plain form."""
    task = Task("training", who.structures_of(who.CASES["ethanol-b1"]))
    work = mdrelax_worker.prepare(f"equiformer-tiny{form}", task)
    work.step()
    standard = mdrelax_worker.prepare("equiformer-tiny", task).n_parameters
    assert (work.n_parameters > standard) == form.startswith(":relaxed")


def test_the_plain_form_gives_the_same_energies_and_forces():
    """float64, to rounding: both implementations do the same work."""
    task = Task("md", dtype="float64")
    atoms = MOLECULES["ethanol"]()
    graph = build_graph(atoms.positions, atoms.numbers, cutoff=task.cutoff)
    fast, plain = (
        mdrelax_worker.force_field("equiformer-tiny", form, task.dtype, task.cutoff)(graph) for form in ("", "plain")
    )
    assert torch.allclose(fast.energy, plain.energy, atol=1e-10)
    assert torch.allclose(fast.forces, plain.forces, atol=1e-10)


def test_every_potential_is_timed_in_training_and_in_dynamics():
    """`bench backbones`: three kinds of steps for each potential; a free map adds no parameter to what is counted."""
    table = backbone_times(batch_size=1, repeats=1, sizes=("tiny",), start=in_process)
    kinds = ("training", "training, relaxed", "MD")
    assert list(table.index) == [f"{name} tiny: {kind}" for name in POTENTIALS for kind in kinds]
    assert (table.ms_median > 0).all()
    assert table.groupby(table.n_parameters).size().tolist() == [3, 3, 3]


def test_names_are_chosen_by_patterns_and_a_wrong_one_is_answered_with_the_nearest():
    """Stars are allowed; the command says what there is without timing it."""
    listed = mdrelax("bench", "speed", "--cases", "md-water-*", "--contestants", "mace-*,segnn-tiny", "--list")
    assert listed.out.splitlines() == [
        "cases: md-water-192, md-water-648, md-water-1536, md-water-5184, md-water-20577",
        "implementations: segnn-tiny, mace-128, mace-64",
    ]
    wrong = mdrelax("bench", "speed", "--cases", "etanol-b8")
    assert wrong.code != 0
    assert "ethanol-b8" in wrong.last_line


def test_limits_of_a_table_without_counts_are_empty():
    """Peers only: nothing was counted, and nothing is printed of it."""
    table = pd.DataFrame([{"case": "nbody", "contestant": "x", "ms_median": 1.0, "n_atoms": 500}])
    table = with_limits(with_ratios(table, ["x"]), {"gflop_per_s": 1.0, "gbyte_per_s": 1.0})
    assert table.matrix_limit_used.isna().all()
    text = printed(Speed(table, {}, {"threads": 1, "gflop_per_s": 1.0, "gbyte_per_s": 1.0}, QUICK))
    assert "matrix_limit_used" not in text
    assert text.splitlines()[-1] == "limits with 1 threads, float32: matrix product 1 GFLOP/s, memory 1.0 GB/s"
