"""Cached, batched decoding against a reference that is slow and plain.

The reference runs the whole prefix through the network at every step and keeps beams in Python lists.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from batchcap.captioner.cached_attention import CacheKind
from batchcap.captioner.captioner import assign_weights
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.decoding import BeamSearch, Generated, generate, top_k
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN
from tests.conftest import lively_weights

IMAGES = 6
FORBIDDEN = [PADDING, UNKNOWN, START]
# Where the best two differ by less, rounding may choose either.
TIE = 1e-3


class Case(NamedTuple):
    model: CaptionModel
    encoded: np.ndarray


class Reference(NamedTuple):
    """A caption, and the smallest difference of scores that any choice on its way hung on.

    Args:
        to_second: the difference of scores between it and the second beam; 0 with one beam.
    """

    tokens: list[int]
    log_prob: float
    token_count: int
    smallest: float
    to_second: float = 0.0


class Beam(NamedTuple):
    tokens: tuple[int, ...]
    log_prob: float

    @property
    def is_done(self) -> bool:
        return self.tokens[-1] == END

    def score(self, length_penalty: float) -> float:
        return self.log_prob / (len(self.tokens) - 1) ** length_penalty


@pytest.fixture(scope="module", params=["small_heads", "wide_heads"])
def case(request: pytest.FixtureRequest, tiny_config: CaptionerConfig) -> Case:
    """Two layers of each with small heads; one of each with heads as wide as the model."""
    config = {
        "small_heads": dataclasses.replace(tiny_config, enc_layers=2, dec_layers=2, key_dim=3),
        "wide_heads": dataclasses.replace(tiny_config, enc_layers=1, dec_layers=1, key_dim=None, dec_heads=3),
    }[request.param]
    model = CaptionModel(config)
    assign_weights(model, lively_weights(config, seed=5))
    features = np.random.default_rng(0).normal(size=(IMAGES, *model.feature_shape)).astype(np.float32)
    return Case(model, model.encode(features).numpy())


def next_log_probs(case: Case, prefixes: list[list[tuple[int, ...]]]) -> np.ndarray:
    """float64[B, N, V] after B x N prefixes of one length, by the uncached network."""
    newest = len(prefixes[0][0]) - 1
    # Padded to one length, which is fair: the network is causal, as its own tests show.
    tokens = np.full((IMAGES, len(prefixes[0]), case.model.config.sequence_length), PADDING, np.int32)
    tokens[:, :, : newest + 1] = prefixes
    logits = case.model.decode(tokens, case.encoded).numpy()[:, :, newest].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    log_probs[:, :, FORBIDDEN] = -np.inf
    return log_probs


def along(case: Case, image: int, reference: Reference) -> tuple[float, float]:
    """Mean entropy and least log-probability of a caption's words, from one pass over the whole caption."""
    tokens = np.array([[reference.tokens]], np.int32)
    logits = case.model.decode(tokens, case.encoded[image : image + 1]).numpy()[0, 0]
    log_probs = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    steps = range(reference.token_count)
    entropies = [-(np.exp(log_probs[step]) * log_probs[step]).sum() for step in steps]
    return float(np.mean(entropies)), min(log_probs[step, reference.tokens[step + 1]] for step in steps)


def greedy(case: Case, max_length: int) -> list[Reference]:
    prefixes: list[tuple[int, ...]] = [(START,)] * IMAGES
    log_prob, smallest = np.zeros(IMAGES), np.full(IMAGES, np.inf)
    for _ in range(max_length - 1):
        log_probs = next_log_probs(case, [[prefix] for prefix in prefixes])[:, 0]
        for image, prefix in enumerate(prefixes):
            if END in prefix:
                prefixes[image] = (*prefix, PADDING)
                continue
            second, best = np.sort(log_probs[image])[-2:]
            prefixes[image] = (*prefix, int(log_probs[image].argmax()))
            log_prob[image] += best
            smallest[image] = min(smallest[image], best - second)
    counts = [sum(token not in (START, PADDING) for token in prefix) for prefix in prefixes]
    return [
        Reference(list(p), *values) for p, *values in zip(prefixes, log_prob, counts, smallest, strict=True)
    ]


