"""Selections by include and exclude, against the paths of a small tree."""

import pytest

from batchcap.globs import Selection

TREE = ["a.jpg", "b.png", "raw/a.jpg", "2024/may/a.jpg", "2024/may/raw/c.jpg", "2024/june.jpg", "raw.jpg"]


def select(selection: Selection) -> list[str]:
    """The files of the tree that are wanted, entered folder by folder as a scan does."""
    wanted = []
    for path in TREE:
        *folders, name = path.split("/")
        state = selection.start()
        for part in folders:
            state = state and selection.enter(state, part, is_folder=True)
        if state and selection.enter(state, name, is_folder=False):
            wanted.append(path)
    return wanted


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], TREE),
        (["*.png"], [], ["b.png"]),
        (["a.jpg", "*.png"], [], ["a.jpg", "b.png", "raw/a.jpg", "2024/may/a.jpg"]),
        (["raw"], [], ["raw/a.jpg", "2024/may/raw/c.jpg"]),
        (["2024/**"], [], ["2024/may/a.jpg", "2024/may/raw/c.jpg", "2024/june.jpg"]),
        (["2024/*"], [], ["2024/may/a.jpg", "2024/may/raw/c.jpg", "2024/june.jpg"]),
        (["./2024/*.jpg"], [], ["2024/june.jpg"]),
        ([], ["raw"], ["a.jpg", "b.png", "2024/may/a.jpg", "2024/june.jpg", "raw.jpg"]),
        ([], ["raw/"], ["a.jpg", "b.png", "2024/may/a.jpg", "2024/june.jpg", "raw.jpg"]),
        (
            [],
            ["/raw"],
            ["a.jpg", "b.png", "2024/may/a.jpg", "2024/may/raw/c.jpg", "2024/june.jpg", "raw.jpg"],
        ),
        ([], ["**/raw/**", "*.png"], ["a.jpg", "2024/may/a.jpg", "2024/june.jpg", "raw.jpg"]),
        (["a.jpg"], ["raw", "2024/may"], ["a.jpg"]),
        ([], ["*"], []),
        (["nothing"], [], []),
    ],
)
def test_selections(include: list[str], exclude: list[str], expected: list[str]) -> None:
    assert select(Selection.of(include, exclude)) == expected
