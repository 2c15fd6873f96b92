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

from batchcap.captioner.bundle import Bundle, may_be_replaced, remove_bundle, write_bundle
from batchcap.captioner.bundle_files import BUNDLE_FILES
from batchcap.captioner.calibration import Calibration
from batchcap.captioner.config import CaptionerConfig, GenerationConfig
from batchcap.captioner.images import ImageSpec
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


CALIBRATION = Calibration(
    signals={"mean_log_prob": 1.5, "token_count": -0.1},
    intercept=0.5,
    threshold=33.0,
    rule="a lower quartile",
    auroc=0.7,
    ece=0.04,
    num_beams=2,
    length_penalty=1.0,
)


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
        "calibration": CALIBRATION,
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
        remove_bundle(tmp_path / "other")
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
    assert fingerprint(calibration=dataclasses.replace(CALIBRATION, intercept=9.0)) == original


@dataclasses.dataclass(frozen=True, slots=True)
class LaterImageSpec(ImageSpec):
    grey: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LaterConfig(CaptionerConfig):
    gated: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class LaterGeneration(GenerationConfig):
    temperature: float = 1.0
    words: tuple[str, ...] = dataclasses.field(default_factory=tuple)


def test_an_option_that_a_later_version_adds_leaves_the_fingerprint(bundle: Path) -> None:
    """Until it is used: otherwise every caption of the older version would be stale."""

    def as_later(kind: type, options: Any, **changes: Any) -> Any:
        values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        return kind(**{**values, **changes})

    opened = Bundle.open(bundle)
    image = as_later(LaterImageSpec, opened.config.image)
    config = as_later(LaterConfig, opened.config, image=image)
    generation = as_later(LaterGeneration, opened.generation)
    later = dataclasses.replace(opened, config=config, generation=generation)
    assert later.fingerprint() == opened.fingerprint()
    # The record stays whole.
    assert later.describe()["config"]["image"]["grey"] is False
    assert later.describe()["generation"]["temperature"] == 1.0
    changed = [
        dataclasses.replace(later, config=dataclasses.replace(config, gated=True)),
        dataclasses.replace(
            later, config=dataclasses.replace(config, image=dataclasses.replace(image, grey=True))
        ),
        dataclasses.replace(later, generation=dataclasses.replace(generation, temperature=0.5)),
        dataclasses.replace(later, generation=dataclasses.replace(generation, words=("dog",))),
    ]
    assert len({opened.fingerprint(), *(other.fingerprint() for other in changed)}) == 5


# Another value for every field there is.
CHANGES: list[dict[str, Any]] = [
    {"backbone": "efficientnet_b3"},
    {"vocabulary_size": 5},
    *({name: 77} for name in ("sequence_length", "embed_dim", "ff_dim", "enc_heads", "dec_heads")),
    *({name: 7} for name in ("enc_layers", "dec_layers", "key_dim")),
    {"scale_embeddings": False},
    *({f"{name}_dropout": 0.77} for name in ("residual", "attention", "ff", "output")),
    *({"image": ImageSpec(**{name: 77})} for name in ("image_size", "max_pixels", "max_bytes")),
    {"image": ImageSpec(resize="crop")},
    {"num_beams": 7},
    {"length_penalty": 0.7},
    {"max_length": 7},
]