def beam_search(case: Case, generation: GenerationConfig, max_length: int) -> list[Reference]:
    """Every continuation of every live beam, and the finished beams, sorted; the best N stay."""
    num_beams, alpha = generation.num_beams, generation.length_penalty
    beams = [[Beam((START,), 0.0)] for _ in range(IMAGES)]
    smallest = [np.inf] * IMAGES
    for length in range(1, max_length):
        # One call for all: finished beams and missing ones are filled up, and not looked at.
        filled = [
            [(*beam.tokens, *[PADDING] * length)[:length] for beam in (kept * num_beams)[:num_beams]]
            for kept in beams
        ]
        log_probs = next_log_probs(case, filled)
        for image, kept in enumerate(beams):
            candidates = [beam for beam in kept if beam.is_done]
            for index, beam in enumerate(kept):
                if not beam.is_done:
                    candidates += [
                        Beam((*beam.tokens, token), beam.log_prob + float(log_prob))
                        for token, log_prob in enumerate(log_probs[image, index])
                        if np.isfinite(log_prob)
                    ]
            candidates.sort(key=lambda beam: -beam.score(alpha))
            beams[image] = candidates[:num_beams]
            if any(not beam.is_done for beam in kept):
                last_in, first_out = candidates[num_beams - 1 : num_beams + 1]
                smallest[image] = min(smallest[image], last_in.score(alpha) - first_out.score(alpha))
    results = []
    for image, kept in enumerate(beams):
        best, to_second = kept[0], 0.0
        if num_beams > 1:
            to_second = best.score(alpha) - kept[1].score(alpha)
            smallest[image] = min(smallest[image], to_second)
        tokens = [*best.tokens, *[PADDING] * (max_length - len(best.tokens))]
        count = len(best.tokens) - 1
        results.append(Reference(tokens, best.log_prob, count, smallest[image], to_second))
    return results


def assert_equal(case: Case, generated: Generated, expected: list[Reference]) -> None:
    clear = [image for image, reference in enumerate(expected) if reference.smallest > TIE]
    # Were most of them ties, the comparison would say nothing.
    assert len(clear) >= len(expected) / 2
    for image in clear:
        reference = expected[image]
        assert generated.token_ids[image].numpy().tolist() == reference.tokens
        assert int(generated.token_count[image]) == reference.token_count
        assert float(generated.log_prob[image]) == pytest.approx(reference.log_prob, abs=1e-4)
        entropy, min_log_prob = along(case, image, reference)
        assert float(generated.entropy[image]) == pytest.approx(entropy, abs=1e-4)
        assert float(generated.min_log_prob[image]) == pytest.approx(min_log_prob, abs=1e-4)
        assert float(generated.margin[image]) == pytest.approx(reference.to_second, abs=1e-4)


@contextlib.contextmanager
def output_bias(model: CaptionModel, tokens: list[int], bias: float) -> Iterator[None]:
    """Makes some tokens more or less likely than they are."""
    variable = model.output_dense.bias
    before = variable.numpy()
    variable.assign(before + bias * np.isin(np.arange(len(before)), tokens))
    try:
        yield
    finally:
        variable.assign(before)


def test_the_captions_are_worth_comparing(case: Case) -> None:
    """They differ from image to image; some end early."""
    generated = generate(case.model, case.encoded, GenerationConfig())
    assert len({tuple(row) for row in generated.token_ids.numpy().tolist()}) >= 4
    ended = [END in row for row in generated.token_ids.numpy()[:, :-1].tolist()]
    assert any(ended) and not all(ended)
    assert len(set(generated.token_count.numpy().tolist())) >= 3


