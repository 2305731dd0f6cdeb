"""Generating plumes: the physics of a step, symmetry, recipes, and runs that are killed, locked or impossible."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mdrelax.base.files import InUseError, locked_file
from mdrelax.datasets.plume_checks import check_plumes, divergence, symmetry_error
from mdrelax.datasets.plume_files import open_plumes
from mdrelax.datasets.plume_generate import generate_plumes
from mdrelax.datasets.plume_recipes import PlumeSettings, plans
from mdrelax.datasets.plume_simulator import PlumeRun, simulate, velocity_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = PlumeSettings("graded", grid=16, n_tasks=2, steps=22, buoyancy=0.02)  # 24 tasks
needs_phiflow = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("phi", "jax")),
    reason="needs the extra `smoke`",
)
pytestmark = pytest.mark.filterwarnings("ignore")  # those of phiflow and JAX

# Generates the set of settings sys.argv[2] into sys.argv[1], and kills itself after sys.argv[3] tasks.
KILLED = """
import json, os, signal, sys
from mdrelax.datasets.plume_generate import generate_plumes
from mdrelax.datasets.plume_recipes import PlumeSettings

def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

generate_plumes(sys.argv[1], settings=PlumeSettings(*json.loads(sys.argv[2])), jobs=2, progress=progress)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two levels of the graded family on a small grid, from an uninterrupted run."""
    return generate_plumes(tmp_path_factory.mktemp("plumes") / "small.npz", settings=SMALL, jobs=1)


# --- physics ---


@needs_phiflow
def test_a_step_is_that_of_phiflow_with_its_own_pressure_solve():
    """Three steps of the notebook, whose pressure is solved by conjugate gradients, here to 1e-12.

    Solved to 1e-12, velocities of order 0.1 agree to 1e-9: three steps amplify an error little.
    """
    from phi.jax import flow

    flow.math.set_global_precision(64)
    run = PlumeRun(cells=12, steps=3, inflow=(6.0, 1.5), radius=1.5, force=(0.0, 0.1), dt_velocity=0.5)
    made = velocity_of(simulate(run)[0])
    box = {"x": 12, "y": 12, "bounds": flow.Box(x=12, y=12)}
    smoke = flow.CenteredGrid(0.0, flow.extrapolation.BOUNDARY, **box)
    velocity = flow.StaggeredGrid(0.0, 0.0, **box)
    source = flow.CenteredGrid(flow.Sphere(x=6.0, y=1.5, radius=1.5), flow.extrapolation.BOUNDARY, **box)
    for k in range(3):
        smoke = flow.advect.mac_cormack(smoke, velocity, dt=1) + source
        lift = (smoke * (0, 0.1)).at(velocity)
        velocity = flow.advect.semi_lagrangian(velocity, velocity, dt=0.5) + lift
        velocity, _ = flow.fluid.make_incompressible(velocity, (), flow.Solve("CG", 1e-12, 1e-12))
        expected = velocity.staggered_tensor().numpy("vector,y,x")[:, :-1, :-1]
        np.testing.assert_allclose(made[k], expected, atol=1e-9)
    assert np.abs(made[2]).max() > 0.05


@needs_phiflow
def test_an_unstable_flow_is_refused_with_its_step():
    """Buoyancy that throws the smoke through the box in one step ends in NaN or a residue, which is never stored."""
    with pytest.raises(ValueError, match=r"Step \d+ of 40 ended with a divergence of .* choose a smaller `buoyancy`"):
        simulate(PlumeRun(cells=8, steps=40, inflow=(4.0, 1.0), radius=1.0, force=(0.0, 1e14)))


@needs_phiflow
def test_generated_plumes_are_sound(small):
    """Every check passes; divergence, as simulated and as stored, is far below the limit of 1e-3."""
    plumes = open_plumes(small)
    assert plumes.shape == (12, 2, 16, 16)
    table = check_plumes(plumes)
    messages = table.set_index("check").message
    assert table[table.check != "no test frame in training"].passed.all()
    assert not messages["equal sides agree"]  # not "Not tested"
    assert max(task.info.divergence for task in plumes.tasks) < 1e-9
    assert max(np.abs(divergence(task.read_faces())).max() for task in plumes.tasks) < 1e-6  # float32


@needs_phiflow
def test_equal_sides_are_quarter_turns_of_each_other_at_step_20(small):
    """Without bias the error is under 1e-5 (rounding: 1e-13 as simulated); with bias it grows with the side."""
    tasks = {task.info.name: task for task in open_plumes(small, sampling="faces").tasks}
    assert max(task.info.symmetry_error for task in tasks.values() if task.info.level == 0) < 1e-10
    at_step_20 = 20 - open_plumes(small).first_step
    for variant in range(3):
        unbiased = tasks[f"0_0_{variant}"].velocity[at_step_20]
        for side in (1, 2, 3):
            assert symmetry_error(tasks[f"0_{side}_{variant}"].velocity[at_step_20], unbiased, side) < 1e-5
        biased = [tasks[f"1_{side}_{variant}"].info.symmetry_error for side in range(4)]
        assert biased[0] < 1e-10 < 0.1 < biased[1] < biased[2] < biased[3]


@needs_phiflow
def test_what_is_stored_is_what_was_simulated(small):
    """The stream function is rounded to 2^-14, so velocities, differences of two nodes, are at most that far off."""
    plan = next(plan for plan in plans(SMALL) if plan.info.name == "1_2_1")
    simulated = velocity_of(simulate(plan.run)[0])[plan.skip :]
    plumes = open_plumes(small, sampling="faces")
    stored = plumes.tasks[plumes.index("1_2_1")].velocity
    assert np.abs(stored - simulated).max() <= 2.0**-14 * 1.001  # and float32


# --- recipes ---


def test_the_published_sets_are_planned_as_published():
    """36 strengths of 0.01 with side 2 stronger by a tenth; 38 scales; disc and force turn from wall to wall."""
    rotation = {plan.info.name: plan for plan in plans(PlumeSettings("rotation"))}
    assert len(rotation) == 36
    assert [rotation[name].run.inflow for name in ("1_0", "2_1", "3_2", "4_3")] == [
        (32, 5),
        (59, 32),
        (32, 59),
        (5, 32),
    ]
    assert rotation["27_2"].run.force == (0, pytest.approx(-0.297))
    assert rotation["36_3"].run.force == (pytest.approx(0.36), 0)
    assert (rotation["1_0"].run.steps, rotation["1_0"].skip, rotation["1_0"].run.radius) == (310, 1, 5)
    scale = plans(PlumeSettings("scale"))
    assert len(scale) == 38
    assert [scale[k].run.cells for k in (0, 1, 10, 37)] == [64, 70, 128, 300]
    assert scale[10].run == PlumeRun(128, 310, (64, 10), 10, (0, pytest.approx(0.2)), 0.5)


def test_variants_of_the_graded_family_share_their_places():
    """The same distance along the wall for all sides and levels: another seed, another distance."""
    made = {plan.info.name: plan.info for plan in plans(PlumeSettings("graded", n_tasks=3))}
    assert len(made) == 36
    for variant in range(3):
        x, y = made[f"0_0_{variant}"].inflow
        assert made[f"2_1_{variant}"].inflow == (64 - y, x)
        assert made[f"1_2_{variant}"].inflow == (64 - x, 64 - y)
    assert made["0_0_0"].inflow == (32, 5)
    assert made["2_3_0"].buoyancy == pytest.approx(0.04)
    others = {plan.info.name: plan.info for plan in plans(PlumeSettings("graded", n_tasks=3, seed=1))}
    assert others["0_0_1"].inflow != made["0_0_1"].inflow


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "wind"}, "`kind` must be one of rotation, scale, graded, got `wind`"),
        ({"grid": 4}, "`grid` must lie between 8 and 512 for rotation plumes, got 4"),
        ({"n_tasks": 37}, "`n_tasks` must lie between 1 and 36 for rotation plumes, got 37"),
        ({"steps": 1}, "`steps` must lie between 2 and"),
        ({"buoyancy": float("nan")}, "`buoyancy` must lie between 0 and 10, got nan"),
        ({"resolution": 1.0}, "`resolution` must lie between"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    """The sentence has the value and the range."""
    with pytest.raises(ValueError, match=words):
        plans(PlumeSettings()._replace(**change))


# --- runs ---


@needs_phiflow
def test_a_killed_run_resumes_to_the_same_file(small, tmp_path):
    """Killed after three tasks with two processes, resumed with one: the same bytes as of the uninterrupted run."""
    out = tmp_path / "small.npz"
    command = [sys.executable, "-c", KILLED, str(out), json.dumps(SMALL), "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, timeout=600, check=False).returncode == -signal.SIGKILL
    parts = out.with_name("small.npz.parts")
    assert not out.exists()
    with (parts / "journal").open("a") as file:
        file.write('{"kind": "ta')  # the line that was being written
    told: list[tuple[int, int]] = []
    with pytest.raises(ValueError, match="was made with other settings"):
        generate_plumes(out, settings=SMALL._replace(seed=1))
    generate_plumes(out, settings=SMALL, progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 24) for k in range(4, 25)]
    assert out.read_bytes() == small.read_bytes()
    assert not parts.exists()


@needs_phiflow
def test_only_one_process_generates_a_file(tmp_path):
    """The second one is told who is at work."""
    out = tmp_path / "rotation.npz"
    with locked_file(out):
        command = [sys.executable, "-c", KILLED, str(out), json.dumps(SMALL), "1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, timeout=600, check=False, capture_output=True, text=True)
    assert f"{InUseError.__name__}: `{out}` is in use by process {os.getpid()}" in ended.stderr


@needs_phiflow
def test_a_task_that_fails_is_named(tmp_path):
    """The error of a worker arrives with the name of its task, and no file is written."""
    out = tmp_path / "first.npz"
    (tmp_path / "first.npz.parts" / "1_0.npy").mkdir(parents=True)  # where the task would be written
    with pytest.raises(OSError, match=r"Plume `1_0`: .*1_0\.npy` could not be written"):
        generate_plumes(out, settings=PlumeSettings("rotation", grid=8, n_tasks=1, steps=2))
    assert not out.exists()


def test_other_endings_are_refused(tmp_path):
    """A set is one npz."""
    with pytest.raises(ValueError, match=r"got `plumes\.pt`; end its name with \.npz"):
        generate_plumes(tmp_path / "plumes.pt")
