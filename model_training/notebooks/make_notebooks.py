"""Writes the notebooks and runs them: `make notebooks`.

All three come from one template, so that they differ in the bundle alone. One whose bundle isn't there is
written without outputs, or keeps those it has if its code is what it was.
"""

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import nbformat
import typer
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from model_training.notebooks.examples import ROOT, path_from

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
FOLDER = Path(__file__).parent
# Without the version, which would make each run another file.
_LANGUAGE = {"name": "python"}
_TIMEOUT_S = 1200  # for one cell; the large model takes minutes on a slow CPU

_BUNDLES: dict[Size, tuple[str, str, str]] = {
    "small": ("BATCHCAP_SMALL", "batchcap/models/default", "the model that ships with batchcap"),
    "medium": (
        "BATCHCAP_MEDIUM",
        "local_runs/medium",
        "a model trained with `train_model --preset s --artifact_dir local_runs/medium`",
    ),
    "large": (
        "BATCHCAP_LARGE",
        "local_runs/large",
        "a model trained with `train_model --preset xl --artifact_dir local_runs/large`",
    ),
}

_INTRODUCTION = """# The {size} model: 20 captioned photographs

This notebook shows {what}. `{variable}` in the environment names another bundle.

**The photographs** come in the wheel of scikit-image, a development dependency, and are free to use: public
domain, CC0, or without known restrictions. There are ten; to make 20, ten parts of them are shown as well,
with left:right, top:bottom in pixels behind the name. What they show was written down by batchcap's
developers. Few are of the kind that captioners learn from (people, animals, sports, streets): expect wrong
captions.

`BATCHCAP_PHOTOS` names a folder of other photographs, `BATCHCAP_CAPTIONS` a file of people's captions of them
and `BATCHCAP_SPLIT` a list of those to take. People's captions then stand below each photograph, and CIDEr-D
says how well the model agrees with them.

**The log-probability** is that of the whole caption, its end included. **The confidence**, where the bundle
has a calibration, is the probability that the caption is acceptable.

Written by `make_notebooks.py`; `make notebooks` makes and runs it again."""

_CODE = (
    """import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported.

from model_training.notebooks.examples import path_from

BUNDLE = path_from("{variable}", "{default}")
PHOTOS = path_from("BATCHCAP_PHOTOS")  # None: those of scikit-image
CAPTIONS = path_from("BATCHCAP_CAPTIONS")
SPLIT = path_from("BATCHCAP_SPLIT")""",
    """from batchcap.captioner.quiet import quiet_stderr

with quiet_stderr():
    from batchcap.captioner.captioner import Captioner

    captioner = Captioner.load(BUNDLE, batch_size=20)

bundle = captioner.bundle
print(f"{{bundle.name}}: {{bundle.config.backbone}}, {{captioner.model.count_params():,}} parameters,")
print(f"{{bundle.config.vocabulary_size:,}} tokens, beams: {{bundle.generation.num_beams}}")""",
    """from batchcap.captioner.images import decode_image
from model_training.notebooks.examples import describe, load_examples, thumbnail

examples = load_examples(PHOTOS, CAPTIONS, SPLIT)
captions = captioner.caption([decode_image(example.data, captioner.image_spec) for example in examples])""",
    """from IPython.display import Image, Markdown, display

for number, (example, caption) in enumerate(zip(examples, captions, strict=True), start=1):
    display(Image(thumbnail(example), format="jpeg"), Markdown(describe(number, example, caption)))""",
    """from model_training.metrics import cider_d

references = [example.references for example in examples]
if all(references):
    score = cider_d([caption.text for caption in captions], references)
    print(f"CIDEr-D {{score:.1f}} on {{len(examples)}} photographs, too few to compare models by")
else:
    print("No CIDEr-D: it takes captions by people, see BATCHCAP_CAPTIONS.")""",
)


def make_notebook(size: Size) -> NotebookNode:
    """A notebook without outputs."""
    variable, default, what = _BUNDLES[size]
    values = {"size": size, "variable": variable, "default": default, "what": what}
    text = _INTRODUCTION.format(**values)
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": "introduction", "metadata": {}, "source": text}
    ]
    for number, code in enumerate(_CODE, start=1):
        source = code.format(**values)
        cell = {"cell_type": "code", "id": f"code-{number}", "metadata": {}, "source": source}
        cells.append({**cell, "execution_count": None, "outputs": []})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": dict(_LANGUAGE)}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    return _parse(json.dumps(notebook))


def _parse(text: str) -> NotebookNode:
    return nbformat.reads(text, as_version=4)  # type: ignore[no-any-return, no-untyped-call]


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """Kind and text of the cells, without their outputs."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


async def _execute(notebooks: list[NotebookNode]) -> None:
    """Runs notebooks side by side and fills in their outputs.

    Raises:
        CellExecutionError: a cell failed.
    """
    resources = {"metadata": {"path": str(ROOT)}}
    await asyncio.gather(
        *(
            NotebookClient(
                notebook,
                timeout=_TIMEOUT_S,
                record_timing=False,
                store_widget_state=False,
                resources=resources,
            ).async_execute()
            for notebook in notebooks
        )
    )
    for notebook in notebooks:
        notebook.metadata["language_info"] = dict(_LANGUAGE)


def _previous(path: Path) -> NotebookNode | None:
    return _parse(path.read_text(encoding="utf-8")) if path.exists() else None


def main(
    to: Annotated[Path, typer.Option(help="Folder to write the notebooks into.")] = FOLDER,
) -> None:
    """Write the three notebooks, and run those whose bundle is there."""
    notebooks = {size: make_notebook(size) for size in SIZES}
    bundles = {size: path_from(*_BUNDLES[size][:2]) for size in SIZES}
    found = [size for size in SIZES if (path := bundles[size]) is not None and path.is_dir()]
    try:
        # At the same time: most of it is the start of TensorFlow, on one core each.
        asyncio.run(_execute([notebooks[size] for size in found]))
    except CellExecutionError as error:
        typer.echo(f"make_notebooks: {error}", err=True)
        raise typer.Exit(1) from error
    for size, notebook in notebooks.items():
        path = to / f"{size}.ipynb"
        did = "captioned"
        if size not in found:
            before = _previous(path)
            keeps = before is not None and sources(before) == sources(notebook)
            notebook = before if before is not None and keeps else notebook
            did = "left as it is" if keeps else "written without outputs"
            did = f"{did}: no bundle at {bundles[size]}"
        nbformat.validate(notebook)
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        typer.echo(f"{path}: {did}")


if __name__ == "__main__":
    typer.run(main)
