"""Statistics of labels and images, and checks that report defects of a dataset.

Called by `dmtg doctor` and, on the first batches of a run, by the trainer's label guard.
"""
