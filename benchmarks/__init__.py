"""What this project measures of itself, for docs/: run by the Makefile, from a clone; no part of the package."""
