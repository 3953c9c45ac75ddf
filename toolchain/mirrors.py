"""Where this machine gets Debian's packages from, and how it reaches that, for images that are built here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.system_path import which
from toolchain.operating_system import update_package_lists

if TYPE_CHECKING:
    from toolchain.progress import Step


def index_targets(step: Step) -> str:
    """Where this machine gets its packages from, as `package_sources` reads it."""
    if which("apt-get") is None:
        return ""
    query = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    if "Debian" not in (targets := step.run(query)):  # for example on a machine that never fetched the lists
        update_package_lists(step)
        targets = step.run(query)
    return targets


def package_sources(index_targets: str, suite: str) -> list[str]:
    """Lines of sources.list for `suite` of Debian, from the mirrors that this machine itself uses.

    `index_targets` has a line `ORIGIN RELEASE URI` for each of apt's package lists. Empty when none is Debian's.
    """
    sources = []
    for release, uri in re.findall(r"^Debian (\S+) (https?://\S+)$", index_targets, re.MULTILINE):
        own_suite = release.partition("-")[0]
        pocket = release.removeprefix(own_suite)
        if pocket in {"", "-updates", "-security"}:
            sources.append(f"deb {uri} {suite}{pocket} main")
    return list(dict.fromkeys(sources))


def apt_settings(dump: str) -> list[str]:
    """The lines of `apt-config dump` that say how mirrors are reached, such as proxies and retries.

    Lines that name a file of this machine are left out: an image would not have the file.
    """
    about_mirrors = re.compile(
        r'Acquire::(https?::|ftp::|Retries|ForceIPv|Check-Date|Check-Valid-Until)\S* "[^/"][^"]*";'
    )
    return [line for line in dump.splitlines() if about_mirrors.fullmatch(line)]
