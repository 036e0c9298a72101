"""What a run has found: groups, and metrics beside constant predictions, as file and as text."""
