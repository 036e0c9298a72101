"""Job scripts for Slurm: their resources, templates filled in, and submission.

The command `dmtg slurm` calls it.
"""
