"""What the program and the set-up need from a Docker Engine: how to reach it, and how to name what runs on it."""
