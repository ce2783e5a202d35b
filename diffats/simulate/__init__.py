"""Data of the field, made where they are needed: ``diffats simulate RECIPE``.

One module for each problem, with its equation, its parameters and its solver; ``writing`` runs any of them on Dask
workers, and continues where it was stopped. ``drawing`` has what they draw alike; only ``accelerated`` loads JAX.
"""

from diffats.simulate.writing import Simulated, simulate

__all__ = ["Simulated", "simulate"]
