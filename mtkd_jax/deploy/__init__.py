"""What leaves the house: the exported network and its command line."""
