"""The page of sample captions."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from model_training.samples import THUMBNAIL_SIZE, Gallery, Sample, read_thumbnail
from tests.conftest import make_photo

HOSTILE = "<script>alert('1')</script> & \"quoted\" {braces}"
# Elements without an end.
_VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Reads a page: its text, its pictures, whatever it would fetch, and whether it is balanced."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.fetched: list[str | None] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "dog.png", 1, (800, 400))


def test_the_page_holds_everything(photo: Path) -> None:
    gallery = Gallery()
    assert not gallery
    other = Sample("cat.png", photo.with_name("gone.png"), "a cat", ("A cat .",))
    for epoch, caption in enumerate(["a cat", "a dog", "a dog", "a dog runs"], start=1):
        gallery.add(epoch, [Sample("dog.png", photo, caption, ("A dog runs .", "Brown dog .")), other])
    assert gallery
    page = Page(gallery.page("run 1"))
    assert page.open == []
    (image,) = page.images
    assert image["alt"] == "A dog runs ."
    assert all(str(value).startswith("data:image/jpeg;base64,") for value in page.fetched)
    assert not {"script", "link", "iframe"} & set(page.tags)
    for text in ("run 1", "dog.png", "Brown dog .", "a dog runs", "epoch 4", "can't be read", "A cat ."):
        assert text in page.text
    # Neighbouring epochs with the same caption are one line, the latest first.
    assert page.text.index("a dog runs") < page.text.index("epochs 2 to 3") < page.text.index("epoch 1")
    assert "epochs 1 to 4" in page.text  # the cat's


def test_what_people_wrote_is_text_and_no_markup(photo: Path) -> None:
    gallery = Gallery()
    gallery.add(1, [Sample(HOSTILE, photo, HOSTILE, (HOSTILE,)), Sample("x", photo, "", ())])
    page = Page(gallery.page(HOSTILE))
    assert page.open == []
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 5
    assert [image["alt"] for image in page.images] == [HOSTILE, "x"]
    assert "(no word)" in page.text


def test_a_thumbnail_is_small_upright_and_in_proportion(photo: Path, tmp_path: Path) -> None:
    data = read_thumbnail(photo)
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (THUMBNAIL_SIZE, THUMBNAIL_SIZE // 2))
    assert len(data) < 30_000
    turned = tmp_path / "turned.jpg"
    with Image.open(photo) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(turned, exif=exif)
    data = read_thumbnail(turned)
    assert data is not None
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (THUMBNAIL_SIZE // 2, THUMBNAIL_SIZE)
    thin = make_photo(tmp_path / "thin.png", 2, (2000, 1))
    assert read_thumbnail(thin) is not None


def test_what_can_not_be_read_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    assert read_thumbnail(tmp_path / "broken.jpg") is None
    assert read_thumbnail(tmp_path / "gone.jpg") is None
    assert read_thumbnail(tmp_path) is None


def test_a_checkpoint_keeps_the_gallery(photo: Path) -> None:
    gallery = Gallery()
    gallery.add(1, [Sample("dog.png", photo, "a cat", ("A dog .",))])
    gallery.add(2, [Sample("dog.png", photo, "a dog", ("A dog .",))])
    rows = json.loads(json.dumps(gallery.rows()))
    again = Gallery.from_rows(rows)
    assert again.page("run") == gallery.page("run")
    assert again.rows() == gallery.rows()
