"""What a run is made of, read and checked before anything is computed: captions, words, a first network."""

import dataclasses
from collections.abc import Callable

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.tokenizer import Tokenizer
from batchcap.errors import TrainingError, UsageError
from model_training.config import TrainConfig
from model_training.datasets import Dataset, read_dataset, read_texts


def check_options(config: TrainConfig) -> None:
    """Refuses options that make no sense together.

    Raises:
        UsageError: they don't.
    """
    if config.epochs == 0 and config.init is None:
        raise UsageError("--epochs 0 leaves the network as it is drawn; give more, or --init a bundle")
    if config.teachers and config.train_cnn != "none":
        raise UsageError(
            "--teacher predicts from the features of a CNN that stays as it is; leave out --train_cnn"
        )
    if config.scst_epochs and config.scst_samples < 2:
        raise UsageError("--scst_samples must be at least 2: captions are compared with each other")


def read_data(config: TrainConfig, report: Callable[[str], None]) -> tuple[Dataset, tuple[str, ...]]:
    """Images with captions, and captions without images."""
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
    if config.text is None:
        return dataset, ()
    texts, summary = read_texts(config.text, unseen=dataset.dev)
    report(summary)
    return dataset, texts


def make_tokenizer(dataset: Dataset, config: TrainConfig) -> Tokenizer:
    """Its words are those of the images' captions: others would never be seen with an image."""
    tokenizer = Tokenizer.from_captions(
        (caption for image in dataset.train for caption in image.captions),
        vocabulary_size=config.captioner.vocabulary_size,
        min_count=config.min_count,
    )
    if tokenizer.vocabulary_size == Tokenizer([]).vocabulary_size:
        raise TrainingError(
            f"no word stands in the captions to train on {config.min_count} times or more; lower --min_count"
        )
    return tokenizer


def check_beams(tokenizer: Tokenizer, config: TrainConfig) -> None:
    """Refuses more beams than there are tokens, wherever the vocabulary comes from."""
    size = tokenizer.vocabulary_size
    if config.num_beams > size:
        raise TrainingError(
            f"{config.num_beams} beams are more than the {size} tokens of the vocabulary; lower --num_beams"
        )


def check_shape(initial: Bundle, config: TrainConfig) -> None:
    """Refuses another network than the one to start from; only its dropout may change."""
    differing = [
        field.name
        for field in dataclasses.fields(initial.config)
        if not field.name.endswith("dropout")
        and getattr(initial.config, field.name) != getattr(config.captioner, field.name)
    ]
    if differing:
        raise UsageError(
            f"{initial.path} has another {', '.join(differing)}; leave out of the options what --init decides"
        )
