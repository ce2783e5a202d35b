"""Raw data: opening, cutting into samples, splitting, and describing what a decoded sample looks like.

``opening`` and its neighbours ``arrays`` (NumPy files), ``joining`` (globs) and ``builtin`` make one lazy
``xarray.Dataset`` of any source; ``cuts`` and ``splits`` say where the samples lie; ``reading`` fetches them;
``conditions`` and ``templates`` carry what goes beside the numbers. ``samples`` ties them together.
"""

from diffats.sources.samples import Samples, open_samples
from diffats.sources.templates import decoded_dataset, template_from_json, template_to_json

__all__ = ["Samples", "decoded_dataset", "open_samples", "template_from_json", "template_to_json"]
