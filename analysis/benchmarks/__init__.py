"""benchmarks: speed and smoothness of our networks, with other packages for comparison."""
