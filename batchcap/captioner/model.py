"""The network: CNN -> transformer encoder -> transformer decoder -> words.

Shapes: B images, N captions an image (references in training, beams in decoding), T tokens, P image
vectors, C channels of the CNN, D `embed_dim`, V `vocabulary_size`.
"""

import keras
import numpy as np
from keras import ops

from batchcap.captioner.attention import MultiHeadAttention, Tensor
from batchcap.captioner.backbone import build_backbone
from batchcap.captioner.config import CaptionerConfig


class EncoderBlock(keras.layers.Layer):
    """Layer norm -> dense with ReLU -> self-attention -> residual -> layer norm."""

    def __init__(self, config: CaptionerConfig, *, name: str) -> None:
        super().__init__(name=name)
        self.norm_in = keras.layers.LayerNormalization(name="norm_in")
        self.dense = keras.layers.Dense(config.embed_dim, activation="relu", name="dense")
        self.attention = MultiHeadAttention(
            config.enc_heads,
            config.head_dim,
            config.embed_dim,
            dropout=config.attention_dropout,
            name="attention",
        )
        self.norm_out = keras.layers.LayerNormalization(name="norm_out")
        self.residual_dropout = keras.layers.Dropout(config.residual_dropout, name="residual_dropout")

    def call(self, x: Tensor, *, training: bool = False) -> Tensor:
        """float32[B, P, C or D] -> float32[B, P, D]."""
        x = self.residual_dropout(self.dense(self.norm_in(x)), training=training)
        attended = self.attention(x, x, training=training)
        return self.norm_out(x + self.residual_dropout(attended, training=training))


class DecoderBlock(keras.layers.Layer):
    """Causal self-attention -> cross-attention -> feed-forward, each with residual and layer norm."""

    def __init__(self, config: CaptionerConfig, *, name: str) -> None:
        super().__init__(name=name)
        self.self_attention = MultiHeadAttention(
            config.dec_heads,
            config.head_dim,
            config.embed_dim,
            dropout=config.attention_dropout,
            name="self_attention",
        )
        self.cross_attention = MultiHeadAttention(
            config.dec_heads,
            config.head_dim,
            config.embed_dim,
            dropout=config.attention_dropout,
            name="cross_attention",
        )
        self.ff_in = keras.layers.Dense(config.ff_dim, activation="relu", name="ff_in")
        self.ff_dropout = keras.layers.Dropout(config.ff_dropout, name="ff_dropout")
        self.ff_out = keras.layers.Dense(config.embed_dim, name="ff_out")
        self.residual_dropout = keras.layers.Dropout(config.residual_dropout, name="residual_dropout")
        self.norm_self = keras.layers.LayerNormalization(name="norm_self")
        self.norm_cross = keras.layers.LayerNormalization(name="norm_cross")
        self.norm_ff = keras.layers.LayerNormalization(name="norm_ff")

    def call(self, x: Tensor, encoded: Tensor, *, training: bool = False) -> Tensor:
        """All positions at once, each seeing those before it.

        Args:
            x: float32[B, N, T, D].
            encoded: float32[B, P, D].
            training: whether dropout is on.

        Returns:
            float32[B, N, T, D].
        """
        batch, captions, length, width = ops.shape(x)
        rows = ops.reshape(x, (batch * captions, length, width))
        causal = ops.tril(ops.ones((length, length), dtype="bool"))
        attended = self.self_attention(rows, rows, attention_mask=causal, training=training)
        attended = self.residual_dropout(ops.reshape(attended, ops.shape(x)), training=training)
        x = self.norm_self(x + attended)
        rows = ops.reshape(x, (batch, captions * length, width))
        # An image's N captions share its keys and values.
        attended = self.cross_attention(rows, encoded, training=training)
        attended = self.residual_dropout(ops.reshape(attended, ops.shape(x)), training=training)
        return self.feed_forward(self.norm_cross(x + attended), training=training)

    def feed_forward(self, x: Tensor, *, training: bool = False) -> Tensor:
        """float32[..., D] -> float32[..., D], with residual and layer norm."""
        inner = self.ff_out(self.ff_dropout(self.ff_in(x), training=training))
        return self.norm_ff(x + self.residual_dropout(inner, training=training))


