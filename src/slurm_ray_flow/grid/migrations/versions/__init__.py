"""The steps; each has its number in its name and never changes once it was released."""
