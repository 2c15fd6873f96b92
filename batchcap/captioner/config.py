"""What a captioner is made of and how it decodes: plain values, saved in the bundle. No TensorFlow."""

import math
import operator
from dataclasses import dataclass, field
from typing import Literal

from batchcap.captioner.images import ImageSpec

Backbone = Literal[
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
]


@dataclass(frozen=True, slots=True)
class CaptionerConfig:
    """The shape of the network; the defaults are the original system's, and never change.

    What is at its default does not count in a bundle's fingerprint.

    Args:
        backbone: the CNN.
        image: the pictures that the CNN takes.
        vocabulary_size: number of token ids, the special ones included.
        sequence_length: S, tokens of a caption at most, start and end included.
        embed_dim: D, the width of encoder and decoder.
        ff_dim: the inner width of the decoder's feed-forward part.
        enc_heads: heads of the encoder's attention.
        dec_heads: heads of the decoder's attentions.
        enc_layers: encoder blocks.
        dec_layers: decoder blocks.
        key_dim: K, the width of one head; None is `embed_dim`, as in the original.
        scale_embeddings: whether token embeddings are multiplied by sqrt(embed_dim), as in the original. It
            makes Adam's steps on them larger by as much, which a small data set does not forgive.
        residual_dropout: share dropped in training of the embeddings, of the image vectors and of what each
            sublayer adds (Vaswani et al., https://arxiv.org/abs/1706.03762, section 5.4); the original
            has none.
        attention_dropout: share of attention weights dropped in training.
        ff_dropout: share dropped inside the decoder's feed-forward part in training.
        output_dropout: share dropped before the last layer in training.

    Raises:
        TypeError: a value of another type.
        ValueError: a value that can't work.
    """

    backbone: Backbone = "efficientnet_b1"
    image: ImageSpec = field(default_factory=ImageSpec)
    vocabulary_size: int = 10_000
    sequence_length: int = 36
    embed_dim: int = 512
    ff_dim: int = 256
    enc_heads: int = 2
    dec_heads: int = 4
    enc_layers: int = 1
    dec_layers: int = 1
    key_dim: int | None = None
    scale_embeddings: bool = True
    residual_dropout: float = 0.0
    attention_dropout: float = 0.1
    ff_dropout: float = 0.3
    output_dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.backbone not in Backbone.__args__:  # type: ignore[attr-defined]
            raise ValueError(f"backbone {self.backbone!r} is not known")
        # index(): a damaged file could say 8.5.
        for name in ("embed_dim", "ff_dim", "enc_heads", "dec_heads", "enc_layers", "dec_layers"):
            if operator.index(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.key_dim is not None and operator.index(self.key_dim) < 1:
            raise ValueError("key_dim must be at least 1")
        if operator.index(self.vocabulary_size) < 5:
            raise ValueError("vocabulary_size must be at least 5: four special tokens and a word")
        if operator.index(self.sequence_length) < 3:
            raise ValueError("sequence_length must be at least 3: start, a word, end")
        for name in ("residual_dropout", "attention_dropout", "ff_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1")

    @property
    def head_dim(self) -> int:
        """The width of one head, resolved."""
        return self.embed_dim if self.key_dim is None else self.key_dim


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """How captions are decoded; changes the captions, hence part of the fingerprint. No default ever changes.

    Args:
        num_beams: 1 decodes greedily.
        length_penalty: alpha of the score log_prob / token_count ** alpha by which beams are ranked.
        max_length: tokens of a caption at most, start and end included; None is the model's
            `sequence_length`.

    Raises:
        TypeError: a value of another type.
        ValueError: a value that can't work.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        # index(): a bundle's file could say 2.5.
        if operator.index(self.num_beams) < 1:
            raise ValueError("num_beams must be at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError("length_penalty must be a number")
        if self.max_length is not None and operator.index(self.max_length) < 3:
            raise ValueError("max_length must be at least 3: start, a word, end")
