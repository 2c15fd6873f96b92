"""Globs matched name by name on the way down a tree, so that what can't match is never listed.

A pattern is a tuple of parts: `("2024", "**", "*.jpg")`. `*`, `?` and `[...]` stand within one name, `**`
for any number of folders. A folder that matches the whole pattern takes everything below along.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

# Where in a pattern the next name may stand: the indices of its parts. Empty: no name can match any more.
# None: everything does, because a folder above matched the whole pattern.
GlobState = frozenset[int] | None
NOTHING: frozenset[int] = frozenset()


def start(pattern: tuple[str, ...]) -> GlobState:
    """The state in the folder that a pattern is relative to."""
    return _with_empty_matches(pattern, {0})


def enter(pattern: tuple[str, ...], state: GlobState, name: str, *, is_folder: bool) -> GlobState:
    """The state below the folder `name`; for a file None if it matches, else the empty state."""
    if state is None:
        return None
    if not is_folder:
        last = len(pattern) - 1
        return None if last in state and fnmatch.fnmatchcase(name, pattern[last]) else NOTHING
    following = set()
    for index in state:
        if pattern[index] == "**":
            following.add(index)
        elif fnmatch.fnmatchcase(name, pattern[index]):
            following.add(index + 1)
    return _with_empty_matches(pattern, following)


def _with_empty_matches(pattern: tuple[str, ...], indices: set[int]) -> GlobState:
    """Adds what follows each `**`, since that may stand for no folder at all."""
    for index, part in enumerate(pattern):
        if index in indices and part == "**":
            indices.add(index + 1)
    return None if len(pattern) in indices else frozenset(indices)


class SelectionState(NamedTuple):
    """The states of a selection's patterns in one folder."""

    include: tuple[GlobState, ...]
    exclude: tuple[GlobState, ...]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a source are wanted: those that an `include` matches, less those that an `exclude` does.

    Args:
        include: patterns relative to the source; none takes every file.
        exclude: patterns relative to the source; a folder that matches is not even listed.
    """

    include: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Self:
        """From what people write: without a slash a name anywhere, with one a path below the source."""
        return cls(tuple(map(_parse, include)), tuple(map(_parse, exclude)))

    def start(self) -> SelectionState:
        """The states in the source's own folder."""
        return SelectionState(tuple(map(start, self.include)), tuple(map(start, self.exclude)))

    def enter(self, state: SelectionState, name: str, *, is_folder: bool) -> SelectionState | None:
        """The states below a folder, or of a file that is wanted; None where nothing is wanted."""
        exclude = _enter_all(self.exclude, state.exclude, name, is_folder)
        if None in exclude:
            return None
        include = _enter_all(self.include, state.include, name, is_folder)
        if include and all(one == NOTHING for one in include):
            return None
        return SelectionState(include, exclude)


def _enter_all(
    patterns: tuple[tuple[str, ...], ...], states: tuple[GlobState, ...], name: str, is_folder: bool
) -> tuple[GlobState, ...]:
    return tuple(
        enter(pattern, state, name, is_folder=is_folder)
        for pattern, state in zip(patterns, states, strict=True)
    )


def _parse(pattern: str) -> tuple[str, ...]:
    parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
    return parts if "/" in pattern.rstrip("/") else ("**", *parts)
