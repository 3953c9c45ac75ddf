"""Programs to copy from; each has its own line to run it."""
