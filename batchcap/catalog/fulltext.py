"""What full-text search asks of a database: where to look, and how to say what is looked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, FromClause, Text, bindparam

# What is looked for, in the database's syntax.
EXPRESSION = bindparam("expression", type_=Text())


@dataclass(frozen=True)
class Syntax:
    """How a database writes a search; its operands are put in parentheses where they need it.

    Args:
        both: between two conditions that must both hold.
        either: between two of which one will do.
        without: between what must hold and what must not.
        phrase: writes words, which are letters and digits only, that must stand in a row.
        beginning: writes the beginning of a word.
    """

    both: str
    either: str
    without: str
    phrase: Callable[[Sequence[str]], str]
    beginning: Callable[[str], str]


@dataclass(frozen=True)
class FullText:
    """How a database finds captions by `EXPRESSION`.

    Args:
        syntax: of the expression.
        shown: the table `Shown`, joined with the index if that is a table of its own.
        caption_id: of a caption that the index has found.
        matches: the condition that one of `shown` answers the expression.
        lacks: the condition that one of the table of captions, if it is shown, doesn't.
        score: of a caption that does; the better, the higher.
    """

    syntax: Syntax
    shown: FromClause
    caption_id: ColumnElement[int]
    matches: ColumnElement[bool]
    lacks: ColumnElement[bool]
    score: ColumnElement[float]
