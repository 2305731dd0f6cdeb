"""N-body simulator: small systems of point particles, many trajectories at once, with exact energies and forces.

The potential energy of the three systems, in their own units (every mass is 1):

    charged   V = sum_{i<j} q_i q_j / sqrt(r_ij^2 + s^2)     q = +1 or -1
    gravity   V = - sum_{i<j} m_i m_j / sqrt(r_ij^2 + s^2)   m = 1
    springs   V = sum_{i<j} k_ij r_ij^2 / 2                  k_ij = 0.1 between equal signs, 0 between unequal ones

| symbol | variable |
| --- | --- |
| q, m, or the sign of a particle | charges (..., n) |
| s | softening, a length; springs ignore it |
| q q', - m m', k | coupling, one number per pair |

``charged`` is the data set of EGNN (Satorras et al. 2021, arXiv:2102.09844), ``gravity`` that of SEGNN (Brandstetter et
al. 2022, arXiv:2110.02905), both with their published settings (``PROTOCOLS``). Details of the published code that
short descriptions often omit:

1. The clamp to +-100 acts on each component of the *summed* force of a particle, not on pair forces. So where it acts,
   momentum is not conserved; nor is energy.
2. The first kick of ``charged`` and ``springs`` is a whole step, not half of one: from the given positions and
   velocities this is the symplectic Euler method, of first order. ``half_kick`` is the leapfrog of second order.
3. Frame k is the state after 100 (k + 1) steps, and there are 49 frames: of "5,000 steps" the last recorded is 4,900.

Differs from the published code in

1. ``springs``: there every pair has its spring with odds 1/2; here pairs of equal sign have one (odds 1/2 too, but not
   independent of each other), so that the species determine the springs, and the system is a force field.
2. Starts beyond +-5 are not reflected into a box (6 coordinates in ten million); neither code has walls later.
3. Distances come from differences of positions, not from r_i^2 + r_j^2 - 2 r_i.r_j, which loses digits when close.
4. Frame 0 of ``gravity`` is after 100 steps as elsewhere; the published one is the start.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mdrelax.base.names import nearest_name

__all__ = [
    "PROTOCOLS",
    "SYSTEMS",
    "Protocol",
    "Trajectories",
    "draw_starts",
    "forces",
    "integrate",
    "potential_energy",
    "require_system",
    "simulate",
]

Array = npt.NDArray[np.float64]

SPRING_CONSTANT = 0.1
CHUNK = 1 << 17  # numbers of one step: a megabyte, which fits in the cache
N_RECORDED_STEPS = 4900


class Protocol(NamedTuple):
    """Initial states and integration of the trajectories of a system."""

    position_std: float
    speed: float | None  # of every particle; None: normal velocity components (std 1), without net momentum
    softening: float
    largest_force: float | None  # to which components of the summed force are clamped; None: no clamp
    half_kick: bool  # leapfrog that starts with half a kick (order 2), else with a whole one (order 1)
    dt: float = 0.001
    record_every: int = 100  # steps


PROTOCOLS = {
    "charged": Protocol(1.0, 0.5, softening=0.0, largest_force=100.0, half_kick=False),
    "gravity": Protocol(1.0, None, softening=0.1, largest_force=None, half_kick=True),
    "springs": Protocol(0.5, 0.5, softening=0.0, largest_force=100.0, half_kick=False),
}
SYSTEMS = tuple(PROTOCOLS)


class Trajectories(NamedTuple):
    """M trajectories of n particles at T times; ``charges`` are masses for gravity and signs for springs."""

    positions: Array  # (M, T, n, 3)
    velocities: Array  # (M, T, n, 3)
    charges: Array  # (M, n)


def simulate(
    system: str,
    n_trajectories: int,
    *,
    generator: np.random.Generator,
    n_bodies: int = 5,
    n_steps: int = N_RECORDED_STEPS,
    protocol: Protocol | None = None,
) -> Trajectories:
    """Draw and integrate trajectories; frame k is the state after ``record_every`` (k + 1) steps.

    The published protocol of the system is used unless another is given. Fewer ``n_steps`` stop earlier and change
    nothing else. The first trajectories are the same, bit for bit, for any number of them. Raises ``ValueError``
    for an unknown system or sizes that are not positive.
    """
    protocol = PROTOCOLS[require_system(system)] if protocol is None else protocol
    starts = draw_starts(system, n_trajectories, generator=generator, n_bodies=n_bodies, protocol=protocol)
    return integrate(system, *starts, n_steps=n_steps, protocol=protocol)


def draw_starts(
    system: str, n_trajectories: int, *, generator: np.random.Generator, n_bodies: int, protocol: Protocol
) -> tuple[Array, Array, Array]:
    """Positions (M, n, 3), velocities (M, n, 3) and charges (M, n) at time zero.

    Seven normal numbers per particle, trajectory by trajectory, so that the first do not depend on later ones.
    As published, more charged particles start in a proportionally larger volume.
    """
    require_system(system)
    _require_positive("n_trajectories", n_trajectories)
    _require_positive("n_bodies", n_bodies)
    normal = generator.standard_normal((n_trajectories, n_bodies, 7))
    volume = n_bodies / 5 if system == "charged" else 1.0
    positions = normal[..., :3] * (protocol.position_std * volume ** (1 / 3))
    velocities = normal[..., 3:6]
    if protocol.speed is None:
        velocities = velocities - velocities.mean(axis=1, keepdims=True)
    else:
        velocities = velocities * (protocol.speed / np.linalg.norm(velocities, axis=-1, keepdims=True))
    signs = np.where(normal[..., 6] < 0, -1.0, 1.0)
    return positions, velocities, np.ones_like(signs) if system == "gravity" else signs


def integrate(
    system: str,
    positions: Array,
    velocities: Array,
    charges: Array,
    *,
    n_steps: int = N_RECORDED_STEPS,
    protocol: Protocol,
) -> Trajectories:
    """Trajectories from given starts (M, n, 3), (M, n, 3), (M, n), in chunks that fit in the processor's cache."""
    require_system(system)
    n_trajectories, n_bodies = charges.shape
    n_frames = n_steps // protocol.record_every
    if n_frames < 1:
        raise ValueError(
            f"`n_steps` must be at least `record_every`, which is {protocol.record_every}, got {n_steps}: no frame "
            "would be recorded."
        )
    shape = (n_trajectories, n_frames, n_bodies, 3)
    out = Trajectories(np.empty(shape), np.empty(shape), np.array(charges, dtype=np.float64))
    size = max(1, CHUNK // (3 * n_bodies * (n_bodies + 4)))
    for start in range(0, n_trajectories, size):
        chunk = slice(start, start + size)
        _leapfrog(system, positions[chunk], velocities[chunk], Trajectories(*(x[chunk] for x in out)), protocol)
    return out


def _leapfrog(system: str, positions: Array, velocities: Array, out: Trajectories, protocol: Protocol) -> None:
    """Kick, then drift and kick in turn, and record between a drift and its kick, as the published code does.

    There the velocity is one kick behind (symplectic Euler) or, after half a kick at the start, half a kick behind,
    which is corrected in the record.
    """
    x, v = _components_first(positions), _components_first(velocities)
    field = _Field(system, out.charges, protocol.softening)
    dt = protocol.dt
    step = field(x, protocol.largest_force) * (0.5 * dt if protocol.half_kick else dt)
    for k in range(1, out.positions.shape[1] * protocol.record_every + 1):
        v += step
        np.multiply(v, dt, out=step)
        x += step
        np.multiply(field(x, protocol.largest_force), dt, out=step)
        if k % protocol.record_every == 0:
            frame = k // protocol.record_every - 1
            out.positions[:, frame] = x.T
            out.velocities[:, frame] = (v + 0.5 * step if protocol.half_kick else v).T


def forces(system: str, positions: Array, charges: Array, *, softening: float = 0.0) -> Array:
    """The forces (..., n, 3) of particles at ``positions`` (..., n, 3) with ``charges`` (..., n); never clamped."""
    require_system(system)
    shape = positions.shape
    x = _components_first(positions.reshape(-1, *shape[-2:]))
    every_charge = np.broadcast_to(charges, shape[:-1]).reshape(-1, shape[-2])
    return np.ascontiguousarray(_Field(system, every_charge, softening)(x, None).T).reshape(shape)


def potential_energy(system: str, positions: Array, charges: Array, *, softening: float = 0.0) -> Array:
    """The potential energy (...) of particles at ``positions`` (..., n, 3) with ``charges`` (..., n)."""
    require_system(system)
    i, j = np.triu_indices(positions.shape[-2], 1)
    squares = ((positions[..., i, :] - positions[..., j, :]) ** 2).sum(axis=-1)  # (..., P)
    coupling = _coupling(system, charges[..., i], charges[..., j])
    if system == "springs":
        return np.asarray(0.5 * (coupling * squares).sum(axis=-1))
    return np.asarray((coupling / np.sqrt(squares + softening**2)).sum(axis=-1))


class _Field:
    """The forces of M systems with preallocated memory, laid out (component, particle, system).

    Pairs (i, i + d) of one distance d in the list of particles are a slice of each array, so nothing is gathered:
    ``pairs`` contains them for d = 1, 2, ... in order.
    """

    def __init__(self, system: str, charges: Array, softening: float) -> None:
        n_systems, n_bodies = charges.shape
        ends = np.cumsum([0, *range(n_bodies - 1, 0, -1)])
        self.pairs = [(d, slice(ends[d - 1], ends[d])) for d in range(1, n_bodies)]
        q = charges.T  # (n, M)
        self.springs = system == "springs"
        self.softening_squared = softening**2
        self.coupling = np.empty((ends[-1], n_systems))  # (P, M)
        for d, pairs in self.pairs:
            self.coupling[pairs] = _coupling(system, q[:-d], q[d:])
        self.apart = np.empty((3, *self.coupling.shape))  # x_i - x_j
        self.square, self.spare = np.empty_like(self.coupling), np.empty_like(self.coupling)
        self.total = np.empty((3, n_bodies, n_systems))

    def __call__(self, x: Array, largest: float | None) -> Array:
        """The forces (3, n, M) at positions (3, n, M), in memory that the next call overwrites."""
        for d, pairs in self.pairs:
            np.subtract(x[:, :-d], x[:, d:], out=self.apart[:, pairs])
        self.apart *= self._weights()
        self.total.fill(0.0)
        for d, pairs in self.pairs:
            self.total[:, :-d] += self.apart[:, pairs]
            self.total[:, d:] -= self.apart[:, pairs]
        if largest is not None:
            np.clip(self.total, -largest, largest, out=self.total)
        return self.total

    def _weights(self) -> Array:
        """The force of each pair divided by its distance vector (P, M)."""
        if self.springs:
            return np.negative(self.coupling, out=self.spare)
        np.multiply(self.apart[0], self.apart[0], out=self.square)
        for component in self.apart[1:]:
            self.square += np.multiply(component, component, out=self.spare)
        self.square += self.softening_squared
        np.sqrt(self.square, out=self.spare)
        self.spare *= self.square
        return np.divide(self.coupling, self.spare, out=self.spare)


def _coupling(system: str, left: Array, right: Array) -> Array:
    """One number per pair, from the charges of its two particles."""
    product = left * right
    if system == "springs":
        return 0.5 * SPRING_CONSTANT * (1.0 + product)
    return -product if system == "gravity" else product


def _components_first(vectors: Array) -> Array:
    """A copy (3, n, M) of vectors (M, n, 3)."""
    return np.array(vectors.T, dtype=np.float64, order="C")


def require_system(system: str) -> str:
    """The name itself; raises ``ValueError`` with the nearest known one for any other."""
    if system not in SYSTEMS:
        raise ValueError(f"There is no N-body system `{system}`; {nearest_name(system, SYSTEMS)}")
    return system


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be positive, got {value}.")
