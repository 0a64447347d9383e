"""The operating system: terminals, signals, paths and files; and the texts that people type and read."""
