"""BLIP, GIT and ViT-GPT2 as small as they get, with random weights, saved as transformers saves its models.

Importing this module imports torch; tests do so after they have seen that it is there.
"""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.conftest import WORDS

IMAGE_SIZE = 32
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_PAD, _CLS, _SEP = 0, 2, 3
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = _TEXT | {"image_size": IMAGE_SIZE, "patch_size": 16}
_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
_MEAN_AND_STD = {"image_mean": [0.48, 0.45, 0.40], "image_std": [0.26, 0.27, 0.28]}


def _write_blip(folder: Path) -> None:
    config = transformers.BlipConfig(
        text_config=_TEXT
        | {
            "vocab_size": len(_SPECIAL) + len(WORDS),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 40,
            "bos_token_id": _CLS,
            "sep_token_id": _SEP,
            "eos_token_id": _SEP,
            "pad_token_id": _PAD,
        },
        vision_config=_VISION,
    )
    model = transformers.BlipForConditionalGeneration(config)
    _enliven(model, model.text_decoder.cls.predictions.bias)
    model.save_pretrained(folder)
    _wordpiece(folder)
    processor = {"image_processor_type": "BlipImageProcessor", "resample": 3, "size": _SQUARE}
    write_json(folder / "preprocessor_config.json", processor | _MEAN_AND_STD)


def _write_git(folder: Path) -> None:
    config = transformers.GitConfig(
        vision_config=_VISION,
        **_TEXT,
        vocab_size=len(_SPECIAL) + len(WORDS),
        max_position_embeddings=40,
        bos_token_id=_CLS,
        eos_token_id=_SEP,
        pad_token_id=_PAD,
    )
    model = transformers.GitForCausalLM(config)
    _enliven(model, model.output.bias)
    model.save_pretrained(folder)
    _wordpiece(folder)
    # As transformers 5 saves it: all of a model's processors in one file.
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_SIZE + 4},
        "crop_size": _SQUARE,
        "do_center_crop": True,
        "rescale_factor": 1 / 255,
    }
    write_json(
        folder / "processor_config.json",
        {"image_processor": processor | _MEAN_AND_STD, "processor_class": "GitProcessor"},
    )


def _write_vit_gpt2(folder: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, **{f"Ġ{word}": number for number, word in enumerate(WORDS, 1)}}
    encoder = transformers.ViTConfig(**_VISION)
    decoder = transformers.GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        is_decoder=True,
        add_cross_attention=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=0, pad_token_id=0, eos_token_id=0
    )
    model = transformers.VisionEncoderDecoderModel(config=config)
    _enliven(model, None)
    model.save_pretrained(folder)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=end, eos_token=end, pad_token=end
    ).save_pretrained(folder)
    processor = {"feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": IMAGE_SIZE}
    write_json(folder / "preprocessor_config.json", processor | _MEAN_AND_STD)


_WRITERS = {"blip": (_write_blip, 11), "git": (_write_git, 8), "vit-gpt2": (_write_vit_gpt2, 11)}
FAMILIES = tuple(_WRITERS)


def write_model(family: str, folder: Path) -> Path:
    """Writes a model of one of the `FAMILIES`, the same each time."""
    writer, seed = _WRITERS[family]
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    writer(folder)
    return folder


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def _wordpiece(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*_SPECIAL, *WORDS]) + "\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True})


def _enliven(model: torch.nn.Module, bias: torch.Tensor | None) -> None:
    """Random weights with which captions depend on the picture and end at different lengths."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.6 * weight[0].numel() ** -0.5)
            elif bias is not None and weight is bias:
                # What no caption says, and the end.
                weight[: len(_SPECIAL)] = -30.0
                weight[_SEP] = 2.0
