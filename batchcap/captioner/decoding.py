"""Greedy and beam search, one step after the other over a cache.

Greedy search is beam search with one beam. Shapes: B images, N beams, L tokens of a caption at most
(start and end included), P image vectors, D `embed_dim`, V `vocabulary_size`.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from batchcap.captioner.cached_attention import Cache, CachedAttention, CacheKind, prepare
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.model import CaptionModel, DecoderBlock
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN

# What no caption may contain: these three get no probability after the softmax.
_FORBIDDEN = (PADDING, UNKNOWN, START)
# Where a vocabulary has too few words for a second beam, the difference to it says nothing.
_MAX_MARGIN = 10.0
# What captions take on average, for the arithmetic of `cached_attention.cheaper`.
_USUAL_STEPS = 12
# Images whose captions have ended leave the batch once they are a quarter of it: moving the others costs
# about as much as two steps do.
_MOST_RUNNING = 0.75

# Words of which `top_k` looks at the largest first: about the square root of a vocabulary is best.
_CHUNK = 100


class Generated(NamedTuple):
    """The best caption of each image.

    Args:
        token_ids: int32[B, L]: start, words, end, padding.
        log_prob: float32[B], natural logarithm of the caption's probability, its end included.
        token_count: int32[B], words and end; start does not count, it is given.
        margin: float32[B], by how much its score is above the second beam's, at most 10; 0 with one beam.
        entropy: float32[B], mean entropy in nats of the next-word distributions along the caption, as the
            network gives them, what no caption may contain included.
        min_log_prob: float32[B], natural logarithm of the probability of its least likely token.
    """

    token_ids: tf.Tensor
    log_prob: tf.Tensor
    token_count: tf.Tensor
    margin: tf.Tensor
    entropy: tf.Tensor
    min_log_prob: tf.Tensor


class State(NamedTuple):
    """What decoding keeps between two steps, for each decoder block.

    Args:
        images: what the cross-attentions keep of the image vectors, of B rows, shared by an image's captions.
        captions: what the self-attentions keep of the tokens so far, of B * N rows.
    """

    images: list[Cache]
    captions: list[Cache]


class _Block(NamedTuple):
    block: DecoderBlock
    self_attention: CachedAttention
    cross_attention: CachedAttention


class StepwiseDecoder:
    """The decoder of a network, one token at a time.

    Args:
        model: the network. Prepared outside of a `tf.function`, its attentions are kept as they are now.
        captions: N, captions of an image.
        length: L, tokens of a caption at most, start and end included.
        cache_kind: what the attentions cache; None for what is cheaper.
        has_fixed_shapes: whether the cache has all its L positions from the start, as XLA needs it; else it
            grows with the caption, which is less to move and to attend to.
    """

    def __init__(
        self,
        model: CaptionModel,
        *,
        captions: int,
        length: int,
        cache_kind: CacheKind | None = None,
        has_fixed_shapes: bool = False,
    ) -> None:
        self._model = model
        self._captions = captions
        self._length = length
        self._has_fixed_shapes = has_fixed_shapes
        self._dtype = model.compute_dtype
        steps = min(_USUAL_STEPS, length - 1)
        vectors = model.feature_shape[0]
        self._blocks = [
            _Block(
                block,
                prepare(
                    block.self_attention, length=steps, queries=1, steps=steps, is_self=True, kind=cache_kind
                ),
                prepare(
                    block.cross_attention,
                    length=vectors,
                    queries=captions,
                    steps=steps,
                    is_self=False,
                    kind=cache_kind,
                ),
            )
            for block in model.decoder
        ]
        # To be added to logits or log-probabilities: float32[V], very low for what no caption may contain.
        self.forbidden = tf.reduce_max(tf.one_hot(_FORBIDDEN, model.config.vocabulary_size), axis=0) * -1e9

    def start(self, encoded: tf.Tensor) -> State:
        """Before the first token.

        Args:
            encoded: float32[B, P, D], what the network's encoder gave.
        """
        encoded = tf.cast(encoded, self._dtype)
        rows = tf.shape(encoded)[0] * self._captions
        length = self._length if self._has_fixed_shapes else 0
        nothing = tf.zeros((rows, length, encoded.shape[-1]), self._dtype)
        return State(
            images=[block.cross_attention.project(encoded) for block in self._blocks],
            captions=[block.self_attention.project(nothing) for block in self._blocks],
        )

    def step(self, tokens: tf.Tensor, position: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """What may follow the newest token.

        Args:
            tokens: int32[B, N], the newest of each caption.
            position: int32[], its index.
            state: after the token before it.

        Returns:
            Logits float32[B, N, V], and the state after it.
        """
        x = self._model.embed(tokens[:, :, None], position[None])  # B, N, 1, D
        shape = tf.shape(x)
        batch, width = shape[0], x.shape[-1]
        mask = tf.range(self._length) <= position if self._has_fixed_shapes else None
        captions: list[Cache] = []
        for (block, self_attention, cross_attention), image, kept in zip(
            self._blocks, state.images, state.captions, strict=True
        ):
            rows = tf.reshape(x, (-1, 1, width))
            cache = self._append(kept, self_attention.project(rows), position)
            captions.append(cache)
            attended = self_attention.attend(rows, cache, mask=mask)
            x = block.norm_self(x + tf.reshape(attended, shape))
            attended = cross_attention.attend(tf.reshape(x, (batch, self._captions, width)), image)
            x = block.feed_forward(block.norm_cross(x + tf.reshape(attended, shape)))
        logits = self._model.output_dense(x)[:, :, 0]
        return tf.cast(logits, tf.float32), State(state.images, captions)

    def _append(self, cache: Cache, new: Cache, position: tf.Tensor) -> Cache:
        if self._has_fixed_shapes:
            is_now = (tf.range(self._length) == position)[:, None]
            return tuple(tf.where(is_now, one, all_) for one, all_ in zip(new, cache, strict=True))
        return tuple(tf.concat([all_, one], axis=-2) for one, all_ in zip(new, cache, strict=True))


def any_shape(tensors: Any) -> Any:
    """The shapes that tensors of a `tf.while_loop` may take: any but for ranks and last axes of matrices."""

    def loosen(tensor: tf.Tensor) -> tf.TensorShape:
        rank = tensor.shape.rank
        return tf.TensorShape([None] * (rank - 1) + [tensor.shape[-1]] if rank > 1 else [None] * rank)

    return tf.nest.map_structure(loosen, tensors)


def top_k(values: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """`tf.math.top_k`, which takes a quarter of a step for a few of 10,000 words, in a seventh of the time.

    The k largest values are in the k chunks with the largest maxima, which one pass finds; of equal values
    the first ones are taken, as there.

    Args:
        values: float32[B, N, V].
        k: at most V.

    Returns:
        The largest of each row, in descending order, float32[B, N, k], and their places, int32[B, N, k].
    """
    size = values.shape[-1]
    count = -(-size // _CHUNK)
    if count < 2 * k:
        return tuple(tf.math.top_k(values, k=k))
    padding = count * _CHUNK - size
    if padding:
        values = tf.pad(values, [(0, 0), (0, 0), (0, padding)], constant_values=values.dtype.min)
    rows = tf.shape(values)[:2]
    chunks = tf.reshape(values, tf.concat([rows, [count, _CHUNK]], axis=0))
    _, best_chunks = tf.math.top_k(tf.reduce_max(chunks, axis=-1), k=k)
    # In the order of the vocabulary again, for the sake of equal values.
    best_chunks = tf.sort(best_chunks, axis=-1)
    candidates = tf.gather(chunks, best_chunks, batch_dims=2)  # B, N, k, _CHUNK
    best, places = tf.math.top_k(tf.reshape(candidates, tf.concat([rows, [k * _CHUNK]], axis=0)), k=k)
    best_chunks = tf.gather(best_chunks, places // _CHUNK, batch_dims=2)
    return best, best_chunks * _CHUNK + places % _CHUNK


class _Beams(NamedTuple):
    """The N best captions so far of each image, the best first."""

    token_ids: tf.Tensor  # int32[B, N, L]
    log_prob: tf.Tensor  # float32[B, N]
    token_count: tf.Tensor  # int32[B, N]
    is_done: tf.Tensor  # bool[B, N]
    entropy: tf.Tensor  # float32[B, N], the sum over tokens
    min_log_prob: tf.Tensor  # float32[B, N]


class _Running(NamedTuple):
    """The images whose captions have not all ended."""

    images: tf.Tensor  # int32[B'], their places in the batch
    beams: _Beams
    state: State


class BeamSearch:
    """Beam search with a network that is prepared for it.

    Beams are ranked by log_prob / token_count ** length_penalty (Wu et al.,
    https://arxiv.org/abs/1609.08144, section 7, in the simpler form without the constant 5). A beam that
    has ended keeps its place and its score; the search stops when every beam of every image has ended,
    or at `max_length`. Images of which every beam has ended leave the batch on the way.

    Args:
        model: the network; see `StepwiseDecoder` on when it is read.
        generation: beams, length penalty, maximum length.
        cache_kind: what the attentions cache; None for what is cheaper.
        has_fixed_shapes: for XLA, which compiles for one shape: no image leaves the batch.
    """

    def __init__(
        self,
        model: CaptionModel,
        generation: GenerationConfig,
        *,
        cache_kind: CacheKind | None = None,
        has_fixed_shapes: bool = False,
    ) -> None:
        self._generation = generation
        longest = model.config.sequence_length
        self._length = min(generation.max_length or longest, longest)
        self._has_fixed_shapes = has_fixed_shapes
        self._decoder = StepwiseDecoder(
            model,
            captions=generation.num_beams,
            length=self._length,
            cache_kind=cache_kind,
            has_fixed_shapes=has_fixed_shapes,
        )

    def __call__(self, encoded: tf.Tensor) -> Generated:
        """Decodes captions; inside a `tf.function`, or slowly outside.

        Args:
            encoded: float32[B, P, D], what the network's encoder gave.

        Returns:
            The best caption of each image.
        """
        batch = tf.shape(encoded)[0]
        beams = _start(batch, self._generation.num_beams, self._length)
        running = _Running(tf.range(batch), beams, self._decoder.start(encoded))
        loop = (tf.constant(0), running, beams)
        shapes = None if self._has_fixed_shapes else (tf.TensorShape([]), *map(any_shape, loop[1:]))
        _, running, ended = tf.while_loop(self._is_running, self._advance, loop, shape_invariants=shapes)
        return self._best(_put_back(running, ended))

    def _is_running(self, position: tf.Tensor, running: _Running, ended: _Beams) -> tf.Tensor:
        return (position < self._length - 1) & ~tf.reduce_all(running.beams.is_done)

    def _advance(
        self, position: tf.Tensor, running: _Running, ended: _Beams
    ) -> tuple[tf.Tensor, _Running, _Beams]:
        tokens = tf.gather(running.beams.token_ids, position, axis=2)
        logits, state = self._decoder.step(tokens, position, running.state)
        beams, parents = _extend(running.beams, logits, self._decoder.forbidden, position, self._generation)
        if self._generation.num_beams > 1:
            rows = _rows_of_captions(tf.range(tf.shape(parents)[0]), parents, self._generation.num_beams)
            state = State(state.images, _take(state.captions, rows))
        running = _Running(running.images, beams, state)
        if not self._has_fixed_shapes:
            is_done = tf.reduce_all(beams.is_done, axis=1)
            still = tf.reduce_sum(tf.cast(~is_done, tf.float32))
            running, ended = tf.cond(
                still <= _MOST_RUNNING * tf.cast(tf.size(is_done), tf.float32),
                lambda: (self._drop(running, tf.where(~is_done)[:, 0]), _put_back(running, ended)),
                lambda: (running, ended),
            )
        return position + 1, running, ended

    def _drop(self, running: _Running, kept: tf.Tensor) -> _Running:
        """Goes on with some of the images alone."""
        num_beams = self._generation.num_beams
        rows = _rows_of_captions(tf.cast(kept, tf.int32), tf.range(num_beams)[None], num_beams)
        images, beams = _take((running.images, running.beams), kept)
        state = State(_take(running.state.images, kept), _take(running.state.captions, rows))
        return _Running(images, beams, state)

    def _best(self, beams: _Beams) -> Generated:
        token_count = tf.cast(beams.token_count, tf.float32)
        score = beams.log_prob / token_count**self._generation.length_penalty
        margin = score[:, 0] - score[:, 1] if self._generation.num_beams > 1 else tf.zeros_like(score[:, 0])
        return Generated(
            token_ids=beams.token_ids[:, 0],
            log_prob=beams.log_prob[:, 0],
            token_count=beams.token_count[:, 0],
            margin=tf.minimum(margin, _MAX_MARGIN),
            entropy=beams.entropy[:, 0] / token_count[:, 0],
            min_log_prob=beams.min_log_prob[:, 0],
        )


def generate(
    model: CaptionModel,
    encoded: tf.Tensor,
    generation: GenerationConfig,
    *,
    cache_kind: CacheKind | None = None,
) -> Generated:
    """Decodes captions with the network as it is now: `BeamSearch` in one call.

    Args:
        model: the network.
        encoded: float32[B, P, D], what its encoder gave.
        generation: beams, length penalty, maximum length.
        cache_kind: what the attentions cache; None for what is cheaper.

    Returns:
        The best caption of each image.
    """
    return BeamSearch(model, generation, cache_kind=cache_kind)(encoded)


def _take(tensors: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)


def _rows_of_captions(images: tf.Tensor, captions: tf.Tensor, num_beams: int) -> tf.Tensor:
    """The rows of captions among B * N: int32[B'], int32[B' or 1, N] -> int32[B' * N]."""
    return tf.reshape(images[:, None] * num_beams + captions, (-1,))


def _put_back(running: _Running, ended: _Beams) -> _Beams:
    """The beams of the whole batch: of the images that are running those that they have now."""
    places = running.images[:, None]
    return _Beams(
        *(
            tf.tensor_scatter_nd_update(all_, places, now)
            for all_, now in zip(ended, running.beams, strict=True)
        )
    )


def _start(batch: tf.Tensor, num_beams: int, max_length: int) -> _Beams:
    """One live beam an image; the others are impossible until the first step fills them."""
    start = tf.one_hot([0], max_length, on_value=START, off_value=PADDING, dtype=tf.int32)  # 1, L
    log_prob = tf.one_hot([0], num_beams, on_value=0.0, off_value=-1e9)  # 1, N
    return _Beams(
        token_ids=tf.tile(start[None], (batch, num_beams, 1)),
        log_prob=tf.tile(log_prob, (batch, 1)),
        token_count=tf.zeros((batch, num_beams), tf.int32),
        is_done=tf.zeros((batch, num_beams), tf.bool),
        entropy=tf.zeros((batch, num_beams)),
        min_log_prob=tf.zeros((batch, num_beams)),
    )


def _extend(
    beams: _Beams,
    logits: tf.Tensor,
    forbidden: tf.Tensor,
    position: tf.Tensor,
    generation: GenerationConfig,
) -> tuple[_Beams, tf.Tensor]:
    """Each beam's N best next tokens, and of these N * N candidates the N best.

    Args:
        beams: the captions so far.
        logits: float32[B, N, V], of the next token.
        forbidden: float32[V], added to choose, but not to the probabilities.
        position: int32[], the index of the newest token.
        generation: beams and length penalty.

    Returns:
        The beams with one more token, and int32[B, N]: the beam that each of them continues.
    """
    num_beams = generation.num_beams
    # Log-softmax and entropy of one pass over the exponentials; the logarithms of a few tokens are enough.
    shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    exponentials = tf.exp(shifted)
    total = tf.reduce_sum(exponentials, axis=-1)  # B, N
    log_total = tf.math.log(total)
    entropy = log_total - tf.reduce_sum(exponentials * shifted, axis=-1) / total
    best, tokens = top_k(shifted + forbidden, num_beams)  # B, N, N
    # A beam that is done has one candidate: itself, with padding.
    itself = tf.one_hot(0, num_beams, on_value=0.0, off_value=-1e9)
    is_done = beams.is_done[:, :, None]
    added = tf.where(is_done, itself, best - log_total[:, :, None])
    candidate_log_prob = beams.log_prob[:, :, None] + added
    candidate_token = tf.where(is_done, PADDING, tokens)
    candidate_count = beams.token_count[:, :, None] + tf.where(is_done, 0, tf.ones_like(tokens))

    def flat(candidates: tf.Tensor) -> tf.Tensor:
        return tf.reshape(candidates, (-1, num_beams * num_beams))

    score = candidate_log_prob / tf.cast(candidate_count, tf.float32) ** generation.length_penalty
    _, chosen = tf.math.top_k(flat(score), k=num_beams)  # B, N
    parents = chosen // num_beams

    def of_parent(kept: tf.Tensor) -> tf.Tensor:
        return tf.gather(kept, parents, batch_dims=1)

    token = tf.gather(flat(candidate_token), chosen, batch_dims=1)
    is_next = tf.range(tf.shape(beams.token_ids)[2]) == position + 1
    return _Beams(
        token_ids=tf.where(is_next, token[:, :, None], of_parent(beams.token_ids)),
        log_prob=tf.gather(flat(candidate_log_prob), chosen, batch_dims=1),
        token_count=tf.gather(flat(candidate_count), chosen, batch_dims=1),
        is_done=of_parent(beams.is_done) | (token == END),
        entropy=of_parent(beams.entropy + tf.where(beams.is_done, 0.0, entropy)),
        # Of a beam that is done, 0 is added.
        min_log_prob=tf.minimum(of_parent(beams.min_log_prob), tf.gather(flat(added), chosen, batch_dims=1)),
    ), parents
