"""Attention of new positions over a cache, in two exact ways, and which of them is cheaper.

Shapes: R rows (captions, or images), Q query positions, S cached positions, D `embed_dim`, H heads of K.

The usual way caches what a layer projects of each position: keys and values of every head, 2 * H * K numbers.
The other way caches the layer's input itself, D numbers, and moves the projections to the other side of the
two products. With x the newest position, c a cached one and a head's own columns of each kernel,

    (x Wq + bq) . (c Wk + bk) = (x Wq Wk' + bq Wk') . c  +  what is equal for every c,

and what is equal for every c drops out of the softmax, so the key's bias counts for nothing. Since the
weights w of the softmax add up to 1,

    (sum_c w (c Wv + bv)) Wo = (sum_c w c) (Wv Wo) + bv Wo.

So a head attends over the inputs themselves: the key's and the value's projection are absorbed by those of
query and output, whose products are taken once, when a network is prepared for decoding. Nothing is
approximated; only the order of rounding changes. (The idea is that of multi-head latent attention,
DeepSeek-AI, https://arxiv.org/abs/2405.04434, section 2.1.2, with the layer's input as its latent vector.)
"""

from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import keras
import tensorflow as tf

from batchcap.captioner.attention import MultiHeadAttention

# What a cache holds; each with the cached positions on its last axis but one.
Cache: TypeAlias = tuple[tf.Tensor, ...]
CacheKind = Literal["absorbed", "keys_values"]


