"""What encoding costs, beside what others need and what the machine allows: ``make bench``."""
