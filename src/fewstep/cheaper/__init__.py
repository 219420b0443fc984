"""Calls that cost less: half precision and small weights, and reuse of features where it pays. docs/cheaper.md."""

from .precision import half, load, quantized, save

__all__ = ["half", "load", "quantized", "save"]
