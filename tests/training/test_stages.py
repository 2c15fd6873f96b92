"""The stages of a run, step by step: what each of them changes, and what it draws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchcap.captioner.config import CaptionerConfig
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, UNKNOWN, Tokenizer
from model_training.config import TrainConfig
from model_training.cross_entropy import CAPTIONS_PER_IMAGE, CrossEntropyStage
from model_training.data_processing import ImageArrays, encode_captions
from model_training.datasets import CaptionedImage
from model_training.distillation import Teachers, soft_cross_entropy
from model_training.distribution import Replicas
from model_training.fine_tuning import freeze
from model_training.losses import disagreement, smoothed_cross_entropy, sums
from model_training.self_critical import SelfCriticalStage, draw_captions
from model_training.text_warmup import TextStage
from tests.conftest import WORDS
from tests.training.conftest import uncompiled

TEXTS = ["a dog runs on grass", "two people on the beach", "a red ball", "the cat sleeps on a sofa"]
REPLICAS = Replicas(tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def untrained(tiny_config: CaptionerConfig) -> tuple[CaptionModel, list[np.ndarray]]:
    """A network, and what all its variables are at first, those of random generators included."""
    keras.utils.set_random_seed(0)
    model = CaptionModel(replace(tiny_config, residual_dropout=0.1))
    return model, [variable.numpy() for variable in model.variables]


@pytest.fixture
def model(untrained: tuple[CaptionModel, list[np.ndarray]]) -> CaptionModel:
    """As good as new: to build one for each test takes longer than most of them."""
    model, values = untrained
    keras.utils.set_random_seed(0)
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    freeze(model.backbone, "none")
    return model


@pytest.fixture
def config() -> TrainConfig:
    unused = Path("unused")
    return TrainConfig(
        unused, unused, batch_size=20, epochs=2, lr=0.01, warmup_steps=1, scst_epochs=2, scst_lr=0.01
    )


@pytest.fixture
def arrays(model: CaptionModel) -> ImageArrays:
    """Eight images of four kinds, whose features say which kind."""
    images = tuple(CaptionedImage(f"{i}.png", (TEXTS[i % 4], f"{TEXTS[i % 4]} and a ball")) for i in range(8))
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 1, (4, 1, *model.feature_shape)).astype(np.float16)
    return ImageArrays(images, kinds[np.arange(8) % 4].repeat(2, axis=1), (), "made up")


def cross_entropy(model: CaptionModel, config: TrainConfig, arrays: ImageArrays) -> CrossEntropyStage:
    token_ids = encode_captions(arrays.images, Tokenizer(WORDS), model.config.sequence_length)
    return CrossEntropyStage(model, config, arrays.views, token_ids, REPLICAS)


def changed(model: CaptionModel, train: Callable[[], object]) -> set[str]:
    """The names of the weights that a training changes."""
    before = {name: weight.numpy() for name, weight in model.weights_by_name().items()}
    train()
    return {
        name for name, weight in model.weights_by_name().items() if not np.array_equal(before[name], weight)
    }


def run_epochs(stage, count: int) -> list[float]:
    """The mean of each epoch's losses."""
    losses = []
    for epoch in range(count):
        sums = [stage.step(batch) for batch in stage.batches(np.random.default_rng(epoch))]
        losses.append(sum(s["loss"] for s in sums) / sum(s["count"] for s in sums))
    return losses


