"""What a task is (`TaskSpec`), the published tasks, and what every kind of task needs for labels.

Read by all of `model` and `trainer`; what differs from kind to kind is in `model.kinds`.
"""
