"""Exported models for other programs: ONNX, torch.export, model cards, and uploads to a hub."""
