"""What the program and the set-up both need of a Docker Engine: how it is reached, and how what is on it is named."""
