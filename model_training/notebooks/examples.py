"""The photographs of the notebooks, and how a caption is shown beside one."""

import html
import importlib.util
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from batchcap.captioner.images import ImageSpec, decode
from batchcap.captioner.protocol import Caption
from batchcap.errors import ImageError, TrainingError
from model_training.datasets import read_subset
from model_training.samples import make_thumbnail

COUNT = 20
# Where relative paths of the environment's variables start: in Jupyter a notebook runs in its own folder.
ROOT = Path(__file__).parents[2]
_THUMBNAIL_SIZE = 224  # pixels, of the longer side

# Photographs in the wheel of scikit-image that are free to use, and parts of them, as left, top, right,
# bottom: there are not 20.
_FREE: tuple[tuple[str, tuple[int, int, int, int] | None, str], ...] = (
    ("astronaut.png", None, "an astronaut in an orange suit, a flag, a model of a space shuttle"),
    ("astronaut.png", (20, 0, 400, 300), "a smiling woman with short hair"),
    ("astronaut.png", (330, 0, 512, 300), "a model of a space shuttle"),
    ("astronaut.png", (250, 300, 512, 512), "a white helmet with a black visor"),
    ("camera.png", None, "a man with a camera on a tripod, in a park"),
    ("camera.png", (60, 40, 370, 260), "a man who looks through a camera"),
    ("camera.png", (200, 100, 512, 512), "a tripod on a lawn"),
    ("camera.png", (330, 80, 512, 240), "buildings behind a lawn"),
    ("chelsea.png", None, "the face of a cat"),
    ("chelsea.png", (100, 40, 400, 160), "the eyes of a cat"),
    ("coffee.png", None, "a cup of coffee on a saucer, on a table"),
    ("coffee.png", (170, 0, 430, 200), "a cup of coffee"),
    ("rocket.jpg", None, "a rocket on its launch pad, at night"),
    ("rocket.jpg", (200, 60, 460, 427), "a rocket between two masts"),
    ("rocket.jpg", (0, 260, 640, 427), "lights of a launch pad"),
    ("coins.png", None, "four rows of old coins"),
    ("hubble_deep_field.jpg", None, "galaxies"),
    ("grass.png", None, "grass, from above"),
    ("brick.png", None, "a pavement of bricks"),
    ("gravel.png", None, "gravel"),
)


@dataclass(frozen=True, slots=True)
class Example:
    """A photograph to caption.

    Args:
        name: of its file, and which part of it.
        data: the bytes of a picture file.
        shows: what is to be seen, in our words; empty where nobody says.
        references: what people wrote about it, from a captions file.
    """

    name: str
    data: bytes
    shows: str = ""
    references: tuple[str, ...] = ()


def path_from(variable: str, default: str | None = None) -> Path | None:
    """A path in a variable of the environment; relative ones start in the folder of the repository."""
    value = os.environ.get(variable) or default
    return None if value is None else ROOT / value


def load_examples(photos: Path | None, captions: Path | None, split: Path | None) -> list[Example]:
    """The photographs of a notebook, at most `COUNT`; files that can't be decoded are left out.

    Args:
        photos: their folder; None for the free ones, where nothing else counts.
        captions: file of what people wrote about them; the photographs are then those that it names. None
            for the first ones of the folder.
        split: names of the images to take of `captions`; None for its own part `val`.

    Raises:
        UsageError: `captions` has no split of its own, and there is no `split`.
        TrainingError: there is no photograph, or scikit-image is not installed.
    """
    if photos is None:
        return list(_free_examples())
    if captions is None:
        wanted = [
            Example(path.name, path.read_bytes()) for path in sorted(photos.iterdir()) if path.is_file()
        ]
    else:
        images, _ = read_subset(captions, split=split)
        wanted = [
            Example(image.name, (photos / image.name).read_bytes(), references=image.captions)
            for image in images
            if (photos / image.name).is_file()
        ]
    found = [example for example in wanted[: 2 * COUNT] if _is_picture(example.data)][:COUNT]
    if not found:
        raise TrainingError(f"there is no photograph to caption in {photos}")
    return found


def thumbnail(example: Example) -> bytes:
    """A small JPEG of a photograph, upright and in its own proportions."""
    return make_thumbnail(example.data, _THUMBNAIL_SIZE)


def describe(number: int, example: Example, caption: Caption) -> str:
    """What stands below a photograph, in Markdown."""
    figures = f"log-probability {caption.log_prob:.2f} over {caption.token_count} tokens"
    if caption.confidence is not None:
        figures += f", confidence {caption.confidence:.2f}"
    text = html.escape(caption.text) or "(no word)"
    lines = [f"**{number}. {text}**  ", f"{figures}  ", f"`{example.name}`"]
    if example.shows:
        lines[-1] += f": {html.escape(example.shows)}"
    lines += [f"- {html.escape(reference)}" for reference in example.references]
    return "\n".join(lines)


def _free_examples() -> Iterator[Example]:
    # Found without importing scikit-image, which takes seconds.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise TrainingError("the photographs come with scikit-image: pip install 'batchcap[dev]'")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    for name, box, shows in _FREE:
        if box is None:
            yield Example(name, (folder / name).read_bytes(), shows)
            continue
        with Image.open(folder / name) as image:
            part = io.BytesIO()
            image.crop(box).save(part, "png")
        left, top, right, bottom = box
        yield Example(f"{name} [{left}:{right}, {top}:{bottom}]", part.getvalue(), shows)


def _is_picture(data: bytes) -> bool:
    try:
        decode(data, ImageSpec(32))
    except ImageError:
        return False
    return True
