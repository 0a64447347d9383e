"""Words and pictures: the report of a run, and the overview of data."""
