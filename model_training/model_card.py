"""The card that a fresh bundle gets: what it is and how it was trained."""

from collections.abc import Mapping

from batchcap.captioner.model import CaptionModel
from model_training.config import TrainConfig
from model_training.datasets import Dataset

_CNN = {
    "none": "frozen",
    "top": "trained in its last two stages",
    "all": "trained as well",
}


def model_card(
    config: TrainConfig, dataset: Dataset, model: CaptionModel, scores: Mapping[str, float | str]
) -> str:
    """The card in Markdown.

    Args:
        config: the run's options.
        dataset: what it was trained and chosen on.
        model: the network.
        scores: of the epoch that the bundle is of.
    """
    shape = model.config
    ingredients = "".join(
        f" {text}"
        for text, is_used in {
            f"The decoder learned the language of captions on `{config.text and config.text.name}` first.": (
                config.text is not None
            ),
            "Self-critical training on CIDEr-D came last.": scores["stage"] == "scst",
        }.items()
        if is_used
    )
    return f"""# {config.artifact_dir.resolve().name}

A captioner of {model.count_params() / 1e6:.1f} million parameters: {shape.backbone} at
{shape.image.image_size} pixels ({_CNN[config.train_cnn]}), {shape.enc_layers} encoder and {shape.dec_layers}
decoder blocks of width {shape.embed_dim}, {shape.vocabulary_size} tokens.

Trained on images of `{config.captions.name}`, chosen on others of it (split by {dataset.split_by}) at epoch
{scores["epoch"]}: BLEU-4 {scores["dev_bleu_4"]:.3f}, CIDEr-D {scores["dev_cider_d"]:.1f} with
{config.num_beams} beams.{ingredients}
"""
