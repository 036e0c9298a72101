"""Launch files of `accelerate launch` (*.yaml) and templates of Slurm jobs (slurm/*.sbatch).

An installed package, so that both exist without a checkout; `trainer.launch_files` returns paths.
"""
