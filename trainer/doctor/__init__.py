"""The doctor: statistics of stored labels, a level for every task and a contact sheet.

Used by the command `doctor`; `trainer.health.label_guard` uses its rules.
"""
