"""What do a cache and absorbed projections save in decoding, and what do beams cost?

Prints one JSON object: rates in images/s of every round, medians over the rounds of ratios within a round,
the commit and the machine. The decoder alone, on random image vectors: of the original's default
configuration with random weights, or of a bundle. Every caption has as many tokens as the next: its end is
made impossible. Four ways to attend to what came before:

    eager         the whole prefix again at every step, padded to its full length, one image at a time, layers
                  called eagerly: the original's way
    uncached      the same, but traced, and in batches
    keys_values   keys and values of every head are kept
    absorbed      the inputs of a layer are kept, its projections multiplied into one another

`captions_same` is the share of captions that the last two agree on; they round in other ways.

    python benchmarks/decoder.py [--model DIR] [--batch-size 64 ...] [--num-beams 3 ...] [--rounds 5]

A round takes about a minute on two cores.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As batchcap has it; here TensorFlow is imported first.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import tensorflow as tf
import typer
from common import median_ratio, provenance

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.cached_attention import CacheKind
from batchcap.captioner.captioner import load_model
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.decoding import BeamSearch, Generated
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.runtime import compile_tensorflow
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN

# Small batches are repeated until a round has seen so many images.
_MIN_IMAGES = 32

Decode = Callable[[tf.Tensor], tf.Tensor]


def main(
    model: Annotated[Path | None, typer.Option(help="Bundle; the original's shape without it.")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Greedy. Default: 1, 8, 32, 64, 128, 256.")
    ] = None,
    num_beams: Annotated[
        list[int] | None, typer.Option(min=2, help="In batches of 64. Default: 3 and 5.")
    ] = None,
    beams_batch_size: Annotated[int, typer.Option(min=1, help="Batch of beam search.")] = 64,
    uncached_batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Default: 1 and 8.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Of every caption, its start left out.")] = 20,
    image_vectors: Annotated[int, typer.Option(min=1, help="Without --model.")] = 49,
    vocabulary_size: Annotated[int, typer.Option(min=5, help="Without --model.")] = 10_000,
    embed_dim: Annotated[int, typer.Option(min=1, help="Without --model.")] = 512,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measures rounds of every way to decode."""
    network, image_vectors = open_network(model, image_vectors, vocabulary_size, embed_dim)
    runs: dict[tuple[str, int, int], Decode] = {}
    for size in uncached_batch_size or [1, 8]:
        runs["uncached", size, 1] = decode_uncached(network, tokens, tf.function)
    runs["eager", 1, 1] = decode_uncached(network, tokens, lambda step: step)
    greedy_sizes = batch_size or [1, 8, 32, 64, 128, 256]
    shapes = [(size, 1) for size in greedy_sizes]
    shapes += [(beams_batch_size, beams) for beams in num_beams or [3, 5]]
    for attention in ("keys_values", "absorbed"):
        for size, beams in shapes:
            vectors = (size, image_vectors, network.config.embed_dim)
            runs[attention, size, beams] = compile_search(network, tokens, attention, beams, vectors)

    inputs = {size: random_vectors(size, image_vectors, network) for _, size, _ in runs}
    first = {run: decode(inputs[run[1]]).numpy() for run, decode in runs.items()}
    rates: dict[tuple[str, int, int], list[float]] = {run: [] for run in runs}
    for _ in range(rounds):
        for run, decode in runs.items():
            rates[run].append(measure(decode, inputs[run[1]], run))
    config = network.config
    print(
        json.dumps(
            {
                "benchmark": "decoder",
                "model": Bundle.open(model).name if model else "the original's shape",
                "embed_dim": config.embed_dim,
                "dec_heads": config.dec_heads,
                "key_dim": config.head_dim,
                "dec_layers": config.dec_layers,
                "vocabulary_size": config.vocabulary_size,
                "image_vectors": image_vectors,
                "tokens": tokens,
                "rounds": rounds,
                "runs": [
                    {
                        "attention": attention,
                        "batch_size": size,
                        "num_beams": beams,
                        "images_per_s": [round(rate, 2) for rate in values],
                    }
                    for (attention, size, beams), values in rates.items()
                ],
                **compare(rates, beams_batch_size),
                "captions_same": same_share(first),
                **provenance(),
            }
        )
    )


