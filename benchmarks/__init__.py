"""Benchmarks of the framework's performance claims; run them with `python -m benchmarks [name ...]`."""
