"""A recipe for a source of which nothing is known: what ``diffats init`` writes.

``opened`` opens the source, ``fields`` finds the variables to learn from, ``samples`` says what a sample is and which
are held out, ``conditions`` what lies beside, ``values`` looks at some samples, ``ranks`` decomposes them, and
``draft`` holds the recipe with the reason of each key. ``recipe`` goes through these in order.
"""

from diffats.proposing.draft import told
from diffats.proposing.opened import kinds_of_sources
from diffats.proposing.recipe import Proposal, exists, name_of, propose, write

__all__ = ["Proposal", "exists", "kinds_of_sources", "name_of", "propose", "told", "write"]
