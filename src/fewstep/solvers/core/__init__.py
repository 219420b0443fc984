"""The numerics that solvers share. `base` says what a solver is."""
