"""Selectors of groups: they watch one network of all tasks train and group the tasks by it."""