class CachedAttention(ABC):
    """An attention layer, prepared for decoding: what to keep of a position, how to attend to what is kept.

    Prepared outside of a `tf.function` it holds constants; inside, it follows the layer's variables.

    Args:
        layer: the layer, built.
    """

    def __init__(self, layer: MultiHeadAttention) -> None:
        self.num_heads = layer.num_heads
        self.key_dim = layer.key_dim
        self._dtype = layer.compute_dtype

    @abstractmethod
    def project(self, context: tf.Tensor) -> Cache:
        """What the cache keeps of float32[R, S, D]."""

    @abstractmethod
    def attend(self, x: tf.Tensor, cache: Cache, *, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Attends to all that is cached.

        Args:
            x: float32[R, Q, D].
            cache: of the same rows.
            mask: bool[S]; False positions get no weight.

        Returns:
            float32[R, Q, D].
        """

    def _constant(self, value: tf.Tensor) -> tf.Tensor:
        return tf.cast(value, self._dtype)


class KeysValuesAttention(CachedAttention):
    """Caches keys and values of every head, each float32[R, H, S, K]."""

    def __init__(self, layer: MultiHeadAttention) -> None:
        super().__init__(layer)
        scale = self.key_dim**-0.5
        query, key, value, output = _kernels_and_biases(layer)
        self._query = self._constant(query[0] * scale), self._constant(query[1] * scale)
        # One product for both.
        self._key_value = (
            self._constant(tf.concat([key[0], value[0]], axis=1)),
            self._constant(tf.concat([key[1], value[1]], axis=0)),
        )
        self._output = self._constant(output[0]), self._constant(output[1])

    def project(self, context: tf.Tensor) -> Cache:
        """float32[R, S, D] -> keys and values, each float32[R, H, S, K]."""
        rows, length = tf.shape(context)[0], tf.shape(context)[1]
        projected = tf.reshape(
            _dense(context, self._key_value), (rows, length, 2, self.num_heads, self.key_dim)
        )
        keys, values = (self._swap(one, context.shape[1]) for one in tf.unstack(projected, axis=2))
        return keys, values

    def attend(self, x: tf.Tensor, cache: Cache, *, mask: tf.Tensor | None = None) -> tf.Tensor:
        """See `CachedAttention.attend`."""
        keys, values = cache
        rows, length = tf.shape(x)[0], tf.shape(x)[1]
        queries = tf.reshape(_dense(x, self._query), (rows, length, self.num_heads, self.key_dim))
        queries = self._swap(queries, x.shape[1])  # R, H, Q, K
        weights = _softmax(tf.matmul(queries, keys, transpose_b=True), mask)
        heads = self._swap(tf.matmul(weights, values), x.shape[1])  # R, Q, H, K
        return _dense(tf.reshape(heads, (rows, length, self.num_heads * self.key_dim)), self._output)

    def _swap(self, x: tf.Tensor, length: int | None) -> tf.Tensor:
        """Exchanges positions and heads; of a single position nothing has to move."""
        if length != 1:
            return tf.transpose(x, (0, 2, 1, 3))
        shape = tf.shape(x)
        return tf.reshape(x, (shape[0], shape[2], shape[1], self.key_dim))


class AbsorbedAttention(CachedAttention):
    """Caches the layer's input, float32[R, S, D]: see the top of this module.

    Heads that are narrow (2 K <= D) keep the two factors of each product apart, which then is less work than
    the product: a query goes through its head's K numbers to the D of the context, and back.
    """

    def __init__(self, layer: MultiHeadAttention) -> None:
        super().__init__(layer)
        heads, width = self.num_heads, self.key_dim
        (query, query_bias), (key, _), (value, value_bias), (output, output_bias) = _kernels_and_biases(layer)
        query, query_bias = query * width**-0.5, query_bias * width**-0.5
        embed_dim = query.shape[0]
        self._is_folded = embed_dim < 2 * width
        # Each head's own columns.
        key_by_head = tf.transpose(tf.reshape(key, (embed_dim, heads, width)), (1, 2, 0))  # H, K, D
        value_by_head = tf.transpose(tf.reshape(value, (embed_dim, heads, width)), (1, 0, 2))  # H, D, K
        if self._is_folded:
            query_by_head = tf.transpose(tf.reshape(query, (embed_dim, heads, width)), (1, 0, 2))
            output_by_head = tf.reshape(output, (heads, width, embed_dim))
            bias_by_head = tf.reshape(query_bias, (heads, 1, width))
            query_bias = tf.reshape(bias_by_head @ key_by_head, (-1,))
            query = tf.transpose(query_by_head @ key_by_head, (1, 0, 2))  # D, H, D
            query = tf.reshape(query, (embed_dim, heads * embed_dim))
            output_bias += tf.linalg.matvec(output, value_bias, transpose_a=True)
            output = tf.reshape(value_by_head @ output_by_head, (heads * embed_dim, embed_dim))
        self._query = self._constant(query), self._constant(query_bias)
        self._key = self._constant(key_by_head)
        self._value = self._constant(value_by_head), self._constant(value_bias)
        self._output = self._constant(output), self._constant(output_bias)

    def project(self, context: tf.Tensor) -> Cache:
        """float32[R, S, D], as it is."""
        return (context,)

    def attend(self, x: tf.Tensor, cache: Cache, *, mask: tf.Tensor | None = None) -> tf.Tensor:
        """See `CachedAttention.attend`."""
        (context,) = cache
        rows, length, width = tf.shape(x)[0], tf.shape(x)[1], context.shape[-1]
        queries = _dense(x, self._query)
        if not self._is_folded:
            queries = self._each_head(queries, self._key)
        queries = tf.reshape(queries, (rows, length * self.num_heads, width))
        weights = _softmax(tf.matmul(queries, context, transpose_b=True), mask)  # R, Q * H, S
        mixed = tf.reshape(tf.matmul(weights, context), (rows, length, self.num_heads * width))
        if not self._is_folded:
            by_head, bias = self._value
            mixed = self._each_head(mixed, by_head) + bias
        return _dense(mixed, self._output)

    def _each_head(self, x: tf.Tensor, kernels: tf.Tensor) -> tf.Tensor:
        """float32[R, Q, H * I] -> float32[R, Q, H * O], each head by its own of float32[H, I, O]."""
        rows, length = tf.shape(x)[0], tf.shape(x)[1]
        heads, inputs, outputs = kernels.shape
        by_head = tf.transpose(tf.reshape(x, (rows * length, heads, inputs)), (1, 0, 2))
        projected = tf.transpose(tf.matmul(by_head, kernels), (1, 0, 2))
        return tf.reshape(projected, (rows, length, heads * outputs))


def prepare(
    layer: MultiHeadAttention, *, length: int, queries: int, steps: int, is_self: bool, kind: CacheKind | None
) -> CachedAttention:
    """Prepares an attention layer for decoding.

    Args:
        layer: the layer, built.
        length: S, positions that are cached at the end (or from the start, where it is no self-attention).
        queries: positions of a row that attend at each step.
        steps: steps that a caption takes.
        is_self: whether each step adds its position to the cache.
        kind: what is cached; None for what is cheaper.
    """
    kind = kind or cheaper(
        embed_dim=layer.query_dense.kernel.shape[0],
        num_heads=layer.num_heads,
        key_dim=layer.key_dim,
        length=length,
        queries=queries,
        steps=steps,
        is_self=is_self,
    )
    return AbsorbedAttention(layer) if kind == "absorbed" else KeysValuesAttention(layer)


def cheaper(
    *, embed_dim: int, num_heads: int, key_dim: int, length: int, queries: int, steps: int, is_self: bool
) -> CacheKind:
    """Which way takes fewer multiplications for a row, over all its steps.

    With D, H, K as everywhere, S cached positions, Q queries and T steps:

    ==========  ==========================  =====================================
    each        keys and values             absorbed
    ==========  ==========================  =====================================
    query       2 D H K, query and output   2 H D D, their products, or 4 D H K,
                                            their factors, whichever is less
    attention   2 S H K                     2 S H D
    projection  2 D H K                     nothing
    ==========  ==========================  =====================================

    A self-attention projects one position a step, for each query; a cross-attention all S before the first
    step, once an image, whatever the number of its captions. With heads as wide as the network, the
    original's, absorbing is cheaper everywhere. With narrow ones, H K = D, it depends on how many queries
    share the projection of an image's vectors.
    """
    inner = num_heads * key_dim
    attended = (steps + 1) / 2 if is_self else length
    projected = queries * steps if is_self else length
    keys_values = queries * steps * 2 * inner * (embed_dim + attended) + projected * 2 * embed_dim * inner
    factors = 2 * embed_dim * min(num_heads * embed_dim, 2 * inner)
    absorbed = queries * steps * (factors + 2 * attended * num_heads * embed_dim)
    return "absorbed" if absorbed <= keys_values else "keys_values"


def _kernels_and_biases(layer: MultiHeadAttention) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Of query, key, value and output, as they are now, in single precision."""

    def tensor(variable: keras.Variable) -> tf.Tensor:
        return tf.cast(tf.convert_to_tensor(variable.value), tf.float32)

    denses = (layer.query_dense, layer.key_dense, layer.value_dense, layer.output_dense)
    return [(tensor(dense.kernel), tensor(dense.bias)) for dense in denses]


def _dense(x: tf.Tensor, kernel_and_bias: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """float32[R, Q, I] -> float32[R, Q, O], by one product of matrices, which batched ones would not be."""
    kernel, bias = kernel_and_bias
    rows = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, kernel.shape[0])), kernel), bias)
    return tf.reshape(rows, (*tf.unstack(tf.shape(x))[:-1], kernel.shape[1]))


def _softmax(scores: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    if mask is not None:
        scores = tf.where(mask, scores, tf.cast(-1e9, scores.dtype))
    return tf.nn.softmax(scores, axis=-1)
