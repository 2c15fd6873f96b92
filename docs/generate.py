"""Writes what the documentation takes from the code: `python docs/generate.py`.

::

    docs/presets.md        the shapes of `train_model --preset`, and what they come to
    docs/training.md       its table of options, between two comments; all else in it is written by hand
    docs/configuration.md  its table of variables, likewise
    README.md              the table of benchmarks, likewise; from benchmarks/results

and the pages of `docs/reference.py`. tests/test_docs.py fails where a page is not what this makes.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

import typer
from safetensors import safe_open

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.bundle_files import WEIGHTS
from batchcap.captioner.config import Backbone, CaptionerConfig
from batchcap.captioner.quiet import quiet_stderr
from benchmarks.table import benchmarks_table
from docs.reference import (
    choices_of,
    commands_page,
    cookbook_page,
    default_of,
    http_page,
    parquet_page,
    tables_page,
    variables_table,
)
from model_training.config import PRESETS
from model_training.train_model import app, train_model

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers in weights, by how a bundle stores them.

    Args:
        matrices: of two dimensions and more; half precision in a bundle.
        vectors: single precision always.
    """

    matrices: int
    vectors: int

    def __add__(self, other: "Size") -> "Size":
        return Size(self.matrices + other.matrices, self.vectors + other.vectors)

    @property
    def parameters(self) -> int:
        return self.matrices + self.vectors

    @property
    def half_mb(self) -> float:
        """Millions of bytes of `weights.safetensors` as `train_model` writes it."""
        return (2 * self.matrices + 4 * self.vectors) / 1e6

    @property
    def single_mb(self) -> float:
        """The same, were everything float32."""
        return 4 * self.parameters / 1e6


def transformer_size(config: CaptionerConfig, channels: int) -> Size:
    """All of a network but its CNN, by arithmetic.

    Args:
        config: its shape.
        channels: of the CNN's grid.
    """
    width, words = config.embed_dim, config.vocabulary_size

    def dense(inputs: int, outputs: int) -> Size:
        return Size(inputs * outputs, outputs)

    def norm(width: int) -> Size:
        return Size(0, 2 * width)

    def attention(heads: int) -> Size:
        inner = heads * config.head_dim
        return Size(3 * width * inner, 3 * inner) + dense(inner, width)

    total = Size((words + config.sequence_length) * width, 0) + dense(width, words)
    for block in range(config.enc_layers):
        inputs = channels if block == 0 else width
        total += norm(inputs) + dense(inputs, width) + attention(config.enc_heads) + norm(width)
    for _ in range(config.dec_layers):
        total += attention(config.dec_heads) + attention(config.dec_heads)
        total += dense(width, config.ff_dim) + dense(config.ff_dim, width)
        total += norm(width) + norm(width) + norm(width)
    return total


def cnn_size(backbone: Backbone) -> tuple[Size, int]:
    """A CNN's weights, and the channels of its grid; it is built for that, which takes seconds."""
    with quiet_stderr():
        from batchcap.captioner.backbone import build_backbone

    # Neither depends on the pixels, so as few as there may be.
    network = build_backbone(backbone, 32)
    return _sum(tuple(weight.shape) for weight in network.weights), network.output_shape[-1]


def bundle_sizes(bundle: Bundle) -> tuple[Size, Size]:
    """CNN and transformer of a bundle on disk; its weights are not read."""
    with safe_open(bundle.path / WEIGHTS, "numpy") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in list(weights.keys())}
    cnn, others = (
        _sum(shape for name, shape in shapes.items() if name.startswith("backbone/") == is_cnn)
        for is_cnn in (True, False)
    )
    return cnn, others


def _sum(shapes: Iterable[tuple[int, ...]]) -> Size:
    total = Size(0, 0)
    for shape in shapes:
        count = math.prod(shape)
        total += Size(count, 0) if len(shape) > 1 else Size(0, count)
    return total


def presets_page() -> str:
    """docs/presets.md."""
    default = CaptionerConfig()
    cnn, channels = cnn_size(default.backbone)
    rows = []
    for preset, shape in PRESETS.items():
        config = CaptionerConfig(**shape)  # type: ignore[arg-type]
        rows.append(_row(f"`{preset}`", config, cnn, transformer_size(config, channels)))
    shipped = Bundle.open(DEFAULT_BUNDLE)
    rows.append(_row(f"`{shipped.name}`, which ships", shipped.config, *bundle_sizes(shipped)))
    return _PRESETS_PAGE.format(
        backbone=default.backbone,
        image_size=default.image.image_size,
        sequence_length=default.sequence_length,
        head=f"| {' | '.join(_COLUMNS)} |\n|---{'|--:' * (len(_COLUMNS) - 1)}|",
        rows="".join(rows),
    )


