"""Training on several devices and by several workers is training on one."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from batchcap.captioner.captioner import assign_weights
from batchcap.captioner.model import CaptionModel
from batchcap.captioner.tokenizer import Tokenizer
from model_training import train_model
from model_training.augmentation import random_boxes
from model_training.checkpoint import restore_checkpoint, save_checkpoint
from model_training.config import TrainConfig
from model_training.cross_entropy import CrossEntropyStage
from model_training.data_processing import ImageArrays, encode_captions
from model_training.datasets import CaptionedImage
from model_training.distribution import Replicas, own_rows, variables_of, vary_dropout
from model_training.fine_tuning import freeze
from model_training.self_critical import SelfCriticalStage
from model_training.text_warmup import TextStage
from tests.conftest import TINY, WORDS, DataSet
from tests.training.test_resume import history_of, weights_of
from tests.training.test_training import SHAPE, train

ROOT = Path(__file__).parents[2]
TEXTS = ("a dog runs on grass", "two people on the beach", "a red ball")
# Five images and three texts in one batch: they can't be shared evenly.
CONFIG = TrainConfig(
    Path("unused"),
    Path("unused"),
    batch_size=25,
    epochs=3,
    lr=1e-3,
    warmup_steps=0,
    scst_epochs=3,
    scst_lr=1e-3,
    ema_momentum=0.5,
    text_epochs=3,
)


# --- what runs on two devices, in a process of its own: TensorFlow is told of them before it starts ---


def on_devices(folder: Path) -> None:
    """Trains on one device and on two; writes what came out."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    found: dict[str, np.ndarray] = {}
    initial: dict[str, np.ndarray] = {}
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
        replicas = Replicas(strategy)
        with strategy.scope():
            model = CaptionModel(replace(TINY, dec_layers=1))
            freeze(model.backbone, "none")
            vary_dropout(model)
        initial = initial or {name: weight.numpy() for name, weight in model.weights_by_name().items()}
        rates = {layer: layer.rate for layer in model._flatten_layers() if hasattr(layer, "rate")}
        for layer in rates:
            layer.rate = 0.0
        found |= {
            f"{replicas.count}/{key}": value for key, value in results(model, replicas, initial).items()
        }
        if replicas.count == 2:
            for layer, rate in rates.items():
                layer.rate = rate
            found |= draws(model, replicas) | resumed(model, replicas, folder)
    np.savez(folder / "found.npz", **found)


