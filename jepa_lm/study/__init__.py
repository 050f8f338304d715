"""Sweeps and studies: the plan, the runs' records, the statistics and the report."""
