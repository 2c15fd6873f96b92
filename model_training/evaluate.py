"""Scores a bundle as people will meet it: `python -m model_training.evaluate BUNDLE --data … --captions …`.

How good the captions are, and with `--retrieval` whether the images can be found by them. Every picture goes
through `decode_image` and `Captioner.caption`, the very path that indexes a collection.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

# TensorFlow reads it when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.protocol import Caption, CaptionerProtocol
from batchcap.errors import BatchcapError, TrainingError, UsageError
from model_training.datasets import Format, Subset, read_subset
from model_training.meteor import meteor, meteor_tables
from model_training.metrics import bleu, cider_d, rouge_l
from model_training.pictures import decoded_chunks

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INPUT = "What to score on"


def evaluate(
    captioner: CaptionerProtocol, data: Path, references: dict[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, Caption]]:
    """Captions images and scores the captions.

    Args:
        captioner: what is scored.
        data: folder of the images.
        references: what people wrote, by the image's name. Images that can't be decoded are left out.

    Returns:
        `bleu_1` to `bleu_4`, `meteor` (where its tables are installed) and `rouge_l` (all 0 to 1), `cider_d`
        (times 100), `images`, `failed` and `images_per_s` (network alone, pictures already decoded); and the
        captions by name.

    Raises:
        TrainingError: no image can be decoded, or METEOR's tables are damaged.
    """
    captions, seconds = dict[str, Caption](), 0.0
    for decoded in decoded_chunks(data, list(references), captioner.image_spec):
        started = time.perf_counter()
        captions |= dict(zip(decoded, captioner.caption(list(decoded.values())), strict=True))
        seconds += time.perf_counter() - started
    if not captions:
        raise TrainingError(f"none of the {len(references)} images in {data} can be decoded")
    scores = _score([caption.text for caption in captions.values()], [references[name] for name in captions])
    scores |= {
        "images": len(captions),
        "failed": len(references) - len(captions),
        "images_per_s": len(captions) / seconds,
    }
    return scores, captions


def _score(texts: Sequence[str], truth: Sequence[Sequence[str]]) -> dict[str, float]:
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu(texts, truth), start=1)}
    if meteor_tables() is not None:
        scores["meteor"] = meteor(texts, truth)
    return {**scores, "rouge_l": rouge_l(texts, truth), "cider_d": cider_d(texts, truth)}


@app.command()
def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the model, as train_model leaves it.")],
    data: Annotated[Path, typer.Option(help="Folder of the images.", rich_help_panel=_INPUT)],
    captions: Annotated[Path, typer.Option(help="File of what people wrote.", rich_help_panel=_INPUT)],
    format: Annotated[Format, typer.Option(help="Format of that file.", rich_help_panel=_INPUT)] = "auto",
    split: Annotated[
        Path | None,
        typer.Option(
            help="File of the names of the images to score on, a name a line.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    subset: Annotated[
        Subset | None,
        typer.Option(
            help="Or the part of the captions' own split.", show_default="val", rich_help_panel=_INPUT
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(help="Score so many images at most; 0 for all.", min=0, rich_help_panel=_INPUT),
    ] = 0,
    num_beams: Annotated[
        list[int] | None,
        typer.Option(
            help="Beams of the search for a caption; give it again to compare.",
            show_default="the model's",
            min=1,
        ),
    ] = None,
    retrieval: Annotated[
        bool,
        typer.Option(
            "--retrieval",
            help="Also search for each image by what people wrote, among the model's captions in a temporary"
            " catalog: the share that is found first (recall_at_1), among the first 5 and the first 10.",
        ),
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the scores in the model's metrics.json.")
    ] = False,
    samples: Annotated[Path | None, typer.Option(help="Write every caption to this file, as JSON.")] = None,
) -> None:
    """Score a model on captioned images, by the way that indexes a collection.

    Prints one JSON object for each number of beams: BLEU-1 to BLEU-4, METEOR and ROUGE-L from 0 to 1, CIDEr-D
    times 100 as in papers, and images a second. METEOR needs the tables of pycocoevalcap.
    """
    try:
        from batchcap.captioner.captioner import Captioner

        opened = Bundle.open(bundle)
        if not data.is_dir():
            raise UsageError(f"--data {data} is no folder")
        if samples is not None and not samples.absolute().parent.is_dir():
            raise UsageError(f"--samples {samples}: there is no folder {samples.parent}")
        images, summary = read_subset(captions, format=format, split=split, subset=subset, limit=limit)
        print(summary, file=sys.stderr)
        if meteor_tables() is None:
            print("METEOR is left out; for it: pip install pycocoevalcap", file=sys.stderr)
        references: dict[str, Sequence[str]] = {image.name: image.captions for image in images}
        written: dict[str, Any] = {}
        scored: list[dict[str, float]] = []
        for beams in num_beams or [opened.generation.num_beams]:
            generation = replace(opened.generation, num_beams=beams)
            captioner = Captioner(replace(opened, generation=generation))
            captioner.warm_up()
            scores, found = evaluate(captioner, data, references)
            if retrieval:
                # Late: only this part of training needs the catalog.
                from model_training import retrieval as retrieval_module

                texts = {name: caption.text for name, caption in found.items()}
                scores |= retrieval_module.retrieval(texts, references)
            scored.append({"num_beams": beams, "length_penalty": generation.length_penalty, **scores})
            print(json.dumps(scored[-1]), flush=True)
            written[str(beams)] = {name: asdict(caption) for name, caption in found.items()}
        if save:
            for scores in scored:
                # A rate is the machine's, not the model's.
                del scores["images_per_s"]
            text = json.dumps({split.name if split else subset or "val": scored}, indent=2)
            _write(bundle / "metrics.json", text + "\n")
        if samples is not None:
            _write(samples, json.dumps(written, indent=1))
    except BatchcapError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"can't write {path}: {error}") from error


if __name__ == "__main__":
    app(prog_name="python -m model_training.evaluate")