def results(model: CaptionModel, replicas: Replicas, initial: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What each stage makes of the same weights: weights, averages, sums."""
    found: dict[str, Any] = {}
    for name, make in stages(model, replicas).items():
        assign_weights(model, initial)
        with replicas.strategy.scope():
            stage = make()
        # Averages are the latest weights before the second step.
        for epoch in range(2 if name == "xent" else 1):
            (batch,) = stage.batches(np.random.default_rng(epoch))
            sums = stage.step(batch)
            found |= {f"{name}/{epoch}/{key}": value for key, value in sums.items()}
        found |= {f"{name}/weights/{key}": w.numpy() for key, w in model.weights_by_name().items()}
        averages = [keras.Variable(np.zeros(v.shape, np.float32)) for v in stage.optimizer.variables]
        stage.optimizer.copy_averaged(averages)
        found |= {f"{name}/averages/{i}": average.numpy() for i, average in enumerate(averages)}
        found |= {f"{name}/latest/{i}": v.numpy() for i, v in enumerate(stage.optimizer.variables)}
    return found


def stages(model: CaptionModel, replicas: Replicas) -> dict[str, Callable[[], Any]]:
    tokenizer = Tokenizer(WORDS)
    images = tuple(CaptionedImage(f"{i}.png", (TEXTS[i % 3], f"{TEXTS[i % 3]} and a ball")) for i in range(5))
    views = np.random.default_rng(0).normal(0, 1, (5, 2, *model.feature_shape)).astype(np.float16)
    arrays = ImageArrays(images, views, (), "made up")
    token_ids = encode_captions(images, tokenizer, model.config.sequence_length)
    return {
        "text": lambda: TextStage(model, CONFIG, TEXTS, tokenizer, replicas),
        "xent": lambda: CrossEntropyStage(model, CONFIG, views, token_ids, replicas),
        "scst": lambda: SelfCriticalStage(model, CONFIG, arrays, tokenizer, replicas),
    }


def draws(model: CaptionModel, replicas: Replicas) -> dict[str, Any]:
    """Random numbers on two replicas: boxes of five images, and what dropout leaves of the same rows."""
    seed = (3, 4)

    def draw(count: tf.Tensor) -> tf.Tensor:
        return random_boxes(count, seed=seed)

    def draw_on_replica(rows: tf.Tensor) -> tf.Tensor:
        return own_rows(draw, rows)

    def drop_on_replica(rows: tf.Tensor) -> tf.Tensor:
        return model.output_dropout(rows, training=True)

    boxes = replicas.compile(draw_on_replica, reduced=False)
    drop = replicas.compile(drop_on_replica, reduced=False)
    generator = model.output_dropout.seed_generator
    before = int(generator.state.numpy()[1])
    kept = replicas.strategy.experimental_local_results(drop(*replicas.split([np.ones((4, 50), np.float32)])))
    return {
        "boxes": replicas.gather(boxes(*replicas.split([np.zeros(5)])), 5),
        "boxes of one device": random_boxes(5, seed=seed).numpy(),
        "kept": np.stack(kept),
        "steps of dropout": int(generator.state.numpy()[1]) - before,
        "states of dropout": np.stack([state.numpy() for state in generator.state.value.values]),
        "from chief": replicas.from_chief(0.1),
    }


def resumed(model: CaptionModel, replicas: Replicas, folder: Path) -> dict[str, Any]:
    """Every variable after a step that follows on a checkpoint, and after the same step once more."""
    with replicas.strategy.scope():
        stage = stages(model, replicas)["xent"]()
    variables = variables_of(model, *stage.optimizer.optimizers)
    (batch,) = stage.batches(np.random.default_rng(0))
    stage.step(batch)
    save_checkpoint(folder, {}, variables)
    stage.step(batch)
    first = [variable.numpy() for variable in variables]
    stage.step(batch)
    restore_checkpoint(folder, variables)
    stage.step(batch)
    found = {f"uninterrupted/{i}": value for i, value in enumerate(first)}
    found |= {f"resumed/{i}": variable.numpy() for i, variable in enumerate(variables)}
    on_second = [getattr(variable.value, "values", [variable.value])[-1] for variable in variables]
    return found | {f"resumed on the second/{i}": value.numpy() for i, value in enumerate(on_second)}


# --- the tests ---


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("devices")
    finish(start("devices", str(folder)))
    with np.load(folder / "found.npz") as arrays:
        return dict(arrays)


def start(*arguments: str, env: Mapping[str, str] = {}) -> subprocess.Popen[str]:
    """This file as a program."""
    command = [sys.executable, "-m", "tests.training.test_distribution", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + errors
    return output


@pytest.mark.parametrize("stage", ["text", "xent", "scst"])
def test_two_devices_train_as_one(found: dict[str, np.ndarray], stage: str) -> None:
    one, two = ({k: v for k, v in found.items() if k.startswith(f"{n}/{stage}/")} for n in (1, 2))
    assert len(one) == len(two) > 40
    for key, value in one.items():
        np.testing.assert_allclose(two[f"2{key[1:]}"], value, rtol=1e-5, atol=1e-5, err_msg=key)


def test_averages_of_two_devices_are_not_the_latest_weights(found: dict[str, np.ndarray]) -> None:
    """Otherwise the test above would say nothing of them."""
    averages, latest = (
        [value for key, value in found.items() if key.startswith(f"2/xent/{kind}/")]
        for kind in ("averages", "latest")
    )
    largest = [np.abs(average - last).max() for average, last in zip(averages, latest, strict=True)]
    assert max(largest) > 1e-4


def test_random_numbers_of_a_share_are_those_of_the_whole_batch(found: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(found["boxes"], found["boxes of one device"])


def test_replicas_drop_other_units_and_stay_in_step(found: dict[str, np.ndarray]) -> None:
    one, two = found["kept"] > 0
    assert 0.3 < (one != two).mean() < 0.7
    assert found["steps of dropout"] == 1
    np.testing.assert_array_equal(*found["states of dropout"])


def test_a_checkpoint_of_two_devices_is_all_that_a_step_depends_on(found: dict[str, np.ndarray]) -> None:
    expected = {key: value for key, value in found.items() if key.startswith("uninterrupted/")}
    assert len(expected) > 100
    for key, value in expected.items():
        number = key.partition("/")[2]
        np.testing.assert_array_equal(found[f"resumed/{number}"], value, err_msg=key)
        np.testing.assert_array_equal(found[f"resumed on the second/{number}"], value, err_msg=key)


def test_the_number_of_the_chief_arrives_as_it_is(found: dict[str, np.ndarray]) -> None:
    assert found["from chief"] == 0.1


OPTIONS = {
    **SHAPE,
    "batch_size": 25,
    "limit": 5,
    "epochs": 1,
    "scst_epochs": 1,
    "scst_samples": 2,
    "lr": 5e-4,
    "warmup_steps": 0,
    "dropout": 0,
    "num_beams": 1,
}


def as_worker(folder: Path, arguments: list[str]) -> None:
    """The command `train_model`; afterwards it prints what it has written below a folder."""
    written: list[str] = []

    def watch(event: str, details: tuple[Any, ...]) -> None:
        # Whatever a run writes is renamed to its name in the end, or lies in a folder that is made.
        if event in ("os.rename", "os.mkdir", "os.remove"):
            written.extend(str(path) for path in details[:2] if str(path).startswith(str(folder)))

    sys.addaudithook(watch)
    try:
        train_model.app(arguments)
    finally:
        print("written:", json.dumps(written))


def test_two_workers_train_as_one_and_the_chief_alone_writes(data_set: DataSet, tmp_path: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (first, second)]
    run = tmp_path / "run"
    options: dict[str, object] = {
        **OPTIONS,
        **{name: getattr(data_set, name) for name in ("data", "captions", "train_split", "dev_split")},
        "artifact_dir": run,
        "cache_dir": tmp_path / "cache",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(start("worker", str(run), *arguments, env={"TF_CONFIG": json.dumps(task)}))
    try:
        chief, other = map(finish, workers)
    finally:
        for worker in workers:
            worker.kill()
    assert "scst" in chief
    assert str(run / "weights.safetensors") in chief.partition("written:")[2]
    assert other.splitlines() == [f"the model is in {run}", "written: []"]

    train(data_set, tmp_path / "alone" / "run", **OPTIONS, cache_dir=tmp_path / "cache")
    expected = weights_of(tmp_path / "alone" / "run")
    for name, weight in weights_of(run).items():
        # Matrices are kept in half precision: a difference in rounding may be one in its last place.
        tolerance = 1e-3 if weight.dtype == np.float16 else 0.0
        np.testing.assert_allclose(weight, expected[name], rtol=tolerance, atol=1e-5, err_msg=name)
    for row, wanted in zip(history_of(run), history_of(tmp_path / "alone" / "run"), strict=True):
        assert row["stage"] == wanted["stage"]
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-4, abs=1e-5)
        assert float(row["dev_cider_d"]) == pytest.approx(float(wanted["dev_cider_d"]), abs=1e-3)


if __name__ == "__main__":
    if sys.argv[1] == "devices":
        on_devices(Path(sys.argv[2]))
    else:
        as_worker(Path(sys.argv[2]), sys.argv[3:])
