"""Which recipe to take: candidates, the frontier, and one choice for each level of quality."""
