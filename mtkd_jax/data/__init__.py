"""Where examples come from (sources), how they are split and ordered (loading), what is done to them (augment)."""
