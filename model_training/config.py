"""What one training run does: plain values, kept with its results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from batchcap.captioner.config import CaptionerConfig
from model_training.datasets import Format


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The options of one training run.

    Args:
        data: folder of the images.
        captions: file of captions.
        train_split: file with the names of the images to train on, a name a line; None for the captions' own
            split, or chance.
        dev_split: file with the names of the images to choose the best epoch on; both files or neither.
        artifact_dir: folder of the finished bundle.
        captioner: the shape of the network; its vocabulary_size is an upper bound.
        backbone_weights: `imagenet`, `none`, or a file.
        cache_dir: folder for the features of the frozen CNN; reused by later runs on the same images.
        epochs: passes over the training images, each with all its captions.
        batch_size: captions in one step, rounded down to whole images (one at least).
        lr: peak learning rate of AdamW.
        warmup_steps: steps in which the learning rate rises from zero.
        weight_decay: decoupled, on matrices only.
        clip_norm: the largest norm of all gradients together.
        ema_momentum: weights are judged and kept as their exponential moving average over the steps, with
            this share of the old average at each; 0 takes them as they are.
        label_smoothing: probability spread over the whole vocabulary in the targets.
        min_count: words seen less often are unknown words.
        num_beams: beams of the finished bundle, unless told otherwise.
        length_penalty: of these beams; see GenerationConfig.
        seed: of weights, order, dropout and a split by chance.
        limit: use so many training and dev images at most; 0 for all.
        wandb: `online`, `offline` or `disabled`.
        wandb_project: the W&B project.
        format: of the captions; see `read_dataset`.
        dev_share: share of the images to choose on where chance decides.
    """

    data: Path
    captions: Path
    train_split: Path | None = None
    dev_split: Path | None = None
    artifact_dir: Path = Path("local_runs/default_run")
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    backbone_weights: str = "imagenet"
    cache_dir: Path = Path("local_runs/cache")
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_momentum: float = 0.0
    label_smoothing: float = 0.0
    min_count: int = 1
    num_beams: int = 3
    length_penalty: float = 0.7
    seed: int = 0
    limit: int = 0
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    wandb_project: str = "batchcap"
    format: Format = "auto"
    dev_share: float = 0.05
