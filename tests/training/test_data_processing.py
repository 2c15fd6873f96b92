"""Captioned pictures on disk -> what the trainer takes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.config import CaptionerConfig
from batchcap.captioner.images import decode_image
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, Tokenizer
from batchcap.errors import TrainingError
from model_training.augmentation import random_crops
from model_training.data_processing import (
    ImageArrays,
    batches_per_epoch,
    encode_captions,
    load_features,
    load_pixels,
    prefetch,
    train_batches,
)
from model_training.datasets import CaptionedImage, read_dataset
from model_training.pretrained import load_backbone_weights
from tests.conftest import DataSet


@pytest.fixture(scope="module")
def model(tiny_config: CaptionerConfig) -> CaptionModel:
    """With real weights: random ones without training leave nothing of a picture but zeros."""
    model = CaptionModel(tiny_config)
    load_backbone_weights(model.backbone, "efficientnet_lite0", "imagenet")
    return model


def train_images(data_set: DataSet) -> tuple[CaptionedImage, ...]:
    splits = {"train_split": data_set.train_split, "dev_split": data_set.dev_split}
    return read_dataset(data_set.captions, **splits).train


def features_of(
    data_set: DataSet,
    model: CaptionModel,
    cache_dir: Path,
    images: Sequence[CaptionedImage] = (),
    views: int = 2,
) -> ImageArrays:
    images = images or train_images(data_set)
    pixels = load_pixels(images, data_set.data, model.config.image, cache_dir)
    return load_features(model, pixels, cache_dir, views=views, batch_size=4)


def test_pixels_are_those_that_are_served(data_set: DataSet, model: CaptionModel, tmp_path: Path) -> None:
    found = load_pixels(train_images(data_set), data_set.data, model.config.image, tmp_path)
    assert found.views.shape == (15, 1, 64, 64, 3)
    for image, pixels in zip(found.images, found.views[:, 0], strict=True):
        served = decode_image((data_set.data / image.name).read_bytes(), model.config.image)
        np.testing.assert_array_equal(pixels, served)


def test_features_are_those_of_the_served_pixels_and_of_their_mirror_image(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    found = features_of(data_set, model, tmp_path)
    assert found.views.shape == (15, 2, *model.feature_shape)
    for row in (0, 7, 14):
        pixels = decode_image((data_set.data / found.images[row].name).read_bytes(), model.config.image)
        both = np.stack([pixels, pixels[:, ::-1]])
        np.testing.assert_allclose(found.views[row], model.extract_features(both), rtol=2e-2, atol=2e-2)


def test_more_views_are_crops_that_stay_the_same(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    plain = features_of(data_set, model, tmp_path / "one")
    found = features_of(data_set, model, tmp_path / "one", views=4)
    again = features_of(data_set, model, tmp_path / "two", views=4)
    np.testing.assert_array_equal(found.views[:, :2], plain.views)
    np.testing.assert_array_equal(found.views, again.views)
    assert all(not np.array_equal(found.views[0, 2], found.views[0, view]) for view in (0, 1, 3))


def test_crops_are_parts_of_the_picture_and_half_of_them_mirrored() -> None:
    """The picture is its own map: red says how far right a pixel is, green how far down."""
    right, down = np.meshgrid(np.arange(64.0), np.arange(64.0))
    picture = np.stack([right, down, np.zeros_like(right)], -1).astype(np.float32)
    crops = random_crops(np.stack([picture] * 200), seed=(1, 2)).numpy()
    left, top, end, bottom = crops[:, 0, 0, 0], crops[:, 0, 0, 1], crops[:, -1, -1, 0], crops[:, -1, -1, 1]
    area = np.abs(end - left) * (bottom - top) / 63**2
    assert crops.min() >= 0 and crops.max() <= 63.01
    assert 0.45 < area.min() < 0.6 and area.max() > 0.9
    assert 60 < (end < left).sum() < 140
    np.testing.assert_array_equal(crops, random_crops(np.stack([picture] * 200), seed=(1, 2)).numpy())


def test_a_broken_picture_is_reported_and_left_out(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    found = features_of(data_set, model, tmp_path)
    assert [name for name, _ in found.failed] == ["23.png"]
    assert "23.png" not in {image.name for image in found.images}
    missing = [CaptionedImage("no.png", ("A cat .",))]
    with pytest.raises(TrainingError, match="none of the 1 images"):
        load_pixels(missing, data_set.data, model.config.image, tmp_path)


def test_pixels_and_features_are_computed_once_and_again_when_a_file_changes(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    images = train_images(data_set)[:3]
    data = tmp_path / "images"
    data.mkdir()
    for image in images:
        (data / image.name).write_bytes((data_set.data / image.name).read_bytes())
    copied = replace(data_set, data=data)
    first = features_of(copied, model, tmp_path / "cache", images)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(before) == 3, "pixels, their index, features, and nothing half-written"
    again = features_of(copied, model, tmp_path / "cache", images)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    np.testing.assert_array_equal(first.views, again.views)
    (data / images[0].name).write_bytes((data_set.data / images[1].name).read_bytes() + b"\0")
    changed = features_of(copied, model, tmp_path / "cache", images)
    assert not np.array_equal(first.views[0], changed.views[0])
    np.testing.assert_array_equal(changed.views[0], changed.views[1])


def test_features_are_kept_for_the_weights_that_made_them(
    data_set: DataSet, model: CaptionModel, tiny_config: CaptionerConfig, tmp_path: Path
) -> None:
    images = train_images(data_set)[:2]

    def kept() -> int:
        return len(list(tmp_path.glob("features-*")))

    first = features_of(data_set, model, tmp_path, images)
    other = CaptionModel(tiny_config)
    features_of(data_set, other, tmp_path, images)
    assert kept() == 2
    weights = model.backbone.get_weights()
    other.backbone.set_weights(weights)
    same = features_of(data_set, other, tmp_path, images)
    assert kept() == 2, "equal weights of another network are the same weights"
    np.testing.assert_array_equal(same.views, first.views)
    other.backbone.set_weights([*weights[:-1], weights[-1] * 1.5])
    changed = features_of(data_set, other, tmp_path, images)
    assert kept() == 3
    assert not np.array_equal(changed.views, first.views)


def test_a_cache_that_can_not_be_used_is_one_line(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = "can't keep images and features in .*: .*give another --cache_dir"
    with pytest.raises(TrainingError, match=message):
        features_of(data_set, model, tmp_path / "file")
    features_of(data_set, model, tmp_path / "cache")
    for pattern in ("pixels-*.json", "features-*.npy"):
        (path,) = (tmp_path / "cache").glob(pattern)
        content = path.read_bytes()
        path.write_bytes(content[:10])
        with pytest.raises(TrainingError, match=message):
            features_of(data_set, model, tmp_path / "cache")
        path.write_bytes(content)


def test_prefetching_keeps_the_order_and_passes_errors_on() -> None:
    assert list(prefetch(range(5))) == [0, 1, 2, 3, 4]
    assert list(prefetch([])) == []

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("read error")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="read error"):
        next(items)


@pytest.fixture
def features() -> ImageArrays:
    """17 images with one to four captions; the features of image i are i, or -i in the mirror."""
    images = tuple(
        CaptionedImage(f"{i}.png", tuple(f"word{i} " + "more " * (3 * c) for c in range(1 + i % 4)))
        for i in range(17)
    )
    rows = np.arange(17, dtype=np.float16)[:, None, None, None]
    return ImageArrays(images, np.concatenate([rows, -rows], axis=1), (), "made up")


def batches_of(features: ImageArrays, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    tokenizer = Tokenizer.from_captions(text for image in features.images for text in image.captions)
    batches = train_batches(
        features.views,
        encode_captions(features.images, tokenizer, 12),
        [np.ones(len(image.captions), np.float32) for image in features.images],
        batch_size=6,
        captions_per_image=2,
        rng=np.random.default_rng(seed),
    )
    return [(batch.inputs[:, 0], batch.token_ids) for batch in batches]


def test_an_epoch_has_every_image_once_with_captions_of_its_own(features: ImageArrays) -> None:
    tokenizer = Tokenizer.from_captions(text for image in features.images for text in image.captions)
    seen: Counter[int] = Counter()
    for values, token_ids in batches_of(features, seed=1):
        assert len(values) == len(token_ids) <= 3
        for value, rows in zip(values, token_ids, strict=True):
            number = abs(int(value.item()))
            seen[number] += 1
            assert {tokenizer.decode(row).split()[0] for row in rows.tolist()} == {f"word{number}"}
    assert seen == Counter(range(17))


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 130])
@pytest.mark.parametrize("batch_size", [1, 5, 7, 9, 10, 14, 1000])
def test_an_epoch_has_as_many_batches_as_planned(count: int, batch_size: int) -> None:
    """64 images are a pool of two images a batch, 32 one of a single image a batch."""
    images = tuple(CaptionedImage(f"{i}.png", ("a cat", "a " * (i % 7))) for i in range(count))
    batches = train_batches(
        np.zeros((count, 2, 1, 1), np.float16),
        encode_captions(images, Tokenizer(["a", "cat"]), 8),
        [np.ones(2, np.float32)] * count,
        batch_size=batch_size,
        captions_per_image=5,
        rng=np.random.default_rng(count),
    )
    planned = batches_per_epoch(count, batch_size=batch_size, captions_per_image=5)
    assert len(list(batches)) == planned


def test_weights_stay_with_their_captions() -> None:
    # Of image i, caption c is the one token 10 i + c, and counts as much.
    token_ids = [np.array([[10 * i + c] for c in range(1 + i % 4)], np.int32) for i in range(1, 18)]
    batches = train_batches(
        np.zeros((17, 2, 1, 1), np.float16),
        token_ids,
        [ids[:, 0].astype(np.float32) for ids in token_ids],
        batch_size=6,
        captions_per_image=2,
        rng=np.random.default_rng(0),
    )
    for batch in batches:
        np.testing.assert_array_equal(batch.token_ids[:, :, 0], batch.weights)


def test_two_views_of_an_image_are_drawn_apart(features: ImageArrays) -> None:
    token_ids = [np.array([[1, 2, 3]], np.int32)] * 17
    batches = train_batches(
        features.views,
        token_ids,
        [np.ones(1, np.float32)] * 17,
        batch_size=6,
        captions_per_image=2,
        rng=np.random.default_rng(0),
        views_per_image=2,
    )
    drawn = np.concatenate([batch.inputs for batch in batches])[..., 0, 0]  # images, views
    assert (abs(drawn[:, 0]) == abs(drawn[:, 1])).all()
    assert sorted(abs(drawn[:, 0])) == list(range(17))
    is_same = drawn[:, 0] == drawn[:, 1]
    assert is_same.any() and not is_same[1:].all()


def test_batches_are_padded_to_few_lengths_and_lose_no_token(features: ImageArrays) -> None:
    for _, token_ids in batches_of(features, seed=2):
        length = token_ids.shape[-1]
        assert length == 12 or length % 4 == 1
        assert (token_ids[:, :, 0] == START).all()
        assert (np.sum(token_ids == END, axis=-1) == 1).all()
        assert (token_ids[:, :, -4:] != PADDING).any() or length <= 5


def test_the_order_follows_the_seed_alone(features: ImageArrays) -> None:
    first, again, other = (batches_of(features, seed) for seed in (3, 3, 4))
    assert all(
        np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert any(
        x[0].shape != y[0].shape or not np.array_equal(x[0], y[0]) for x, y in zip(first, other, strict=True)
    )
