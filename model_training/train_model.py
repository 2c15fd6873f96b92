"""The command `train_model`: trains a captioner and writes its bundle.

Options have the names of the original system, with underscores; dashes work as well.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

# TensorFlow reads it when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer

from batchcap.captioner.bundle import Bundle
from batchcap.captioner.config import Backbone, CaptionerConfig
from batchcap.captioner.images import ImageSpec
from batchcap.errors import BatchcapError, UsageError
from model_training.config import PRESETS, Preset, TrainCnn, TrainConfig
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


def _switch(name: str, help_text: str, panel: str) -> Any:
    """A switch and its opposite, with underscores and with dashes."""
    dashed = name.replace("_", "-")
    names = dict.fromkeys([f"--{name}/--no_{name}", f"--{dashed}/--no-{dashed}"])
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


_DROPOUTS = ("residual_dropout", "attention_dropout", "ff_dropout", "output_dropout")
_DATA, _NETWORK, _TRAINING, _REGULARIZATION, _STAGES, _RESULTS = (
    "Data",
    "Network",
    "Training",
    "Against overfitting",
    "Stages before and after",
    "Results",
)


@app.command()
def train_model(
    context: typer.Context,
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
    cache_dir: Annotated[
        Path, _option("cache_dir", "Keeps pixels and features for later runs.", _DATA)
    ] = Path("local_runs/cache"),
    vocabulary_size: Annotated[int, _option("vocabulary_size", "Tokens at most.", _DATA, min=5)] = 10_000,
    min_count: Annotated[int, _option("min_count", "Rarer words are unknown words.", _DATA, min=1)] = 1,
    preset: Annotated[
        Preset | None, _option("preset", "A shape of the original's; other options change it.", _NETWORK)
    ] = None,
    init: Annotated[
        Path | None, _option("init", "A bundle to start from, with its shape and words.", _NETWORK)
    ] = None,
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
        int | None, _option("key_dim", "Width of a head.", _NETWORK, min=1, show_default="--embed_dim")
    ] = None,
    scale_embeddings: Annotated[
        bool, _switch("scale_embeddings", "Token embeddings times sqrt(embed_dim).", _NETWORK)
    ] = True,
    epochs: Annotated[int, _option("epochs", "Passes over the images.", _TRAINING, min=0)] = 20,
    batch_size: Annotated[int, _option("batch_size", "Captions a step.", _TRAINING, min=1)] = 128,
    lr: Annotated[float, _option("lr", "Peak learning rate.", _TRAINING, min=0.0)] = 1e-3,
    warmup_steps: Annotated[int, _option("warmup_steps", "Steps to the peak.", _TRAINING, min=0)] = 200,
    clip_norm: Annotated[float, _option("clip_norm", "Norm of the gradients.", _TRAINING, min=0.0)] = 1.0,
    train_cnn: Annotated[
        TrainCnn, _option("train_cnn", "How much of the CNN: none, its top, all.", _TRAINING)
    ] = "none",
    cnn_lr: Annotated[
        float, _option("cnn_lr", "Learning rate of the CNN, as a share of --lr.", _TRAINING, min=0.0)
    ] = 0.1,
    mixed_precision: Annotated[bool, _switch("mixed_precision", "Compute in bfloat16.", _TRAINING)] = False,
    patience: Annotated[
        int,
        _option("patience", "Stop after so many epochs that are no better; 0: never.", _TRAINING, min=0),
    ] = 5,
    seed: Annotated[int, _option("seed", "Of weights, order, dropout, split.", _TRAINING, min=0)] = 0,
    augment: Annotated[bool, _switch("augment", "Also train on random crops.", _REGULARIZATION)] = False,
    dropout: Annotated[
        float | None,
        _option("dropout", "All of the following, where not given.", _REGULARIZATION, min=0.0, max=0.95),
    ] = None,
    residual_dropout: Annotated[
        float, _option("residual_dropout", "Of what each sublayer adds.", _REGULARIZATION, min=0.0, max=0.95)
    ] = 0.0,
    attention_dropout: Annotated[
        float, _option("attention_dropout", "Of attention weights.", _REGULARIZATION, min=0.0, max=0.95)
    ] = 0.1,
    ff_dropout: Annotated[
        float, _option("ff_dropout", "Inside the feed-forward part.", _REGULARIZATION, min=0.0, max=0.95)
    ] = 0.3,
    output_dropout: Annotated[
        float, _option("output_dropout", "Before the last layer.", _REGULARIZATION, min=0.0, max=0.95)
    ] = 0.5,
    weight_decay: Annotated[float, _option("weight_decay", "Of AdamW.", _REGULARIZATION, min=0.0)] = 0.01,
    label_smoothing: Annotated[
        float, _option("label_smoothing", "Spread over all words.", _REGULARIZATION, min=0.0, max=0.9)
    ] = 0.0,
    consistency: Annotated[
        float, _option("consistency", "Two passes that are to agree (R-Drop).", _REGULARIZATION, min=0.0)
    ] = 0.0,
    consensus: Annotated[
        float,
        _option(
            "consensus", "Count captions by their agreement with others.", _REGULARIZATION, min=0.0, max=1.0
        ),
    ] = 0.0,
    teacher: Annotated[
        list[Path] | None,
        _option(
            "teacher", "A bundle to learn from as well; give it more than once for several.", _REGULARIZATION
        ),
    ] = None,
    distillation: Annotated[
        float,
        _option(
            "distillation", "Share of the loss that is about teachers.", _REGULARIZATION, min=0.0, max=1.0
        ),
    ] = 0.5,
    ema_momentum: Annotated[
        float, _option("ema_momentum", "Average weights over steps.", _REGULARIZATION, min=0.0, max=0.99999)
    ] = 0.0,
    text: Annotated[
        Path | None, _option("text", "Captions without images, to learn their language first.", _STAGES)
    ] = None,
    text_epochs: Annotated[int, _option("text_epochs", "Passes over them.", _STAGES, min=1)] = 1,
    scst_epochs: Annotated[
        int, _option("scst_epochs", "Passes of self-critical training, last.", _STAGES, min=0)
    ] = 0,
    scst_lr: Annotated[float, _option("scst_lr", "Its peak learning rate.", _STAGES, min=0.0)] = 5e-5,
    scst_samples: Annotated[
        int, _option("scst_samples", "Captions that it draws for an image.", _STAGES, min=2)
    ] = 5,
    artifact_dir: Annotated[Path, _option("artifact_dir", "Folder of the run.", _RESULTS)] = Path(
        "./local_runs/default_run"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run there.", rich_help_panel=_RESULTS)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run there.", rich_help_panel=_RESULTS)
    ] = False,
    num_beams: Annotated[int, _option("num_beams", "Beams of the finished bundle.", _RESULTS, min=1)] = 3,
    length_penalty: Annotated[float, _option("length_penalty", "Of these beams.", _RESULTS, min=0.0)] = 0.7,
    wandb: Annotated[
        Literal["online", "offline", "disabled"], _option("wandb", "Weights & Biases.", _RESULTS)
    ] = "disabled",
    wandb_project: Annotated[str, _option("wandb_project", "Its project.", _RESULTS)] = "batchcap",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train a captioner; the epoch with the best CIDEr-D on images it has not seen becomes the bundle."""
    try:
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other; give one of them")
        if preset is not None and init is not None:
            raise UsageError("--preset and --init exclude each other; give one of them")
        # What is not given on the command line follows from these.
        implied: dict[str, Any] = {}
        if preset is not None:
            implied |= PRESETS[preset]
        if init is not None:
            implied |= _options_of(Bundle.open(init).config)
        if dropout is not None:
            implied |= dict.fromkeys(_DROPOUTS, dropout)
        given = {name for name in context.params if _is_given(context, name)}
        config = _to_config({**context.params, **{k: v for k, v in implied.items() if k not in given}})
        # A program that takes the same options, as jobs/train.py, says what to do with them.
        train: Callable[[TrainConfig], Path] = context.obj or _train
        print(f"the model is in {train(config)}")
    except KeyboardInterrupt:
        print("train_model: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None
    except BatchcapError as error:
        if debug:
            raise
        print(f"train_model: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from error


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options_of(config: CaptionerConfig) -> dict[str, Any]:
    """The options of the command line that make this network."""
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    image: ImageSpec = options.pop("image")
    return {**options, "image_size": image.image_size, "seq_length": options.pop("sequence_length")}


def _to_config(options: Mapping[str, Any]) -> TrainConfig:
    """The options of the command line, as the trainer takes them.

    Raises:
        UsageError: a network of this shape can't work.
    """
    shape = {
        **{field.name: options[field.name] for field in fields(CaptionerConfig) if field.name in options},
        "image": ImageSpec(options["image_size"]),
        "sequence_length": options["seq_length"],
    }
    try:
        captioner = CaptionerConfig(**shape)
    except ValueError as error:
        raise UsageError(str(error)) from error
    of_run = {field.name: options[field.name] for field in fields(TrainConfig) if field.name in options}
    return TrainConfig(**of_run, captioner=captioner, teachers=tuple(options["teacher"] or ()))


def _train(config: TrainConfig) -> Path:
    # Importing TensorFlow takes seconds, which `--help` and a wrong option should not.
    from model_training.training import train

    return train(config, report=_report)


def _report(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """The command `train_model`."""
    app()


if __name__ == "__main__":
    main()
