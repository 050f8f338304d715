"""Timed claims about this framework; `python -m benchmarks [name ...]` runs them."""
