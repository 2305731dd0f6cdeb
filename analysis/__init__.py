"""Analysis: evaluation of runs, in numbers with units, figures and one offline report.

| module | content |
| --- | --- |
| evaluation | a model's errors on labelled structures, by kind of structure |
| figures | learning curves, parity, symmetry spectra, certificate, molecular dynamics |
| report | a run folder -> plots/ and report.html |
| trajectory | broken bonds and temperatures of a trajectory |
| studies | several arms over several seeds: `mdrelax compare`, rMD17, N-body |
| benchmarks | speed and accuracy compared with other packages |
"""

__all__ = ["evaluation", "figures", "report", "trajectory"]
