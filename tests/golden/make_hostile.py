"""Regenerates `hostile.json`, what becomes of each hostile picture; read the difference before you commit it.

What can't be made here (some need the extra `heif`, or a user who is not root) keeps its entry::

    python -m tests.golden.make_hostile
"""

import glob
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from batchcap.captioner.images import ImageSpec, decode
from batchcap.collection import resolve_sources, scan
from batchcap.decoder_child import load_file
from tests.hostile import golden, make_hostile
from tests.hostile.pictures import colour_names

OUTPUT = Path(__file__).with_name("hostile.json")


def skip_reason(folder: Path, name: str) -> str | None:
    """Why the scan leaves a file out, if it does."""
    at = folder / name
    if at.is_symlink() or not at.is_file():
        # A glob, for what is named itself is always taken.
        return _skipped(f"{glob.escape(str(at.parent))}/[{at.name[0]}]{glob.escape(at.name[1:])}")
    with tempfile.TemporaryDirectory() as alone:
        copy = Path(alone, *Path(name).parts[1:])
        copy.parent.mkdir(exist_ok=True)
        copy.touch()
        return _skipped(alone)


def _skipped(source: str) -> str | None:
    skipped: Counter[str] = Counter()
    found = list(scan(resolve_sources([source]), skipped=skipped))
    return None if found else next(iter(skipped))


def outcome_of(folder: Path, name: str) -> dict[str, Any]:
    """What a run makes of one of the files in the folder."""
    if reason := skip_reason(folder, name):
        return {"outcome": "skipped", "reason": reason}
    loaded = load_file(str(folder / name), ImageSpec(32))
    if loaded.image is None:
        return {"outcome": "quarantined", "reason": loaded.reason}
    image = decode((folder / name).read_bytes(), ImageSpec(32))
    return {
        "outcome": "captioned",
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "colours": colour_names(image.pixels),
    }


def main() -> None:
    """Writes the table."""
    kept = golden() if OUTPUT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found = {file.name: outcome_of(Path(folder), file.name) for file in make_hostile(Path(folder))}
    lines = [f"{json.dumps(name)}: {json.dumps(outcome)}" for name, outcome in sorted((kept | found).items())]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
