"""``python -m diffats`` is the ``diffats`` command."""

from diffats.cli import main

main()
