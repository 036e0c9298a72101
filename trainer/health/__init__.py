"""Failures, preemption, divergence, bad labels and damaged samples of a run.

`trainer.main` starts the watchdog and reports failures, `trainer.loop` calls the guards in each
step. The attribution of failures is this project's own: the launcher ends all processes when one
fails, and their errors, mostly lost connections, do not name the one that failed first, or the
machine that no longer answers. The process group's store does, without a collective, and the
watchdog ends processes that a launcher cannot see: stalled, or left behind without a launcher.
"""
