"""Studies of finished runs: which rule, which teachers."""
