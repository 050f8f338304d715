"""The optimizer, the routing of parameters to its groups, and the scheduler."""
