"""The doctor: statistics of stored labels, a verdict for every task and a contact sheet.

Used by the command `doctor`; its rules also by `trainer.health.label_guard`.
"""
