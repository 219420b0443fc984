"""Posterior samplers against a closed form."""