_COLUMNS = (
    *("", "embed_dim", "heads: encoder + decoder", "width of a head", "ff_dim", "tokens"),
    *("parameters: CNN", "transformer", "together", "MB of the bundle", "MB in float32"),
)
_PRESETS_PAGE = """# Presets

<!-- Written by `python docs/generate.py`; change that. -->

`train_model --preset NAME` takes the shape of one of the original system's five models. All have {backbone}
at {image_size} x {image_size} pixels, one encoder and one decoder block, and captions of {sequence_length}
tokens at most, start and end included.

{head}
{rows}
* Parameters are in millions (M); all weights are counted, trained or not. MB are millions of bytes of
  `weights.safetensors`, the CNN included: in a bundle matrices are in half precision, vectors in single. Its
  other files come to less than 0.3 MB.
* Tokens are an upper bound: a data set with fewer words makes a smaller network.
* Heads as wide as embed_dim, as in the original, make attention most of the network; `--key_dim 64` makes any
  preset a fraction of its size.
* Any option beside `--preset` changes that one value: `--preset s --dec_layers 2`.

`tests/training/test_presets.py` builds all five, writes and loads them, and compares sizes and logits.
"""


def _row(name: str, config: CaptionerConfig, cnn: Size, transformer: Size) -> str:
    together = cnn + transformer
    cells = [
        name,
        f"{config.embed_dim:,}",
        f"{config.enc_heads} + {config.dec_heads}",
        f"{config.head_dim:,}",
        f"{config.ff_dim:,}",
        f"{config.vocabulary_size:,}",
        *(f"{size.parameters / 1e6:.2f} M" for size in (cnn, transformer, together)),
        f"{together.half_mb:.1f}",
        f"{together.single_mb:.1f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def options_tables() -> str:
    """The options of `train_model` in Markdown, a table a group, in the order of `--help`."""
    groups: dict[str, list[str]] = {}
    types = get_type_hints(train_model)
    for option in typer.main.get_command(app).params:
        group = getattr(option, "rich_help_panel", None) or "Other"
        name, text = option.opts[0], (getattr(option, "help", None) or "").replace("|", "\\|")
        default = default_of(option)
        if choices := choices_of(types[str(option.name)]):
            text += " " + ", ".join(f"`{choice}`" for choice in choices)
        groups.setdefault(group, []).append(f"| `{name}` | {default} | {text} |\n")
    return "\n".join(
        f"**{group}**\n\n| option | default | |\n|---|---|---|\n{''.join(rows)}"
        for group, rows in groups.items()
    )


def paste(page: str, name: str, text: str) -> str:
    """A page with a text between its comments `<!-- NAME: ... -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: it has no such place, or several.
    """
    place = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->\n)", re.DOTALL)
    new, count = place.subn(lambda found: f"{found[1]}\n{text}\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"the page has not one place for the {name}")
    return new


def training_page(page: str) -> str:
    """docs/training.md with its tables renewed."""
    return paste(page, "options", options_tables())


def configuration_page(page: str) -> str:
    """docs/configuration.md with its table of variables renewed."""
    return paste(page, "variables", variables_table())


def readme_page(page: str) -> str:
    """README.md with its table of benchmarks renewed."""
    return paste(page, "benchmarks", benchmarks_table())


# Pages of which all is made, and pages of which a part is.
MADE: dict[str, Callable[[], str]] = {
    "presets.md": presets_page,
    "commands.md": commands_page,
    "http.md": http_page,
    "parquet.md": parquet_page,
    "tables.md": tables_page,
    "cookbook.md": cookbook_page,
}
RENEWED: dict[Path, Callable[[str], str]] = {
    DOCS / "training.md": training_page,
    DOCS / "configuration.md": configuration_page,
    README: readme_page,
}


def main() -> None:
    """Writes the pages."""
    for name, make in MADE.items():
        (DOCS / name).write_text(make(), encoding="utf-8")
    for path, renew in RENEWED.items():
        path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