def test_every_option_counts_once_it_is_not_at_its_default(bundle: Path) -> None:
    plain = dataclasses.replace(Bundle.open(bundle), config=CaptionerConfig(), generation=GenerationConfig())
    names = {field.name for kind in (CaptionerConfig, GenerationConfig) for field in dataclasses.fields(kind)}
    assert {name for change in CHANGES for name in change} == names
    fingerprints = {plain.fingerprint()}
    for change in CHANGES:
        (name,) = change
        part = "generation" if hasattr(plain.generation, name) else "config"
        options = dataclasses.replace(getattr(plain, part), **change)
        fingerprints.add(dataclasses.replace(plain, **{part: options}).fingerprint())
    assert len(fingerprints) == len(CHANGES) + 1


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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What a training run has in its folder before its first bundle and beside it.
RUN = {"training.json": b'{"epochs": 3}', "history.csv": b"epoch\n1\n", "checkpoint": b"\0" * 9}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in RUN.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_bundle_goes_among_the_files_of_its_run(run: Path, parts: dict[str, Any]) -> None:
    """From the first epoch on; each better one takes the place of the last."""
    for epoch in range(3):
        weights = {"a/kernel": np.full((2, 2), epoch, np.float32)}
        write_bundle(run, **{**parts, "weights": weights, "metrics": {"epoch": epoch}})
        assert sorted(contents(run)) == sorted([*FILES, *RUN])
        assert contents(run).items() >= RUN.items()
        np.testing.assert_array_equal(Bundle.open(run).weights()["a/kernel"], weights["a/kernel"])
        assert json.loads((run / "metrics.json").read_text()) == {"epoch": epoch}
    remove_bundle(run)
    assert contents(run) == RUN
    write_bundle(run, **{**parts, "config": dataclasses.replace(parts["config"], ff_dim=99)})
    assert Bundle.open(run).config.ff_dim == 99


def test_replaces_an_older_bundle(bundle: Path, parts: dict[str, Any]) -> None:
    (bundle / "notes.txt").write_text("of a person")
    newer = {**parts, "name": "newer", "generation": GenerationConfig(num_beams=4), "model_card": "newer"}
    write_bundle(bundle, **newer)
    assert sorted(contents(bundle)) == sorted([*FILES, "notes.txt"])
    opened = Bundle.open(bundle)
    assert (opened.name, opened.generation.num_beams) == ("newer", 4)
    assert (bundle / "README.md").read_text() == "newer"


def test_an_older_calibration_goes_with_its_weights(bundle: Path, parts: dict[str, Any]) -> None:
    write_bundle(bundle, **{**parts, "calibration": None})
    assert sorted(contents(bundle)) == [name for name in FILES if name != "calibration.json"]


def damage(bundle: Path, how: str) -> None:
    if how.startswith("no "):
        (bundle / how.removeprefix("no ")).unlink()
    else:
        (bundle / how).write_bytes(b"\xff")


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"ff_dim": 99}, None),
        ({"image": ImageSpec(64, "crop")}, None),
        ({}, "vocabulary.txt"),
        ({}, "no vocabulary.txt"),
        ({}, "no config.json"),
        ({}, "config.json"),
        # Half of another one.
        ({"ff_dim": 99}, "no weights.safetensors"),
    ],
    ids=str,
)
def test_another_or_a_damaged_bundle_is_left_alone(
    run: Path, parts: dict[str, Any], changes: dict[str, Any], how: str | None
) -> None:
    write_bundle(run, **parts)
    if how:
        damage(run, how)
    before = contents(run)
    other = {**parts, "config": dataclasses.replace(parts["config"], **changes)}
    with pytest.raises(BundleError, match="choose another folder or delete it") as caught:
        write_bundle(run, **other)
    assert len(str(caught.value).splitlines()) == 1
    assert contents(run) == before
    remove_bundle(run)
    write_bundle(run, **other)
    assert Bundle.open(run).config == other["config"]


def test_another_vocabulary_of_the_same_size_is_left_alone(bundle: Path, parts: dict[str, Any]) -> None:
    words = parts["tokenizer"].decode(range(4, 24)).split()
    before = contents(bundle)
    with pytest.raises(BundleError, match="another vocabulary; choose another folder or delete it"):
        write_bundle(bundle, **{**parts, "tokenizer": Tokenizer(words[::-1])})
    assert contents(bundle) == before


def test_a_config_written_before_an_option_was_added_is_the_same(bundle: Path, parts: dict[str, Any]) -> None:
    description = json.loads((bundle / "config.json").read_text())
    assert parts["config"].scale_embeddings is True
    del description["config"]["scale_embeddings"]
    (bundle / "config.json").write_text(json.dumps(description))
    write_bundle(bundle, **parts)
    assert json.loads((bundle / "config.json").read_text())["config"]["scale_embeddings"] is True


