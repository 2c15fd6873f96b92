"""A CNN learns the words of captions."""

from pathlib import Path

import keras
import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from batchcap.captioner.backbone import build_backbone
from batchcap.captioner.bundle import Bundle
from batchcap.errors import TrainingError
from model_training import pretrained, tune_cnn
from model_training.datasets import CaptionedImage
from model_training.pretrained import load_backbone_weights
from model_training.tune_cnn import content_words, mean_average_precision, word_shares
from tests.conftest import COLOURS, DataSet
from tests.training.test_training import cache_of, converted_once, train

NAME = "efficientnet_lite0"
SIZE = 64


def run(data_set: DataSet, output: Path, **changes: object) -> Result:
    app = typer.Typer()
    app.command()(tune_cnn.main)
    options = {
        "data": data_set.data,
        "captions": data_set.captions,
        "train-split": data_set.train_split,
        "dev-split": data_set.dev_split,
        "cache-dir": cache_of(data_set),
        "image-size": SIZE,
        "batch-size": 5,
        **changes,
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "convert_lite", converted_once)
        return CliRunner().invoke(app, [NAME, str(output), *arguments])


@pytest.fixture(scope="module")
def tuned(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Weights that the command has written, and what came of it."""
    path = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    return path, run(data_set, path, epochs=3, lr=0.001)


def images(*captions: tuple[str, ...]) -> list[CaptionedImage]:
    return [CaptionedImage(f"{number}.jpg", texts) for number, texts in enumerate(captions)]


def test_words_are_neither_rare_nor_everywhere() -> None:
    some = images(*[(f"A dog number{n}.", "the DOG" if n % 2 else "a cat") for n in range(200)])
    # "a" and "dog" stand with all images, "number17" with one of 200.
    assert content_words(some) == ["cat", "the"]
    with pytest.raises(TrainingError, match="no word stands in the captions"):
        content_words(images(("a dog",), ("a dog",)))


def test_the_share_of_an_images_captions_that_have_a_word() -> None:
    some = images(("A dog, a dog!", "a cat"), ("nothing",), ("dog cat", "cat", "cat", "Cat."))
    np.testing.assert_allclose(word_shares(some, ["cat", "dog"]), [[0.5, 0.5], [0, 0], [1, 0.25]])


def test_mean_average_precision_is_its_definition() -> None:
    scores = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 4.0, 0.0]])
    is_there = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], bool)
    # The first word's images come first: 1. The second's come first and last: (1/1 + 2/4) / 2. The third's
    # are none.
    assert mean_average_precision(scores, is_there) == pytest.approx((1 + 0.75) / 2)
    assert mean_average_precision(scores, np.zeros_like(is_there)) == 0


def test_words_are_told_better_than_before(tuned: tuple[Path, Result]) -> None:
    _, result = tuned
    assert result.exit_code == 0, result.output
    first, *epochs, last = result.stdout.splitlines()[2:]
    assert first.startswith(f"{len(COLOURS)} words; as it came: dev loss ")
    assert len(epochs) == 3
    assert last.startswith("the weights are in ")

    def loss_of(line: str) -> float:
        return float(line.partition("dev loss ")[2].partition(",")[0])

    assert loss_of(last) == min(map(loss_of, epochs)) < loss_of(first)


def test_the_beginning_of_the_cnn_stays(tuned: tuple[Path, Result]) -> None:
    path, _ = tuned
    before, after = (build_backbone(NAME, SIZE) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "convert_lite", converted_once)
        load_backbone_weights(before, NAME, "imagenet")
    load_backbone_weights(after, NAME, str(path))

    def changed(layer: str) -> bool:
        pairs = zip(before.get_layer(layer).weights, after.get_layer(layer).weights, strict=True)
        return any((old.numpy() != new.numpy()).any() for old, new in pairs)

    layers = [layer.name for layer in before.layers if layer.weights]
    learns = {name: changed(name) for name in layers}
    assert not any(learns[name] for name in ("stem_conv", "block0_depthwise_conv", "block2_project_conv"))
    assert all(learns[name] for name in ("block4_expand_conv", "block11_project_conv", "head_conv"))
    for layer in after.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            twin = before.get_layer(layer.name)
            np.testing.assert_array_equal(layer.moving_mean, twin.moving_mean)


def test_a_captioner_is_trained_on_it(tuned: tuple[Path, Result], data_set: DataSet, tmp_path: Path) -> None:
    path, _ = tuned
    train(data_set, tmp_path / "run", backbone_weights=path, epochs=1, batch_size=75, compiled=False)
    backbone = build_backbone(NAME, SIZE)
    load_backbone_weights(backbone, NAME, str(path))
    weights = Bundle.open(tmp_path / "run").weights()
    kernel = backbone.get_layer("head_conv").weights[0].numpy()
    np.testing.assert_allclose(weights["backbone/head_conv/kernel"], kernel, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "no.tsv"}, "can't read the captions"),
        ({"backbone-weights": "no.safetensors"}, "no weights at no.safetensors"),
        ({"data": "nowhere"}, "can be decoded"),
        ({"lr": 0}, "no epoch was better"),
    ],
)
def test_bad_input_is_one_line(
    data_set: DataSet, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    result = run(data_set, tmp_path / "out.safetensors", **{"epochs": 1, **options})
    assert result.exit_code == 1
    assert result.stderr.startswith("tune_cnn: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [("no/out.safetensors", "there is no folder"), ("out.bin", "must end in .safetensors")],
)
def test_an_output_that_can_not_be_is_refused_at_once(
    data_set: DataSet, tmp_path: Path, output: str, message: str
) -> None:
    result = run(data_set, tmp_path / output, captions="not looked at")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
