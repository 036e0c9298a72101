"""The converter for Taskonomy releases; called by `dmtg shards taskonomy`.

`tree` lists domains and views, `buildings` assigns the splits, `converter` reads the pictures.
"""