class CaptionModel(keras.Model):
    """The whole captioning network, with random weights.

    Example::

        model = CaptionModel(CaptionerConfig(embed_dim=256))
        logits = model(images, token_ids)

    Args:
        config: its shape.
    """

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__(name="captioner")
        self.config = config
        self.backbone = build_backbone(config.backbone, config.image.image_size)
        self.encoder = [EncoderBlock(config, name=f"encoder{i}") for i in range(config.enc_layers)]
        self.token_embedding = keras.layers.Embedding(
            config.vocabulary_size, config.embed_dim, name="token_embedding"
        )
        self.position_embedding = keras.layers.Embedding(
            config.sequence_length, config.embed_dim, name="position_embedding"
        )
        self.embedding_dropout = keras.layers.Dropout(config.residual_dropout, name="embedding_dropout")
        self.decoder = [DecoderBlock(config, name=f"decoder{i}") for i in range(config.dec_layers)]
        self.output_dropout = keras.layers.Dropout(config.output_dropout, name="output_dropout")
        # Logits, not probabilities: the loss and log_softmax are exact from them.
        self.output_dense = keras.layers.Dense(config.vocabulary_size, name="output")
        # Makes every weight now, so that a bundle can be loaded into the model.
        _, height, width, channels = self.backbone.output_shape
        self.feature_shape = (height * width, channels)
        encoded = self.encode(np.zeros((1, *self.feature_shape), np.float32))
        self.decode(np.zeros((1, 1, 2), np.int32), encoded)
        self.built = True

    def call(self, images: Tensor, token_ids: Tensor, *, training: bool = False) -> Tensor:
        """Logits of the token that follows each token.

        Args:
            images: uint8[B, image_size, image_size, 3].
            token_ids: int32[B, N, T], T at most `sequence_length`.
            training: whether dropout is on.

        Returns:
            float32[B, N, T, V].
        """
        features = self.extract_features(images)
        return self.decode(token_ids, self.encode(features, training=training), training=training)

    def extract_features(self, images: Tensor) -> Tensor:
        """uint8[B, image_size, image_size, 3] -> float32[B, P, C], the CNN's grid row by row."""
        grid = self.backbone(images, training=False)
        return ops.reshape(grid, (-1, *self.feature_shape))

    def encode(self, features: Tensor, *, training: bool = False) -> Tensor:
        """float32[B, P, C] -> float32[B, P, D]."""
        x = ops.convert_to_tensor(features)
        for block in self.encoder:
            x = block(x, training=training)
        return x

    def decode(self, token_ids: Tensor, encoded: Tensor, *, training: bool = False) -> Tensor:
        """int32[B, N, T] and float32[B, P, D] -> logits float32[B, N, T, V]."""
        x = self.embed(token_ids, ops.arange(ops.shape(token_ids)[-1]))
        x = self.embedding_dropout(x, training=training)
        for block in self.decoder:
            x = block(x, encoded, training=training)
        return self.output_dense(self.output_dropout(x, training=training))

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Token embedding, times sqrt(D) where the configuration says so, plus position embedding.

        Args:
            token_ids: int32[..., T].
            positions: int32[T].

        Returns:
            float32[..., T, D].
        """
        scale = self.config.embed_dim**0.5 if self.config.scale_embeddings else 1.0
        return self.token_embedding(token_ids) * scale + self.position_embedding(positions)

    def weights_by_name(self) -> dict[str, keras.Variable]:
        """Every weight, by a name that depends on the configuration alone."""
        named = {
            f"backbone/{layer.name}/{weight.name}": weight
            for layer in self.backbone.layers
            for weight in layer.weights
        }
        layers = [
            *self.encoder,
            self.token_embedding,
            self.position_embedding,
            *self.decoder,
            self.output_dense,
        ]
        for layer in layers:
            for weight in layer.weights:
                path = weight.path.split("/")
                named["/".join(path[path.index(layer.name) :])] = weight
        return named
