"""Captioners of transformers: what they say of pictures, and that runs take them as they take our own."""

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import Caption
from batchcap.captioner.sources import open_source
from batchcap.captioner.transformers_captioner import TransformersCaptioner, on_one_line
from batchcap.captioner.transformers_source import DecodingOptions, TransformersSource
from batchcap.catalog import Catalog
from batchcap.cli import app
from batchcap.errors import BundleError
from batchcap.pipeline import index_collection
from tests.captioner.tiny_transformers import FAMILIES, write_model
from tests.conftest import noise_photo

_TOKENS = 12


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family."""
    folder = tmp_path_factory.mktemp("transformers")
    return {family: write_model(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def blip(folders: dict[str, Path]) -> Path:
    return folders["blip"]


@functools.cache
def load(folder: Path, *, num_beams: int = 1, batch_size: int = 5) -> TransformersCaptioner:
    source = TransformersSource.open(str(folder), num_beams=num_beams, max_new_tokens=_TOKENS)
    return source.load_captioner(batch_size=batch_size, num_threads=1)


def pictures(captioner: TransformersCaptioner, count: int = 12) -> list[np.ndarray]:
    size = captioner.image_spec.image_size
    return [np.asarray(noise_photo(number, (size, size))) for number in range(count)]


def score(captioner: TransformersCaptioner, folder: Path, image: np.ndarray, text: str) -> float:
    """The log-probability of a text, all its tokens at once and the end unless it is too long for one."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, pixels = captioner.model, captioner.normalize(np.stack([image]))
    # The vocabulary of ViT-GPT2 has words with the space before them only.
    words = tokenizer(f" {text}" if text else "", add_special_tokens=False)["input_ids"]
    is_gpt2 = folder.name == "vit-gpt2"
    start, end = (0, 0) if is_gpt2 else (tokenizer.cls_token_id, tokenizer.sep_token_id)
    tokens = [*words, end][:_TOKENS]
    given = torch.tensor([[start, *tokens]])
    with torch.no_grad():
        if folder.name == "blip":
            seen = model.vision_model(pixel_values=pixels)[0]
            logits = model.text_decoder(given, encoder_hidden_states=seen).logits
        elif folder.name == "git":
            logits = model(input_ids=given, pixel_values=pixels).logits[:, -given.shape[1] :]
        else:
            logits = model(pixel_values=pixels, decoder_input_ids=given).logits
    log_probs = torch.log_softmax(logits[0], -1)
    return sum(float(log_probs[step, token]) for step, token in enumerate(tokens))


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_scored_as_the_network_scores_them(
    family: str, num_beams: int, folders: dict[str, Path]
) -> None:
    captioner = load(folders[family], num_beams=num_beams)
    images = pictures(captioner)
    captions = captioner.caption(images)
    assert len({caption.text for caption in captions}) > 4
    assert len({caption.token_count for caption in captions}) > 2
    for image, caption in zip(images, captions, strict=True):
        words = caption.text.split()
        # The end counts, where there was room for it.
        assert caption.token_count == min(len(words) + 1, _TOKENS)
        assert caption.confidence is None
        assert caption.log_prob == pytest.approx(
            score(captioner, folders[family], image, caption.text), abs=1e-4
        )
    assert captioner.caption(images) == captions
    assert captioner.caption([]) == []


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_one_equals_a_batch_of_many(family: str, num_beams: int, folders: dict[str, Path]) -> None:
    many = load(folders[family], num_beams=num_beams)
    one = load(folders[family], num_beams=num_beams, batch_size=1)
    images = pictures(many)
    for together, alone in zip(many.caption(images), one.caption(images), strict=True):
        assert (together.text, together.token_count) == (alone.text, alone.token_count)
        assert together.log_prob == pytest.approx(alone.log_prob, abs=1e-4)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_captions_are_those_of_the_library_itself(
    family: str, num_beams: int, folders: dict[str, Path]
) -> None:
    captioner = load(folders[family], num_beams=num_beams)
    images = pictures(captioner)
    processor = transformers.AutoImageProcessor.from_pretrained(folders[family])
    # It would resize from 36 to 36: the pictures are in its size already.
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(captioner.normalize(np.stack(images)).numpy(), pixels.numpy(), atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[family])
    expected = captioner.model.generate(
        pixel_values=pixels, num_beams=num_beams, max_new_tokens=_TOKENS, do_sample=False
    )
    texts = tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert [caption.text for caption in captioner.caption(images)] == list(map(on_one_line, texts))


