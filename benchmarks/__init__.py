"""What encoding and training cost, beside what others need and what the machine allows: ``make bench``."""

from diffats import openmp

openmp.set_waiting()  # as the commands do, before torch is imported
