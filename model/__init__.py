"""Networks, task groupings, losses, metrics and the exported file of multi-task models."""
