"""The N-body simulator: laws of mechanics, the order of its integrators, and a slow simulator to agree with."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from mdrelax.datasets import nbody_simulator
from mdrelax.datasets.nbody_simulator import (
    PROTOCOLS,
    SYSTEMS,
    Protocol,
    draw_starts,
    forces,
    integrate,
    potential_energy,
    simulate,
)

SMOOTH = {name: protocol._replace(softening=0.5, largest_force=None) for name, protocol in PROTOCOLS.items()}


def rng(seed: int = 0) -> np.random.Generator:
    """A generator of the test's own."""
    return np.random.default_rng(seed)


def starts(system: str, count: int, protocol: Protocol | None = None, n_bodies: int = 5) -> tuple[np.ndarray, ...]:
    """Random starts: positions, velocities, charges."""
    chosen = PROTOCOLS[system] if protocol is None else protocol
    return draw_starts(system, count, generator=rng(), n_bodies=n_bodies, protocol=chosen)


def slow_forces(system: str, x: np.ndarray, q: np.ndarray, softening: float) -> list[list[float]]:
    """The law of each system written once more, particle by particle."""
    total = [[0.0, 0.0, 0.0] for _ in q]
    for i in range(len(q)):
        for j in range(len(q)):
            if i == j:
                continue
            apart = [x[i][c] - x[j][c] for c in range(3)]
            r = (sum(a * a for a in apart) + softening**2) ** 0.5
            spring = -0.1 if q[i] == q[j] else 0.0
            size = {"charged": q[i] * q[j] / r**3, "gravity": -q[i] * q[j] / r**3, "springs": spring}[system]
            for c in range(3):
                total[i][c] += size * apart[c]
    return total


def slow_trajectory(system: str, x, v, q, n_steps: int, protocol: Protocol) -> list[tuple[list, list]]:
    """Positions and velocities after each step, as lists of numbers; kick, then drift, record and kick in turn."""
    x, v = x.tolist(), v.tolist()
    dt, largest, states = protocol.dt, protocol.largest_force or float("inf"), []

    def kicked(size: float) -> list[list[float]]:
        pairs = zip(v, slow_forces(system, x, q, protocol.softening), strict=True)
        return [[b + size * min(max(f, -largest), largest) for b, f in zip(*p, strict=True)] for p in pairs]

    v = kicked(0.5 * dt if protocol.half_kick else dt)
    for _ in range(n_steps):
        x = [[a + dt * b for a, b in zip(*p, strict=True)] for p in zip(x, v, strict=True)]
        states.append((x, kicked(0.5 * dt) if protocol.half_kick else v))
        v = kicked(dt)
    return states


# --- the law ---


@pytest.mark.parametrize("system", SYSTEMS)
def test_forces_are_the_negative_gradient_of_the_energy(system):
    """Central differences of 1e-5: their own error is of the order 1e-10 times the third derivative."""
    x, _, q = starts(system, 4)
    expected = np.empty_like(x)
    for particle, component in np.ndindex(5, 3):
        step = np.zeros_like(x)
        step[:, particle, component] = 1e-5
        above, below = (potential_energy(system, moved, q, softening=0.2) for moved in (x + step, x - step))
        expected[:, particle, component] = (below - above) / 2e-5
    np.testing.assert_allclose(forces(system, x, q, softening=0.2), expected, rtol=1e-6, atol=1e-7)


def test_energies_of_two_particles_are_those_of_the_textbook():
    """Opposite charges at distance 2: -1/2; masses: -1/2; a spring of 0.1 between equal signs: 0.1 * 4 / 2."""
    x = np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert potential_energy("charged", x, np.array([1.0, -1.0])) == -0.5
    assert potential_energy("charged", x, np.array([-1.0, -1.0])) == 0.5
    assert potential_energy("gravity", x, np.array([1.0, 1.0])) == -0.5
    assert potential_energy("springs", x, np.array([1.0, 1.0])) == pytest.approx(0.2)
    assert potential_energy("springs", x, np.array([1.0, -1.0])) == 0.0


