"""The kinds of tasks, one module each; `kind.py` says what a kind is.

Read by name through `get_kind`: by task specs, metrics, evaluation, prediction and the doctor.
"""
