"""The operating system: terminals, signals, paths and files; and the texts people type and read."""
