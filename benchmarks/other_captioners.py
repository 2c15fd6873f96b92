"""How fast is the model that ships, beside BLIP-base, GIT-base and ViT-GPT2 on the same machine?

The others are built from their published configurations with random weights, which are as fast as trained
ones, and run by transformers on torch through batchcap's own adapter. All decode greedily. The others are
made to decode exactly `--tokens` tokens a picture; ours may end earlier, so how many it decoded stands beside
its rate. This compares speed alone: the others are larger networks and write better captions.

Prints one JSON object: rates in images/s with pictures in memory, the ratios of ours to each, the commit and
the machine. Batch sizes are tried first, for each captioner, and the fastest is taken. Each round measures
all captioners one after the other, in processes of their own, so that a busy moment strikes all of them.

    python benchmarks/other_captioners.py [--rounds 3] [--images 32] [--tokens 12]
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from common import make_photos, provenance

from batchcap.captioner.bundle import DEFAULT_BUNDLE, Bundle
from batchcap.captioner.config import GenerationConfig
from batchcap.captioner.images import decode_image
from batchcap.captioner.protocol import CaptionerSource
from batchcap.captioner.transformers_source import DecodingOptions, TransformersSource

OURS = "ours"
OTHERS = ("blip", "git", "vit_gpt2")
_BATCH_SIZES = (1, 4, 16, 32)


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    images: Annotated[int, typer.Option(min=1, help="Pictures that each captioner captions a round.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens a caption.")] = 12,
    shrink: Annotated[bool, typer.Option(help="Networks of one small layer, to try this script.")] = False,
    measure: Annotated[str | None, typer.Option(hidden=True)] = None,
    batch_size: Annotated[int, typer.Option(hidden=True)] = 1,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measures rounds of all captioners, each at its best batch size."""
    if measure is not None and folder is not None:
        print(json.dumps(measure_captioner(open_captioner(measure, folder, tokens), folder, batch_size)))
        return
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed: pip install 'batchcap[transformers]'"
        print(json.dumps({"benchmark": "other_captioners", "skipped": reason}))
        return
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "photos").mkdir()
        make_photos(Path(made) / "photos", images)
        parameters = {name: write_model(name, Path(made) / name, shrink=shrink) for name in OTHERS}

        def run(name: str, batch_size: int) -> dict[str, Any]:
            command = [sys.executable, __file__, "--measure", name, "--folder", made]
            command += ["--tokens", str(tokens), "--batch-size", str(batch_size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return found

        sizes = [size for size in _BATCH_SIZES if size <= images]
        names = (OURS, *OTHERS)
        tried: dict[str, dict[int, float]] = {name: {} for name in names}
        if len(sizes) > 1:
            tried = {name: {size: run(name, size)["images_per_s"] for size in sizes} for name in names}
        best = {
            name: max(sizes, key=lambda size, rates=rates: rates.get(size, 0))
            for name, rates in tried.items()
        }
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in best}
        for _ in range(rounds):
            for name, size in best.items():
                measured[name].append(run(name, size))
    rates = {name: [found["images_per_s"] for found in of_rounds] for name, of_rounds in measured.items()}
    print(
        json.dumps(
            {
                "benchmark": "other_captioners",
                "images": images,
                "tokens": tokens,
                "rounds": rounds,
                "captioners": {
                    name: {
                        "images_per_s": [round(rate, 3) for rate in rates[name]],
                        "batch_size": best[name],
                        "by_batch_size": {size: round(rate, 3) for size, rate in tried[name].items()},
                        "tokens_decoded": measured[name][0]["tokens_decoded"],
                        "steps_decoded": measured[name][0]["steps_decoded"],
                        "image_size": measured[name][0]["image_size"],
                        "parameters": parameters.get(name) or count_our_parameters(),
                    }
                    for name in measured
                },
                "ours_to": {
                    name: round(statistics.median(map(ratio, rates[OURS], rates[name])), 2) for name in OTHERS
                },
                **provenance(),
                "torch": version("torch"),
                "transformers": version("transformers"),
            }
        )
    )


def ratio(one: float, other: float) -> float:
    return one / other


def open_captioner(name: str, folder: Path, tokens: int) -> CaptionerSource:
    """Our model with room for so many tokens, or one of the others made to decode exactly so many."""
    if name == OURS:
        # The token that starts a caption is one of `max_length`.
        return Bundle.open(DEFAULT_BUNDLE, generation=GenerationConfig(num_beams=1, max_length=tokens + 1))
    source = TransformersSource.open(str(folder / name))
    return replace(source, decoding=DecodingOptions(1, max_new_tokens=tokens, min_new_tokens=tokens))


def measure_captioner(source: CaptionerSource, folder: Path, batch_size: int) -> dict[str, Any]:
    """A captioner in this process on all cores, on pictures in memory; the first batch warms up."""
    pixels = [
        decode_image(path.read_bytes(), source.image_spec) for path in sorted((folder / "photos").iterdir())
    ]
    captioner = source.load_captioner(batch_size=batch_size, num_threads=os.cpu_count() or 1)
    captioner.caption(pixels[:batch_size])
    started = time.perf_counter()
    captions = captioner.caption(pixels)
    elapsed = time.perf_counter() - started
    counts = [caption.token_count for caption in captions]
    batches = [counts[start : start + batch_size] for start in range(0, len(counts), batch_size)]
    return {
        "images_per_s": len(pixels) / elapsed,
        "image_size": source.image_spec.image_size,
        # Of a caption on average; and the steps of its batch, which go on until the longest has ended.
        "tokens_decoded": round(statistics.mean(counts), 2),
        "steps_decoded": round(statistics.mean(map(max, batches)), 2),
    }


def count_our_parameters() -> int:
    return sum(weight.size for weight in Bundle.open(DEFAULT_BUNDLE).weights().values())


def write_model(name: str, folder: Path, *, shrink: bool) -> int:
    """Writes a model with random weights as transformers saves it; returns how many weights it has."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = {"blip": make_blip, "git": make_git, "vit_gpt2": make_vit_gpt2}[name](shrink)
    model.save_pretrained(folder)
    write_tokenizer(folder, model.config.get_text_config(decoder=True).vocab_size)
    size = (model.config.encoder if name == "vit_gpt2" else model.config.vision_config).image_size
    processor = {"size": {"height": size, "width": size}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return sum(parameter.numel() for parameter in model.parameters())


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def make_blip(shrink: bool) -> Any:
    """Salesforce/blip-image-captioning-base: ViT-base at 384 pixels, a text decoder of 12 layers."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    layers = _SMALL if shrink else _BASE | {"num_hidden_layers": 12}
    text = layers | {"encoder_hidden_size": layers["hidden_size"], "vocab_size": 30_524}
    vision = layers | {"image_size": 64 if shrink else 384, "patch_size": 16}
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))


