"""One training run, from its configuration to the bundle."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from batchcap.captioner.bundle import may_be_replaced, write_bundle
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.decoding import generate
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import PADDING, Tokenizer
from batchcap.errors import TrainingError
from model_training.config import TrainConfig
from model_training.data_processing import (
    FeatureSet,
    TrainBatch,
    batches_per_epoch,
    load_features,
    train_batches,
)
from model_training.datasets import Dataset, read_dataset
from model_training.metrics import bleu, cider_d
from model_training.pretrained import load_backbone_weights
from model_training.training_utils import Tracker, check_wandb, model_card

# Training data sets have five captions an image; more are drawn from, fewer are repeated.
CAPTIONS_PER_IMAGE = 5
_EVALUATION_BATCH = 64


def train(config: TrainConfig, report: Callable[[str], None] = print) -> Path:
    """Trains a captioner with a frozen CNN and writes the bundle of its best epoch.

    Args:
        config: all options of the run.
        report: takes a line for people now and then.

    Returns:
        The folder of the bundle.

    Raises:
        TrainingError: data or options can't work, or the loss is no longer finite.
    """
    _check_places(config)
    keras.utils.set_random_seed(config.seed)
    dataset = read_dataset(
        config.captions,
        format=config.format,
        train_split=config.train_split,
        dev_split=config.dev_split,
        dev_share=config.dev_share,
        seed=config.seed,
        limit=config.limit,
    )
    report(dataset.summary)
    tokenizer = Tokenizer.from_captions(
        (caption for image in dataset.train for caption in image.captions),
        vocabulary_size=config.captioner.vocabulary_size,
        min_count=config.min_count,
    )
    _check_vocabulary(tokenizer, config)
    shape = dataclasses.replace(config.captioner, vocabulary_size=tokenizer.vocabulary_size)
    model = CaptionModel(shape)
    load_backbone_weights(model.backbone, shape.backbone, config.backbone_weights)
    model.backbone.trainable = False

    generation = GenerationConfig(config.num_beams, config.length_penalty)
    best_cider = -1.0
    # Before the CNN runs over all images, so that tracking that can't start says so at once.
    with Tracker(config, model) as tracker:
        train_set, dev_set = (
            load_features(model, images, config.data, config.cache_dir)
            for images in (dataset.train, dataset.dev)
        )
        for name, reason in (*train_set.failed, *dev_set.failed):
            report(f"left out {name}: {reason}")

        steps_per_epoch = batches_per_epoch(
            len(train_set.images), batch_size=config.batch_size, captions_per_image=CAPTIONS_PER_IMAGE
        )
        trainer = _Trainer(model, config, steps_per_epoch=steps_per_epoch)
        captioner = _FeatureCaptioner(model, tokenizer, generation)
        rng = np.random.default_rng(config.seed)
        for epoch in range(1, config.epochs + 1):
            started = time.monotonic()
            batches = train_batches(
                train_set,
                tokenizer,
                sequence_length=shape.sequence_length,
                batch_size=config.batch_size,
                captions_per_image=CAPTIONS_PER_IMAGE,
                rng=rng,
            )
            scores = {"epoch": epoch, **trainer.run_epoch(batches), "train_s": time.monotonic() - started}
            with trainer.averaged_weights():
                scores |= captioner.score(dev_set)
                if scores["dev_cider_d"] > best_cider:
                    best_cider = scores["dev_cider_d"]
                    _write(config, dataset, model, tokenizer, generation, scores)
            tracker.log(scores)
            report("  ".join(f"{key} {value:.4g}" for key, value in scores.items()))
        names = "".join(f"{image.name}\n" for image in dataset.dev)
        (config.artifact_dir / "dev.txt").write_text(names, encoding="utf-8")
        tracker.finish(config.artifact_dir)
    return config.artifact_dir


def _check_places(config: TrainConfig) -> None:
    """Refuses what would fail only after hours: no W&B, or a folder that the bundle must not replace."""
    check_wandb(config)
    if config.artifact_dir.exists() and not may_be_replaced(config.artifact_dir):
        raise TrainingError(
            f"{config.artifact_dir} holds something that is no model; choose another --artifact_dir"
        )


def _check_vocabulary(tokenizer: Tokenizer, config: TrainConfig) -> None:
    size = tokenizer.vocabulary_size
    if size == Tokenizer([]).vocabulary_size:
        raise TrainingError(
            f"no word stands in the captions to train on {config.min_count} times or more; lower --min_count"
        )
    if config.num_beams > size:
        raise TrainingError(
            f"{config.num_beams} beams are more than the {size} tokens of the vocabulary; lower --num_beams"
        )


def _write(
    config: TrainConfig,
    dataset: Dataset,
    model: CaptionModel,
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    scores: dict[str, float],
) -> None:
    write_bundle(
        config.artifact_dir,
        name=config.artifact_dir.name,
        config=model.config,
        generation=generation,
        tokenizer=tokenizer,
        weights={name: weight.numpy() for name, weight in model.weights_by_name().items()},
        metrics=scores,
        model_card=model_card(config, dataset, model, scores),
        half_precision=True,
    )


class _Trainer:
    """The network, its optimizer and the compiled training step."""

    def __init__(self, model: CaptionModel, config: TrainConfig, *, steps_per_epoch: int) -> None:
        self.model = model
        self.label_smoothing = config.label_smoothing
        total_steps = max(steps_per_epoch * config.epochs, config.warmup_steps + 1)
        schedule = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            decay_steps=total_steps - config.warmup_steps,
            warmup_target=config.lr,
            warmup_steps=config.warmup_steps,
        )
        self.optimizer = keras.optimizers.AdamW(
            schedule,
            weight_decay=config.weight_decay,
            global_clipnorm=config.clip_norm,
            use_ema=config.ema_momentum > 0,
            ema_momentum=config.ema_momentum,
            ema_overwrite_frequency=None,
        )
        self.variables = model.trainable_variables
        self.optimizer.exclude_from_weight_decay([v for v in self.variables if len(v.shape) < 2])
        self.optimizer.build(self.variables)
        self.step = tf.function(
            self._step,
            input_signature=[
                tf.TensorSpec((None, *model.feature_shape), tf.float16),
                tf.TensorSpec((None, CAPTIONS_PER_IMAGE, None), tf.int32),
            ],
        )

    def run_epoch(self, batches: Iterable[TrainBatch]) -> dict[str, float]:
        """Trains on every batch.

        Returns:
            Mean loss and next-token accuracy, over tokens.

        Raises:
            TrainingError: the loss is no longer finite.
        """
        totals = np.zeros(3)
        for index, batch in enumerate(batches):
            loss, correct, count = (x.numpy() for x in self.step(batch.features, batch.token_ids))
            if not np.isfinite(loss):
                raise TrainingError(
                    f"the loss is {loss} at step {index} of this epoch; lower the learning rate"
                )
            totals += (loss * count, correct, count)
        return {"loss": totals[0] / totals[2], "accuracy": totals[1] / totals[2]}

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The network has the averaged weights meanwhile, if they are averaged at all."""
        if not self.optimizer.use_ema:
            yield
            return
        latest = [variable.numpy() for variable in self.variables]
        self.optimizer.finalize_variable_values(self.variables)
        try:
            yield
        finally:
            for variable, value in zip(self.variables, latest, strict=True):
                variable.assign(value)

    def _step(self, features: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        inputs, targets = token_ids[:, :, :-1], token_ids[:, :, 1:]
        is_token = tf.cast(targets != PADDING, tf.float32)
        count = tf.reduce_sum(is_token)
        with tf.GradientTape() as tape:
            encoded = self.model.encode(tf.cast(features, tf.float32), training=True)
            logits = self.model.decode(inputs, encoded, training=True)
            losses = smoothed_cross_entropy(targets, logits, self.label_smoothing)
            loss = tf.reduce_sum(losses * is_token) / count
        gradients = tape.gradient(loss, self.variables)
        self.optimizer.apply_gradients(zip(gradients, self.variables, strict=True))
        is_correct = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == targets, tf.float32)
        return loss, tf.reduce_sum(is_correct * is_token), count


