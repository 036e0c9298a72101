"""Predictions of photos with an exported model, written to files."""
