import contextlib
import dataclasses
import json
import math
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchcap.captioner.bundle import Bundle, Calibration, write_bundle
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.tokenizer import Tokenizer
from batchcap.errors import BundleError

FILES = [
    "README.md",
    "calibration.json",
    "config.json",
    "generation.json",
    "metrics.json",
    "vocabulary.txt",
    "weights.safetensors",
]


@pytest.fixture
def parts(tiny_bundle: Bundle) -> dict[str, Any]:
    """What `write_bundle` takes; the weights are few, for nothing here runs the network."""
    return {
        "name": "small",
        "config": tiny_bundle.config,
        "generation": GenerationConfig(num_beams=2),
        "tokenizer": tiny_bundle.tokenizer,
        "weights": {
            "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
            "a/bias": np.ones(3, np.float32),
        },
        "calibration": Calibration(1.5, 0.5),
        "metrics": {"bleu_4": 0.3},
        "model_card": "# small\n",
    }


@pytest.fixture
def bundle(parts: dict[str, Any], tmp_path: Path) -> Path:
    write_bundle(tmp_path / "models" / "small", **parts)
    return tmp_path / "models" / "small"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(bundle: Path, parts: dict[str, Any]) -> None:
    opened = Bundle.open(bundle)
    assert sorted(path.name for path in bundle.iterdir()) == FILES
    assert (opened.path, opened.name) == (bundle, "small")
    assert opened.config == parts["config"]
    assert opened.generation == parts["generation"]
    assert opened.calibration == parts["calibration"]
    assert opened.tokenizer.decode(range(24)) == parts["tokenizer"].decode(range(24))
    weights = opened.weights()
    assert weights.keys() == parts["weights"].keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, parts["weights"][name])
    assert json.loads((bundle / "metrics.json").read_text()) == parts["metrics"]
    assert (bundle / "README.md").read_text() == parts["model_card"]


def test_other_users_can_read_it(bundle: Path) -> None:
    assert bundle.stat().st_mode & 0o055 == 0o055
    readable = 0o666 & ~_umask()
    for path in bundle.iterdir():
        assert path.stat().st_mode & readable == readable, path.name


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("name", ["config.json", "generation.json", "vocabulary.txt", "weights.safetensors"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)


def test_calibration_may_be_missing(bundle: Path) -> None:
    (bundle / "calibration.json").unlink()
    assert Bundle.open(bundle).calibration is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"surprise": 1}'])
@pytest.mark.parametrize("name", ["config.json", "generation.json", "calibration.json"])
def test_a_damaged_json_file_is_named(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"format_version": "1"}),
        ("config.json", {"format_version": None}),
        ("config.json", {"config": []}),
        ("config.json", {"config": {}}),
        ("config.json", {"config": {"image": {}, "embed_dim": -1}}),
        ("config.json", {"config": {"image": {}, "embed_dim": "wide"}}),
        ("config.json", {"config": {"image": {"resize": "pad"}}}),
        ("config.json", {"config": {"image": 224}}),
        ("config.json", {"config": {"image": {}, "surprise": 1}}),
        ("generation.json", {"num_beams": 0}),
        ("generation.json", {"num_beams": "many"}),
        ("generation.json", {"max_length": 1}),
        ("calibration.json", {"slope": "steep"}),
        ("calibration.json", {"slope": None}),
        ("calibration.json", {"intercept": math.nan}),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_and_its_file_named(
    bundle: Path, name: str, changes: dict[str, Any]
) -> None:
    edit_json(bundle / name, **changes)
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "content", [b"", b"dog\ncat\n", b"<pad>\n<unk>\n<start>\n<end>\ndog\ndog\n", b"\xff\n"]
)
def test_a_damaged_vocabulary_is_named(bundle: Path, content: bytes) -> None:
    (bundle / "vocabulary.txt").write_bytes(content)
    with pytest.raises(BundleError, match=r"vocabulary\.txt"):
        Bundle.open(bundle)


def test_a_vocabulary_of_another_size_is_named(bundle: Path) -> None:
    """As when the end of the file is lost: every id would still be in range."""
    lines = (bundle / "vocabulary.txt").read_text().splitlines(keepends=True)
    (bundle / "vocabulary.txt").write_text("".join(lines[:-1]))
    with pytest.raises(BundleError, match=r"vocabulary\.txt.*23 tokens.*24"):
        Bundle.open(bundle)


def test_truncated_weights_are_named(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    whole = path.read_bytes()
    opened = Bundle.open(bundle)
    for length in (0, 7, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match=r"weights\.safetensors"):
            opened.weights()
    path.unlink()
    for read in (opened.weights, opened.fingerprint):
        with pytest.raises(BundleError, match=r"weights\.safetensors"):
            read()


def test_a_newer_format_is_refused(bundle: Path) -> None:
    """Before anything else is read: a newer format may differ in all of it."""
    edit_json(bundle / "config.json", format_version=2, config="unheard of")
    with pytest.raises(BundleError, match="format 2.*upgrade"):
        Bundle.open(bundle)


def test_no_bundle_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleError, match=str(path)):
            Bundle.open(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="no model at"):
        Bundle.open(tmp_path / "file")


