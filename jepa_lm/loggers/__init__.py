"""Loggers: metrics.csv, W&B and TensorBoard, and the records they receive at the end of a run."""
