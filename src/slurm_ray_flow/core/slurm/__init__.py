"""The dialect of Slurm: commands as lists of arguments, and outputs read into dataclasses. Pure functions.

Slurm 20.11 to 26.05. Columns and never `--json`: in 21.08 and 22.05 that ignores all filters and lists everybody's jobs
(seen with 22.05.8), 20.11 has none, and its schema has a new version with each release.
"""
