"""report.html in a real browser: it loads quietly, asks for nothing, and everybody can read it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builds import BUILDS

from edgepack.deliver.reports import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium")

PHONE, DESK = (390, 844), (1280, 900)
_RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice")  # contrast and headings among them


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser: Any, file: Path, name: str, size: tuple[int, int], scheme: str) -> tuple[Any, list[str], list[str]]:
    """The page of a build, what it said to the console, and what it asked for."""
    file.write_text(html.render(BUILDS[name]), encoding="utf-8")
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    return page, said, asked


@pytest.mark.parametrize("name", BUILDS)
def test_the_page_is_quiet_asks_for_nothing_and_fits_a_phone(name: str, browser: Any, own_place: Path) -> None:
    page, said, asked = _open(browser, own_place / "report.html", name, PHONE, "light")
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert said == []
    assert asked == [(own_place / "report.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    page.close()


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        ("everything", PHONE, "light"),
        ("everything", DESK, "dark"),
        ("failed half way", PHONE, "dark"),
        ("awkward", DESK, "light"),
    ],
)
def test_the_page_is_accessible(name: str, size: tuple[int, int], scheme: str, browser: Any, own_place: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, _, _ = _open(browser, own_place / "report.html", name, size, scheme)
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": list(_RULES)}})
    assert found.violations_count == 0, found.generate_report()
    checked = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "page-has-heading-one", "heading-order", "document-title"} <= checked
    page.close()


def test_a_printed_page_is_black_on_white_and_open(browser: Any, own_place: Path) -> None:
    page, _, _ = _open(browser, own_place / "report.html", "everything", DESK, "dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.is_visible("nav")
    page.close()