class Killed(BaseException):
    """Ends the process, as far as the code under test can tell; only files remain."""


def kill_at(patch: pytest.MonkeyPatch, operation: str, nth: int) -> None:
    """The nth rename or deletion does not happen, nor anything after it: no cleaning up either."""
    calls = [0]

    def replaced(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += name == operation
            if calls[0] >= nth:
                raise Killed
            return original(*args, **kwargs)

        patch.setattr(os, name, call)

    for name in ("replace", "unlink", "rmdir"):
        replaced(name)


def states(folder: Path) -> tuple[str, Calibration | None] | str:
    """What `Bundle.open` says: fingerprint and calibration, or that there is none."""
    try:
        opened = Bundle.open(folder)
        return opened.fingerprint(), opened.calibration
    except BundleError as error:
        assert len(str(error).splitlines()) == 1
        return "refused"


@pytest.mark.parametrize("operation", ["replace", "unlink"])
@pytest.mark.parametrize("older", ["none", "no run", "same options", "other options"])
def test_killed_between_any_two_steps(
    parts: dict[str, Any], tmp_path: Path, older: str, operation: str
) -> None:
    newer_calibration = dataclasses.replace(CALIBRATION, intercept=2.0)
    newer = {**parts, "weights": {"a/kernel": np.zeros((2, 2))}, "calibration": newer_calibration}
    if older == "other options":
        newer["generation"] = GenerationConfig(num_beams=4)
    write_bundle(tmp_path / "newer", **newer)
    new = Bundle.open(tmp_path / "newer").fingerprint()
    seen = []
    for nth in range(1, 99):
        folder = tmp_path / f"{nth}"
        folder.mkdir()
        if older != "no run":
            (folder / "training.json").write_bytes(RUN["training.json"])
        old = None
        if older.endswith("options"):
            write_bundle(folder, **parts)
            old = Bundle.open(folder).fingerprint()
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill_at(patch, operation, nth)
            write_bundle(folder, **newer)
            break
        # Never a calibration of other weights.
        allowed = [(old, CALIBRATION), (old, None), (new, newer_calibration), (new, None), "refused"]
        state = states(folder)
        assert state in allowed
        seen.append(state)
        # And the run goes on: the same write completes it.
        write_bundle(folder, **newer)
        assert states(folder) == (new, newer_calibration)
        assert not list(folder.glob(".*"))
    assert len(seen) >= 2
    if operation == "replace" and older.endswith("options"):
        # It saw both sides of the one rename that counts.
        assert seen[0] == ((old, None) if older == "same options" else "refused")
        assert seen[-1] == (new, None)
    if operation == "replace" and not older.endswith("options"):
        assert set(seen) == {"refused"}


def test_a_removal_that_is_killed_can_be_repeated(bundle: Path) -> None:
    whole = states(bundle)
    for nth in range(1, 99):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill_at(patch, "unlink", nth)
            remove_bundle(bundle)
            break
        assert states(bundle) == (whole if nth == 1 else "refused")
    assert list(bundle.iterdir()) == []
    remove_bundle(bundle)
    remove_bundle(bundle / "nowhere")


def test_only_a_bundle_is_removed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "config.json").write_text('{"port": 8080}')
    with pytest.raises(BundleError, match="no model"):
        remove_bundle(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json"]


def test_every_file_is_removed(bundle: Path) -> None:
    assert sorted(BUNDLE_FILES) == FILES
    remove_bundle(bundle)
    assert may_be_replaced(bundle)


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
        {"training.json": "[]", "README.md": "mine"},
        # Of a run, but the configuration is not a bundle's.
        {"training.json": "{}", "config.json": '{"port": 8080}'},
    ],
    ids=["no config", "another config", "no JSON", "no run", "a run's and somebody's"],
)
def test_a_folder_that_holds_something_else_is_left_alone(
    parts: dict[str, Any], tmp_path: Path, files: dict[str, str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(BundleError, match="choose another folder"):
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