def test_leading_axes_are_kept():
    """A trajectory (M, T, n, 3) goes in whole."""
    x, _, q = starts("charged", 6)
    x = x.reshape(2, 3, 5, 3)
    assert forces("charged", x, q.reshape(2, 3, 5)).shape == (2, 3, 5, 3)
    assert potential_energy("charged", x, q[0]).shape == (2, 3)
    np.testing.assert_array_equal(forces("charged", x[1, 2], q[5]), forces("charged", x, q.reshape(2, 3, 5))[1, 2])


# --- the integrators ---


@pytest.mark.parametrize("half_kick", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_vectorised_trajectories_are_those_of_a_plain_loop(system, half_kick):
    """The same arithmetic in another order: only rounding differs, also where the clamp acts."""
    protocol = PROTOCOLS[system]._replace(half_kick=half_kick, largest_force=0.05, dt=0.01, record_every=1)
    x, v, q = starts(system, 3, protocol)
    assert np.abs(forces(system, x, q, softening=protocol.softening)).max() > 0.05
    fast = integrate(system, x, v, q, n_steps=6, protocol=protocol)
    for k in range(3):
        slow = slow_trajectory(system, x[k], v[k], q[k], 6, protocol)
        np.testing.assert_allclose(fast.positions[k], [state[0] for state in slow], rtol=0, atol=1e-13)
        np.testing.assert_allclose(fast.velocities[k], [state[1] for state in slow], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("half_kick", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_order_of_convergence(system, half_kick, order):
    """Against DOP853: half the step has half the error (whole first kick, as published) or a quarter (half a kick)."""
    protocol = SMOOTH[system]._replace(half_kick=half_kick)
    x, v, q = starts(system, 4, protocol)

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        positions, velocities = state.reshape(2, *x.shape)
        return np.concatenate([velocities, forces(system, positions, q, softening=0.5)]).ravel()

    start = np.concatenate([x, v]).ravel()
    end = solve_ivp(rate, (0.0, 1.0), start, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1].reshape(2, *x.shape)
    found = []
    for n_steps in (50, 100, 200):
        own = integrate(
            system, x, v, q, n_steps=n_steps, protocol=protocol._replace(dt=1 / n_steps, record_every=n_steps)
        )
        found.append([np.abs(own.positions[:, 0] - end[0]).max(), np.abs(own.velocities[:, 0] - end[1]).max()])
    measured = np.log2(np.array(found[:-1]) / np.array(found[1:]))
    np.testing.assert_allclose(measured, order, atol=0.06)


@pytest.mark.parametrize("system", SYSTEMS)
def test_smooth_trajectories_keep_their_energy(system):
    """Leapfrog in a softened field, without a clamp: the error of order dt^2 stays bounded over 4,900 steps."""
    protocol = SMOOTH[system]._replace(half_kick=True, softening=0.2)
    made = simulate(system, 50, generator=rng(), protocol=protocol)
    charges = made.charges[:, None]
    energy = potential_energy(system, made.positions, charges, softening=0.2)
    energy += 0.5 * (made.velocities**2).sum(axis=(2, 3))
    assert np.abs(energy - energy[:, :1]).max() < 2e-4
    assert np.abs(energy[:, -10:].mean(axis=1) - energy[:, :10].mean(axis=1)).max() < 2e-5


@pytest.mark.parametrize("half_kick", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_momentum_and_angular_momentum_are_kept_to_rounding(system, half_kick):
    """Both integrators keep them exactly, for pair forces along the line between two particles."""
    made = simulate(system, 20, generator=rng(), protocol=SMOOTH[system]._replace(half_kick=half_kick))
    momentum = made.velocities.sum(axis=2)
    angular = np.cross(made.positions, made.velocities).sum(axis=2)
    for kept in (momentum, angular):
        np.testing.assert_allclose(kept, np.broadcast_to(kept[:, :1], kept.shape), atol=1e-11)


def test_the_clamp_breaks_momentum():
    """The summed force of each particle is clamped, not the pair force: action and reaction are cut differently.

    Two neighbours push the middle charge with -400 and 278: pair forces clamped to 100 would cancel, the sum does not.
    """
    x, q = np.array([[[0.0, 0, 0], [0.05, 0, 0], [-0.06, 0, 0]]]), np.ones((1, 3))
    protocol = PROTOCOLS["charged"]._replace(record_every=1)
    made = integrate("charged", x, np.zeros_like(x), q, n_steps=1, protocol=protocol)
    np.testing.assert_allclose(made.velocities[0, 0, :, 0], [-0.1, 0.1, -0.1], rtol=1e-12)
    free = integrate("charged", x, np.zeros_like(x), q, n_steps=1, protocol=protocol._replace(largest_force=None))
    assert abs(free.velocities[0, 0, :, 0].sum()) < 1e-13


# --- starts and streams ---


def test_charged_starts_are_as_published():
    """Signs with equal odds, speeds of 0.5 in all directions, normal positions; 10,000 numbers: 4 standard errors."""
    x, v, q = starts("charged", 2000)
    assert set(np.unique(q)) == {-1.0, 1.0}
    assert abs(q.mean()) < 0.04
    assert abs((q[:, 0] * q[:, 1]).mean()) < 0.09
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), 0.5, rtol=1e-14)
    assert np.abs(v.mean(axis=(0, 1))).max() < 0.012
    assert x.std() == pytest.approx(1.0, abs=0.017)
    assert abs((x**4).mean() - 3.0) < 0.25  # of a normal distribution


def test_other_starts_are_as_published():
    """Gravity: no net momentum, masses 1; springs start closer; more charges start in a larger volume."""
    _, v, masses = starts("gravity", 500)
    np.testing.assert_allclose(v.sum(axis=1), 0.0, atol=1e-13)
    assert v.std() == pytest.approx(np.sqrt(4 / 5), abs=0.03)
    assert (masses == 1).all()
    assert starts("springs", 2000)[0].std() == pytest.approx(0.5, abs=0.01)
    assert starts("charged", 500, n_bodies=40)[0].std() == pytest.approx(2.0, abs=0.03)


def test_the_first_trajectories_do_not_depend_on_how_many_follow(monkeypatch):
    """Bit for bit: neither draws nor chunks nor an earlier end change what comes first."""
    many = simulate("charged", 40, generator=rng(7), n_steps=400)
    few = simulate("charged", 3, generator=rng(7), n_steps=400)
    short = simulate("charged", 3, generator=rng(7), n_steps=250)
    monkeypatch.setattr(nbody_simulator, "CHUNK", 1000)  # 7 systems a chunk
    chunks = simulate("charged", 40, generator=rng(7), n_steps=400)
    for whole, start, cut, again in zip(many, few, short, chunks, strict=True):
        np.testing.assert_array_equal(whole[:3], start)
        np.testing.assert_array_equal(whole, again)
        assert cut.ndim == 2 or np.array_equal(start[:, :2], cut)


def test_generators_decide_the_trajectories():
    """The same seed gives the same, another seed another."""
    first, again, other = (simulate("gravity", 2, generator=rng(seed), n_steps=100) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.positions, again.positions)
    assert not np.array_equal(first.positions, other.positions)


def test_the_published_length_is_49_frames():
    """Frame k is after 100 (k + 1) steps, and the last one after 4,900."""
    assert simulate("springs", 1, generator=rng()).positions.shape == (1, 49, 5, 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"system": "charge"}, "no N-body system `charge`; did you mean `charged`"),
        ({"n_trajectories": 0}, "`n_trajectories` must be positive, got 0"),
        ({"n_bodies": 0}, "`n_bodies` must be positive, got 0"),
        ({"n_steps": 99}, "`n_steps` must be at least `record_every`, which is 100, got 99"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(change, sentence):
    """The value, what is allowed, and the nearest name."""
    request = {"system": "charged", "n_trajectories": 1, "generator": rng(), **change}
    with pytest.raises(ValueError, match=sentence):
        simulate(**request)
