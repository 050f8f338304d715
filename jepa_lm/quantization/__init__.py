"""Number formats and the policy that assigns them; the model is unaware of both."""
