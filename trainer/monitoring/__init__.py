"""Logs, trackers, speed, profile and status of a run.

`trainer.session` opens them, `trainer.loop` writes them, `dmtg status` reads the status.
`metrics.jsonl` and `status.json` are this project's own: no tracker cuts its file to a checkpoint,
so that a resumed run writes the same bytes, and a monitor or batch script must read the state of a
run without the tracker's service. `timing.jsonl` has the times of all ranks over all starts of a
run, which trackers of the main process do not keep.
"""
