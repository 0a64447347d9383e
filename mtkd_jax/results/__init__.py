"""Numbers: metrics, intervals, rows and comparisons."""
