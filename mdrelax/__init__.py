"""mdrelax: interatomic potentials trained with relaxed equivariance and projected back to exact symmetry."""

from pathlib import Path

# A checkout keeps the rooms potentials/, datasets/ and analysis/ beside this package; a wheel nests them inside.
if not (Path(__file__).parent / "potentials").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

__version__ = "0.1.0"
