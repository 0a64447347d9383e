"""Studies: which rule, which teachers of a finished run; what cohorts go through while they learn."""
