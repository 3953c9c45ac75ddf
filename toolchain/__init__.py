"""What `make up` needs before Pulumi can run: the Pulumi tools, an engine, and the images."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
"""The project's folder."""
