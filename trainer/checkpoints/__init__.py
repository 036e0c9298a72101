"""Checkpoints: written whole or not at all, by parameter name, readable by every engine.

`trainer.session` saves and resumes with them; export, comparison and the learners read them.

The format is our own: those of accelerate and DeepSpeed are read only by the same engine with the
same number of processes.
"""
