"""What a task is (`TaskSpec`), the published tasks, and helpers for labels that several kinds need.

Read by all of `model` and `trainer`; what differs from kind to kind is in `model.kinds`.
"""
