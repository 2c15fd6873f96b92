"""What one training run does: plain values, kept with its results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from batchcap.captioner.config import CaptionerConfig
from model_training.datasets import Format

TrainCnn = Literal["none", "top", "all"]
Preset = Literal["xs", "s", "l", "lplus", "xl"]

# The shapes of the original system's five models, all with EfficientNetB1 at 224 pixels; what is not named
# here is CaptionerConfig's default. `docs/presets.md` has the parameters and megabytes that come out.
PRESETS: dict[Preset, dict[str, int]] = {
    "xs": {"embed_dim": 256, "ff_dim": 256, "enc_heads": 4, "dec_heads": 4},
    "s": {"embed_dim": 512, "ff_dim": 256, "enc_heads": 2, "dec_heads": 2},
    "l": {"embed_dim": 1028, "ff_dim": 512, "enc_heads": 4, "dec_heads": 4},
    "lplus": {"embed_dim": 1256, "ff_dim": 512, "enc_heads": 4, "dec_heads": 4},
    "xl": {"embed_dim": 1028, "ff_dim": 512, "enc_heads": 6, "dec_heads": 6},
}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The options of one training run.

    A run has up to three stages: text (only with `text`), cross-entropy, self-critical (only with
    `scst_epochs`).

    Args:
        data: folder of the images.
        captions: file of captions.
        train_split: file with the names of the images to train on, a name a line; None for the captions' own
            split, or chance.
        dev_split: file with the names of the images to choose the best epoch on; both files or neither.
        artifact_dir: folder of the finished bundle and of all that the run leaves beside it.
        captioner: the shape of the network; its vocabulary_size is an upper bound.
        backbone_weights: `imagenet`, `none`, or a file.
        init: a bundle whose network and vocabulary to start from, instead of random weights.
        train_cnn: `none` keeps the CNN as it is, and its features are computed once; `top` trains its last
            two stages and its head, `all` trains it whole. Batch norm keeps its statistics in any case.
        cnn_lr: learning rate of the CNN, as a share of `lr`.
        augment: also train on random crops of the images; mirrored they are anyway.
        cache_dir: folder for decoded images and features; reused by later runs on the same images.
        epochs: passes over the training images, each with all its captions; 0 only with `init`.
        batch_size: captions in one step, rounded down to whole images (one at least).
        lr: peak learning rate of AdamW.
        warmup_steps: steps in which the learning rate rises from zero.
        weight_decay: decoupled, on matrices only.
        clip_norm: the largest norm of all gradients together.
        ema_momentum: weights are judged and kept as their exponential moving average over the steps, with
            this share of the old average at each; 0 takes them as they are.
        label_smoothing: probability spread over the whole vocabulary in the targets.
        consistency: weight of the agreement between two passes over each batch in cross-entropy, with other
            views and other dropout; 0 makes one pass.
        consensus: how far a caption counts by its agreement with the others of its image in cross-entropy:
            0 counts all alike, 1 by agreement alone; see `caption_weights`.
        teachers: bundles with the same CNN and words, whose predictions are learnt beside what people wrote.
        distillation: share of the loss that is about theirs, in cross-entropy and self-critical training.
        min_count: words seen less often are unknown words.
        patience: stop after so many epochs without a better CIDEr-D; 0 never stops early.
        mixed_precision: compute in bfloat16, keep weights in float32.
        text: file of captions without images, on which the decoder is warmed up.
        text_epochs: passes over them.
        scst_epochs: passes of self-critical training, after the others.
        scst_lr: its peak learning rate.
        scst_samples: captions that it draws for each image.
        num_beams: beams of the finished bundle, unless told otherwise.
        length_penalty: of these beams; see GenerationConfig.
        seed: of weights, order, dropout and a split by chance.
        limit: use so many training and dev images at most; 0 for all.
        resume: go on from the checkpoint in `artifact_dir`, if there is one.
        overwrite: replace another run in `artifact_dir`.
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
    init: Path | None = None
    train_cnn: TrainCnn = "none"
    cnn_lr: float = 0.1
    augment: bool = False
    cache_dir: Path = Path("local_runs/cache")
    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_momentum: float = 0.0
    label_smoothing: float = 0.0
    consistency: float = 0.0
    consensus: float = 0.0
    teachers: tuple[Path, ...] = ()
    distillation: float = 0.5
    min_count: int = 1
    patience: int = 5
    mixed_precision: bool = False
    text: Path | None = None
    text_epochs: int = 1
    scst_epochs: int = 0
    scst_lr: float = 5e-5
    scst_samples: int = 5
    num_beams: int = 3
    length_penalty: float = 0.7
    seed: int = 0
    limit: int = 0
    resume: bool = False
    overwrite: bool = False
    wandb: Literal["online", "offline", "disabled"] = "disabled"
    wandb_project: str = "batchcap"
    format: Format = "auto"
    dev_share: float = 0.05
