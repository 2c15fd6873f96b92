"""The pages of docs/: what comes from the code is what the code says, and the commands run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from batchcap.cli import app as batchcap
from docs.generate import MADE, RENEWED, options_tables, paste
from docs.hooks import FRONT, outside_code, targets
from model_training import calibrate, compare, evaluate, pretrained, tune_cnn
from model_training.train_model import app
from tests.conftest import COLOURS
from tests.meteor_tables import write_package
from tests.run_commands import run_commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TRAINING = (DOCS / "training.md").read_text(encoding="utf-8")
# The first line of a block whose commands are only shown.
NOT_RUN = "# Not run by the tests: "


def commands_in(text: str) -> tuple[list[str], list[str]]:
    """The lines of the shell blocks that are run, and of those that aren't."""
    run: list[str] = []
    shown: list[str] = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (shown if block.startswith(NOT_RUN) else run).extend(block.splitlines())
    return run, shown


@pytest.mark.parametrize("name", MADE)
def test_a_page_is_what_the_code_makes(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == MADE[name](), "run `python docs/generate.py`"


@pytest.mark.parametrize("path", RENEWED, ids=lambda path: path.name)
def test_a_table_in_a_page_is_what_the_code_makes(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert RENEWED[path](page) == page, "run `python docs/generate.py`"


def test_every_variable_that_the_code_reads_is_on_its_page() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "batchcap").rglob("*.py"))
    found = set(re.findall(r"\bBATCHCAP_[A-Z]+", code))
    assert len(found) >= 4
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in found)


def test_every_option_is_in_the_table_once() -> None:
    options = {option.opts[0]: option for option in typer.main.get_command(app).params}
    rows = [line for line in options_tables().splitlines() if line.startswith("| `--")]
    assert sorted(row.split("`")[1] for row in rows) == sorted(options)
    assert len(rows) == len(options) > 50
    assert "| `--seq_length` | `36` | Tokens of a caption. |" in rows
    assert "| `--key_dim` | `--embed_dim` | Width of a head. |" in rows
    assert "| `--preset` |  | A shape of the original's; other options change it. `xs`, `s`, " in "".join(
        rows
    )


@pytest.mark.parametrize("count", [0, 2])
def test_a_page_without_one_place_for_a_table_is_refused(count: int) -> None:
    place = "<!-- options: made -->\nold\n<!-- end of options -->\n"
    assert paste(f"# Training\n{place}", "options", "new") == (
        "# Training\n<!-- options: made -->\n\nnew\n<!-- end of options -->\n"
    )
    with pytest.raises(ValueError, match="not one place for the options"):
        paste("# Training\n" + place * count, "options", "new")


