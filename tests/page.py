"""LiteLLM's page as an operator uses it: logs in, makes a key, looks at what it spent. Releases differ in it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as it
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import browser
from tests.stacks import REPLICAS
from tests.swarm.cluster import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from selenium.webdriver import Chrome

SECONDS = 30
"""For anything to appear."""
QUIET_SECONDS = 3
"""Without a request: the page then has all that it wants, and does not draw itself again over a form."""
TRIES = 2
POLL_SECONDS = 0.2
KEY = re.compile(r"sk-[\w-]{20,}")
SPENT = re.compile(r"\$?(\d+\.\d+)")
NEW_KEY = "//button[contains(., 'Create New Key')] | //a[contains(., 'Create New Virtual Key')]"
OPTION = (  # Ant Design has options for screen readers too, which nobody can click
    "//*[contains(@class, 'ant-select-item-option')"
    " or @role='option' and not(ancestor::*[contains(@class, 'ant-select')])][contains(., '{}')]"
)
USER, PASSWORD = "//input[@type='text' or not(@type)]", "//input[@type='password']"


class Page:
    """The page in a browser."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver = driver
        self.asked: list[str] = []
        """The URL of each request that the browser sent, or tried to."""
        self.keys = url
        """Where the table of keys is."""
        driver.get(url)

    def log_in(self, password: str) -> None:
        """Fill in the form. What comes of it is seen later."""
        self.fill(USER, "admin")
        self.fill(PASSWORD, password)
        self.click("//*[@type='submit']")

    def text(self) -> str:
        """What there is to read."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def make_key(self, alias: str, model: str) -> str:
        """Make a key for a model, in the team that the page proposes, and return it."""
        for _ in range(TRIES - 1):
            try:
                return self._made(alias, model)
            except WebDriverException:
                self.driver.get(self.keys)
        return self._made(alias, model)

    def _made(self, alias: str, model: str) -> str:
        self.settle()
        self.click(NEW_KEY)
        self.fill("//input[@id='key_alias']", alias)
        self.driver.find_element(By.ID, "models").send_keys(model)  # it has no width, so is not "seen"
        self.click(OPTION.format(model))
        self.click("//button[normalize-space() = 'Create Key']")
        self.wait().until(lambda _: KEY.search(self.text()))
        found = KEY.search(self.text())
        assert found
        self.keys = self.driver.current_url.removesuffix("?create=true")
        return found[0]

    def spent(self, alias: str) -> float:
        """What the table of keys has of a key's spend, in US dollars; 0 as long as it has none."""
        self.driver.get(self.keys)
        try:
            row = self.find(f"//tr[contains(., '{alias}')]").text
        except WebDriverException:
            return 0
        return max(map(float, SPENT.findall(row)), default=0)

    def settle(self) -> None:
        """Wait until the page asks for nothing more."""
        last = time.monotonic()
        while time.monotonic() < last + QUIET_SECONDS:
            time.sleep(POLL_SECONDS)
            if self.note():
                last = time.monotonic()

    def note(self) -> bool:
        """Take note of what the browser asked for, or tried to; False for nothing."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        events = [json.loads(entry["message"])["message"] for entry in entries]
        urls = [it["params"]["request"]["url"] for it in events if it["method"] == "Network.requestWillBeSent"]
        self.asked += [url for url in urls if urlsplit(url).scheme in {"http", "https"}]
        return bool(urls)

    def wait(self) -> WebDriverWait[Chrome]:
        """Waits for something on the page, whatever is in its way or changes meanwhile."""
        return WebDriverWait(self.driver, SECONDS, ignored_exceptions=[WebDriverException])

    def find(self, xpath: str) -> WebElement:
        """The first element that an XPath names and that is seen, once it is."""
        return self.wait().until(it.visibility_of_element_located((By.XPATH, xpath)))

    def act(self, xpath: str, action: Callable[[WebElement], None]) -> None:
        """Do something to an element, once it is there and nothing is in its way."""

        def done(driver: Chrome) -> bool:
            action(driver.find_element(By.XPATH, xpath))
            return True

        self.wait().until(done)

    def fill(self, xpath: str, text: str) -> None:
        """Type into a field."""
        self.act(xpath, lambda field: field.send_keys(text))

    def click(self, xpath: str) -> None:
        self.act(xpath, WebElement.click)


def used_by_an_operator(outputs: Mapping[str, str], alias: str, model: str, ask: Callable[[str], object]) -> None:
    """The page of a stack with these outputs: a key is made there, asks, and its spend is seen.

    A wrong password opens nothing. The page asks for nothing that is elsewhere.
    """
    with browser() as driver:
        page = Page(driver, outputs["adminUrl"])
        page.log_in("not the password")
        until(lambda: "Invalid credentials" in page.text(), "a wrong password is refused")
        page = Page(driver, outputs["adminUrl"])
        page.log_in(outputs["adminPassword"])
        ask(page.make_key(alias, model))
        until(lambda: page.spent(alias) > 0, "the page shows what the key spent")
        page.note()
        port = urlsplit(outputs["adminUrl"]).port
        assert {urlsplit(url).netloc for url in page.asked} == {f"localhost:{port}"}


def closed(outputs: Mapping[str, str]) -> None:
    """Callers reach neither the page nor administration, whatever mark they send, and this port takes no calls."""
    callers, operators = outputs["litellmUrl"], outputs["adminUrl"].removesuffix("/ui/")
    headers = {"authorization": f"Bearer {outputs['litellmApiKey']}", "x-llm-gateway-admin": outputs["litellmApiKey"]}
    for path in ("/ui/", "/login", "/key/generate", "/key/list", "/user/info"):
        for method in ("GET", "POST"):
            assert httpx2.request(method, f"{callers}{path}", headers=headers).status_code == httpx2.codes.NOT_FOUND
    for path in ("/v1/chat/completions", "/chat/completions", "/v1/responses", "/config/update", "/model/new"):
        answer = httpx2.post(f"{operators}{path}", headers=headers, json={})
        assert answer.status_code == httpx2.codes.FORBIDDEN
    assert httpx2.get(f"{operators}/key/list").status_code == httpx2.codes.UNAUTHORIZED
    for elsewhere in ({"host": "page.example"}, {"origin": "http://page.example"}):
        assert httpx2.get(f"{operators}/ui/", headers=elsewhere).status_code == httpx2.codes.FORBIDDEN


@contextmanager
def there_each_time(outputs: Mapping[str, str]) -> Iterator[None]:
    """Ask for a stack's page all the time meanwhile. Raises AssertionError if it was not there once."""
    seen: Counter[object] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(POLL_SECONDS):
            try:
                seen[httpx2.get(outputs["adminUrl"], timeout=SECONDS).status_code] += 1
            except httpx2.HTTPError as error:
                seen[repr(error)] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    assert seen.keys() == {httpx2.codes.OK}, seen


def lets_in(outputs: Mapping[str, str], password: str) -> bool:
    """Whether the page accepts the operator's password, asked often enough that each replica answers."""
    url = outputs["adminUrl"].replace("/ui/", "/login")
    form = {"username": "admin", "password": password}
    (code,) = {httpx2.post(url, data=form, timeout=SECONDS).status_code for _ in REPLICAS * 2}
    return code == httpx2.codes.SEE_OTHER
