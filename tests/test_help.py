"""What `--help` says: all that its options say, of every command there is."""

from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from batchcap.cli import app
from model_training import calibrate, compare, evaluate, pretrained, train_model, tune_cnn

# So wide that no line of it is broken.
WIDTH = 2000
PROGRAMS = {
    "batchcap": app,
    "train_model": train_model.app,
    "evaluate": evaluate.app,
    "calibrate": typer.Typer(),
    "compare": typer.Typer(),
    "pretrained": typer.Typer(),
    "tune_cnn": typer.Typer(),
}
for module in (calibrate, compare, pretrained, tune_cnn):
    PROGRAMS[module.__name__.rpartition(".")[2]].command()(module.main)


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every program, and each of its commands if it has some."""
    for name, program in PROGRAMS.items():
        yield name, ()
        for command in getattr(typer.main.get_command(program), "commands", ()):
            yield name, (command,)


@pytest.mark.parametrize(("program", "words"), list(commands()), ids=str)
def test_nothing_is_lost_between_an_option_and_its_help(program: str, words: tuple[str, ...]) -> None:
    """What stands in brackets is markup to rich, which would swallow it."""
    command = typer.main.get_command(PROGRAMS[program])
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    done = CliRunner().invoke(PROGRAMS[program], [*words, "--help"], env={"COLUMNS": str(WIDTH)})
    assert done.exit_code == 0, done.output
    printed = " ".join(done.output.split())
    for paragraph in (command.help or "").split("\n\n"):
        assert " ".join(paragraph.split()) in printed
    for option in command.params:
        text = " ".join((getattr(option, "help", None) or "").split())
        if getattr(option, "hidden", False) or not text:
            continue
        assert text in printed, option.name
        assert "default:" not in text, f"{option.name}: use show_default"
        shown = getattr(option, "show_default", None)
        if isinstance(shown, str):
            assert f"{text} [" in printed and f"[default: ({shown})]" in printed, option.name
