"""What encoding and training cost, beside what others need and what the machine allows: ``make bench``."""

from diffats import environment

environment.prepare()  # as the commands do, before torch is imported
