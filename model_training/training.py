"""One training run, from its options to the bundle: data, network, then stage by stage, epoch by epoch.

On a cluster every worker runs all of it in lockstep; see `Replicas`.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from batchcap.captioner.bundle import Bundle, as_stored, write_bundle
from batchcap.captioner.captioner import assign_weights
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.model import CaptionModel
from batchcap.errors import TrainingError
from model_training.checkpoint import CHECKPOINT, damaged, read_position, restore_checkpoint, save_checkpoint
from model_training.config import TrainConfig
from model_training.consensus import caption_weights
from model_training.cross_entropy import CrossEntropyStage
from model_training.data_processing import (
    AUGMENTED_VIEWS,
    PLAIN_VIEWS,
    ImageArrays,
    encode_captions,
    load_features,
    load_pixels,
    prefetch,
)
from model_training.datasets import CaptionedImage
from model_training.distillation import open_teachers
from model_training.distribution import Replicas, default_strategy, variables_of, vary_dropout
from model_training.fine_tuning import freeze
from model_training.ingredients import check_beams, check_options, check_shape, make_tokenizer, read_data
from model_training.judge import Judge
from model_training.model_card import model_card
from model_training.optimization import Optimizer
from model_training.pretrained import load_backbone_weights
from model_training.run_folder import DEV_NAMES, check_folder, clear_folder
from model_training.samples import Sample
from model_training.self_critical import SelfCriticalStage
from model_training.text_warmup import TextStage
from model_training.tracking import SilentTracker, Tracker, TrackerState, check_wandb, write_run_file

# Dev images whose captions are shown after every epoch.
_SAMPLES = 8
# Seconds between checkpoints within an epoch; each epoch ends with one.
CHECKPOINT_S = 600.0


class Stage(Protocol):
    """A part of a run with a loss of its own."""

    name: str
    epochs: int
    steps_per_epoch: int
    optimizer: Optimizer

    def batches(self, rng: np.random.Generator, skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch, without the first `skip`; the same generator gives the same epoch."""

    def step(self, batch: Any) -> dict[str, float]:
        """Trains on a batch; returns sums, and under `count` what to divide them by for their means."""


@dataclasses.dataclass(slots=True)
class Position:
    """Where a run stands: all that a checkpoint keeps beside variables.

    Args:
        stage: index of the stage.
        epoch: of the stage, from 1.
        step: steps of the epoch that are done.
        totals: what the stage has summed up in these steps.
        seconds: that they took.
        best_cider: CIDEr-D of the best epoch so far.
        stale_epochs: epochs since then, within the stage.
        earlier_epochs: of the stages before.
        earlier_steps: of the stages before.
        finished: whether nothing is left to do.
    """

    stage: int = 0
    epoch: int = 1
    step: int = 0
    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    best_cider: float = -1.0
    stale_epochs: int = 0
    earlier_epochs: int = 0
    earlier_steps: int = 0
    finished: bool = False

    def after(self, stage: Stage) -> "Position":
        """The start of the stage that follows."""
        return Position(
            stage=self.stage + 1,
            best_cider=self.best_cider,
            earlier_epochs=self.earlier_epochs + self.epoch - 1,
            earlier_steps=self.earlier_steps + stage.optimizer.steps,
        )


def train(config: TrainConfig, report: Callable[[str], None] = print) -> Path:
    """Trains a captioner and writes the bundle of its best epoch, the one with the highest dev CIDEr-D.

    Args:
        config: all options of the run.
        report: takes a line for people now and then.

    Returns:
        The folder of the bundle, which only the chief of several workers writes into.

    Raises:
        UsageError: options that make no sense together.
        TrainingError: data or options can't work, or the loss is no longer finite.
    """
    # First: workers have to find each other before TensorFlow computes anything.
    replicas = Replicas(default_strategy())

    def say(line: str) -> None:
        replicas.on_chief(report, line)

    check_options(config)
    check_wandb(config)
    check_folder(config)
    position, resumed = _read_state(config)
    if position.finished:
        say(f"the run in {config.artifact_dir} is finished")
        return config.artifact_dir
    # Every worker has looked at the folder before the chief writes into it.
    replicas.wait()
    with _precision(config.mixed_precision):
        _Run(config, replicas, say, position, resumed).train()
    return config.artifact_dir


