"""Models of transformers as the pipeline plans with them: found, checked and told apart, without torch."""

import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.images import ImageSpec
from batchcap.captioner.sources import open_source
from batchcap.captioner.transformers_source import DecodingOptions, TransformersSource
from batchcap.errors import BundleError, UsageError

_MISSING = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
needs_libraries = pytest.mark.skipif(bool(_MISSING), reason=f"{' and '.join(_MISSING)} not installed")

CONFIG = {
    "model_type": "blip",
    "architectures": ["BlipForConditionalGeneration"],
    "text_config": {"vocab_size": 40},
}
PREPROCESSOR = {"size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
COMMIT = "c" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All the files of a model, with too few weights to run."""
    path = tmp_path / "model"
    path.mkdir()
    write(path / "config.json", CONFIG)
    write(path / "preprocessor_config.json", PREPROCESSOR)
    write(path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    (path / "vocab.txt").write_text("[PAD]\na\n")
    save_file({"weight": np.arange(6.0)}, path / "model.safetensors")
    return path


def write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


@needs_libraries
def test_what_is_known_before_a_worker_loads_it(folder: Path) -> None:
    source = TransformersSource.open(str(folder), num_beams=3)
    assert source.name == "model"
    assert source.image_spec == ImageSpec(48, "stretch")
    assert source.describe() == {
        "architecture": "BlipForConditionalGeneration",
        "config": CONFIG,
        "generation": {"num_beams": 3, "max_new_tokens": 32, "min_new_tokens": 0},
    }
    # It is sent to the workers.
    assert len(pickle.dumps(source)) < 2000
    assert pickle.loads(pickle.dumps(source)) == source


@needs_libraries
@pytest.mark.parametrize(
    ("generation", "num_beams", "expected"),
    [
        (None, None, DecodingOptions(1, 32)),
        ({}, 2, DecodingOptions(2, 32)),
        ({"num_beams": 4, "max_length": 17, "do_sample": True}, None, DecodingOptions(4, 16)),
        ({"num_beams": 4, "max_length": 17, "max_new_tokens": 9}, 1, DecodingOptions(1, 9)),
    ],
)
def test_decoding_options_are_the_models_own(
    generation: Any, num_beams: int | None, expected: DecodingOptions, folder: Path
) -> None:
    if generation is not None:
        write(folder / "generation_config.json", generation)
    assert TransformersSource.open(str(folder), num_beams=num_beams).decoding == expected


@needs_libraries
def test_the_fingerprint_is_of_what_changes_a_caption(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: int) -> str:
        return TransformersSource.open(str(path), **options).fingerprint()

    original = fingerprint(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "of another name"))
    assert fingerprint(copied) == original and len(original) == 64
    (copied / "README.md").write_text("for people")
    (copied / "pytorch_model.bin").write_text("of another library")
    os.utime(copied / "model.safetensors", (1, 1))
    assert fingerprint(copied) == original

    seen = {original, fingerprint(folder, num_beams=2), fingerprint(folder, max_new_tokens=8)}
    changes = {
        "config.json": json.dumps(CONFIG | {"more": 1}),
        "generation_config.json": json.dumps({"repetition_penalty": 1.5}),
        "preprocessor_config.json": json.dumps(PREPROCESSOR | {"rescale_factor": 0.5}),
        "vocab.txt": "[PAD]\nb\n",
        "special_tokens_map.json": "{}",
    }
    for name, content in changes.items():
        path = Path(shutil.copytree(folder, tmp_path / f"changed {name}"))
        (path / name).write_text(content)
        seen.add(fingerprint(path))
    save_file({"weight": np.arange(1.0, 7.0)}, folder / "model.safetensors")
    seen.add(fingerprint(folder))
    assert len(seen) == 3 + len(changes) + 1


@needs_libraries
def test_weights_in_several_files(folder: Path) -> None:
    os.remove(folder / "model.safetensors")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    write(folder / "model.safetensors.index.json", {"weight_map": dict(zip("ab", shards, strict=True))})
    save_file({"a": np.arange(3.0)}, folder / shards[0])
    with pytest.raises(BundleError, match=f"{shards[1]} is missing"):
        TransformersSource.open(str(folder))
    save_file({"b": np.arange(3.0)}, folder / shards[1])
    before = TransformersSource.open(str(folder)).fingerprint()
    save_file({"b": np.arange(4.0)}, folder / shards[1])
    assert TransformersSource.open(str(folder)).fingerprint() != before


# --- what a person can get wrong ---


def without(*names: str) -> Any:
    return lambda folder: [os.remove(folder / name) for name in names]


def having(name: str, values: Any) -> Any:
    return lambda folder: write(folder / name, values)


def with_pickle(folder: Path) -> None:
    os.replace(folder / "model.safetensors", folder / "pytorch_model.bin")


def with_index(weight_map: Any) -> Any:
    def do(folder: Path) -> None:
        os.remove(folder / "model.safetensors")
        write(folder / "model.safetensors.index.json", {"weight_map": weight_map})

    return do


@needs_libraries
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("config.json"), r"no config\.json"),
        (without("preprocessor_config.json"), r"no preprocessor_config\.json"),
        (without("vocab.txt"), "no tokenizer"),
        (without("model.safetensors"), r"model\.safetensors is missing"),
        (with_pickle, "as a pickle"),
        (with_index({}), "no weight_map"),
        (with_index({"a": "../other.safetensors"}), "no name of its weights"),
        (with_index({"a": ["b"]}), "no name of its weights"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is missing or damaged"),
        (having("config.json", ["blip"]), "not a JSON object"),
        (having("config.json", {}), "architecture that batchcap doesn't know, None"),
        (having("config.json", {"model_type": "llava"}), "doesn't know, llava; it knows Blip"),
        (having("config.json", {"model_type": ["blip"]}), "doesn't know"),
        (having("config.json", CONFIG | {"architectures": ["BlipForQuestionAnswering"]}), "QuestionAnsw"),
        (having("config.json", {"format_version": 1}), "give it without hf:"),
        (having("config.json", CONFIG | {"auto_map": {"AutoModel": "code.Model"}}), "code of its own"),
        (having("tokenizer_config.json", {"auto_map": {}}), "code of its own"),
        (having("generation_config.json", {"num_beams": "four"}), "num_beams is 'four'"),
        (having("generation_config.json", {"max_length": 1}), "max_new_tokens is 0"),
        (having("generation_config.json", {"max_length": "long"}), "max_new_tokens is 'long'"),
        (having("preprocessor_config.json", {"size": {"shortest_edge": 64}}), "not square"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_in_one_line(damage: Any, words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=words) as caught:
        open_source(f"hf:{folder}")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@needs_libraries
@pytest.mark.parametrize("model", ["/no/such/folder", "./models/blip", "~/models", "a/b/c", "", "a b"])
def test_what_is_neither_a_folder_nor_a_name(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="give a folder or a name on the Hugging Face hub"):
        open_source(f"hf:{model}")


@needs_libraries
@pytest.mark.parametrize("model", ["~nobody-of-that-name/model", "a" * 300])
def test_what_can_not_even_be_looked_for(model: str) -> None:
    with pytest.raises(BundleError, match="can't look for a model"):
        open_source(f"hf:{model}")


@needs_libraries
def test_more_beams_than_tokens(folder: Path) -> None:
    assert open_source(f"hf:{folder}", num_beams=40).describe()["generation"]["num_beams"] == 40
    with pytest.raises(UsageError, match="--num-beams 41 is more than the model has tokens, 40"):
        open_source(f"hf:{folder}", num_beams=41)


@pytest.mark.parametrize("names", [("torch",), ("transformers",), ("torch", "transformers")])
def test_without_the_libraries(names: tuple[str, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "transformers"):
        if name in names:
            monkeypatch.setitem(sys.modules, name, None)
        elif name in _MISSING:
            pytest.skip(f"{name} not installed")
    with pytest.raises(BundleError) as caught:
        open_source(f"hf:{folder}")
    assert str(caught.value) == (
        f"models of transformers need {' and '.join(names)}: pip install 'batchcap[transformers]'"
    )


def test_without_hf_it_is_a_bundle(folder: Path, tiny_bundle: Bundle) -> None:
    opened, default = open_source(str(tiny_bundle.path)), open_source()
    assert isinstance(opened, Bundle) and opened.path == tiny_bundle.path
    assert isinstance(default, Bundle) and default.path == DEFAULT_BUNDLE
    assert open_source(str(tiny_bundle.path), num_beams=2).describe()["generation"]["num_beams"] == 2
    with pytest.raises(UsageError, match=f"give it as hf:{folder}"):
        open_source(str(folder))
    with pytest.raises(UsageError, match="--num-beams 25 is more than the model has words"):
        open_source(str(tiny_bundle.path), num_beams=25)


# --- the hub ---


def open_on_the_hub(name: str, home: Path, **settings: str) -> dict[str, Any]:
    """Opens a model in a process of its own: the hub's library reads its settings when it is imported."""
    script = f"""
import json, sys
from batchcap.captioner.sources import open_source
from batchcap.errors import BatchcapError
try:
    source = open_source("hf:{name}")
    found = {{"name": source.name, "path": str(source.path), "fingerprint": source.fingerprint()}}
except BatchcapError as error:
    found = {{"error": str(error), "code": error.code}}
print(json.dumps(found | {{"loaded": sorted({{"torch", "transformers"}} & set(sys.modules))}}))
"""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"HF_HOME": str(home)} | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("loaded") == []
    assert "\n" not in found.get("error", "")
    return found


