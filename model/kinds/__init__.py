"""The kinds of tasks, one module each; `kind.py` is the base class.

Read by name through `get_kind`: by task specs, metrics, evaluation, prediction and the doctor.
"""
