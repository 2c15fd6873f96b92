"""Scores a bundle as people will meet it: `python -m model_training.evaluate BUNDLE --data … --captions …`.

Every picture goes through `decode_image` and `Captioner.caption`, the very path that indexes a collection.
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
from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import Caption, CaptionerProtocol
from batchcap.errors import BatchcapError, ImageError, TrainingError
from model_training.datasets import Format, Subset, read_subset
from model_training.metrics import bleu, cider_d

_CHUNK = 256


def evaluate(
    captioner: CaptionerProtocol, data: Path, references: dict[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, Caption]]:
    """Captions images and scores the captions.

    Args:
        captioner: what is scored.
        data: folder of the images.
        references: what people wrote, by the image's name. Images that can't be decoded are left out.

    Returns:
        `bleu_1` to `bleu_4` (0 to 1), `cider_d` (times 100), `images`, `failed` and `images_per_s` (network
        alone, pictures already decoded); and the captions by name.

    Raises:
        TrainingError: no image can be decoded.
    """
    names, failed, captions, seconds = list(references), 0, dict[str, Caption](), 0.0
    for start in range(0, len(names), _CHUNK):
        decoded = {}
        for name in names[start : start + _CHUNK]:
            try:
                decoded[name] = decode_image((data / name).read_bytes(), captioner.image_spec)
            except (ImageError, OSError):
                failed += 1
        if not decoded:
            continue
        started = time.perf_counter()
        captions |= dict(zip(decoded, captioner.caption(list(decoded.values())), strict=True))
        seconds += time.perf_counter() - started
    if not captions:
        raise TrainingError(f"none of the {len(names)} images in {data} can be decoded")
    texts = [caption.text for caption in captions.values()]
    truth = [references[name] for name in captions]
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu(texts, truth), start=1)}
    scores |= {"cider_d": cider_d(texts, truth), "images": len(captions), "failed": failed}
    return {**scores, "images_per_s": len(captions) / seconds}, captions


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Annotated[Path, typer.Option(help="Folder of the images.")],
    captions: Annotated[Path, typer.Option(help="File of captions.")],
    format: Annotated[Format, typer.Option(help="Of the captions.")] = "auto",
    split: Annotated[Path | None, typer.Option(help="Names of the images to score on.")] = None,
    subset: Annotated[Subset | None, typer.Option(help="Of the captions' own split.  [default: val]")] = None,
    num_beams: Annotated[list[int] | None, typer.Option(help="Beams; may be repeated.", min=1)] = None,
    limit: Annotated[int, typer.Option(help="Images; 0 for all.")] = 0,
    save: Annotated[
        bool, typer.Option("--save", help="Keep the scores in the bundle's metrics.json.")
    ] = False,
    samples: Annotated[Path | None, typer.Option(help="Write every caption here, as JSON.")] = None,
) -> None:
    """Score a bundle on captioned images; one JSON object for each number of beams."""
    try:
        from batchcap.captioner.captioner import Captioner

        opened = Bundle.open(bundle)
        images, summary = read_subset(captions, format=format, split=split, subset=subset, limit=limit)
        print(summary, file=sys.stderr)
        references: dict[str, Sequence[str]] = {image.name: image.captions for image in images}
        written: dict[str, Any] = {}
        scored: list[dict[str, float]] = []
        for beams in num_beams or [opened.generation.num_beams]:
            generation = replace(opened.generation, num_beams=beams)
            captioner = Captioner(replace(opened, generation=generation))
            captioner.warm_up()
            scores, found = evaluate(captioner, data, references)
            scored.append({"num_beams": beams, "length_penalty": generation.length_penalty, **scores})
            print(json.dumps(scored[-1]), flush=True)
            written[str(beams)] = {name: asdict(caption) for name, caption in found.items()}
        if save:
            for scores in scored:
                # A rate is the machine's, not the model's.
                del scores["images_per_s"]
            text = json.dumps({split.name if split else subset or "val": scored}, indent=2)
            (bundle / "metrics.json").write_text(text + "\n", encoding="utf-8")
        if samples is not None:
            samples.write_text(json.dumps(written, indent=1), encoding="utf-8")
    except BatchcapError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
