"""benchmarks: experiments of the literature, run again: the N-body task, and the speed of what it needs."""
