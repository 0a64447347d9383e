"""Networks: shared layers, then one file a family."""
