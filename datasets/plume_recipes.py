"""Plume recipes: the tasks of the rotation set, the scale set and the graded family, as simulations to run.

Rotation and scale sets are the published ones (notebook of Wang et al. 2022, arXiv 2201.11969), on a box of 64 cells
with an inflow disc of radius 5 at (32, 5), on the wall y = 0, or turned from there to side 1, 2 or 3:

| set | tasks | buoyancy | broken by |
| --- | --- | --- | --- |
| rotation | k = 1 ... 36 at side (k - 1) mod 4 | 0.01 k, at side 2 1.1 times that | side 2, which is stronger |
| scale | f = 1, 1.1, ... 4.7, in a box, a disc and cells of velocity f times as large | 0.1 f | the grid |
| graded | levels 0 ... 9, sides 0 ... 3, variants 0 ... 2 | 0.005 (2 + level side) | the level |

In the graded family (figure 5 there) the symmetry error grows with the level, and level 0 has four exactly equal sides.
It differs from the notebook in that every side is simulated, rather than one of them turned by interpolation, and in
the variants: in 1 and 2 the disc is moved along its wall, by a random length that all sides and levels share.
"""

from typing import NamedTuple

from mdrelax.base.seeds import numpy_generator
from mdrelax.datasets.plume import KINDS, Kind, PlumeInfo
from mdrelax.datasets.plume_simulator import PlumeRun

__all__ = ["STRONGER", "SYMMETRY_STEP", "PlumePlan", "PlumeSettings", "check_settings", "plans"]

STRONGER, STRONGER_SIDE = 1.1, 2  # of the rotation set
SYMMETRY_STEP = 20  # at which a flow is compared with its symmetric counterpart: before chaos sets in
N_VARIANTS = 3  # of each side and level of the graded family
FARTHEST = 8  # cells of 64 that a variant's inflow may be moved
TURNS = ((0, 1), (-1, 0), (0, -1), (1, 0))  # direction of the buoyancy of each side


class PlumeSettings(NamedTuple):
    """All settings that determine the content of a generated set of plumes; None stands for the published value."""

    kind: Kind = "rotation"
    grid: int = 64  # cells along each side of the stored grid
    n_tasks: int | None = None  # the first ones; of the graded family, levels
    steps: int | None = None
    buoyancy: float | None = None  # the factor 0.01, 0.1 or 0.005 of the table above
    seed: int = 0  # of the variants of the graded family; the other sets have nothing random
    resolution: float = 2.0**-14  # the stream function is stored in multiples of this, cells^2 per step


class _Recipe(NamedTuple):
    """Settings without gaps, and what no setting changes."""

    n_tasks: int
    steps: int
    buoyancy: float
    skip: int  # steps left out at the start
    dt: float  # of the velocity's advection
    grid: int = 64
    seed: int = 0


RECIPES: dict[str, _Recipe] = {
    "rotation": _Recipe(36, 310, 0.01, skip=1, dt=1.0),
    "scale": _Recipe(38, 310, 0.1, skip=1, dt=0.5),
    "graded": _Recipe(10, 120, 0.005, skip=10, dt=0.5),
}


class PlumePlan(NamedTuple):
    """One task: its description, its simulation, and that of the unbiased flow which symmetry maps to it."""

    info: PlumeInfo
    run: PlumeRun
    counterpart: PlumeRun
    skip: int  # steps left out at the start


def check_settings(settings: PlumeSettings) -> None:
    """Raise ``ValueError`` for settings out of range, naming the value and the range."""
    if settings.kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got `{settings.kind}`.")
    recipe = RECIPES[settings.kind]
    bounds = {"grid": (8, 512), "n_tasks": (1, recipe.n_tasks), "steps": (recipe.skip + 1, 100_000), "seed": (0, 2**31)}
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"`{name}` must lie between {low} and {high} for {settings.kind} plumes, got {value}.")
    if settings.buoyancy is not None and not 0 < settings.buoyancy <= 10:
        raise ValueError(f"`buoyancy` must lie between 0 and 10, got {settings.buoyancy}.")
    if not 2.0**-24 <= settings.resolution <= 2.0**-8:
        raise ValueError(f"`resolution` must lie between 2^-24 and 2^-8, got {settings.resolution}.")


def plans(settings: PlumeSettings) -> list[PlumePlan]:
    """The tasks of a set, in order; raises ``ValueError`` as ``check_settings``."""
    check_settings(settings)
    given = {name: getattr(settings, name) for name in ("n_tasks", "steps", "buoyancy", "grid", "seed")}
    recipe = RECIPES[settings.kind]._replace(**{name: value for name, value in given.items() if value is not None})
    make = {"rotation": _rotation, "scale": _scale, "graded": _graded}[settings.kind]
    return make(recipe)


def _rotation(recipe: _Recipe) -> list[PlumePlan]:
    made = []
    for k in range(1, recipe.n_tasks + 1):
        side, base = (k - 1) % 4, recipe.buoyancy * k
        strength = base * (STRONGER if side == STRONGER_SIDE else 1)
        made.append(_plan(PlumeInfo(f"{k}_{side}", strength, side), recipe, base=base))
    return made


def _scale(recipe: _Recipe) -> list[PlumePlan]:
    made = []
    for k in range(recipe.n_tasks):
        scale = int(recipe.grid * (1 + 0.1 * k) + 1e-9) / recipe.grid  # a whole number of cells
        info = PlumeInfo(str(k), recipe.buoyancy * scale, scale=scale)
        made.append(_plan(info, recipe, base=recipe.buoyancy))
    return made


def _graded(recipe: _Recipe) -> list[PlumePlan]:
    made = []
    for level in range(recipe.n_tasks):
        for side in range(4):
            for variant in range(N_VARIANTS):
                strength, base = (recipe.buoyancy * (2 + bias) for bias in (level * side, 0))
                info = PlumeInfo(f"{level}_{side}_{variant}", strength, side, level=level, seed=recipe.seed)
                made.append(_plan(info, recipe, base=base, aside=_aside(recipe, variant)))
    return made


def _aside(recipe: _Recipe, variant: int) -> float:
    """How far along its wall the inflow of a variant is moved, in cells: eighths, so that turning it is exact."""
    if variant == 0:
        return 0.0
    furthest = FARTHEST * recipe.grid // 64 * 8
    return int(numpy_generator(recipe.seed, "plumes", variant).integers(-furthest, furthest + 1)) / 8


def _plan(info: PlumeInfo, recipe: _Recipe, *, base: float, aside: float = 0.0) -> PlumePlan:
    """A task whose unbiased counterpart has the buoyancy ``base`` at side 0 and scale 1."""
    n, radius = recipe.grid, 5 * recipe.grid / 64
    x, y = n / 2 + aside, radius
    first = PlumeRun(n, min(recipe.steps, SYMMETRY_STEP), (x, y), radius, (0.0, base), recipe.dt)
    for _ in range(info.side):
        x, y = n - y, x
    run = PlumeRun(
        cells=round(n * info.scale),
        steps=recipe.steps,
        inflow=(x * info.scale, y * info.scale),
        radius=radius * info.scale,
        force=(info.buoyancy * TURNS[info.side][0], info.buoyancy * TURNS[info.side][1]),
        dt_velocity=recipe.dt,
    )
    return PlumePlan(info._replace(inflow=(x, y)), run, first, recipe.skip)
