"""Number formats and the policy that assigns them; the model never knows."""
