"""Aligned tensor primitives of spatiotemporal fields, and diffusion models on them."""
