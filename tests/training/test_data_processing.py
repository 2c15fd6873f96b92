"""Captioned pictures on disk -> what the trainer takes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from batchcap.captioner.config import CaptionerConfig
from batchcap.captioner.images import decode_image
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import END, PADDING, START, Tokenizer
from batchcap.errors import TrainingError
from model_training.data_processing import FeatureSet, batches_per_epoch, load_features, train_batches
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


def test_features_are_those_of_the_served_pixels_and_of_their_mirror_image(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    images = train_images(data_set)
    found = load_features(model, images, data_set.data, tmp_path, batch_size=4)
    assert found.features.shape == (15, 2, *model.feature_shape)
    for row in (0, 7, 14):
        pixels = decode_image((data_set.data / found.images[row].name).read_bytes(), model.config.image)
        both = np.stack([pixels, pixels[:, ::-1]])
        np.testing.assert_allclose(found.features[row], model.extract_features(both), rtol=2e-2, atol=2e-2)


def test_a_broken_picture_is_reported_and_left_out(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    images = train_images(data_set)
    found = load_features(model, images, data_set.data, tmp_path)
    assert [name for name, _ in found.failed] == ["23.png"]
    assert "23.png" not in {image.name for image in found.images}
    missing = [CaptionedImage("no.png", ("A cat .",))]
    with pytest.raises(TrainingError, match="none of the 1 images"):
        load_features(model, missing, data_set.data, tmp_path)


def test_features_are_computed_once_and_again_when_a_file_changes(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    images = train_images(data_set)[:3]
    data = tmp_path / "images"
    data.mkdir()
    for image in images:
        (data / image.name).write_bytes((data_set.data / image.name).read_bytes())
    first = load_features(model, images, data, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    before = (folder / "features.npy").stat()
    again = load_features(model, images, data, tmp_path / "cache")
    assert (folder / "features.npy").stat().st_mtime_ns == before.st_mtime_ns
    np.testing.assert_array_equal(first.features, again.features)
    (data / images[0].name).write_bytes((data_set.data / images[1].name).read_bytes() + b"\0")
    changed = load_features(model, images, data, tmp_path / "cache")
    assert not np.array_equal(first.features[0], changed.features[0])
    np.testing.assert_array_equal(changed.features[0], changed.features[1])


def test_features_are_kept_for_the_weights_that_made_them(
    data_set: DataSet, model: CaptionModel, tiny_config: CaptionerConfig, tmp_path: Path
) -> None:
    images = train_images(data_set)[:2]
    first = load_features(model, images, data_set.data, tmp_path)
    other = CaptionModel(tiny_config)
    load_features(other, images, data_set.data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    weights = model.backbone.get_weights()
    other.backbone.set_weights(weights)
    same = load_features(other, images, data_set.data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "equal weights of another network are the same weights"
    np.testing.assert_array_equal(same.features, first.features)
    other.backbone.set_weights([*weights[:-1], weights[-1] * 1.5])
    changed = load_features(other, images, data_set.data, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert not np.array_equal(changed.features, first.features)


def test_a_cache_that_can_not_be_written_is_one_line(
    data_set: DataSet, model: CaptionModel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="can't keep features in .*file: .*give another --cache_dir"):
        load_features(model, train_images(data_set), data_set.data, tmp_path / "file")


@pytest.fixture
def features() -> FeatureSet:
    """17 images with one to four captions; the features of image i are i, or -i in the mirror."""
    images = tuple(
        CaptionedImage(f"{i}.png", tuple(f"word{i} " + "more " * (3 * c) for c in range(1 + i % 4)))
        for i in range(17)
    )
    rows = np.arange(17, dtype=np.float16)[:, None, None, None]
    return FeatureSet(images, np.concatenate([rows, -rows], axis=1), ())


def batches_of(features: FeatureSet, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    tokenizer = Tokenizer.from_captions(text for image in features.images for text in image.captions)
    batches = train_batches(
        features,
        tokenizer,
        sequence_length=12,
        batch_size=6,
        captions_per_image=2,
        rng=np.random.default_rng(seed),
    )
    return [(batch.features, batch.token_ids) for batch in batches]


def test_an_epoch_has_every_image_once_with_captions_of_its_own(features: FeatureSet) -> None:
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
    features = FeatureSet(images, np.zeros((count, 2, 1, 1), np.float16), ())
    batches = train_batches(
        features,
        Tokenizer(["a", "cat"]),
        sequence_length=8,
        batch_size=batch_size,
        captions_per_image=5,
        rng=np.random.default_rng(count),
    )
    planned = batches_per_epoch(count, batch_size=batch_size, captions_per_image=5)
    assert len(list(batches)) == planned


def test_batches_are_padded_to_few_lengths_and_lose_no_token(features: FeatureSet) -> None:
    for _, token_ids in batches_of(features, seed=2):
        length = token_ids.shape[-1]
        assert length == 12 or length % 4 == 1
        assert (token_ids[:, :, 0] == START).all()
        assert (np.sum(token_ids == END, axis=-1) == 1).all()
        assert (token_ids[:, :, -4:] != PADDING).any() or length <= 5


def test_the_order_follows_the_seed_alone(features: FeatureSet) -> None:
    first, again, other = (batches_of(features, seed) for seed in (3, 3, 4))
    assert all(
        np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert any(
        x[0].shape != y[0].shape or not np.array_equal(x[0], y[0]) for x, y in zip(first, other, strict=True)
    )
