"""The optimizer, its routing, the progress clock and the schedules that read it."""
