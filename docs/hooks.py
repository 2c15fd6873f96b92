"""What MkDocs is told beside docs/*.md: the README is the front page, and files that pages link to are there.

A link of docs/*.md or README.md is written as the repository has it, so that it works there as well. In the
site `README.md` is `index.md`, and a file that lies outside of docs is below `files/`: text as a page that
shows it, all else as it is.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
FRONT = "README.md"
# What pages link to outside of docs: its text is shown.
_SHOWN = {"": "docker", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".py": "python", ".sql": "sql"}
# The path in a link of Markdown or of HTML; neither what has a scheme nor an anchor of the same page.
_TARGET = r"(?!\w+:|#)[^\s)#\"]+"
_LINKS = re.compile(rf"(?<=\]\(){_TARGET}|(?<=(?:src|ref)=\"){_TARGET}|(?<=srcset=\"){_TARGET}")
# What is code, in which nothing is a link: a block of it, or a few words.
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Markdown with all changed that is not code."""
    pieces, end = [], 0
    for code in _CODE.finditer(text):
        pieces += [change(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, change(text[end:])])


def targets(page: Path) -> Iterator[str]:
    """The files that a page of the repository links to, from its root."""
    found: list[str] = []
    outside_code(page.read_text(encoding="utf-8"), lambda text: found.extend(_LINKS.findall(text)) or text)
    folder = page.parent.relative_to(ROOT).as_posix()
    return (posixpath.normpath(posixpath.join(folder, target)) for target in found)


def place_of(path: str) -> str:
    """Where the site has a file of the repository, both from their root."""
    if path == FRONT:
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    shown = Path(path).suffix in _SHOWN or not Path(path).suffix
    return f"files/{path}.md" if shown else f"files/{path}"


def on_files(files: Files, config: Any) -> Files:
    """Adds the front page, and what pages link to outside of docs, and what these link to."""
    seen: set[str] = set()
    waiting = [FRONT, *(f"docs/{file.src_uri}" for file in files if file.is_documentation_page())]
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if path.endswith(".md"):
            waiting += targets(ROOT / path)
        if path.startswith("docs/"):
            continue
        place = place_of(path)
        if place == f"files/{path}.md":
            language = _SHOWN[Path(path).suffix]
            text = (ROOT / path).read_text(encoding="utf-8")
            content = f"# {path}\n\n~~~ {language}\n{text.rstrip()}\n~~~\n"
            made = File.generated(config, place, content=content)
        else:
            made = File.generated(config, place, abs_src_path=str(ROOT / path))
        made.inclusion = InclusionLevel.INCLUDED if path == FRONT else InclusionLevel.NOT_IN_NAV
        files.append(made)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """A page whose links are those of the site."""
    place = page.file.src_uri
    if place.startswith("files/"):
        folder = posixpath.dirname(place.removeprefix("files/"))
    else:
        folder = "" if place == "index.md" else posixpath.join("docs", posixpath.dirname(place))

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))
        # What is not there stays as it is, for MkDocs to complain of.
        if not (ROOT / target).is_file():
            return link[0]
        return posixpath.relpath(place_of(target), posixpath.dirname(place) or ".")

    return outside_code(markdown, lambda text: _LINKS.sub(replaced, text))
