"""Multi-head attention over whole sequences, as training needs it.

The arithmetic is that of `keras.layers.MultiHeadAttention` (Vaswani et al.,
https://arxiv.org/abs/1706.03762, section 3.2); what differs is that each projection is one plain matrix,
which is what a bundle stores and what `cached_attention` prepares for decoding step by step.
"""

from typing import Any, TypeAlias

import keras
from keras import ops

# What keras.ops takes and gives: neither Keras nor TensorFlow has types for it.
Tensor: TypeAlias = Any


class MultiHeadAttention(keras.layers.Layer):
    """Multi-head scaled dot-product attention.

    Shapes: B sequences, T query positions, S context positions, D width, H heads of K each.

    Args:
        num_heads: H.
        key_dim: K.
        output_dim: D.
        dropout: share of the attention weights dropped in training.
    """

    def __init__(
        self, num_heads: int, key_dim: int, output_dim: int, *, dropout: float = 0.0, name: str
    ) -> None:
        super().__init__(name=name)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.query_dense = keras.layers.Dense(num_heads * key_dim, name="query")
        self.key_dense = keras.layers.Dense(num_heads * key_dim, name="key")
        self.value_dense = keras.layers.Dense(num_heads * key_dim, name="value")
        self.output_dense = keras.layers.Dense(output_dim, name="output")
        self.dropout = keras.layers.Dropout(dropout, name="dropout")

    def build(self, x_shape: tuple[int | None, ...], context_shape: tuple[int | None, ...]) -> None:
        inner = (None, self.num_heads * self.key_dim)
        self.query_dense.build(x_shape)
        self.key_dense.build(context_shape)
        self.value_dense.build(context_shape)
        self.output_dense.build(inner)

    def call(
        self,
        x: Tensor,
        context: Tensor,
        *,
        attention_mask: Tensor | None = None,
        training: bool = False,
    ) -> Tensor:
        """Each position of one sequence weighs the values of another by how well their keys fit its query.

        Args:
            x: float32[B, T, D], what the queries are made of.
            context: float32[B, S, D], what keys and values are made of.
            attention_mask: bool, broadcastable to [B, H, T, S]; False positions get no weight.
            training: whether weights are dropped.

        Returns:
            float32[B, T, D].
        """
        queries = self._split_heads(self.query_dense(x)) * self.key_dim**-0.5  # B, H, T, K
        keys = self._split_heads(self.key_dense(context))  # B, H, S, K
        values = self._split_heads(self.value_dense(context))
        scores = ops.matmul(queries, ops.swapaxes(keys, -1, -2))  # B, H, T, S
        if attention_mask is not None:
            scores = ops.where(attention_mask, scores, ops.cast(-1e9, scores.dtype))
        weights = self.dropout(ops.softmax(scores, axis=-1), training=training)
        heads = ops.swapaxes(ops.matmul(weights, values), 1, 2)  # B, T, H, K
        batch, length = ops.shape(heads)[0], ops.shape(heads)[1]
        merged = ops.reshape(heads, (batch, length, self.num_heads * self.key_dim))
        return self.output_dense(merged)

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length = ops.shape(x)[0], ops.shape(x)[1]
        x = ops.reshape(x, (batch, length, self.num_heads, self.key_dim))
        return ops.swapaxes(x, 1, 2)
