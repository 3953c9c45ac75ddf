"""The recipes of `images/`: what each builds, and which official image that replaces."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "llm-infrastructure.invalid"
"""The host in the names of images that are built here. No one can register it (RFC 2606), so a missing image is never
pulled from somebody else."""
RECIPES = Path(__file__).resolve().parent.parent / "images"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A folder of `images/`, and what is built from it."""

    part: str
    """The folder, and the last word of the official image's name."""
    software: str
    version: str
    debian: str

    @property
    def python(self) -> str:
        """The Python version of that Debian."""
        return {"bookworm": "3.11", "trixie": "3.13"}[self.debian]

    @property
    def base(self) -> str:
        """The tag of the Debian image that it is built on."""
        return f"{REGISTRY}/debian:{self.debian}-{recipe_hash(RECIPES / 'base')}"

    @property
    def tag(self) -> str:
        """The stand-in's tag, which changes with the recipe."""
        name = f"{REGISTRY}/{self.part}-stand-in"
        folder = RECIPES / self.part
        parts = (self.packages.parent, folder / "Dockerfile", folder / "prisma")
        own = [each for each in parts if each.exists()] if self.packages.exists() else [folder]
        return f"{name}:{self.version}-{recipe_hash(RECIPES / 'base', *own)}"

    @property
    def node_packages(self) -> Path:
        """The folder with the lock of its Node packages, if it has any."""
        return RECIPES / self.part / "prisma"

    @property
    def packages(self) -> Path:
        """The lock file of its Python packages, if it has any: one for each version that can be built."""
        return RECIPES / self.part / self.version / "requirements.lock"

    def can_be(self, reference: str) -> bool:
        """Whether an image reference names exactly the software and version that this recipe builds."""
        name, _, tag = reference.partition("@")[0].rpartition("/")[2].partition(":")
        return name == self.part and re.search(rf"(^|v|-){re.escape(self.version)}(-|$)", tag) is not None

    def __str__(self) -> str:
        return f"{self.software} {self.version}"


STAND_INS = {
    recipe.part: recipe
    for recipe in (
        Recipe(part="litellm", software="LiteLLM", version="1.55.0", debian="bookworm"),
        Recipe(part="postgres", software="PostgreSQL", version="17", debian="trixie"),
        Recipe(part="haproxy", software="HAProxy", version="3.0", debian="trixie"),
        Recipe(part="valkey", software="Valkey", version="8.1", debian="trixie"),
    )
}
"""The recipes for the images that the project pins, by part."""
UPGRADES = (Recipe(part="litellm", software="LiteLLM", version="1.108.14", debian="trixie"),)
"""Further recipes, for a stack that names such an image."""


def recipe_for(reference: str) -> Recipe | None:
    """The recipe that builds a stand-in for an image, if there is one."""
    return next((recipe for recipe in (*STAND_INS.values(), *UPGRADES) if recipe.can_be(reference)), None)


def recipe_hash(*paths: Path) -> str:
    """The first 12 digits of a hash over the names, modes and contents of files, and of all in folders."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(each for each in (path, *path.rglob("*")) if each.is_file()):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(path)} {mode_of(file):o} {content}\n".encode())
    return digest.hexdigest()[:12]


def mode_of(file: Path) -> int:
    """The part of a file's mode that git keeps, whatever the umask of a checkout."""
    return 0o755 if file.stat().st_mode & 0o100 else 0o644