def put_into_cache(folder: Path, home: Path) -> Path:
    """Lays a model out as the hub's library does; the weights, as large files are, under their sha256."""
    repository = home / "hub" / "models--an--example"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = repository / "blobs" / (digest if path.suffix == ".safetensors" else digest[:40])
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return snapshot


@needs_libraries
def test_a_model_in_the_hubs_cache_needs_no_network(folder: Path, tmp_path: Path) -> None:
    expected = TransformersSource.open(str(folder)).fingerprint()
    snapshot = put_into_cache(folder, tmp_path / "home")
    # Nobody listens there: whoever asks the network fails.
    found = open_on_the_hub("an/example", tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert found == {"name": "an/example", "path": str(snapshot), "fingerprint": expected}


@needs_libraries
def test_offline_and_not_in_the_cache(folder: Path, tmp_path: Path) -> None:
    found = open_on_the_hub("an/example", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert found["code"] == "bundle"
    assert "can't fetch an/example from the Hugging Face hub" in found["error"]
    assert "hf:FOLDER" in found["error"]
    (put_into_cache(folder, tmp_path / "home") / "model.safetensors").unlink()
    part = open_on_the_hub("an/example", tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "model.safetensors is missing" in part["error"]


@pytest.fixture
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub on this machine that has one model, with the folder's files."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/api/models/an/example/revision/"):
                self.answer(json.dumps({"id": "an/example", "sha": COMMIT}).encode())
            elif path.startswith("/api/models/an/example/tree/"):
                self.answer(json.dumps([describe(each) for each in sorted(folder.iterdir())]).encode())
            elif path.startswith(f"/an/example/resolve/{COMMIT}/"):
                self.answer((folder / path.rpartition("/")[2]).read_bytes())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    def describe(path: Path) -> dict[str, Any]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": digest[:40]}

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs_libraries
def test_a_model_is_downloaded_once(folder: Path, hub: str, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_text("a pickle")
    (folder / "README.md").write_text("for people")
    found = open_on_the_hub("an/example", tmp_path / "home", HF_ENDPOINT=hub)
    assert found.get("error") is None
    assert found["fingerprint"] == TransformersSource.open(str(folder)).fingerprint()
    wanted = {path.name for path in folder.iterdir()} - {"pytorch_model.bin", "README.md"}
    assert {path.name for path in Path(found["path"]).iterdir()} == wanted
    assert open_on_the_hub("an/example", tmp_path / "home", HF_HUB_OFFLINE="1") == found


@needs_libraries
def test_a_name_that_the_hub_does_not_have(hub: str, tmp_path: Path) -> None:
    found = open_on_the_hub("an/other", tmp_path / "home", HF_ENDPOINT=hub)
    assert "no model an/other: no such folder here, and the Hugging Face hub has none" in found["error"]
    odd = open_on_the_hub("an/other--one", tmp_path / "home", HF_ENDPOINT=hub)
    assert "an/other--one is no name of a model" in odd["error"]
