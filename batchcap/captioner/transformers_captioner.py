"""Loads and runs captioners of Hugging Face transformers. Importing this module imports torch."""

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from batchcap.captioner.images import ImageSpec
from batchcap.captioner.protocol import Caption
from batchcap.errors import BundleError

if TYPE_CHECKING:
    from batchcap.captioner.transformers_source import TransformersSource

# All three families begin a caption with one token that is given: it is no part of the caption.
_PROMPT_TOKENS = 1
# Weights that no caption goes through, and that some checkpoints hence lack.
_UNUSED = "pooler"
# The logits of every step are kept for the log-probabilities: at four beams and 50,000 words 400 MB of this.
_MAX_BATCH_SIZE = 32


class TransformersCaptioner:
    """Captions pictures with an encoder-decoder or decoder of transformers.

    On a GPU that torch sees, in half precision; else on the CPU in single precision. Shapes: B images, L
    tokens of the longest caption, N beams, V tokens of the vocabulary.

    Args:
        source: the opened model.
        batch_size: images that go through the network at once, 32 at most.

    Raises:
        BundleError: tokenizer or weights are damaged, or there are more beams than tokens.
    """

    def __init__(self, source: "TransformersSource", *, batch_size: int = 32) -> None:
        self.fingerprint = source.fingerprint()
        self.batch_size = min(batch_size, _MAX_BATCH_SIZE)
        self._source = source
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = torch.float16 if self._device.type == "cuda" else torch.float32
        self._tokenizer = _load_tokenizer(source)
        self.model = _load_model(source, self._dtype).to(self._device)
        vocabulary_size = self.model.config.get_text_config(decoder=True).vocab_size
        if source.decoding.num_beams > vocabulary_size:
            raise BundleError(f"more beams than the {vocabulary_size} tokens of {source.path}")
        self._generation = transformers.GenerationConfig(
            do_sample=False,
            num_beams=source.decoding.num_beams,
            max_new_tokens=source.decoding.max_new_tokens,
            min_new_tokens=source.decoding.min_new_tokens or None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        self._end_ids = _end_ids(self.model)

    @property
    def image_spec(self) -> ImageSpec:
        """The pictures that the model takes."""
        return self._source.image_spec

    def caption(self, images: Sequence[np.ndarray]) -> list[Caption]:
        """Captions pictures.

        Args:
            images: any number of uint8[image_size, image_size, 3], as `decode_image` gives them.

        Returns:
            A caption an image, in their order; without a confidence, for which there is no calibration.
        """
        captions: list[Caption] = []
        for start in range(0, len(images), self.batch_size):
            captions += self._caption_batch(np.stack(list(images[start : start + self.batch_size])))
        return captions

    def warm_up(self) -> None:
        """Captions a blank picture: what doesn't fit together in a model shows here and not amid a run.

        Raises:
            BundleError: the network can't run.
        """
        size = self.image_spec.image_size
        try:
            self.caption([np.zeros((size, size, 3), np.uint8)])
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise BundleError(f"the model in {self._source.path} can't run: {_one_line(error)}") from error

    def normalize(self, images: np.ndarray) -> torch.Tensor:
        """uint8[B, S, S, 3] -> what the network takes, [B, 3, C, C], C the model's `crop_size`."""
        preprocessing = self._source.preprocessing
        margin = (images.shape[1] - preprocessing.crop_size) // 2
        kept = slice(margin, margin + preprocessing.crop_size)
        pixels = torch.from_numpy(images[:, kept, kept]).to(self._device).permute(0, 3, 1, 2)
        mean, std = (
            torch.tensor(channels, device=self._device)[:, None, None]
            for channels in (preprocessing.mean, preprocessing.std)
        )
        return ((pixels.float() * preprocessing.scale - mean) / std).to(self._dtype).contiguous()

    def _caption_batch(self, images: np.ndarray) -> list[Caption]:
        with torch.inference_mode(), warnings.catch_warnings():
            # About options of the model's own that our decoding overrules.
            warnings.simplefilter("ignore")
            found = self.model.generate(
                pixel_values=self.normalize(images), generation_config=self._generation
            )
        token_ids = found.sequences[:, _PROMPT_TOKENS:]
        # None where decoding was greedy: then row and image are one.
        rows = getattr(found, "beam_indices", None)
        counted = self._is_counted(token_ids)
        log_probs = _log_probs(found.logits, token_ids, rows, counted)
        texts = self._tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return [
            Caption(on_one_line(text), log_prob, None, token_count)
            for text, log_prob, token_count in zip(
                texts, log_probs.tolist(), counted.sum(1).tolist(), strict=True
            )
        ]

    def _is_counted(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Which tokens are the caption's, its end included: int64[B, L] -> bool[B, L]."""
        is_end = torch.isin(token_ids, self._end_ids.to(token_ids.device))
        # Ends before the token, itself not counted: what follows an end is padding.
        ends_before = is_end.cumsum(1) - is_end.long()
        return ends_before == 0


def use_cpu_threads(num_threads: int) -> None:
    """Sets torch's thread pool, for this process."""
    torch.set_num_threads(num_threads)


def on_one_line(text: str) -> str:
    """A caption as it is stored: printable, single spaces, none around it."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _log_probs(
    logits: tuple[torch.Tensor, ...],
    token_ids: torch.Tensor,
    rows: torch.Tensor | None,
    counted: torch.Tensor,
) -> torch.Tensor:
    """The natural logarithm of each caption's probability, as the network alone gives it.

    Beams are ranked by scores that the length penalty and other options have changed, so these are not used.

    Args:
        logits: of each step, float32[B * N, V].
        token_ids: int64[B, L], the captions.
        rows: int64[B, L], the row of the logits that each token was chosen from; below 0 after the end.
        counted: bool[B, L], which tokens are the caption's.

    Returns:
        float64[B].
    """
    total = torch.zeros(len(token_ids), dtype=torch.float64, device=token_ids.device)
    for step in range(token_ids.shape[1]):
        of_step = logits[step] if rows is None else logits[step][rows[:, step].clamp(min=0)]
        of_token = torch.log_softmax(of_step.float(), -1).gather(1, token_ids[:, step, None])[:, 0]
        total += torch.where(counted[:, step], of_token, 0.0)
    return total


def _load_tokenizer(source: "TransformersSource") -> Any:
    _keep_quiet()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )
    # The library reads files of many formats, and lets through whatever its parsers raise.
    except Exception as error:
        raise BundleError(f"the tokenizer in {source.path} is damaged: {_one_line(error)}") from error


def _load_model(source: "TransformersSource", dtype: torch.dtype) -> Any:
    """The network, whole: weights that are missing are an error, not random numbers."""
    model_class = getattr(transformers, source.architecture)
    try:
        model, loading = model_class.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    # As above: errors of safetensors, of torch, of configurations.
    except Exception as error:
        raise BundleError(f"the model in {source.path} is damaged: {_one_line(error)}") from error
    missing = sorted(name for name in loading["missing_keys"] if _UNUSED not in name.split("."))
    wrong = [*missing, *map(str, loading["mismatched_keys"]), *map(str, loading["error_msgs"])]
    if wrong:
        raise BundleError(f"the model in {source.path} is damaged: no good weights for {wrong[0]}")
    return model.eval()


def _end_ids(model: Any) -> torch.Tensor:
    """The tokens that end a caption: int64[E]."""
    if isinstance(model, transformers.BlipForConditionalGeneration):
        end = model.config.text_config.sep_token_id  # its `generate` takes no other
    else:
        end = model.generation_config.eos_token_id
    return torch.tensor([] if end is None else end, dtype=torch.int64).reshape(-1)


def _keep_quiet() -> None:
    """No progress bars, no advice: what goes wrong arrives as an exception."""
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
