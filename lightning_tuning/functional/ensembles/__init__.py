"""Several models as one: how outputs and weights are averaged, and what that gains."""