def make_git(shrink: bool) -> Any:
    """microsoft/git-base: the picture's tokens before the text's in one decoder of 6 layers."""
    from transformers import GitConfig, GitForCausalLM

    text = _SMALL if shrink else _BASE | {"num_hidden_layers": 6}
    layers = _SMALL if shrink else _BASE | {"num_hidden_layers": 12}
    vision = layers | {"image_size": 64 if shrink else 224, "patch_size": 16}
    return GitForCausalLM(GitConfig(vision_config=vision, vocab_size=30_522, **text))


def make_vit_gpt2(shrink: bool) -> Any:
    """nlpconnect/vit-gpt2-image-captioning: ViT-base at 224 pixels, GPT-2 with cross-attention."""
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    layers = _SMALL if shrink else _BASE | {"num_hidden_layers": 12}
    encoder = ViTConfig(**layers, image_size=64 if shrink else 224, patch_size=16)
    decoder = GPT2Config(
        vocab_size=50_257,
        n_embd=layers["hidden_size"],
        n_layer=layers["num_hidden_layers"],
        n_head=layers["num_attention_heads"],
        is_decoder=True,
        add_cross_attention=True,
    )
    end = decoder.eos_token_id
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=end, pad_token_id=end, eos_token_id=end
    )
    return VisionEncoderDecoderModel(config=config)


def write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """One made-up word a token: what it says doesn't matter, that it says it does."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"word{number}": number for number in range(vocabulary_size)}, "word0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
