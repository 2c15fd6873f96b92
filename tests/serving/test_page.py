"""The page in a real browser, where there is one: what it shows, what the policy lets it do, the keyboard."""

from pathlib import Path

import pytest

from tests.conftest import make_photo
from tests.serving.chromium import Chromium, find_chromium
from tests.serving.conftest import CAPTIONS, TOKEN, Collection, served

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium here")
PROGRAM = find_chromium() or ""
# Answers once nothing waits any more.
DONE = """new Promise(done => {
  const look = () => {
    const cards = document.querySelectorAll('.card').length;
    const open = document.querySelectorAll('[data-state="waiting"]').length;
    if (cards && !open) done(); else setTimeout(look, 20);
  };
  look();
})"""


def test_a_person_captions_pictures_and_searches(url: str, tmp_path: Path) -> None:
    pictures = [make_photo(tmp_path / f"{number}.png", number) for number in range(3)]
    (tmp_path / "bad.png").write_bytes(pictures[0].read_bytes()[:900])
    with Chromium(PROGRAM, tmp_path / "profile") as browser:
        for width in (400, 1400):
            browser.open(f"{url}/", width=width)
            browser.choose_files("#files", [*pictures, tmp_path / "bad.png"])
            browser.evaluate(DONE)
            assert browser.evaluate("document.getElementById('caption-status').textContent") == (
                "3 of 4 captioned, 1 failed"
            )
            assert browser.evaluate(
                "[...document.querySelectorAll('[data-state=done]')].every(card => "
                "card.querySelector('img').alt === card.querySelector('.caption').textContent "
                "&& card.querySelector('img').naturalWidth === 80 "
                "&& card.querySelector('meter').value === 0.5)"
            )
            assert "costless red" in browser.evaluate("document.querySelector('.caption').textContent")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
        # By keyboard alone: the search has the focus, and the first hit is a few tabs away.
        browser.open(f"{url}/search", width=400)
        browser.call("Input.insertText", text="sofa")
        with browser.loading():
            browser.call("Input.dispatchKeyEvent", type="char", text="\r")
        browser.evaluate("document.images[0].decode()")
        assert browser.evaluate("document.images[0].alt") == CAPTIONS[2]
        assert browser.evaluate("document.images[0].naturalWidth") == 320
        assert browser.evaluate("document.documentElement.scrollWidth") == 400
        browser.evaluate("document.getElementById('q').focus()")
        # The button, the filters, the hit.
        for _ in range(3):
            browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.pathname").startswith("/pictures/")


def test_a_person_filters_opens_and_captions_a_picture(own_collection: Collection, tmp_path: Path) -> None:
    with served(own_collection) as url, Chromium(PROGRAM, tmp_path / "profile") as browser:

        def text(selector: str) -> str:
            return str(browser.evaluate(f"document.querySelector({selector!r}).innerText"))

        def enter(written: str) -> None:
            browser.call("Input.insertText", text=written)
            with browser.loading():
                browser.press("Enter", 13, "\r")

        browser.open(f"{url}/search?q=beach", width=400)
        assert browser.evaluate("document.querySelectorAll('.gallery img').length") == 2
        # The filters by keyboard: they are closed, and come after the words and the button.
        browser.evaluate("document.getElementById('q').focus()")
        for _ in range(2):
            browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.matches('.filters summary')")
        browser.press("Enter", 13, "\r")
        assert browser.evaluate("document.querySelector('.filters').open")
        browser.press("Tab", 9)
        assert browser.evaluate("document.activeElement.name") == "since"
        enter("7d")
        # What was left empty is not in the address.
        assert browser.evaluate("location.search") == "?q=beach&since=7d"
        assert "since 7d" in text(".filters summary")
        assert browser.evaluate("document.documentElement.scrollWidth") == 400
        with browser.loading():
            browser.evaluate("document.querySelector('.gallery a').click()")
        before = text("h1")
        assert before in CAPTIONS
        browser.evaluate("document.getElementById('caption').select()")
        enter("Rex & Bella at <sea>")
        assert text("h1") == "Rex & Bella at <sea>"
        assert browser.evaluate("location.pathname").startswith("/pictures/")
        assert browser.evaluate(
            "[...document.querySelectorAll('.history li > p:first-child')].map(p => p.innerText)"
        ) == [
            "Rex & Bella at <sea>",
            before,
        ]
        assert "shown" in text(".history li[aria-current]")
        assert browser.evaluate("document.documentElement.scrollWidth") == 400
        with browser.loading():
            browser.evaluate("document.querySelector('main a[href^=\"/search?q=beach\"]').click()")
        assert text("[role=status]") == "1–1 of 1"
        browser.open(f"{url}/search?model=people", width=1400)
        assert text(".gallery .caption") == "Rex & Bella at <sea>"
        browser.open(f"{url}/collection", width=1400)
        # Whatever time it is, the plot ends with the day of the captions.
        assert browser.evaluate("document.querySelectorAll('.plot rect').length") == 30
        assert browser.evaluate(
            "[...document.querySelectorAll('.plot rect')].at(-1).getBoundingClientRect().height > 20"
        )
        assert "people" in text("main table")
        with served(own_collection, token=TOKEN) as guarded:
            browser.open(f"{guarded}/search", width=400)
            # The form is of this server, and the browser has to say so.
            enter(TOKEN)
            assert browser.evaluate("location.pathname + document.querySelector('nav').innerText").startswith(
                "/Caption"
            )
        asked_for = [address for address in browser.requested if not address.startswith(guarded)]
        assert all(address.startswith((f"{url}/", "blob:", "data:")) for address in asked_for)
        assert len(asked_for) > 20
