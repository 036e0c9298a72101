"""The converter for tables of labels: CSV, TSV, JSON lines and parquet.

`source.py` opens a table, with the columns that `kinds.py` infers, and converts it.
"""
