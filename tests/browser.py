"""A real browser: Debian's Chromium, without a window. It reaches nothing but this machine's loopback."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from selenium import webdriver

from toolchain import operating_system
from toolchain.progress import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = "chromium", "chromedriver"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # its sandbox does not work as root, and it visits only this machine
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1600,1200",
    # Names and addresses other than loopback lead nowhere: whatever a page requests from elsewhere fails at once.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


def _installed() -> None:
    if shutil.which(CHROMIUM) and shutil.which(DRIVER):
        return
    if not operating_system.can_install():
        pytest.skip("it takes a browser: install Debian's packages chromium and chromium-driver")
    with Steps() as steps:
        operating_system.install(steps, CHROMIUM, "chromium-driver")


@contextmanager
def browser() -> Iterator[Chrome]:
    """A browser with its own profile."""
    _installed()
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which(CHROMIUM))
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})  # tests/page.py reads it
    for option in OPTIONS:
        options.add_argument(option)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()
