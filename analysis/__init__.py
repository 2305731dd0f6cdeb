"""Analysis: what a run was worth, in numbers with units, figures and one offline report.

| module | room |
| --- | --- |
| metrics | errors of energies, forces and stress, and the mean baseline |
| figures | learning curves, parity, symmetry spectra, certificate, molecular dynamics |
| report | a run folder -> plots/ and report.html |
| trajectory | broken bonds and temperatures of a trajectory |
"""

__all__ = ["figures", "metrics", "report", "trajectory"]
