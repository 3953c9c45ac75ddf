"""What `make up` needs before Pulumi can run: the Pulumi tools, an engine, and the images."""
