"""Data: where examples come from (sources), their splits and order (loading), changes to them (augment)."""
