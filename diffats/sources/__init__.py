"""Raw data: opening, cutting into samples, splitting, and describing what a decoded sample looks like.

``opening`` and its neighbours ``arrays`` (NumPy files), ``joining`` (globs) and ``builtin`` make one lazy
``xarray.Dataset`` of any source; ``cuts`` and ``splits`` say where the samples lie; ``reading`` fetches them;
``conditions`` and ``templates`` carry what goes beside the numbers; ``parts`` tells what of a source was
written anew. ``samples`` ties them together.
"""

from diffats.sources.parts import DIGEST_BYTES
from diffats.sources.samples import Samples, content_digests, look, open_samples
from diffats.sources.templates import decoded_dataset, template_from_json, template_to_json

__all__ = [
    "DIGEST_BYTES",
    "Samples",
    "content_digests",
    "decoded_dataset",
    "look",
    "open_samples",
    "template_from_json",
    "template_to_json",
]
