"""Loggers: metrics.csv, W&B and TensorBoard; what they get at a run's end; the W&B run of a report."""
