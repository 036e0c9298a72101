"""From data sets as they are released to shards with a manifest."""