def test_cross_entropy_falls_and_leaves_a_frozen_cnn_alone(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    stage = cross_entropy(model, replace(config, epochs=15, augment=True), arrays)
    losses: list[float] = []
    names = changed(model, lambda: losses.extend(run_epochs(stage, 15)))
    assert losses[-1] < 0.75 * losses[0]
    assert {name.split("/")[0] for name in names} == {
        "encoder0", "token_embedding", "position_embedding", "decoder0", "decoder1", "output",
    }  # fmt: skip


def test_the_text_stage_trains_the_decoder_alone(model: CaptionModel, config: TrainConfig) -> None:
    texts = TEXTS * 20
    config = replace(config, text_epochs=10)
    stage = TextStage(model, config, texts, Tokenizer(WORDS), REPLICAS)
    losses: list[float] = []
    names = changed(model, lambda: losses.extend(run_epochs(stage, 10)))
    assert losses[-1] < 0.7 * losses[0]
    assert {name.split("/")[0] for name in names} == {
        "token_embedding", "position_embedding", "decoder0", "decoder1", "output",
    }  # fmt: skip


def test_the_text_stage_shows_words_of_the_caption_but_not_the_most_frequent(
    model: CaptionModel, config: TrainConfig
) -> None:
    tokenizer = Tokenizer(WORDS)
    stage = TextStage(model, config, TEXTS * 20, tokenizer, REPLICAS)
    shown: set[int] = set()
    for batch in stage.batches(np.random.default_rng(0)):
        assert len(batch.token_ids) == len(batch.shown) <= config.batch_size
        for ids, words in zip(batch.token_ids.tolist(), batch.shown.tolist(), strict=True):
            assert set(words) - {PADDING} <= set(ids)
            shown |= set(words)
    assert shown >= set(tokenizer.encode("dog beach ball sofa", 6)[1:5].tolist())
    assert not shown & {UNKNOWN, START, END}


def test_self_critical_training_raises_the_reward(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    run_epochs(cross_entropy(model, replace(config, epochs=8), arrays), 8)
    stage = SelfCriticalStage(
        model, replace(config, scst_epochs=60, scst_lr=3e-3), arrays, Tokenizer(WORDS), REPLICAS
    )
    rewards = []
    for epoch in range(60):
        sums = [stage.step(batch) for batch in stage.batches(np.random.default_rng(epoch))]
        rewards.append(sum(s["reward"] for s in sums) / sum(s["count"] for s in sums))
    assert np.mean(rewards[-5:]) > 1.2 * np.mean(rewards[:5])


def test_captions_are_drawn_from_the_probabilities_of_the_network(
    model: CaptionModel, arrays: ImageArrays
) -> None:
    """The first word, drawn often, has the frequencies of the softmax over what may be drawn."""
    features = tf.cast(arrays.views[:1, 0], tf.float32)
    encoded = model.encode(features)
    draw = tf.function(lambda seed: draw_captions(model, encoded, 4000, 5, seed))
    token_ids = draw(tf.constant([1, 2])).numpy()[0]
    logits = model.decode(tf.constant([[[START, PADDING]]]), encoded).numpy()[0, 0, 0]
    logits[[PADDING, UNKNOWN, START]] = -np.inf
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found = np.bincount(token_ids[:, 1], minlength=len(expected)) / len(token_ids)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / 4000))
    np.testing.assert_array_equal(token_ids, draw(tf.constant([1, 2])).numpy()[0])
    assert not np.array_equal(token_ids, draw(tf.constant([1, 3])).numpy()[0])


def test_drawn_captions_end_once_and_are_padded(model: CaptionModel, arrays: ImageArrays) -> None:
    encoded = model.encode(tf.cast(arrays.views[:, 0], tf.float32))
    drawn = draw_captions(model, encoded, 20, 10, tf.constant([0, 0])).numpy().reshape(-1, 10)
    ends = (drawn == END).sum(-1)
    assert set(ends.tolist()) <= {0, 1}
    assert ends.any()
    for row in drawn[ends == 1]:
        assert (row[row.tolist().index(END) + 1 :] == PADDING).all()
    assert (drawn[ends == 0] != PADDING).all()
    assert not np.isin(drawn[:, 1:], [UNKNOWN, START]).any()


@pytest.mark.parametrize("train_cnn", ["top", "all"])
def test_the_cnn_is_trained_as_far_as_is_wanted(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays, train_cnn: str
) -> None:
    freeze(model.backbone, train_cnn)
    views = np.random.default_rng(0).integers(0, 256, (8, 1, 64, 64, 3)).astype(np.uint8)
    pixels = replace(arrays, views=views)
    stage = cross_entropy(model, replace(config, train_cnn=train_cnn, augment=True), pixels)
    with uncompiled():
        names = {name for name in changed(model, lambda: run_epochs(stage, 1)) if name.startswith("backbone")}
    layers = {name.split("/")[1] for name in names}
    assert not {name for name in names if name.endswith(("moving_mean", "moving_variance"))}
    assert {"head_conv", "block15_project_conv", "block11_project_conv"} <= layers
    assert ("stem_conv" in layers) == ("block10_project_conv" in layers) == (train_cnn == "all")


