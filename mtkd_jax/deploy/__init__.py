"""The exported network: how it is written, read and used."""
