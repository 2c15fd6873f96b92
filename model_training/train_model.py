"""The command `train_model`: trains a captioner and writes its bundle.

Options have the names of the original system, with underscores; dashes work as well.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

# TensorFlow reads it when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer

from batchcap.captioner.config import Backbone, CaptionerConfig
from batchcap.captioner.images import ImageSpec
from batchcap.errors import BatchcapError, UsageError
from model_training.config import TrainConfig
from model_training.datasets import Format

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(name: str, help_text: str, panel: str, **settings: Any) -> Any:
    """An option that is known with underscores and with dashes."""
    names = dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **settings)


_DATA, _NETWORK, _TRAINING, _RESULTS = "Data", "Network", "Training", "Results"


@app.command()
def train_model(
    data: Annotated[Path, _option("data", "Folder of the images.", _DATA)],
    captions: Annotated[Path, _option("captions", "File of captions.", _DATA)],
    format: Annotated[Format, _option("format", "Of the captions.", _DATA)] = "auto",
    train_split: Annotated[
        Path | None, _option("train_split", "Names of the images to train on.", _DATA)
    ] = None,
    dev_split: Annotated[
        Path | None, _option("dev_split", "Names of the images to choose on.", _DATA)
    ] = None,
    dev_share: Annotated[
        float, _option("dev_share", "Of the images, to choose on, if nothing else splits them.", _DATA)
    ] = 0.05,
    limit: Annotated[int, _option("limit", "Images of each split; 0 for all.", _DATA, min=0)] = 0,
    cache_dir: Annotated[Path, _option("cache_dir", "Keeps CNN features for later runs.", _DATA)] = Path(
        "local_runs/cache"
    ),
    vocabulary_size: Annotated[int, _option("vocabulary_size", "Tokens at most.", _DATA, min=5)] = 10_000,
    min_count: Annotated[int, _option("min_count", "Rarer words are unknown words.", _DATA, min=1)] = 1,
    backbone: Annotated[Backbone, _option("backbone", "The CNN.", _NETWORK)] = "efficientnet_b1",
    backbone_weights: Annotated[
        str, _option("backbone_weights", "imagenet, none, or a file.", _NETWORK)
    ] = "imagenet",
    image_size: Annotated[int, _option("image_size", "Pixels.", _NETWORK, min=32)] = 224,
    seq_length: Annotated[int, _option("seq_length", "Tokens of a caption.", _NETWORK, min=3)] = 36,
    embed_dim: Annotated[int, _option("embed_dim", "Width.", _NETWORK, min=1)] = 512,
    ff_dim: Annotated[int, _option("ff_dim", "Inner width of the feed-forward part.", _NETWORK, min=1)] = 256,
    enc_heads: Annotated[int, _option("enc_heads", "Heads of the encoder.", _NETWORK, min=1)] = 2,
    dec_heads: Annotated[int, _option("dec_heads", "Heads of the decoder.", _NETWORK, min=1)] = 4,
    enc_layers: Annotated[int, _option("enc_layers", "Encoder blocks.", _NETWORK, min=1)] = 1,
    dec_layers: Annotated[int, _option("dec_layers", "Decoder blocks.", _NETWORK, min=1)] = 1,
    key_dim: Annotated[
        int | None, _option("key_dim", "Width of a head.  [default: embed_dim]", _NETWORK, min=1)
    ] = None,
    scale_embeddings: Annotated[
        bool,
        typer.Option(
            "--scale_embeddings/--no_scale_embeddings",
            "--scale-embeddings/--no-scale-embeddings",
            help="Token embeddings times sqrt(embed_dim).",
            rich_help_panel=_NETWORK,
        ),
    ] = True,
    residual_dropout: Annotated[
        float, _option("residual_dropout", "Of what each sublayer adds.", _TRAINING, min=0.0, max=0.95)
    ] = 0.0,
    attention_dropout: Annotated[
        float, _option("attention_dropout", "Of attention weights.", _TRAINING, min=0.0, max=0.95)
    ] = 0.1,
    ff_dropout: Annotated[
        float, _option("ff_dropout", "Inside the feed-forward part.", _TRAINING, min=0.0, max=0.95)
    ] = 0.3,
    output_dropout: Annotated[
        float, _option("output_dropout", "Before the last layer.", _TRAINING, min=0.0, max=0.95)
    ] = 0.5,
    epochs: Annotated[int, _option("epochs", "Passes over the images.", _TRAINING, min=1)] = 20,
    batch_size: Annotated[int, _option("batch_size", "Captions a step.", _TRAINING, min=1)] = 128,
    lr: Annotated[float, _option("lr", "Peak learning rate.", _TRAINING, min=0.0)] = 1e-3,
    warmup_steps: Annotated[int, _option("warmup_steps", "Steps to the peak.", _TRAINING, min=0)] = 200,
    weight_decay: Annotated[float, _option("weight_decay", "Of AdamW.", _TRAINING, min=0.0)] = 0.01,
    clip_norm: Annotated[float, _option("clip_norm", "Norm of the gradients.", _TRAINING, min=0.0)] = 1.0,
    ema_momentum: Annotated[
        float, _option("ema_momentum", "Average the weights over steps.", _TRAINING, min=0.0, max=0.99999)
    ] = 0.0,
    label_smoothing: Annotated[
        float, _option("label_smoothing", "Spread over all words.", _TRAINING, min=0.0, max=0.9)
    ] = 0.0,
    seed: Annotated[int, _option("seed", "Of weights, order, dropout, split.", _TRAINING)] = 0,
    artifact_dir: Annotated[Path, _option("artifact_dir", "Folder of the bundle.", _RESULTS)] = Path(
        "./local_runs/default_run"
    ),
    num_beams: Annotated[int, _option("num_beams", "Beams of the finished bundle.", _RESULTS, min=1)] = 3,
    length_penalty: Annotated[float, _option("length_penalty", "Of these beams.", _RESULTS, min=0.0)] = 0.7,
    wandb: Annotated[
        Literal["online", "offline", "disabled"], _option("wandb", "Weights & Biases.", _RESULTS)
    ] = "disabled",
    wandb_project: Annotated[str, _option("wandb_project", "Its project.", _RESULTS)] = "batchcap",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a captioner with a frozen CNN; the epoch with the best CIDEr-D becomes the bundle."""
    try:
        try:
            shape = CaptionerConfig(
                backbone=backbone,
                image=ImageSpec(image_size),
                vocabulary_size=vocabulary_size,
                sequence_length=seq_length,
                embed_dim=embed_dim,
                ff_dim=ff_dim,
                enc_heads=enc_heads,
                dec_heads=dec_heads,
                enc_layers=enc_layers,
                dec_layers=dec_layers,
                key_dim=key_dim,
                scale_embeddings=scale_embeddings,
                residual_dropout=residual_dropout,
                attention_dropout=attention_dropout,
                ff_dropout=ff_dropout,
                output_dropout=output_dropout,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        config = TrainConfig(
            data=data,
            captions=captions,
            train_split=train_split,
            dev_split=dev_split,
            artifact_dir=artifact_dir,
            captioner=shape,
            backbone_weights=backbone_weights,
            cache_dir=cache_dir,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            ema_momentum=ema_momentum,
            label_smoothing=label_smoothing,
            min_count=min_count,
            num_beams=num_beams,
            length_penalty=length_penalty,
            seed=seed,
            limit=limit,
            wandb=wandb,
            wandb_project=wandb_project,
            format=format,
            dev_share=dev_share,
        )
        # Importing TensorFlow takes seconds, which `--help` and a wrong option should not.
        from model_training.training import train

        print(f"the model is in {train(config, report=_report)}")
    except BatchcapError as error:
        if debug:
            raise
        print(f"train_model: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


def _report(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """The command `train_model`."""
    app()


if __name__ == "__main__":
    main()
