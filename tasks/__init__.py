"""Prefect tasks: one per stage, each a thin call of ``diffats.stages``.

Locations and recipes pass between them, never arrays.
"""
