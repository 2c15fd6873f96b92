"""What a training run leaves behind beside its weights: history, W&B, model card."""

import csv
import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from batchcap.captioner.model import CaptionModel
from batchcap.errors import TrainingError
from model_training.config import TrainConfig
from model_training.datasets import Dataset


def check_wandb(config: TrainConfig) -> None:
    """Looks whether W&B is there if the run wants it.

    Raises:
        TrainingError: it is not installed.
    """
    if config.wandb == "disabled":
        return
    spec = importlib.util.find_spec("wandb")
    # The folder `wandb` that earlier runs left behind looks like a package, but without a file of its own.
    if spec is None or spec.origin is None:
        raise TrainingError(f"--wandb {config.wandb} needs Weights & Biases; pip install 'batchcap[train]'")


class Tracker:
    """Collects the scores of each epoch; on W&B as well where that is wanted.

    Args:
        config: the run's options.
        model: the network, for its size.

    Raises:
        TrainingError: on entering; W&B can't start the run.
    """

    def __init__(self, config: TrainConfig, model: CaptionModel) -> None:
        self._config = config
        self._history: list[dict[str, float]] = []
        self._options = {**dataclasses.asdict(config), "parameters": model.count_params()}
        self._wandb_run: Any = None

    def __enter__(self) -> Self:
        if self._config.wandb != "disabled":
            try:
                # Only now: without tracking, nothing of W&B is imported, written or asked for.
                import wandb

                self._wandb_run = wandb.init(
                    project=self._config.wandb_project,
                    name=self._config.artifact_dir.name,
                    mode=self._config.wandb,
                    config=json.loads(json.dumps(self._options, default=str)),
                )
            except Exception as error:  # No login, no network, a wrong project: W&B has a class for each.
                reason = " ".join(str(error).split()) or type(error).__name__
                raise TrainingError(f"W&B can't start the run: {reason}; or give --wandb disabled") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._wandb_run is not None:
            self._wandb_run.finish(exit_code=0 if error is None else 1)

    def log(self, scores: Mapping[str, float]) -> None:
        """Takes the scores of one epoch."""
        self._history.append(dict(scores))
        if self._wandb_run is not None:
            self._wandb_run.log(dict(scores))

    def finish(self, artifact_dir: Path) -> None:
        """Writes `history.csv` and `training.json` into the bundle, which goes to W&B as an artifact."""
        with open(artifact_dir / "history.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self._history[0]))
            writer.writeheader()
            writer.writerows(self._history)
        options = json.dumps(self._options, indent=2, default=str)
        (artifact_dir / "training.json").write_text(options + "\n", encoding="utf-8")
        if self._wandb_run is not None:
            self._wandb_run.log_artifact(str(artifact_dir), name=artifact_dir.name, type="model")


def model_card(
    config: TrainConfig, dataset: Dataset, model: CaptionModel, scores: Mapping[str, float]
) -> str:
    """The card that a fresh bundle gets: what it is and how it was trained, in Markdown."""
    shape = model.config
    return f"""# {config.artifact_dir.name}

A captioner of {model.count_params() / 1e6:.1f} million parameters: {shape.backbone} at
{shape.image.image_size} pixels, {shape.enc_layers} encoder and {shape.dec_layers} decoder blocks of width
{shape.embed_dim}, {shape.vocabulary_size} tokens.

Trained on images of `{config.captions.name}`, chosen on others of it (split by {dataset.split_by}) at epoch
{scores["epoch"]} of {config.epochs}: BLEU-4 {scores["dev_bleu_4"]:.3f}, CIDEr-D
{scores["dev_cider_d"]:.1f} with {config.num_beams} beams.
"""
