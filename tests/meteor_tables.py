"""Tables of METEOR with a few words: the real ones have 5 million pairs, which take seconds to read."""

import gzip
import zipfile
from pathlib import Path


def write_tables(folder: Path) -> Path:
    """Lays them out in a folder as those of `pycocoevalcap`."""
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / "meteor-1.5.jar", "w") as jar:
        jar.writestr("function/english.words", "a\nthe\n")
        jar.writestr("synonym/english.synsets", "sofa\n1 2\ncouch\n2 3\ngoose\n4\nfowl\n4\n")
        jar.writestr("synonym/english.exceptions", "goose\ngeese\n")
    with gzip.open(folder / "data" / "paraphrase-en.gz", "wt") as file:
        file.write("0.5\nin front of\noutside\n")
    return folder


def write_package(folder: Path) -> None:
    """Makes a `pycocoevalcap` with such tables, for programs that find packages in this folder first."""
    (folder / "pycocoevalcap" / "meteor").mkdir(parents=True)
    (folder / "pycocoevalcap" / "__init__.py").touch()
    write_tables(folder / "pycocoevalcap" / "meteor")
