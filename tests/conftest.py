"""Fixtures that several test packages share."""

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What everybody has; tests/captioner/test_runtime.py compares the others with it.
os.environ["BATCHCAP_RUNTIME"] = "tensorflow"

# Ray's workers would yield to everybody, for ever where other tests keep all CPUs busy: a node gives up then.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings
from PIL import Image

from batchcap.captioner.bundle import Bundle, write_bundle
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.tokenizer import END, Tokenizer
from batchcap.collection import FileEntry
from batchcap.stages import files_table
from tests import azurite, postgresql, servers

WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "runs",
    "sleeps",
    "on",
    "grass",
    "sofa",
    "two",
    "people",
    "red",
    "blue",
    "ball",
    "beach",
    "with",
    "and",
    "in",
    "small",
    "large",
]


# A network with every part of the real one, as small as it gets.
TINY = CaptionerConfig(
    backbone="efficientnet_lite0",
    image=ImageSpec(64),
    vocabulary_size=len(WORDS) + 4,
    sequence_length=10,
    embed_dim=8,
    ff_dim=12,
    enc_heads=2,
    dec_heads=2,
    enc_layers=1,
    dec_layers=2,
    key_dim=4,
)


# What goes first. Of two processes one takes the cluster, which mostly waits, and the other what uses
# `local_ray`, one after the other: so there is one Ray, and it ends early. Then what takes longest.
FIRST_FILES = (
    "test_pipeline.py",
    "test_cluster.py",
    "test_ray_runtime.py",
    "test_sources.py",
    "test_transformers_captioner.py",
    "test_docs.py",
    "test_benchmarks.py",
    "test_benchmark_scaling.py",
    "test_distribution.py",
    "test_resume.py",
    "test_jobs.py",
    "test_kills.py",
    "test_readme.py",
    "test_training.py",
    "test_cli.py",
    "test_stages.py",
    "test_presets.py",
    "test_runtime.py",
    "test_options.py",
    "test_captioner.py",
    "test_benchmark_other_captioners.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts some files first, and the rest as they were found.

    Where several processes share out the files, as under `make test`, none is left alone with a long one in
    the end.
    """
    order = {name: place for place, name in enumerate(FIRST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    config.stash[_FILES_WITH_RAY] = {
        item.path for item in items if "local_ray" in getattr(item, "fixturenames", ())
    }


# How long an example takes says more of the machine than of the code.
settings.register_profile("batchcap", deadline=None)
settings.load_profile("batchcap")


@pytest.fixture(scope="session")
def tiny_config() -> CaptionerConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_bundle(tiny_config: CaptionerConfig, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of random weights; its captions are nonsense, but differ from image to image."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_bundle(
        path,
        name="tiny",
        config=tiny_config,
        generation=GenerationConfig(),
        tokenizer=Tokenizer(WORDS),
        weights=lively_weights(tiny_config, seed=5),
    )
    return Bundle.open(path)


def lively_weights(config: CaptionerConfig, seed: int) -> dict[str, np.ndarray]:
    """Random weights with which captions depend on the image and end at different lengths.

    Weights as Keras draws them ignore the image: the features of an untrained CNN are all but constant, and
    the last word outweighs everything else.
    """
    import keras

    from batchcap.captioner.model import CaptionModel

    keras.utils.set_random_seed(seed)
    model = CaptionModel(config)
    # Statistics of some noise, so that the signal neither vanishes nor explodes on its way through the CNN.
    for layer in model.backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    size = config.image.image_size
    model.backbone(
        np.stack([noise_photo(1000 + number, (size, size)) for number in range(16)]), training=True
    )

    rng = np.random.default_rng(seed)
    weights = {}
    for name, variable in model.weights_by_name().items():
        weight = variable.numpy()
        if name.startswith("backbone/") or name.endswith("/gamma"):
            weights[name] = weight
        elif weight.ndim == 1:
            weights[name] = rng.normal(0, 0.1, weight.shape)
        elif name.startswith("position_embedding/"):
            weights[name] = rng.normal(0, 4, weight.shape)
        elif name.startswith("token_embedding/"):
            weights[name] = rng.normal(0, weight.shape[1] ** -0.5, weight.shape)
        else:
            weights[name] = rng.normal(0, 1.4 * weight.shape[0] ** -0.5, weight.shape)
    weights["output/bias"][END] += 1.2
    return weights


def noise_photo(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of coloured noise, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def make_photo(path: Path, seed: int, size: tuple[int, int] = (80, 60)) -> Path:
    """Writes a small picture of coloured noise, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_photo(seed, size).save(path)
    return path


def table_of(*paths: Path) -> pa.Table:
    """Files as the stages of captioning take them."""
    return files_table([FileEntry(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 good pictures."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        make_photo(folder / f"{number:03}.jpg", number)
    return folder


# What makes Pillow crash or hang on files that start so, as a decoder in C may.
_POISON = """
import os
from PIL import Image

# All plugins first, or what is registered here would be overwritten.
Image.init()
plugin, accept = Image.OPEN["JPEG"]

def accept_poison(start):
    if start.startswith(b"CRASHME"):
        os.abort()
    while start.startswith(b"HANGME"):
        pass
    return accept(start)

Image.register_open("JPEG", plugin, accept_poison)
"""


@pytest.fixture(scope="session")
def poison_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoders with it in their PYTHONPATH know files of poison."""
    folder = tmp_path_factory.mktemp("poison")
    (folder / "sitecustomize.py").write_text(_POISON)
    return folder


@pytest.fixture
def poison(poison_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So do those that this process starts."""
    monkeypatch.setenv("PYTHONPATH", str(poison_folder), prepend=os.pathsep)


@pytest.fixture(scope="session")
def object_store() -> Iterator[servers.Server]:
    """An S3 server of this process's own, which the environment names."""
    with servers.running(servers.S3Handler) as server, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[azurite.Server]:
    """An emulator of Azure Blob Storage, this process's own."""
    if reason := azurite.missing():
        pytest.skip(reason)
    with azurite.running_server() as server:
        yield server


@pytest.fixture
def azure_store(azure_server: azurite.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[azurite.Server]:
    """The same, named by the environment, with an empty container `photos`."""
    from batchcap.storage import objects

    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure_server.connection_string())
    objects._file_system.cache_clear()
    azure_server.make_container("photos")
    yield azure_server
    azure_server.clear()
    objects._file_system.cache_clear()


@pytest.fixture
def local_ray(object_store: servers.Server, poison_folder: Path) -> None:
    """One Ray for all tests in this process, as a run starts it; decoders in it know files of poison.

    `pytest_runtest_teardown` ends it.
    """
    import ray

    from batchcap import ray_start
    from tests import costless

    ray.cloudpickle.register_pickle_by_value(costless)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(poison_folder), prepend=os.pathsep)
        ray_start.start_ray()


_FILES_WITH_RAY = pytest.StashKey[set[Path]]()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the Ray of `local_ray` where a file follows that does without: one that waits takes CPU, too."""
    with_ray = item.config.stash[_FILES_WITH_RAY]
    if item.path in with_ray and (nextitem is None or nextitem.path not in with_ray) and "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgresql.Server]:
    """A PostgreSQL server of this process's own."""
    if reason := postgresql.missing():
        pytest.skip(reason)
    with postgresql.running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_catalogs(postgres_server: postgresql.Server) -> Iterator[postgresql.EmptyCatalogs]:
    """Empty catalogs on it."""
    catalogs = postgresql.EmptyCatalogs(postgres_server)
    yield catalogs
    catalogs.close()


@pytest.fixture
def postgres_url(postgres_catalogs: postgresql.EmptyCatalogs) -> str:
    """An empty catalog in PostgreSQL."""
    return postgres_catalogs.new()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240)}


@dataclass(frozen=True)
class DataSet:
    """Where a data set lies."""

    data: Path
    captions: Path
    train_split: Path
    dev_split: Path
    texts: Path


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """24 pictures of one colour each, the last of them broken, with two captions each; and more captions."""
    folder = tmp_path_factory.mktemp("squares")
    data = folder / "images"
    data.mkdir()
    rng = np.random.default_rng(0)
    names, lines = [], ["image\tcaption"]
    for number in range(24):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 8, (48, 48, 3)), 0, 255)
        name = f"{number:02}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(data / name)
        names.append(name)
        lines += [f"{name}\tA {colour} square .", f"{name}\tThe square is {colour} , all of it ."]
    (data / names[-1]).write_bytes(b"not a picture")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    (folder / "train.txt").write_text("\n".join([*names[:15], names[-1]]) + "\n")
    (folder / "dev.txt").write_text("\n".join(names[16:23]) + "\n")
    colours = list(COLOURS)
    texts = [
        f"{n}.jpg\tThere is a {one} square and a {other} square ."
        for n, (one, other) in enumerate((one, other) for one in colours for other in colours if one != other)
    ]
    (folder / "texts.tsv").write_text("\n".join(["image\tcaption", *texts]) + "\n")
    return DataSet(
        data, folder / "captions.tsv", folder / "train.txt", folder / "dev.txt", folder / "texts.tsv"
    )
