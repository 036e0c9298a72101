"""The configuration that `dmtg init` writes for given shards: its values, and its text."""
