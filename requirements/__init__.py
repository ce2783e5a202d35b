"""The locked packages, and what installs and renews them."""
