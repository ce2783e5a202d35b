"""What encoding costs, beside what others need and what the machine allows: ``make bench``."""

import os

# As in the commands, before torch is imported: how threads wait decides what several of them gain.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