@pytest.mark.parametrize("max_length", [None, 3, 7])
def test_greedy_equals_the_reference(case: Case, max_length: int | None) -> None:
    generated = generate(case.model, case.encoded, GenerationConfig(max_length=max_length))
    assert_equal(case, generated, greedy(case, max_length or case.model.config.sequence_length))


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "max_length"),
    [
        *((2, 0.0, None), (2, 0.7, None), (2, 1.0, 3)),
        *((3, 1.0, None), (3, 0.7, 6)),
        *((5, 0.0, None), (5, 0.7, None), (5, 1.0, 3)),
    ],
)
def test_beam_search_equals_the_reference(
    case: Case, num_beams: int, length_penalty: float, max_length: int | None
) -> None:
    generation = GenerationConfig(num_beams, length_penalty, max_length)
    generated = generate(case.model, case.encoded, generation)
    assert_equal(
        case, generated, beam_search(case, generation, max_length or case.model.config.sequence_length)
    )


def test_the_two_references_agree(case: Case) -> None:
    """Beam search with one beam is greedy search, whatever the length penalty."""
    length = case.model.config.sequence_length
    expected = greedy(case, length)
    for length_penalty in (0.0, 1.0):
        beams = beam_search(case, GenerationConfig(1, length_penalty), length)
        assert [(b.tokens, b.token_count) for b in beams] == [(g.tokens, g.token_count) for g in expected]
        assert [b.log_prob for b in beams] == pytest.approx([g.log_prob for g in expected])


def test_options_matter(case: Case) -> None:
    """Beams and length penalty change some caption; otherwise the tests above would prove little."""

    def tokens(*options: float) -> list[list[int]]:
        return generate(case.model, case.encoded, GenerationConfig(*options)).token_ids.numpy().tolist()  # type: ignore[arg-type]

    assert tokens(1) != tokens(5, 0.0)
    assert tokens(5, 0.0) != tokens(5, 1.0)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_inside_a_function_equals_eager(case: Case, num_beams: int) -> None:
    generation = GenerationConfig(num_beams)
    compiled = tf.function(lambda encoded: generate(case.model, encoded, generation))(case.encoded)
    eager = generate(case.model, case.encoded, generation)
    assert_same(compiled, eager)


def assert_same(generated: Generated, expected: Generated) -> None:
    np.testing.assert_array_equal(generated.token_ids.numpy(), expected.token_ids.numpy())
    np.testing.assert_array_equal(generated.token_count.numpy(), expected.token_count.numpy())
    for name in ("log_prob", "margin", "entropy", "min_log_prob"):
        np.testing.assert_allclose(getattr(generated, name), getattr(expected, name), atol=1e-4)


