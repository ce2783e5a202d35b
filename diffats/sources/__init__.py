"""Raw data: opening, cutting into samples, splitting, and describing what a decoded sample looks like.

``opening`` and its neighbours ``arrays`` (NumPy files), ``joining`` (globs) and ``builtin`` make one lazy
``xarray.Dataset`` of any source; ``cuts`` and ``splits`` say where the samples lie, ``sides`` and ``origins`` tell
people where they do; ``reading`` fetches them; ``conditions`` and ``templates`` carry what goes beside the numbers;
``clock`` knows the phases of times; ``parts`` tells what of a source was written anew. ``samples`` ties them together.
"""

from diffats.sources.clock import counted, counted_times
from diffats.sources.parts import DIGEST_BYTES, sample_digests
from diffats.sources.samples import Samples, look, open_samples
from diffats.sources.templates import decoded_dataset, template_from_json, template_to_json

__all__ = [
    "DIGEST_BYTES",
    "Samples",
    "counted",
    "counted_times",
    "decoded_dataset",
    "look",
    "open_samples",
    "sample_digests",
    "template_from_json",
    "template_to_json",
]