def test_beams_find_captions_that_are_likelier(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        greedy, beams = load(folder), load(folder, num_beams=4)
        images = pictures(greedy)

        def mean(captions: list[Caption]) -> float:
            return sum(each.log_prob / each.token_count for each in captions)

        assert mean(beams.caption(images)) > mean(greedy.caption(images))


def test_a_picture_is_cropped_to_what_the_network_sees(folders: dict[str, Path]) -> None:
    captioner = load(folders["git"])
    assert captioner.image_spec.image_size == 36
    image = pictures(captioner, 1)[0]
    normalized = captioner.normalize(np.stack([image]))
    assert normalized.shape == (1, 3, 32, 32)
    expected = (image[2:34, 2:34] / 255 - [0.48, 0.45, 0.40]) / [0.26, 0.27, 0.28]
    np.testing.assert_allclose(normalized[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    edge = image.copy()
    edge[:2] = edge[34:] = edge[:, :2] = edge[:, 34:] = 0
    assert captioner.caption([edge]) == captioner.caption([image])


def test_as_many_tokens_as_are_asked_for(blip: Path) -> None:
    forced = replace(
        TransformersSource.open(str(blip)), decoding=DecodingOptions(max_new_tokens=7, min_new_tokens=7)
    )
    captioner = forced.load_captioner(batch_size=4, num_threads=1)
    assert {caption.token_count for caption in captioner.caption(pictures(captioner))} == {7}


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoints_of_former_versions(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """They have their options in `config.json`, whole lists of defaults, and no `generation_config.json`."""
    folder = Path(shutil.copytree(folders[family], tmp_path / family))
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    for part in (config, *(config[name] for name in ("text_config", "decoder") if name in config)):
        part |= {"max_length": 20, "do_sample": False, "num_beams": 1, "top_k": 50, "temperature": 1.0}
        part |= {"length_penalty": 1.0, "diversity_penalty": 0.0, "no_repeat_ngram_size": 0}
    (folder / "config.json").write_text(json.dumps(config))
    captioner, today = load(folder), load(folders[family])
    assert captioner.caption(pictures(captioner)) == today.caption(pictures(captioner))


def test_sampling_is_off_whatever_the_model_says(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["git"], tmp_path / "git"))
    generation = json.loads((folder / "generation_config.json").read_text())
    generation |= {"do_sample": True, "temperature": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    captioner = load(folder)
    assert captioner.caption(pictures(captioner)) == load(folders["git"]).caption(pictures(captioner))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [(" a dog \n", "a dog"), ("a\tdog\x00 .", "a dog ."), ("\u2028a\xa0dog", "a dog"), ("", "")],
)
def test_a_caption_is_one_line(text: str, cleaned: str) -> None:
    assert on_one_line(text) == cleaned


# --- what is damaged ---


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["text_decoder.bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change(file: str, **values: Any) -> Any:
    def do(folder: Path) -> None:
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))

    return do


def write(file: str, content: str) -> Any:
    return lambda folder: (folder / file).write_text(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_weights, "is damaged"),
        (drop_a_weight, "no good weights for text_decoder.bert.encoder.layer.1.output.dense.weight"),
        (write("tokenizer.json", "{}"), "the tokenizer in"),
        (change("config.json", text_config={"vocab_size": 25, "hidden_size": 12}), "is damaged"),
        (change("preprocessor_config.json", size=48), "can't run"),
    ],
)
def test_a_damaged_model_is_told_in_one_line(damage: Any, words: str, blip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(blip, tmp_path / "blip"))
    damage(folder)
    source = TransformersSource.open(str(folder))
    with pytest.raises(BundleError, match=words) as caught:
        source.load_captioner(batch_size=2, num_threads=1)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_more_beams_than_tokens(blip: Path) -> None:
    """Where the configuration does not say how many tokens there are, the network does."""
    wrong = replace(TransformersSource.open(str(blip)), decoding=DecodingOptions(num_beams=26))
    with pytest.raises(BundleError, match="more beams than the 25 tokens"):
        wrong.load_captioner(batch_size=2, num_threads=1)


# --- in a run ---


def test_a_run_takes_it_as_any_other(blip: Path, photos: Path, tmp_path: Path, local_ray: None) -> None:
    """Through real Ray; and a run that finds nothing to do loads none of torch and transformers."""
    store = tmp_path / "store"
    source = open_source(f"hf:{blip}", num_beams=2)
    with Catalog.open(f"sqlite:///{store}/catalog.db", mode="write") as catalog:
        report = index_collection([str(photos)], catalog, store, source)
        assert (report.captioned, report.quarantined) == (40, {})
        with catalog.query("SELECT caption, confidence, model FROM captions") as result:
            rows = [dict(zip(result.columns, row, strict=True)) for row in result.rows]
    assert len({row["caption"] for row in rows}) > 4
    assert all(row["confidence"] is None for row in rows)
    assert {row["model"] for row in rows} == {"blip"}

    arguments = ["batchcap", "index", str(photos), "--store", str(store), "--num-beams", "2", "--json"]
    script = f"""
import json, sys
sys.argv = {arguments!r}
from batchcap.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({{"torch", "transformers", "tensorflow", "ray"}} & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"BATCHCAP_MODEL": f"hf:{blip}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary, loaded = map(json.loads, done.stdout.splitlines())
    assert (summary["captioned"], summary["unchanged"]) == (0, 40)
    assert loaded == []


def test_the_command_captions_with_it(blip: Path, photos: Path) -> None:
    photo = photos / "000.jpg"
    result = CliRunner().invoke(app, ["caption", str(photo), "--model", f"hf:{blip}", "--json"])
    assert (result.exit_code, result.stderr) == (0, "")
    (found,) = json.loads(result.stdout)["captions"]
    captioner = TransformersSource.open(str(blip)).load_captioner(batch_size=1, num_threads=1)
    (expected,) = captioner.caption([decode_image(photo.read_bytes(), captioner.image_spec)])
    assert found["caption"] == expected.text
    assert found["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)
    assert (found["confidence"], found["token_count"]) == (None, expected.token_count)