@pytest.mark.parametrize("cache_kind", ["absorbed", "keys_values"])
@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_what_is_cached_changes_nothing(case: Case, num_beams: int, cache_kind: CacheKind) -> None:
    generation = GenerationConfig(num_beams, 0.7)
    generated = generate(case.model, case.encoded, generation, cache_kind=cache_kind)
    assert_same(generated, generate(case.model, case.encoded, generation))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_fixed_shapes_for_xla_change_nothing(case: Case, num_beams: int) -> None:
    generation = GenerationConfig(num_beams)
    search = BeamSearch(case.model, generation, has_fixed_shapes=True)
    compiled = tf.function(search, jit_compile=True, autograph=False)
    assert_same(compiled(tf.constant(case.encoded)), generate(case.model, case.encoded, generation))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_images_that_have_ended_leave_the_batch(case: Case, num_beams: int) -> None:
    """And come back to their places: of many images, in any order, each has the caption that it has alone."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(IMAGES), 5))
    generation = GenerationConfig(num_beams)
    rows: list[int] = []

    class Counting(BeamSearch):
        def _drop(self, running, kept):  # type: ignore[no-untyped-def]
            rows.append(len(kept))
            return super()._drop(running, kept)

    # So that some captions end early, some late.
    with output_bias(case.model, [END], 1.5):
        # Outside of a tf.function, where every step is seen.
        together = Counting(case.model, generation)(tf.constant(case.encoded[order]))
        alone = generate(case.model, case.encoded, generation)
    assert_same(together, Generated(*(tf.gather(values, order) for values in alone)))
    assert rows == sorted(rows, reverse=True)
    assert [count for count in rows if 0 < count < len(order)]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_one_image_equals_many(case: Case, num_beams: int) -> None:
    """Images of a batch end at different steps; those that go on must not change those that ended."""
    generation = GenerationConfig(num_beams)
    together = generate(case.model, case.encoded, generation)
    for image in range(3):
        alone = generate(case.model, case.encoded[image : image + 1], generation)
        np.testing.assert_array_equal(alone.token_ids[0].numpy(), together.token_ids[image].numpy())
        for name in ("log_prob", "margin", "entropy", "min_log_prob"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(together, name)[image], atol=1e-4)


@pytest.mark.parametrize("num_beams", [1, 5])
def test_the_form_of_a_caption(case: Case, num_beams: int) -> None:
    """Start, words, perhaps an end, then padding alone."""
    generated = generate(case.model, case.encoded, GenerationConfig(num_beams))
    for row, count in zip(generated.token_ids.numpy().tolist(), generated.token_count.numpy(), strict=True):
        assert row[0] == START
        caption, rest = row[1 : count + 1], row[count + 1 :]
        assert not set(caption) & set(FORBIDDEN)
        assert END not in caption[:-1]
        assert set(rest) <= {PADDING}
        assert not rest or caption[-1] == END


@pytest.mark.parametrize("num_beams", [1, 3])
def test_forbidden_tokens_are_never_chosen_however_likely(case: Case, num_beams: int) -> None:
    with output_bias(case.model, FORBIDDEN, 50.0):
        generated = generate(case.model, case.encoded, GenerationConfig(num_beams))
    for row, count in zip(generated.token_ids.numpy().tolist(), generated.token_count.numpy(), strict=True):
        assert not set(row[1 : count + 1]) & set(FORBIDDEN)
    # Their share of the probability is gone, not handed to the others.
    assert (generated.log_prob.numpy() < -40).all()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_when_every_caption_ends_at_once(case: Case, num_beams: int) -> None:
    with output_bias(case.model, [END], 60.0):
        generated = generate(case.model, case.encoded, GenerationConfig(num_beams))
    length = case.model.config.sequence_length
    assert generated.token_ids.numpy().tolist() == [[START, END] + [PADDING] * (length - 2)] * IMAGES
    assert generated.token_count.numpy().tolist() == [1] * IMAGES
    for signal in (generated.log_prob, generated.entropy, generated.min_log_prob):
        np.testing.assert_allclose(signal.numpy(), 0, atol=1e-4)
    # The second beam is all but impossible: the difference says so, and no more.
    assert generated.margin.numpy().tolist() == [0.0 if num_beams == 1 else 10.0] * IMAGES


@pytest.mark.parametrize("num_beams", [1, 3])
def test_when_no_caption_ends(case: Case, num_beams: int) -> None:
    with output_bias(case.model, [END], -60.0):
        generated = generate(case.model, case.encoded, GenerationConfig(num_beams, max_length=6))
    assert generated.token_ids.shape == (IMAGES, 6)
    assert generated.token_count.numpy().tolist() == [5] * IMAGES
    assert not set(generated.token_ids.numpy()[:, 1:].flatten().tolist()) & {END, *FORBIDDEN}


def test_max_length_beyond_the_model_is_the_models(case: Case) -> None:
    generated = generate(case.model, case.encoded, GenerationConfig(max_length=50))
    assert generated.token_ids.shape == (IMAGES, case.model.config.sequence_length)


@pytest.mark.parametrize("size", [7, 1000, 1234])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_top_k_equals_tensorflows(size: int, k: int, levels: int) -> None:
    """Also where many values are equal: of those the first ones are taken."""
    values = np.random.default_rng(k).integers(-levels, 0, (4, 3, size)).astype(np.float32)
    values[0, 0] = values.dtype.type(-1e30)
    expected = tf.math.top_k(values, k)
    best, places = top_k(tf.constant(values), k)
    np.testing.assert_array_equal(places, expected.indices)
    np.testing.assert_array_equal(best, expected.values)