def smoothed_cross_entropy(targets: tf.Tensor, logits: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Sparse categorical cross-entropy with label smoothing.

    Szegedy et al., https://arxiv.org/abs/1512.00567, section 7.

    Args:
        targets: int32[...].
        logits: float32[..., V].
        label_smoothing: probability spread evenly over all V.

    Returns:
        float32[...].
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if not label_smoothing:
        return losses
    # mean over V of -log p, without a second softmax.
    spread = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
    return (1 - label_smoothing) * losses + label_smoothing * spread


class _FeatureCaptioner:
    """Captions images from their cached features, as the finished bundle will, to compare epochs."""

    def __init__(self, model: CaptionModel, tokenizer: Tokenizer, generation: GenerationConfig) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.generation = generation
        self._generate = tf.function(
            self._generate_batch, input_signature=[tf.TensorSpec((None, *model.feature_shape), tf.float16)]
        )

    def score(self, dev_set: FeatureSet) -> dict[str, float]:
        """BLEU-4 (0 to 1) and CIDEr-D (times 100)."""
        candidates: list[str] = []
        for start in range(0, len(dev_set.images), _EVALUATION_BATCH):
            token_ids = self._generate(dev_set.features[start : start + _EVALUATION_BATCH, 0]).numpy()
            candidates += [self.tokenizer.decode(row) for row in token_ids.tolist()]
        references: Sequence[Sequence[str]] = [image.captions for image in dev_set.images]
        return {"dev_bleu_4": bleu(candidates, references)[3], "dev_cider_d": cider_d(candidates, references)}

    def _generate_batch(self, features: tf.Tensor) -> tf.Tensor:
        encoded = self.model.encode(tf.cast(features, tf.float32))
        return generate(self.model, encoded, self.generation).token_ids