def _read_state(config: TrainConfig) -> tuple[Position, TrackerState | None]:
    """Where the run stands, and its record so far; the beginning, and None, where there is no checkpoint."""
    found = read_position(config.artifact_dir) if config.resume else None
    if found is None:
        return Position(), None
    try:
        return Position(**found["run"]), TrackerState(**found["tracker"])
    except (KeyError, TypeError) as error:
        raise damaged(config.artifact_dir / CHECKPOINT, "it is of another version") from error


@contextmanager
def _precision(mixed: bool) -> Iterator[None]:
    """Layers that are built meanwhile compute in bfloat16, if `mixed`, which needs no scaling of losses."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class _Run:
    """A training run: what its stages share, and where it stands.

    Args:
        config: its options.
        replicas: where it computes.
        report: takes a line for people now and then.
        position: where it stands.
        resumed: its record so far; None for one that begins.
    """

    def __init__(
        self,
        config: TrainConfig,
        replicas: Replicas,
        report: Callable[[str], None],
        position: Position,
        resumed: TrackerState | None,
    ) -> None:
        self.config = config
        self.replicas = replicas
        self.report = report
        self.position = position
        self.resumed = resumed
        keras.utils.set_random_seed(config.seed)
        self.dataset, self.texts = read_data(config, report)
        initial = None if config.init is None else Bundle.open(config.init)
        if initial is None:
            self.tokenizer = make_tokenizer(self.dataset, config)
            shape = dataclasses.replace(config.captioner, vocabulary_size=self.tokenizer.vocabulary_size)
        else:
            check_shape(initial, config)
            self.tokenizer, shape = initial.tokenizer, config.captioner
        check_beams(self.tokenizer, config)
        with self.replicas.strategy.scope():
            self.model = CaptionModel(shape)
            if initial is None:
                load_backbone_weights(self.model.backbone, shape.backbone, config.backbone_weights)
                if config.train_cnn == "none":
                    _round_as_stored(self.model.backbone)
            else:
                assign_weights(self.model, initial.weights())
            freeze(self.model.backbone, config.train_cnn)
            vary_dropout(self.model)
            self.teachers = (
                open_teachers(config.teachers, self.model, self.tokenizer) if config.teachers else None
            )
        # In single precision and on one device, as bundles are: what is judged and written.
        self.judged = _build_single(shape)
        _copy_weights(self.model, self.judged)

    def train(self) -> None:
        """Trains, or goes on training, until the last stage is done."""
        config, resumed = self.config, self.resumed
        self.tracker = (Tracker if self.replicas.is_chief else SilentTracker)(
            config,
            details={"parameters": self.model.count_params()},
            resumed=resumed,
            report=self.report,
        )
        # Before the CNN runs over all images: tracking that can't start should say so at once.
        with self.tracker:
            if resumed is None:
                self.replicas.on_chief(clear_folder, config.artifact_dir)
            stages = self._prepare()
            if config.init is not None and resumed is None:
                # What the stages have to be better than.
                self._report_epoch({"epoch": 0, "stage": "init"}, is_judged=True)
            for index in range(self.position.stage, len(stages)):
                with self.replicas.strategy.scope():
                    stage = stages[index]()
                if resumed is not None:
                    restore_checkpoint(config.artifact_dir, self._variables(stage))
                    resumed = None
                self._train_stage(stage)
                self.position = self.position.after(stage)
            self.position.finished = True
            self._save([])
            self.tracker.finish(config.artifact_dir)
            # For no worker the run is over before its bundle is there.
            self.replicas.wait()

    def _prepare(self) -> list[Callable[[], Stage]]:
        """Reads the images; the stages of the run, each to be built when the one before it is done."""
        config, tokenizer, replicas = self.config, self.tokenizer, self.replicas
        pixels = self._load_pixels(self.dataset.train)
        train_set, dev_set = self._see(pixels), self._see(self._load_pixels(self.dataset.dev), is_dev=True)
        generation = GenerationConfig(config.num_beams, config.length_penalty)
        self.judge = Judge(self.judged, tokenizer, generation, dev_set)
        names = "".join(f"{image.name}\n" for image in self.dataset.dev)
        replicas.on_chief(write_run_file, config.artifact_dir / DEV_NAMES, names.encode())

        def text() -> Stage:
            texts = [*self.texts, *(caption for image in self.dataset.train for caption in image.captions)]
            return TextStage(self.model, config, texts, tokenizer, replicas)

        def cross_entropy() -> Stage:
            token_ids = encode_captions(train_set.images, tokenizer, self.model.config.sequence_length)
            return CrossEntropyStage(
                self.model,
                config,
                train_set.views,
                token_ids,
                replicas,
                teachers=self.teachers,
                weights=caption_weights(train_set.images, config.consensus) if config.consensus else None,
            )

        def self_critical() -> Stage:
            # From the best epoch on, which need not be the last; its CNN stays as it is. The chief may still
            # be writing it.
            replicas.wait()
            best = Bundle.open(config.artifact_dir).weights()
            assign_weights(self.model, best)
            assign_weights(self.judged, best)
            freeze(self.model.backbone, "none")
            features = train_set if config.train_cnn == "none" else self._features(pixels)
            return SelfCriticalStage(self.model, config, features, tokenizer, replicas, self.teachers)

        wanted = {
            text: bool(self.texts),
            cross_entropy: config.epochs > 0,
            self_critical: config.scst_epochs > 0,
        }
        return [stage for stage, is_wanted in wanted.items() if is_wanted]

    def _load_pixels(self, images: Sequence[CaptionedImage]) -> ImageArrays:
        with self.replicas.chief_first():
            pixels = load_pixels(images, self.config.data, self.model.config.image, self.config.cache_dir)
        for name, reason in pixels.failed:
            self.report(f"left out {name}: {reason}")
        return pixels

    def _see(self, pixels: ImageArrays, *, is_dev: bool = False) -> ImageArrays:
        """What the stages train on: pixels or, where the CNN stays as it is, its features."""
        return pixels if self.config.train_cnn != "none" else self._features(pixels, is_dev=is_dev)

    def _features(self, pixels: ImageArrays, *, is_dev: bool = False) -> ImageArrays:
        views = AUGMENTED_VIEWS if self.config.augment and not is_dev else PLAIN_VIEWS
        with self.replicas.chief_first():
            return load_features(self.judged, pixels, self.config.cache_dir, views=views)

    def _train_stage(self, stage: Stage) -> None:
        position = self.position
        while position.epoch <= stage.epochs and not self._has_converged():
            self._train_epoch(stage)
            self._copy_judged(stage)
            scores: dict[str, float | str] = {
                "epoch": position.earlier_epochs + position.epoch,
                "stage": stage.name,
                **_means(position.totals),
                "train_s": position.seconds,
            }
            self._report_epoch(scores, is_judged=stage.name != "text")
            position.epoch, position.step, position.totals, position.seconds = position.epoch + 1, 0, {}, 0.0
            self._save(self._variables(stage))
        if self._has_converged():
            self.report(f"no better CIDEr-D for {position.stale_epochs} epochs")

    def _has_converged(self) -> bool:
        return 0 < self.config.patience <= self.position.stale_epochs

    def _train_epoch(self, stage: Stage) -> None:
        """Trains on what is left of the epoch."""
        position = self.position
        rng = np.random.default_rng((self.config.seed, position.stage, position.epoch))
        totals = Counter(position.totals)
        seconds_before, started = position.seconds, time.monotonic()
        saved = started
        for batch in prefetch(stage.batches(rng, skip=position.step)):
            sums = stage.step(batch)
            if not math.isfinite(sums["loss"]):
                raise TrainingError(
                    f"the loss is {sums['loss']} at step {position.step + 1} of epoch {position.epoch}"
                    f" ({stage.name}); lower the learning rate"
                )
            totals.update(sums)
            position.step, position.totals = position.step + 1, dict(totals)
            now = time.monotonic()
            position.seconds = seconds_before + now - started
            if self.tracker.takes_steps:
                values = {**_means(sums), "learning_rate": stage.optimizer.learning_rate}
                self.tracker.log_step(position.earlier_steps + stage.optimizer.steps, values)
            if now - saved > CHECKPOINT_S:
                self._save(self._variables(stage))
                saved = now

    def _copy_judged(self, stage: Stage) -> None:
        """Gives the network that is judged the weights of the one that is trained, or their averages."""
        _copy_weights(self.model, self.judged)
        own, judged = self.model.weights_by_name(), self.judged.weights_by_name()
        twins = {id(weight): judged[name] for name, weight in own.items()}
        stage.optimizer.copy_averaged([twins[id(weight)] for weight in stage.optimizer.variables])

    def _report_epoch(self, scores: Mapping[str, float | str], *, is_judged: bool) -> None:
        if is_judged:
            scores = {**scores, **self._judge(scores)}
        self.tracker.log_epoch(scores)
        self.report("  ".join(f"{key} {_short(value)}" for key, value in scores.items()))

    def _judge(self, scores: Mapping[str, float | str]) -> dict[str, float]:
        """Scores the network on the dev images; it becomes the bundle if it is the best so far."""
        position = self.position
        captions = self.judge.captions()
        found = self.judge.score(captions)
        # Rounding may differ on other machines, and all have to take the same epoch.
        cider = self.replicas.from_chief(found["dev_cider_d"])
        if cider > position.best_cider:
            position.best_cider, position.stale_epochs = cider, 0
            self._write_bundle({**scores, **found})
        else:
            position.stale_epochs += 1
        samples = [
            Sample(image.name, self.config.data / image.name, caption, image.captions)
            for image, caption in zip(self.judge.images[:_SAMPLES], captions, strict=False)
        ]
        self.tracker.log_samples(int(scores["epoch"]), samples)
        return found

    def _write_bundle(self, scores: Mapping[str, float | str]) -> None:
        model = self.judged
        self.replicas.on_chief(
            write_bundle,
            self.config.artifact_dir,
            name=self.config.artifact_dir.resolve().name,
            config=model.config,
            generation=GenerationConfig(self.config.num_beams, self.config.length_penalty),
            tokenizer=self.tokenizer,
            weights={name: weight.numpy() for name, weight in model.weights_by_name().items()},
            metrics=scores,
            model_card=model_card(self.config, self.dataset, model, scores),
            half_precision=True,
        )

    def _variables(self, stage: Stage) -> list[keras.Variable]:
        """All that training changes, the states of random generators included."""
        return variables_of(self.model, *stage.optimizer.optimizers)

    def _save(self, variables: Sequence[keras.Variable]) -> None:
        position = {
            "run": dataclasses.asdict(self.position),
            "tracker": dataclasses.asdict(self.tracker.state()),
        }
        self.replicas.on_chief(save_checkpoint, self.config.artifact_dir, position, variables)


def _build_single(shape: CaptionerConfig) -> CaptionModel:
    with _precision(mixed=False):
        return CaptionModel(shape)


def _round_as_stored(backbone: keras.Model) -> None:
    """Rounds a CNN that stays as it is to what bundles keep of it.

    So the rest of the network is trained on the very features that the bundle will have, and a run that
    starts from the bundle finds them in the cache.
    """
    for weight in backbone.weights:
        weight.assign(as_stored(weight.numpy(), half_precision=True))


def _copy_weights(source: CaptionModel, target: CaptionModel) -> None:
    assign_weights(target, {name: weight.numpy() for name, weight in source.weights_by_name().items()})


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    return {key: value / sums["count"] for key, value in sums.items() if key != "count"}


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
