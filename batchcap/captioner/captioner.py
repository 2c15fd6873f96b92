"""`Captioner`: pixels -> captions, with a trained bundle. Importing this module imports TensorFlow."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

# Read when TensorFlow is imported. It is on by itself on some CPUs only; where it is not, it makes a CNN
# twice as fast all the same (measured on AMD Zen 3).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import tensorflow as tf

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.bundle_files import WEIGHTS
from batchcap.captioner.calibration import Signals
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.decoding import BeamSearch, Generated
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.protocol import Caption
from batchcap.captioner.runtime import (
    Compiled,
    compile_openvino,
    compile_tensorflow,
    freeze,
    has_gpu,
    resolve_runtime,
)
from batchcap.captioner.tokenizer import END
from batchcap.errors import BatchcapError, BundleError

# A Keras dtype policy: what the network computes in. Its weights and its logits stay single precision.
Precision = Literal["float32", "mixed_float16", "mixed_bfloat16"]

DEFAULT_BATCH_SIZE = 128
CNN_BATCH_SIZE = 32


class Captioner:
    """Captions pictures with a trained bundle.

    Example::

        captioner = Captioner.load()
        pixels = decode_image(Path("dog.jpg").read_bytes(), captioner.image_spec)
        print(captioner.caption([pixels])[0].text)

    Args:
        bundle: the opened bundle; its `runtime` says what runs the network.
        batch_size: images whose captions are decoded at once, which costs the less an image the more they
            are. The CNN, which gains nothing from large batches, takes them in chunks of a fixed shape.
        num_threads: CPU threads of OpenVINO; None leaves it to it. `use_cpu_threads` sets TensorFlow's.
        precision: None is half precision on a GPU, single elsewhere.
        use_xla: None is on a GPU only.
        cnn_batch_size: images of a chunk. One image costs as much as a whole chunk, so who captions them one
            by one as well wants few.

    Raises:
        BundleError: the weights are damaged, or there are more beams than tokens.
        UsageError: OpenVINO is asked for and not installed.
        BatchcapError: OpenVINO is asked for and can't run the network.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        num_threads: int | None = None,
        precision: Precision | None = None,
        use_xla: bool | None = None,
        cnn_batch_size: int = CNN_BATCH_SIZE,
    ) -> None:
        if bundle.generation.num_beams > bundle.config.vocabulary_size:
            raise BundleError(f"more beams than the {bundle.config.vocabulary_size} tokens of {bundle.path}")
        self.bundle = bundle
        self.batch_size = batch_size
        self.fingerprint = bundle.fingerprint()
        self.runtime = resolve_runtime(bundle.runtime)
        calibration = bundle.calibration
        # Decoded in another way, captions and signals are others, and nobody has looked at those.
        self._calibration = calibration if calibration and calibration.fits(bundle.generation) else None
        self._num_threads = num_threads
        self._use_xla = has_gpu() if use_xla is None else use_xla
        self.model = load_model(bundle, precision or ("mixed_float16" if has_gpu() else "float32"))
        self._cnn_batch_size = min(batch_size, cnn_batch_size)
        self._extract: Compiled | None = None
        self._encoder = self._compile_encoder()
        self._decoder = self._compile_decoder()

    @classmethod
    def load(
        cls,
        path: Path = DEFAULT_BUNDLE,
        *,
        generation: GenerationConfig | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> Self:
        """Loads a bundle.

        Args:
            path: its folder; the model that ships with batchcap by default.
            generation: decoding options instead of the bundle's own.
            batch_size: images whose captions are decoded at once.

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
        for encoded in self._encode_batches(images):
            captions += self._decode(encoded)
        return captions

    def caption_with_vectors(self, images: Sequence[np.ndarray]) -> tuple[list[Caption], np.ndarray]:
        """Captions pictures, and gives their vectors, which fall out of the same pass.

        Args:
            images: as `caption` takes them.

        Returns:
            A caption an image, in their order, and float16[N, D], as `image_vectors` gives them.
        """
        captions: list[Caption] = []
        vectors = []
        for encoded in self._encode_batches(images):
            vectors.append(_pool(encoded))
            captions += [caption for caption, _ in self._decode(encoded)]
        return captions, self._stack(vectors)

    def image_vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Where pictures lie among others: the more alike they are, the smaller is the angle between them.

        The mean of an image's vectors as the encoder gives them, over the positions of its grid. Of 1,000
        photographs of Flickr8k that nothing was trained on, the five nearest by it have captions more like
        the photograph's own (mean cosine of words weighted by idf, 0.114) than by the CNN's mean, of four
        times the size (0.106), or by the greatest value of each number (0.111); at random it is 0.030.

        Args:
            images: as `caption` takes them.

        Returns:
            float16[N, D], D the model's `embed_dim`, each of length one.
        """
        return self._stack([_pool(encoded) for encoded in self._encode_batches(images)])

    def warm_up(self) -> None:
        """Runs the network once, so that the first picture is as fast as the others."""
        size = self.image_spec.image_size
        self.caption([np.zeros((size, size, 3), np.uint8)])

    def extract_features(self, pixels: np.ndarray) -> np.ndarray:
        """The CNN alone, on the runtime of the whole.

        Args:
            pixels: uint8[B, image_size, image_size, 3].

        Returns:
            float32[B, P, C], the CNN's grid row by row.
        """
        if self._extract is None:
            self._extract = self._compile_cnn(self.model.extract_features)
        return np.concatenate(self._run_cnn(self._extract, pixels), dtype=np.float32, casting="unsafe")

    def _encode_batches(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The image vectors of pictures, batch by batch: float[B, P, D]."""
        for start in range(0, len(images), self.batch_size):
            batch = np.stack(list(images[start : start + self.batch_size]))
            yield np.concatenate(self._run_cnn(self._encoder, batch))

    def _decode(self, encoded: np.ndarray) -> list[tuple[Caption, Signals]]:
        """The captions of a batch of image vectors, float[B, P, D]."""
        count = len(encoded)
        if self._use_xla:
            encoded = _pad(encoded, self.batch_size)
        return self._to_captions(Generated(*self._decoder(encoded)), count)

    def _stack(self, vectors: list[np.ndarray]) -> np.ndarray:
        nothing = np.empty((0, self.bundle.vector_size), np.float16)
        return np.concatenate([nothing, *vectors])

    def _compile_encoder(self) -> Compiled:
        try:
            return self._compile_cnn(self._encode)
        except BatchcapError:
            if self.bundle.runtime == "openvino":
                raise
            # It was our own choice.
            self.runtime = "tensorflow"
            return self._compile_cnn(self._encode)

    def _compile_cnn(self, function: Callable[[tf.Tensor], tf.Tensor]) -> Compiled:
        """A function of pixels, on the runtime of this captioner."""
        size = self.image_spec.image_size
        signature = tf.TensorSpec((self._cnn_batch_size, size, size, 3), tf.uint8)
        if self._use_xla:
            return compile_tensorflow(function, signature, use_xla=True)
        layers = [self.model.backbone, *self.model.encoder]
        frozen = freeze(function, [variable for layer in layers for variable in layer.variables])
        if self.runtime == "openvino":
            return compile_openvino(frozen, signature, self._num_threads)
        return compile_tensorflow(frozen, signature)

    def _compile_decoder(self) -> Compiled:
        """Always TensorFlow's: no other runtime ends its loop early and sheds images on the way."""
        search = BeamSearch(self.model, self.bundle.generation, has_fixed_shapes=self._use_xla)
        rows = self.batch_size if self._use_xla else None
        shape = (rows, self.model.feature_shape[0], self.bundle.config.embed_dim)
        encoded = tf.TensorSpec(shape, self.model.compute_dtype)
        return compile_tensorflow(search, encoded, use_xla=self._use_xla)

    def _run_cnn(self, compiled: Compiled, pixels: np.ndarray) -> list[Any]:
        """What a compiled function of pixels gives for any number of them, chunk by chunk."""
        chunks = []
        for start in range(0, len(pixels), self._cnn_batch_size):
            chunk = pixels[start : start + self._cnn_batch_size]
            (found,) = compiled(_pad(chunk, self._cnn_batch_size))
            chunks.append(found[: len(chunk)])
        return chunks

    def _encode(self, pixels: tf.Tensor) -> tf.Tensor:
        return self.model.encode(self.model.extract_features(pixels))

    def _to_captions(self, generated: Generated, count: int) -> list[tuple[Caption, Signals]]:
        captions = []
        rows = zip(*(np.asarray(values)[:count].tolist() for values in generated), strict=True)
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


def _pool(encoded: np.ndarray) -> np.ndarray:
    """The mean over an image's positions, of length one: float[B, P, D] -> float16[B, D]."""
    mean = encoded.mean(axis=1, dtype=np.float32)
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    pooled: np.ndarray = mean / np.maximum(length, np.finfo(np.float32).tiny)
    return pooled.astype(np.float16)


def _pad(batch: np.ndarray, size: int) -> np.ndarray:
    """Zeros in the place of the rows that are missing to `size`."""
    missing = size - len(batch)
    return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1)) if missing else batch


def load_model(bundle: Bundle, precision: Precision = "float32") -> CaptionModel:
    """Builds the network of a bundle and fills in its weights.

    Args:
        bundle: the opened bundle.
        precision: what the network computes in.

    Raises:
        BundleError: the weights don't fit the configuration.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = CaptionModel(bundle.config)
    finally:
        keras.config.set_dtype_policy(before)
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
    """Sets TensorFlow's thread pools, which ignore OMP_NUM_THREADS; too late once it has begun to work."""
    with suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