def compare(rates: dict[tuple[str, int, int], list[float]], beams_batch_size: int) -> dict[str, Any]:
    """What the rates say.

    Args:
        rates: in images/s of each round, by attention, batch size and beams.
        beams_batch_size: of the runs with more than one beam.
    """
    cached = {(size, beams) for attention, size, beams in rates if attention == "keys_values"}
    # The uncached way at its best: in which batches is its own choice.
    uncached = [
        max(values) for values in zip(*(rates[run] for run in rates if run[0] == "uncached"), strict=True)
    ]
    found: dict[str, Any] = {
        "absorbed_to_keys_values": {
            f"batch {size}, beams {beams}": median_ratio(
                rates["absorbed", size, beams], rates["keys_values", size, beams]
            )
            for size, beams in sorted(cached)
        },
        "absorbed_to_uncached": {
            f"batch {size}": median_ratio(rates["absorbed", size, 1], uncached)
            for size, beams in sorted(cached)
            if beams == 1
        },
    }
    found["absorbed_to_eager"] = {
        f"batch {size}": median_ratio(rates["absorbed", size, 1], rates["eager", 1, 1])
        for size, beams in sorted(cached)
        if beams == 1
    }
    if (beams_batch_size, 1) in cached:
        found["cost_to_greedy"] = {
            attention: {
                f"beams {beams}": median_ratio(rates[attention, size, 1], rates[attention, size, beams])
                for size, beams in sorted(cached)
                if beams > 1
            }
            for attention in ("keys_values", "absorbed")
        }
    return found


def open_network(
    model: Path | None, image_vectors: int, vocabulary_size: int, embed_dim: int
) -> tuple[CaptionModel, int]:
    """A network that never ends a caption, and the number of image vectors that its encoder gives."""
    if model is None:
        config = CaptionerConfig(vocabulary_size=vocabulary_size, embed_dim=embed_dim)
        # The decoder is the default's. No picture is ever shown to the CNN: a small one for small ones.
        network = CaptionModel(
            dataclasses.replace(config, backbone="efficientnet_lite0", image=ImageSpec(32))
        )
    else:
        network = load_model(Bundle.open(model))
        image_vectors = network.feature_shape[0]
    bias = network.output_dense.bias
    bias.assign(tf.tensor_scatter_nd_update(bias.value, [[END]], [-1e9]))
    return network, image_vectors


def compile_search(
    network: CaptionModel, tokens: int, cache_kind: CacheKind, num_beams: int, vectors: tuple[int, ...]
) -> Decode:
    """float32[B, P, D] -> int32[B, L], the search that ships, compiled as it ships.

    Args:
        network: the network.
        tokens: of every caption.
        cache_kind: what the attentions cache.
        num_beams: of an image.
        vectors: (B, P, D).
    """
    generation = GenerationConfig(num_beams=num_beams, max_length=tokens + 1)
    search = BeamSearch(network, generation, cache_kind=cache_kind)
    compiled = compile_tensorflow(search, tf.TensorSpec(vectors, tf.float32))
    return lambda encoded: Generated(*compiled(encoded)).token_ids


def decode_uncached(network: CaptionModel, tokens: int, wrap: Callable[[Any], Any]) -> Decode:
    """float32[B, P, D] -> int32[B, L], greedy, the whole prefix again at every step.

    Args:
        network: the network.
        tokens: of every caption.
        wrap: `tf.function`, or what leaves a step as it is.
    """
    length = network.config.sequence_length - 1
    forbidden = tf.reduce_max(tf.one_hot([PADDING, UNKNOWN, START], network.config.vocabulary_size), 0) * -1e9

    @wrap
    def step(token_ids: tf.Tensor, encoded: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        logits = network.decode(token_ids[:, None], encoded)[:, 0]
        return tf.argmax(logits[:, position] + forbidden, -1, output_type=tf.int32)

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        token_ids = np.full((len(encoded), length), PADDING, np.int32)
        token_ids[:, 0] = START
        for position in range(tokens):
            chosen = step(token_ids, encoded, tf.constant(position)).numpy()
            if position + 1 < length:
                token_ids[:, position + 1] = chosen
        return tf.constant(token_ids[:, : tokens + 1])

    return decode


def random_vectors(batch_size: int, image_vectors: int, network: CaptionModel) -> tf.Tensor:
    """float32[B, P, D] as after a layer norm."""
    shape = (batch_size, image_vectors, network.config.embed_dim)
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def measure(decode: Decode, encoded: tf.Tensor, run: tuple[str, int, int]) -> float:
    """Images a second."""
    attention, size, _ = run
    repeats = 1 if attention in ("eager", "uncached") else -(-_MIN_IMAGES // size)
    started = time.perf_counter()
    for _ in range(repeats):
        decode(encoded).numpy()
    return repeats * size / (time.perf_counter() - started)


def same_share(token_ids: dict[tuple[str, int, int], np.ndarray]) -> float:
    """The share of captions that are the same with absorbed projections as with keys and values."""
    same = [
        (ids == token_ids["absorbed", size, beams]).all(-1)
        for (attention, size, beams), ids in token_ids.items()
        if attention == "keys_values"
    ]
    return round(float(np.concatenate(same).mean()), 3)


if __name__ == "__main__":
    typer.run(main)
