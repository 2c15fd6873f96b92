"""`Captioner`: pixels -> captions, with a trained bundle. Importing this module imports TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import tensorflow as tf

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.bundle_files import WEIGHTS
from batchcap.captioner.calibration import Signals
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.decoding import Generated, generate
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.protocol import Caption
from batchcap.captioner.tokenizer import END
from batchcap.errors import BundleError


class Captioner:
    """Captions pictures with a trained bundle.

    Example::

        captioner = Captioner.load()
        pixels = decode_image(Path("dog.jpg").read_bytes(), captioner.image_spec)
        print(captioner.caption([pixels])[0].text)

    Args:
        bundle: the opened bundle.
        batch_size: images that go through the network at once; the shape is fixed, so that TensorFlow
            traces the network once, and smaller batches are padded.

    Raises:
        BundleError: the weights are damaged, or there are more beams than tokens.
    """

    def __init__(self, bundle: Bundle, *, batch_size: int = 32) -> None:
        if bundle.generation.num_beams > bundle.config.vocabulary_size:
            raise BundleError(f"more beams than the {bundle.config.vocabulary_size} tokens of {bundle.path}")
        self.bundle = bundle
        self.batch_size = batch_size
        self.fingerprint = bundle.fingerprint()
        calibration = bundle.calibration
        # Decoded in another way, captions and signals are others, and nobody has looked at those.
        self._calibration = calibration if calibration and calibration.fits(bundle.generation) else None
        self.model = load_model(bundle)
        size = bundle.config.image.image_size
        self._generate = tf.function(
            self._generate_batch, input_signature=[tf.TensorSpec((batch_size, size, size, 3), tf.uint8)]
        )

    @classmethod
    def load(
        cls,
        path: Path = DEFAULT_BUNDLE,
        *,
        generation: GenerationConfig | None = None,
        batch_size: int = 32,
    ) -> Self:
        """Loads a bundle.

        Args:
            path: its folder; the model that ships with batchcap by default.
            generation: decoding options instead of the bundle's own.
            batch_size: images that go through the network at once.

        Raises:
            BundleError: the bundle is missing, damaged or of a newer format.
        """
        return cls(Bundle.open(path, generation=generation), batch_size=batch_size)

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self.bundle.config.image

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Captions pictures.

        Args:
            images: any number of uint8[image_size, image_size, 3], as `decode_image` gives them.

        Returns:
            A caption an image, in their order.
        """
        return [caption for caption, _ in self.caption_with_signals(images)]

    def caption_with_signals(self, images: Sequence[np.ndarray]) -> list[tuple[Caption, Signals]]:
        """Captions pictures, and says what a calibration goes by.

        Args:
            images: as `caption` takes them.

        Returns:
            A caption an image with its signals, in their order.
        """
        captions: list[tuple[Caption, Signals]] = []
        for start in range(0, len(images), self.batch_size):
            batch = np.stack(list(images[start : start + self.batch_size]))
            padding = self.batch_size - len(batch)
            padded = np.pad(batch, [(0, padding), (0, 0), (0, 0), (0, 0)]) if padding else batch
            generated = self._generate(padded)
            captions += self._to_captions(generated, len(batch))
        return captions

    def warm_up(self) -> None:
        """Traces and runs the network once, so that the first picture is as fast as the others."""
        size = self.image_spec.image_size
        self.caption([np.zeros((size, size, 3), np.uint8)])

    def _generate_batch(self, pixels: tf.Tensor) -> Generated:
        encoded = self.model.encode(self.model.extract_features(pixels))
        return generate(self.model, encoded, self.bundle.generation)

    def _to_captions(self, generated: Generated, count: int) -> list[tuple[Caption, Signals]]:
        captions = []
        rows = zip(*(values.numpy()[:count].tolist() for values in generated), strict=True)
        for token_ids, log_prob, token_count, margin, entropy, min_log_prob in rows:
            signals = Signals(
                mean_log_prob=log_prob / token_count,
                margin=margin,
                entropy=entropy,
                min_log_prob=min_log_prob,
                token_count=token_count,
                has_ended=float(token_ids[token_count] == END),
            )
            confidence = None if self._calibration is None else self._calibration.confidence(signals)
            text = self.bundle.tokenizer.decode(token_ids)
            captions.append((Caption(text, log_prob, confidence, token_count), signals))
        return captions


def load_model(bundle: Bundle) -> CaptionModel:
    """Builds the network of a bundle and fills in its weights.

    Raises:
        BundleError: the weights don't fit the configuration.
    """
    model = CaptionModel(bundle.config)
    try:
        assign_weights(model, bundle.weights())
    except ValueError as error:
        raise BundleError(f"{bundle.path / WEIGHTS} is damaged: {error}") from error
    return model


def assign_weights(model: CaptionModel, weights: dict[str, np.ndarray]) -> None:
    """Fills every weight of a network.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    named = model.weights_by_name()
    if named.keys() != weights.keys():
        missing, unknown = sorted(named.keys() - weights.keys()), sorted(weights.keys() - named.keys())
        raise ValueError(f"missing weights {missing[:3]}, unknown weights {unknown[:3]}")
    for name, variable in named.items():
        if tuple(variable.shape) != weights[name].shape:
            raise ValueError(f"{name} has shape {weights[name].shape}, not {tuple(variable.shape)}")
        variable.assign(weights[name])


def random_weights(config: CaptionerConfig) -> dict[str, np.ndarray]:
    """The weights of an untrained network, by name."""
    model = CaptionModel(config)
    return {name: variable.numpy() for name, variable in model.weights_by_name().items()}


def use_cpu_threads(num_threads: int) -> None:
    """Sets TensorFlow's thread pools, which ignore OMP_NUM_THREADS; before TensorFlow's first operation."""
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
