"""Plume simulator: smoke rising in a closed box, with phiflow on JAX in float64.

One step of length 1, as in the notebook of Wang et al. 2022 (arXiv 2201.11969), whose sets it makes again:

    s <- MacCormack(s, u) + source              smoke s in the cells, 1 per step inside the inflow disc
    u <- semi-Lagrange(u, u; dt) + s f          velocity u on the faces, buoyancy f
    u <- u - grad p,  div grad p = div u        no flow through the walls

It differs from the notebook in the pressure, which is solved directly (the Laplacian of a closed box is diagonal in
cosines) and not by conjugate gradients to a relative 1e-5: those fail on single steps without a word, also in float64,
leaving a divergence of 68 per step. The divergence of every step is checked all the same.

The flow is chaotic: rounding errors grow to the size of the flow within 300 steps. For the same bits every time, the
workers of ``plume_generate`` fix what decides them: one thread, and Python's hash seed, by which phiflow orders axes.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["DIVERGENCE_LIMIT", "PlumeRun", "resample", "simulate", "stream_function", "velocity_of"]

Array = npt.NDArray[np.float64]
Step = Callable[..., tuple[Any, ...]]

DIVERGENCE_LIMIT = 1e-3  # per step; a solved pressure leaves 1e-12


class PlumeRun(NamedTuple):
    """What one simulation needs; lengths are in cells of the simulation."""

    cells: int  # along each side of the box
    steps: int
    inflow: tuple[float, float]  # (x, y) of the centre of the disc
    radius: float
    force: tuple[float, float]  # (x, y), velocity gained per step and unit of smoke
    dt_velocity: float = 1.0  # of the velocity's own advection; the published sets have 1 and 0.5


def simulate(run: PlumeRun) -> tuple[Array, float]:
    """The stream functions after each step (steps, cells + 1, cells + 1) on the nodes, and the largest divergence.

    Raises ``ValueError`` naming the step if the divergence exceeds ``DIVERGENCE_LIMIT`` or a number is not finite, and
    ``ImportError`` without the extra ``smoke``.
    """
    step, source, zeros = _step(run.cells, run.dt_velocity), _source(run), np.zeros
    state: list[Any] = [zeros((run.cells, run.cells)), *_no_flow(run.cells)]
    force = np.array(run.force)
    streams, worst = zeros((run.steps, run.cells + 1, run.cells + 1)), 0.0
    for k in range(run.steps):
        *state, divergence = step(*state, source, force)
        if not float(divergence) <= DIVERGENCE_LIMIT:  # NaN is not
            raise ValueError(
                f"Step {k + 1} of {run.steps} ended with a divergence of {float(divergence):.1e} per step, above "
                f"{DIVERGENCE_LIMIT:g}; the flow is unstable: choose a smaller `buoyancy` than {np.abs(force).max():g}."
            )
        worst = max(worst, float(divergence))
        streams[k] = stream_function(np.asarray(state[1]))
    return streams, worst


def _no_flow(n: int) -> tuple[Array, Array]:
    """The velocities on inner faces, as phiflow stores them in a closed box: (rows y, columns x)."""
    return np.zeros((n, n - 1)), np.zeros((n - 1, n))


def _flow() -> Any:
    """phiflow on JAX, in float64; both settings belong to the process."""
    try:
        import jax
        from phi.jax import flow
    except ImportError as error:
        raise ImportError("Smoke plumes are simulated with phiflow and jax; `pip install 'mdrelax[smoke]'`.") from error
    jax.config.update("jax_enable_x64", True)
    flow.math.set_global_precision(64)
    return flow


def _source(run: PlumeRun) -> Array:
    """1 in the cells whose centre is inside the inflow disc, (rows y, columns x)."""
    flow = _flow()
    x, y = run.inflow
    disc = flow.Sphere(x=x, y=y, radius=run.radius)
    return np.array(flow.CenteredGrid(disc, 0.0, **_box(flow, run.cells)).values.numpy("y,x"), dtype=np.float64)


def _box(flow: Any, n: int) -> dict[str, Any]:
    return {"x": n, "y": n, "bounds": flow.Box(x=n, y=n)}


@cache
def _step(n: int, dt_velocity: float) -> Step:
    """(smoke, u, v, source, force) -> (smoke, u, v, largest divergence), compiled once per grid."""
    flow = _flow()
    import jax
    from phi.math import dual, spatial

    math, box = flow.math, _box(flow, n)
    projected = _projection(n)

    def wrap(values: Any) -> Any:
        return math.wrap(values.T, spatial("x,y"))  # phiflow wants the axes of a grid in this order

    def on_faces(u: Any, v: Any) -> Any:
        values = math.stack({"x": wrap(u), "y": wrap(v)}, dual("vector"))
        return flow.StaggeredGrid(values, 0.0, **box)

    def step(smoke: Any, u: Any, v: Any, source: Any, force: Any) -> tuple[Any, ...]:
        velocity = on_faces(u, v)
        density = flow.CenteredGrid(wrap(smoke), flow.extrapolation.BOUNDARY, **box)
        density = flow.advect.mac_cormack(density, velocity, dt=1.0) + wrap(source)
        lift = (density * math.wrap(force, flow.channel(vector="x,y"))).at(velocity)
        velocity = flow.advect.semi_lagrangian(velocity, velocity, dt=dt_velocity) + lift
        u, v = projected(*(velocity.vector[axis].values.native("y,x") for axis in ("x", "y")))
        divergence = flow.field.divergence(on_faces(u, v)).values.native("y,x")
        return density.values.native("y,x"), u, v, abs(divergence).max()

    return jax.jit(step)


def _projection(n: int) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The map of (u, v) to the nearest divergence-free field of the closed box.

    With the cosines C_kj = cos(pi k (j + 1/2) / n), normalised, and the eigenvalues l_k = 2 cos(pi k / n) - 2 of the
    one-dimensional Laplacian, p = C^T [(C d C^T)_kl / (l_k + l_l)] C; the constant has no gradient and is left out.
    """
    import jax.numpy as jnp

    k = np.arange(n)
    cosines = np.cos(np.pi * k[:, None] * (k + 0.5) / n) * np.sqrt(np.where(k == 0, 1, 2) / n)[:, None]
    eigenvalues = 2 * np.cos(np.pi * k / n) - 2
    total = eigenvalues[:, None] + eigenvalues
    total[0, 0] = np.inf

    def projected(u: Any, v: Any) -> tuple[Any, Any]:
        divergence = jnp.diff(jnp.pad(u, ((0, 0), (1, 1))), axis=1) + jnp.diff(jnp.pad(v, ((1, 1), (0, 0))), axis=0)
        pressure = cosines.T @ ((cosines @ divergence @ cosines.T) / total) @ cosines
        return u - jnp.diff(pressure, axis=1), v - jnp.diff(pressure, axis=0)

    return projected


