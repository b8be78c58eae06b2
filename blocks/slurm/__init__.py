"""Slurm through a shell: submission, the queue, the end of a job."""
