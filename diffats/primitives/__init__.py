"""Primitives: aligned factors and core, ready for a model.

A ``Layout`` names the streams of a primitive and their shapes; ``encode`` and ``decode`` go from samples to streams
and back. Both kinds run through the same lines: a matrix primitive is a two-mode tensor (patches x pixels) for every
combination of its labelled modes, with one aligned mode.
"""

from diffats.primitives.climatology import HARMONICS, Climatology, CyclicMoments
from diffats.primitives.codec import (
    align,
    decode,
    decompose,
    decomposed_modes,
    encode,
    field_sensitivity,
    orthonormality_defect,
    reconstruction_errors,
    relative_error,
)
from diffats.primitives.conditions import ConditionLayout
from diffats.primitives.coordinates import Coordinates, Products, Turn, basis_shapes, turned_axes
from diffats.primitives.layout import PATCH, Layout, Stream
from diffats.primitives.moments import Moments
from diffats.primitives.normalisation import FieldScaling, Normalisation
from diffats.primitives.preparing import (
    TRANSFORMS,
    FieldMoments,
    Values,
    nearest_possible,
    outside_domain,
    transformed,
)
from diffats.primitives.ranks import RankErrors, affordable, find_ranks
from diffats.primitives.shifts import Shifts

__all__ = [
    "HARMONICS",
    "PATCH",
    "TRANSFORMS",
    "Climatology",
    "ConditionLayout",
    "Coordinates",
    "CyclicMoments",
    "FieldMoments",
    "FieldScaling",
    "Layout",
    "Moments",
    "Normalisation",
    "Products",
    "RankErrors",
    "Shifts",
    "Stream",
    "Turn",
    "Values",
    "affordable",
    "align",
    "basis_shapes",
    "decode",
    "decompose",
    "decomposed_modes",
    "encode",
    "field_sensitivity",
    "find_ranks",
    "nearest_possible",
    "orthonormality_defect",
    "outside_domain",
    "reconstruction_errors",
    "relative_error",
    "transformed",
    "turned_axes",
]