# --- stream functions ---


def stream_function(u: Array) -> Array:
    """psi on the nodes (n + 1, n + 1) of a divergence-free flow whose x velocities on inner faces are u (n, n - 1).

    u = d psi / dy and v = - d psi / dx; psi is zero on the walls.
    """
    n = len(u)
    psi = np.zeros((n + 1, n + 1))
    psi[1:, 1:-1] = np.cumsum(u, axis=0)
    psi[-1] = 0  # the flux through a line from wall to wall vanishes
    return psi


def velocity_of(psi: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """The velocity (..., 2, n, n) on left and lower faces, from the stream function psi (..., n + 1, n + 1)."""
    u = psi[..., 1:, :-1] - psi[..., :-1, :-1]
    v = psi[..., :-1, :-1] - psi[..., :-1, 1:]
    return np.stack([u, v], axis=-3)


def resample(psi: Array, cells: int) -> Array:
    """The same flow on a grid of ``cells`` cells, with velocities in cells of that grid: still free of divergence.

    The nodes are interpolated linearly. (Velocities interpolated one by one would not be free of divergence.)
    """
    n = psi.shape[-1] - 1
    if n == cells:
        return psi
    at = np.arange(cells + 1) * (n / cells)
    low = np.minimum(at.astype(int), n - 1)
    share = at - low
    rows = psi[..., low, :] * (1 - share)[:, None] + psi[..., low + 1, :] * share[:, None]
    return (rows[..., low] * (1 - share) + rows[..., low + 1] * share) * (cells / n) ** 2