def test_what_changes_the_fingerprint(bundle: Path, parts: dict[str, Any], tmp_path: Path) -> None:
    """All that changes a caption, and nothing else."""

    def fingerprint(**changes: Any) -> str:
        write_bundle(tmp_path / "other", **{**parts, **changes})
        return Bundle.open(tmp_path / "other").fingerprint()

    original = Bundle.open(bundle).fingerprint()
    assert fingerprint() == original
    words = parts["tokenizer"].decode(range(4, 24)).split()
    weights = {**parts["weights"], "a/bias": np.array([1, 1, 1.001], np.float32)}
    config = parts["config"]
    changed = [
        fingerprint(config=dataclasses.replace(config, sequence_length=11)),
        fingerprint(
            config=dataclasses.replace(config, image=dataclasses.replace(config.image, resize="crop"))
        ),
        fingerprint(tokenizer=Tokenizer([*words[1:], words[0]])),
        fingerprint(weights=weights),
        fingerprint(half_precision=True),
        fingerprint(generation=GenerationConfig(num_beams=3)),
        fingerprint(generation=GenerationConfig(num_beams=2, length_penalty=0.5)),
        Bundle.open(bundle, generation=GenerationConfig(num_beams=4)).fingerprint(),
    ]
    assert len({original, *changed}) == len(changed) + 1
    assert fingerprint(name="renamed") == original
    assert fingerprint(metrics={"bleu_4": 0.9}, model_card="other", calibration=None) == original
    assert fingerprint(calibration=Calibration(9.0, 9.0)) == original


def test_the_options_in_force_are_recorded(bundle: Path) -> None:
    opened = Bundle.open(bundle, generation=GenerationConfig(num_beams=4))
    assert opened.describe()["generation"]["num_beams"] == 4
    json.dumps(opened.describe())


def test_half_precision_spares_vectors(parts: dict[str, Any], tmp_path: Path) -> None:
    """The variances of batch norm can be too small for a half."""
    weights = {"bn/moving_variance": np.full(3, 1e-12), "dense/kernel": np.full((2, 2), 0.1)}
    write_bundle(tmp_path / "half", **{**parts, "weights": weights, "half_precision": True})
    read = Bundle.open(tmp_path / "half").weights()
    assert {weight.dtype for weight in read.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(read["bn/moving_variance"], 1e-12)
    np.testing.assert_allclose(read["dense/kernel"], np.float32(np.float16(0.1)))


def test_replaces_an_older_bundle(bundle: Path, parts: dict[str, Any]) -> None:
    (bundle / "notes.txt").write_text("of the older one")
    write_bundle(bundle, **{**parts, "name": "newer", "calibration": None})
    assert sorted(path.name for path in bundle.iterdir()) == [n for n in FILES if n != "calibration.json"]
    assert Bundle.open(bundle).name == "newer"
    assert os.listdir(bundle.parent) == ["small"]


def test_an_empty_folder_may_be_used(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", **parts)
    assert Bundle.open(tmp_path / "empty").name == "small"


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        # Half of the world's software has a config.json.
        {"config.json": '{"port": 8080}', "database.sqlite": ""},
        {"config.json": "port = 8080"},
    ],
    ids=["no config", "another config", "no JSON"],
)
def test_a_folder_that_holds_something_else_is_left_alone(
    parts: dict[str, Any], tmp_path: Path, files: dict[str, str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(BundleError, match="no model"):
        write_bundle(folder, **parts)
    assert {path.name: path.read_text() for path in folder.iterdir()} == files
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_is_left_alone(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="file"):
        write_bundle(tmp_path / "file", **parts)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(BundleError, match="can't write"):
        write_bundle(tmp_path / "file" / "below", **parts)


@contextlib.contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    """Writing more fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_bundle(bundle: Path, parts: dict[str, Any]) -> None:
    before = Bundle.open(bundle).fingerprint()
    weights = {"a/kernel": np.ones((300, 300), np.float32)}
    with no_file_larger_than(100_000), pytest.raises(BundleError, match="can't write"):
        write_bundle(bundle, **{**parts, "weights": weights})
    assert Bundle.open(bundle).fingerprint() == before
    assert os.listdir(bundle.parent) == ["small"]


def test_a_full_disk_leaves_nothing_behind(parts: dict[str, Any], tmp_path: Path) -> None:
    weights = {"a/kernel": np.ones((300, 300), np.float32)}
    with no_file_larger_than(100_000), pytest.raises(BundleError, match="can't write"):
        write_bundle(tmp_path / "new", **{**parts, "weights": weights})
    assert os.listdir(tmp_path) == []


def test_a_bundle_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    before = Bundle.open(bundle).fingerprint()
    shutil.move(bundle, tmp_path / "elsewhere")
    assert Bundle.open(tmp_path / "elsewhere").fingerprint() == before


@pytest.mark.parametrize(
    ("log_prob", "token_count", "expected"),
    [(0.0, 5, 0.5), (-2.0, 1, 1 / (1 + math.e**2)), (-10.0, 5, 1 / (1 + math.e**2)), (0.0, 0, 0.5)],
)
def test_confidence(log_prob: float, token_count: int, expected: float) -> None:
    assert Calibration(1.0, 0.0).confidence(log_prob, token_count) == pytest.approx(expected)


@pytest.mark.parametrize(("log_prob", "expected"), [(-1e6, 0.0), (1e6, 1.0)])
def test_confidence_far_out(log_prob: float, expected: float) -> None:
    """The exponential of the plain formula overflows there."""
    assert Calibration(10.0, 0.0).confidence(log_prob, 1) == pytest.approx(expected)