PAGES = [ROOT / FRONT, ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub makes them."""
    found: list[str] = []
    # Of code nothing is a heading; a heading may have some.
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.append(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return {name if index == 0 else f"{name}-{index}" for name in found for index in range(found.count(name))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    """In the repository; tests/test_site.py follows those of the site."""
    for target in targets(page):
        assert (ROOT / target).is_file(), target
    links: list[tuple[str, str]] = []
    outside_code(
        page.read_text(encoding="utf-8"),
        lambda text: links.extend(re.findall(r"\]\((?!\w+:)([^)#]*)#([^)]+)\)", text)) or text,
    )
    for target, anchor in links:
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def programs() -> dict[str, set[str]]:
    """The options of everything that a page may show, by how it is called."""
    found = {
        f"batchcap {name}": command
        for name, command in typer.main.get_command(batchcap).commands.items()  # type: ignore[attr-defined]
    }
    found["train_model"] = typer.main.get_command(app)
    for module in (evaluate, calibrate, compare, pretrained, tune_cnn):
        program = typer.Typer()
        program.command()(module.main)
        found[f"python -m {module.__name__}"] = typer.main.get_command(program)
    options = {
        name: {each for option in command.params for each in (*option.opts, *option.secondary_opts)}
        for name, command in found.items()
    }
    # It takes those of `index` as well.
    options["batchcap submit"] |= options["batchcap index"]
    return {name: known | {"--help"} for name, known in options.items()}


SHOWN = re.compile(r"(?:^|[\s=/])(batchcap [a-z]+|train_model|python -m model_training\.\w+) (.*)")


def test_every_command_that_is_shown_is_one_that_there_is() -> None:
    """Whether it is run by a test or not, in whatever block, or in the middle of a sentence."""
    known = programs()
    count = 0
    for page in PAGES:
        if page.name == "commands.md":
            continue
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            # Behind a time of cron, or a program's folder; before a comment, or where it goes on.
            found = SHOWN.search(line)
            # `batchcap on a cluster` is none.
            if found is None or (found[1] not in known and "--" not in line):
                continue
            assert found[1] in known, f"{page.name}: {line}"
            words = re.findall(r"(?<=\s)--[a-z][\w-]*", f" {found[2].partition(' # ')[0]}")
            assert set(words) <= known[found[1]], f"{page.name}: {line}"
            count += 1
    assert count > 80


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has what docs/training.md speaks of: photographs of one colour each."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "flickr8k" / "images").mkdir(parents=True)
    (folder / "flickr30k").mkdir()
    rng = np.random.default_rng(0)
    lines, splits = ["image\tcaption"], {"train": [], "dev": []}  # type: ignore[var-annotated]
    for number in range(62):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 8, (32, 32, 3)), 0, 255)
        name = f"{number:04}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "flickr8k" / "images" / name)
        texts = [f"A {colour} square .", f"The square is {colour} , all of it ."]
        split = "train" if number < 12 else "dev"
        if split == "dev" and number % 5 > 1:
            # Nobody can agree with these, so calibration finds captions of both kinds.
            texts = [f"one{number} two{number}", f"three{number} four{number}"]
        splits[split].append(name)
        lines += [f"{name}\t{text}" for text in texts]
    (folder / "flickr8k" / "captions.tsv").write_text("\n".join(lines) + "\n")
    for split, names in splits.items():
        (folder / "flickr8k" / f"{split}.txt").write_text("\n".join(names) + "\n")
    texts = [
        f"{number}.jpg\tThere is a {one} and a {two} square ." for number, (one, two) in enumerate(pairs())
    ]
    (folder / "flickr30k" / "captions.tsv").write_text("\n".join(["image\tcaption", *texts]) + "\n")
    write_package(folder)
    return folder


def pairs() -> list[tuple[str, str]]:
    return [(one, two) for one in COLOURS for two in COLOURS if one != two]


def made_small(command: str) -> str:
    """The same command, of whose epochs there is one where a stage has any: they are all alike.

    A network that is not given is small where the command does not say how large, as are its pictures.
    """
    command = re.sub(r"epochs [1-9]\d*", "epochs 1", command)
    if "tune_cnn" in command:
        return f"{command} --image-size 64"
    if not command.startswith("train_model") or "--init" in command:
        return command
    small = {"--image_size": 64, "--seq_length": 12, "--embed_dim": 64, "--ff_dim": 64}
    return " ".join([command, *(f"{name} {size}" for name, size in small.items() if name not in command)])


def test_every_command_of_the_training_page_runs(reader: Path) -> None:
    """In the order of the page, as a reader would."""
    commands = [made_small(command) for command in commands_in(TRAINING)[0]]
    output = run_commands(commands, reader)
    assert len(output) == len(commands) == 13
    resumed = next(text for command, text in output.items() if "--resume" in command)
    assert "the run in runs/m1 is finished" in resumed
    # What the page says that a run leaves, and what later commands add.
    table = TRAINING.partition("## What a run leaves")[2].partition("`history.png` needs")[0]
    files = set(re.findall(r"`([\w.]+\.\w+)`", table))
    assert files | {"calibration.json", "calibration.png"} == {path.name for path in reader.glob("runs/m1/*")}
    assert (reader / "runs.png").exists()


def test_what_is_not_run_takes_the_options_there_are() -> None:
    """It can't be run, but a name that has changed is found."""
    names = {name for option in typer.main.get_command(app).params for name in option.opts}
    _, shown = commands_in(TRAINING)
    assert len(shown) > 4
    assert all(line.startswith(("#", "train_model ", "python -m model_training.")) for line in shown)
    used = {word for line in shown if line.startswith("train_model") for word in shlex.split(line)[1:]}
    assert {word for word in used if word.startswith("--")} <= names
