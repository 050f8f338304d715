"""Sweeps and studies: what was planned, what the runs recorded, statistics and the report."""