def test_averaged_weights_are_the_moving_average(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    stage = cross_entropy(model, replace(config, ema_momentum=0.9), arrays)
    average = [variable.numpy() for variable in stage.optimizer.variables]
    for batch in stage.batches(np.random.default_rng(0)):
        with uncompiled():
            stage.step(batch)
        latest = [variable.numpy() for variable in stage.optimizer.variables]
        average = [0.9 * old + 0.1 * new for old, new in zip(average, latest, strict=True)]
    targets = [keras.Variable(np.zeros(variable.shape, np.float32)) for variable in latest]
    stage.optimizer.copy_averaged(targets)
    for target, expected in zip(targets, average, strict=True):
        np.testing.assert_allclose(target.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert not all(np.allclose(old, new) for old, new in zip(average, latest, strict=True))


def test_gradients_are_clipped_to_the_norm_of_all_together(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    """Adam forgets the scale of gradients, so a small norm shows only where steps differ in it."""
    stage = cross_entropy(model, replace(config, clip_norm=1e-30), arrays)
    before = [variable.numpy() for variable in stage.optimizer.variables]
    with uncompiled():
        run_epochs(stage, 1)
    for old, variable in zip(before, stage.optimizer.variables, strict=True):
        # Below the epsilon of Adam nothing but weight decay moves a weight.
        np.testing.assert_allclose(variable.numpy(), old, rtol=1e-3, atol=1e-6)


def test_every_image_has_as_many_captions_in_a_batch(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    stage = cross_entropy(model, config, arrays)
    batches = list(stage.batches(np.random.default_rng(0)))
    assert [batch.token_ids.shape[:2] for batch in batches] == [(4, CAPTIONS_PER_IMAGE)] * 2
    left = list(stage.batches(np.random.default_rng(0), skip=1))
    np.testing.assert_array_equal(left[0].token_ids, batches[1].token_ids)
    np.testing.assert_array_equal(left[0].inputs, batches[1].inputs)


def test_captions_count_as_much_as_they_weigh(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    images = [CaptionedImage(f"{i}.png", (TEXTS[0], TEXTS[1])) for i in range(8)]
    token_ids = np.stack(encode_captions(images, Tokenizer(WORDS), model.config.sequence_length))
    encoded = model.encode(tf.cast(arrays.views[:, 0], tf.float32))

    def loss(rows: slice, captions: slice, weights: np.ndarray | None = None) -> float:
        ids = tf.constant(token_ids[rows, captions])
        return float(sums(model, encoded[rows], ids, weights, label_smoothing=0.1, training=False).loss)

    weights = np.random.default_rng(0).random((8, 2)).astype(np.float32)
    expected = sum(
        weight * loss(slice(row, row + 1), slice(caption, caption + 1))
        for (row, caption), weight in np.ndenumerate(weights)
    )
    everything = slice(None)
    assert loss(everything, everything, weights) == pytest.approx(expected, rel=1e-4)

    # Of two captions of an image, the one that counts is learnt.
    stage = CrossEntropyStage(
        model,
        replace(config, epochs=15),
        arrays.views,
        list(token_ids),
        REPLICAS,
        weights=[np.array([2, 0], np.float32)] * 8,
    )
    run_epochs(stage, 15)
    encoded = model.encode(tf.cast(arrays.views[:, 0], tf.float32))
    words = (token_ids[:, :, 1:] != PADDING).sum((0, 2))
    counted, other = (loss(everything, slice(n, n + 1)) / words[n] for n in range(2))
    assert counted < 0.5 * other


def test_smoothed_cross_entropy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, targets = (
        rng.normal(0, 2, (3, 5, 7)).astype(np.float32),
        rng.integers(0, 7, (3, 5), dtype=np.int32),
    )
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = 0.9 * np.eye(7)[targets] + 0.1 / 7
    expected = -(wanted * log_probs).sum(-1)
    np.testing.assert_allclose(smoothed_cross_entropy(tf.constant(targets), logits, 0.1), expected, rtol=1e-5)


def test_disagreement_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4, 2, 3, 7)).astype(np.float32)
    is_token = rng.integers(0, 2, (2, 2, 3)).astype(np.float32).repeat(2, axis=0)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 0.0
    for image, caption, position in np.argwhere(is_token[::2]):
        one, other = probabilities[2 * image : 2 * image + 2, caption, position]
        expected += (one * np.log(one / other)).sum() / 2 + (other * np.log(other / one)).sum() / 2
    np.testing.assert_allclose(disagreement(tf.constant(logits), is_token), expected, rtol=1e-4)


def test_two_passes_come_to_agree(model: CaptionModel, config: TrainConfig, arrays: ImageArrays) -> None:
    noise = np.random.default_rng(1).normal(0, 1, arrays.views.shape)
    noisy = replace(arrays, views=(arrays.views + noise).astype(np.float16))
    config = replace(config, consistency=100.0, batch_size=40, epochs=8)
    stage = cross_entropy(model, config, noisy)
    (batch,) = stage.batches(np.random.default_rng(0))
    assert batch.inputs.shape[:2] == (8, 2)

    def disagree() -> float:
        rows = tf.cast(batch.inputs.reshape(-1, *batch.inputs.shape[2:]), tf.float32)
        token_ids = np.repeat(batch.token_ids, 2, axis=0)
        logits = model.decode(token_ids[:, :, :-1], model.encode(rows))
        return float(disagreement(logits, (token_ids[:, :, 1:] != PADDING).astype(np.float32)))

    before = disagree()
    run_epochs(stage, 8)
    assert disagree() < 0.5 * before


def test_soft_cross_entropy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, targets = (rng.normal(0, 2, (3, 5, 7)).astype(np.float32) for _ in range(2))
    targets = np.exp(targets) / np.exp(targets).sum(-1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(targets * log_probs).sum(-1)
    np.testing.assert_allclose(soft_cross_entropy(targets, logits), expected, rtol=1e-5)
    one_hot = np.eye(7, dtype=np.float32)[[0, 3, 6]]
    np.testing.assert_allclose(
        soft_cross_entropy(one_hot, logits[:, 0]),
        smoothed_cross_entropy(tf.constant([0, 3, 6]), logits[:, 0], 0.0),
        rtol=1e-5,
    )


def test_teachers_predict_the_mean_of_their_probabilities(model: CaptionModel, arrays: ImageArrays) -> None:
    keras.utils.set_random_seed(1)
    other = CaptionModel(model.config)
    features = tf.cast(arrays.views[:, 0], tf.float32)
    token_ids = Tokenizer(WORDS).encode("a dog runs", 6)[None, None].repeat(8, axis=0)
    found = Teachers([model, other]).probabilities(features, token_ids)
    expected = [tf.nn.softmax(each.decode(token_ids, each.encode(features))) for each in (model, other)]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)
    assert not np.allclose(expected[0], expected[1])


def test_a_network_comes_to_predict_what_its_teachers_do(
    model: CaptionModel, config: TrainConfig, arrays: ImageArrays
) -> None:
    """Here they alone teach, so that what people wrote has no part in it."""
    teacher = CaptionModel(model.config)
    # Of random weights it would hold all words for about equally likely, as the student does.
    favours = np.random.default_rng(0).normal(0, 2, model.config.vocabulary_size)
    teacher.output_dense.bias.assign(favours)
    teachers = Teachers([teacher])
    token_ids = encode_captions(arrays.images, Tokenizer(WORDS), model.config.sequence_length)
    config = replace(config, epochs=15, distillation=1.0)
    stage = CrossEntropyStage(model, config, arrays.views, token_ids, REPLICAS, teachers)
    (batch, *_) = stage.batches(np.random.default_rng(0))
    inputs = batch.token_ids[:, :, :-1]
    features = tf.cast(batch.inputs[:, 0], tf.float32)
    wanted = teachers.probabilities(features, inputs).numpy()

    def distance() -> float:
        return float(np.abs(tf.nn.softmax(model.decode(inputs, model.encode(features))) - wanted).mean())

    before = distance()
    run_epochs(stage, 15)
    assert distance() < 0.5 * before
