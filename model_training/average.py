"""Averages the weights of bundles: `python -m model_training.average RUN RUN… --output DIR`.

Runs that went on from the same network with other seeds or options (`--init`) differ little from each other,
and the mean of their weights is often better than each of them, at the cost of one: model soups (Wortsman et
al., https://arxiv.org/abs/2203.05482). Runs that began with other random weights have nothing to average.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.errors import BatchcapError, UsageError


def average(bundles: Sequence[Bundle], output: Path) -> None:
    """Writes a bundle whose weights are the means of those of others.

    Args:
        bundles: of one shape and vocabulary; decoding options are those of the first.
        output: folder of the new bundle.

    Raises:
        UsageError: there is one only, or they differ in shape or vocabulary.
        BundleError: one is damaged, or the folder can't be written or holds something else.
    """
    first, *others = bundles
    if not others:
        raise UsageError("one model is its own average; give at least two")
    for other in others:
        if other.config != first.config or other.tokenizer.to_text() != first.tokenizer.to_text():
            raise UsageError(f"{other.path} has another shape or other words than {first.path}")
        if output.resolve() in (other.path.resolve(), first.path.resolve()):
            raise UsageError(f"{output} is one of those to average; choose another --output")
    sums = {key: weight.astype(np.float64) for key, weight in first.weights().items()}
    for other in others:
        for key, weight in other.weights().items():
            sums[key] += weight
    name, names = output.resolve().name, ", ".join(bundle.name for bundle in bundles)
    write_bundle(
        output,
        name=name,
        config=first.config,
        generation=first.generation,
        tokenizer=first.tokenizer,
        weights={key: (total / len(bundles)).astype(np.float32) for key, total in sums.items()},
        model_card=f"# {name}\n\nThe mean of the weights of {names}. It has not been scored yet.\n",
        half_precision=True,
    )


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of the models to average.")],
    output: Annotated[Path, typer.Option(help="Folder of the new model.")],
) -> None:
    """Average models that went on from the same one."""
    try:
        average([Bundle.open(run) for run in runs], output)
        print(f"the mean of {len(runs)} models is in {output}; score it with model_training.evaluate")
    except BatchcapError as error:
        print(f"average: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


if __name__ == "__main__":
    typer.run(main)
