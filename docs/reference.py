"""Pages of the reference that come from the code alone; `docs/generate.py` writes them.

::

    docs/commands.md        every command and option, from the command line itself
    docs/http.md            endpoints, parameters and answers, from what the server says of itself
    docs/parquet.md         the columns of a part, from the schema that parts are written with
    docs/tables.md          the catalog's tables, from the mapped classes, and the view, from the schema
    docs/cookbook.md        the named queries, from sql/queries
    docs/configuration.md   its table of variables that options read; all else in it is written by hand
"""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from sqlalchemy import CheckConstraint, Table, UniqueConstraint

from batchcap import cli
from batchcap.catalog import named_queries, tables
from batchcap.parts import PART_SCHEMA, SCHEMA_VERSION
from model_training import calibrate, compare, evaluate, pretrained, tune_cnn

ROOT = Path(__file__).parents[1]
_WRITTEN = "<!-- Written by `python docs/generate.py`; change that. -->"


def cell(text: str) -> str:
    """A text as it may stand in a cell of a table: on one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A text in which Markdown sees nothing but what stands within backticks."""
    return re.sub(r"(`[^`]*`)|([*<])", lambda found: found[1] or f"\\{found[2]}", text)


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown, with a line at its end."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(map(cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


# --- commands ---


def commands_page() -> str:
    """docs/commands.md."""
    group: Any = typer.main.get_command(cli.app)
    functions = [command.callback for command in cli.app.registered_commands]
    sections = [
        _command(f"batchcap {name}", command, function)
        for (name, command), function in zip(group.commands.items(), functions, strict=True)
    ]
    for module in (evaluate, calibrate, compare, pretrained, tune_cnn):
        program = typer.Typer(add_completion=False)
        program.command()(module.main)
        sections.append(
            _command(f"python -m {module.__name__}", typer.main.get_command(program), module.main)
        )
    return _COMMANDS_PAGE.format(written=_WRITTEN, sections="\n".join(sections))


_COMMANDS_PAGE = """# Commands

{written}

What `--help` says. [configuration.md](configuration.md) has the environment variables that stand for
options, [training.md](training.md#all-options) the options of `train_model`. Exit status: 0 done; 3 done,
but this run put files into quarantine; 1 failed, in one line (`--debug` shows the traceback); 2 wrong usage;
130 interrupted.

{sections}"""


def _command(name: str, command: Any, function: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = " ".join(command.collect_usage_pieces(context))
    paragraphs = (command.help or "").split("\n\n")
    types = get_type_hints(function)
    rows = (_parameter(each, choices_of(types[each.name])) for each in command.params if not _is_hidden(each))
    return (
        f"## {name}\n\n"
        f"```\n{name} {pieces}\n```\n\n"
        + "".join(f"{' '.join(paragraph.split())}\n\n" for paragraph in paragraphs)
        + table(("argument or option", "default", ""), rows)
    )


def _is_hidden(parameter: Any) -> bool:
    return bool(getattr(parameter, "hidden", False))


def choices_of(hint: Any) -> list[str]:
    """What a type admits, if it is a Literal or an enumeration, one or None, or a list of them."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [str(value.value) for value in hint]
    return [choice for part in get_args(hint) for choice in choices_of(part)]


def _parameter(parameter: Any, choices: list[str]) -> tuple[str, str, str]:
    text = plain(getattr(parameter, "help", None) or "")
    if choices:
        text += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
    if parameter.multiple:
        text += " May be given several times."
    elif parameter.nargs == -1:
        text += " One or several." if parameter.required else " Any number."
    if parameter.envvar:
        text += f" Else `{parameter.envvar}`."
    names = "`, `".join((*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = str(parameter.name).rstrip("_").upper()
    return f"`{names}`", default_of(parameter), text


def default_of(option: Any) -> str:
    """What an option has when nobody gives it, in Markdown."""
    if option.required:
        return "required"
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    shown = getattr(option, "show_default", None)
    if isinstance(shown, str):
        # In words, or the name of the option whose value it takes.
        return f"`{shown}`" if shown.startswith("--") else shown
    return "" if option.default is None else f"`{option.default}`"


# --- configuration ---


def variables_table() -> str:
    """The variables that options of `batchcap` read, in Markdown."""
    group: Any = typer.main.get_command(cli.app)
    found: dict[str, tuple[str, str, list[str]]] = {}
    for name, command in group.commands.items():
        for option in command.params:
            if option.envvar:
                entry = found.setdefault(option.envvar, (option.opts[0], option.help or "", []))
                entry[2].append(name)
    rows = (
        (f"`{variable}`", f"`{option}`", text, ", ".join(f"`{name}`" for name in names))
        for variable, (option, text, names) in sorted(found.items())
    )
    return table(("variable", "stands for", "", "of"), rows)


# --- HTTP ---


class _NoCaptioner:
    """The server describes itself before a model has captioned anything."""

    fingerprint = ""


def http_page() -> str:
    """docs/http.md."""
    from batchcap.serving.app import create_app

    described = create_app(_NoCaptioner()).openapi()  # type: ignore[arg-type]
    operations = [
        _operation(method, path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = described["components"]["schemas"]
    answers = [
        _schema(name, schema)
        for name, schema in schemas.items()
        # FastAPI's own, which nothing here answers.
        if name not in ("HTTPValidationError", "ValidationError")
    ]
    return _HTTP_PAGE.format(written=_WRITTEN, operations="\n".join(operations), answers="\n".join(answers))


_HTTP_PAGE = """# HTTP

{written}

What a running server says of itself at `/openapi.json`. [serving.md](serving.md) has examples, and says who
may ask what. An error is answered as [ErrorAnswer](#erroranswer), whatever its status.

{operations}
## What is answered

{answers}"""


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    said = f"{operation['summary']}. {operation.get('description', '')}".strip()
    text = f"## {method.upper()} {path}\n\n{said}\n\n"
    if parameters := operation.get("parameters"):
        text += table(
            ("parameter", "in", "type", "default", ""),
            (
                (
                    f"`{one['name']}`" + (" (required)" if one.get("required") else ""),
                    one["in"],
                    _type(one["schema"]),
                    "" if (default := one["schema"].get("default")) in (None, "") else f"`{default}`",
                    plain(one.get("description", one["schema"].get("description", ""))),
                )
                for one in parameters
            ),
        )
        text += "\n"
    if body := operation.get("requestBody"):
        types = ", ".join(f"`{name}`" for name in body["content"])
        text += f"Body: {types}.\n\n"
    text += table(
        ("status", "answer", ""),
        (
            (status, _content(answer), plain(answer["description"].replace("Successful Response", "Done.")))
            for status, answer in sorted(operation["responses"].items())
            # As FastAPI lists it for every parameter; here it is a 400.
            if "HTTPValidationError" not in str(answer)
        ),
    )
    return text


def _content(answer: dict[str, Any]) -> str:
    return ", ".join(
        _type(content["schema"]) if content.get("schema") else f"`{kind}`"
        for kind, content in answer.get("content", {}).items()
    )


def _type(schema: dict[str, Any]) -> str:
    """A schema of JSON in a few words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf"):
        return " or ".join(_type(choice) for choice in choices if choice.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("prefixItems")
        return f"list of {_type(schema['items'])}" if not items else "[" + ", ".join(map(_type, items)) + "]"
    least, most = schema.get("minimum"), schema.get("maximum")
    bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
    return str(kind) + (f", {', '.join(bounds)}" if bounds else "")


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = (
        (
            f"`{field}`" + ("" if field in required else " (may be missing)"),
            _type(described) + (" or null" if {"type": "null"} in described.get("anyOf", ()) else ""),
            plain(described.get("description", "")),
        )
        for field, described in schema.get("properties", {}).items()
    )
    text = f"### {name}\n\n"
    if description := schema.get("description"):
        text += f"{' '.join(description.split())}\n\n"
    return text + table(("field", "type", ""), rows)


# --- Parquet ---

_COLUMNS = {
    "uri": "where the picture is: an absolute path, or a URI",
    "caption": "what was said of it",
    "confidence": "0 to 1: that people would agree; NULL where the model is not calibrated",
    "log_prob": "natural logarithm of the caption's probability; NULL of a person's",
    "token_count": "words of the caption that the model counted; NULL of a person's",
    "source": "`model` or `human`",
    "fingerprint": "of the model: weights, words, and how it decodes; NULL of a person's",
    "model": "its name; NULL of a person's",
    "width": "pixels, upright",
    "height": "pixels, upright",
    "format": "of the file, whatever it is called: `jpeg`, `png`, ...",
    "size_bytes": "of the file",
    "taken_at": "by the camera's clock, which knows no time zone",
    "content_hash": "sha256 of the file's bytes: the same for copies",
    "run_id": "the run that logged the row",
    "captioned_at": "when the caption was made",
    "camera": "make and model",
    "latitude": "degrees, north is positive",
    "longitude": "degrees, east is positive",
}


def parquet_page() -> str:
    """docs/parquet.md."""
    rows = (
        (f"`{field.name}`", f"`{field.type}`", "yes" if field.nullable else "", _COLUMNS[field.name])
        for field in PART_SCHEMA
    )
    return _PARQUET_PAGE.format(
        written=_WRITTEN,
        version=SCHEMA_VERSION,
        columns=table(("column", "type", "may be NULL", ""), rows),
    )


_PARQUET_PAGE = """# Parquet files

{written}

`captions/part-RUN-NUMBER.parquet` in the store: an append-only log, compressed with zstd. A row says that a
caption was given to a file; it is there once, and in the catalog as well
([exactly-once.md](exactly-once.md)). A file that is captioned again, or a copy of it, is another row: for
the captions that are shown now, ask the view `captions` ([tables.md](tables.md)) or `batchcap export
FILE.parquet`.

The schema's version, {version}, stands in the metadata under `batchcap.schema_version`. New columns come
last and may be NULL. Version 2 added `camera`, `latitude` and `longitude`; files of version 1 stay as they
are.

{columns}
```console
duckdb -c "SELECT uri, caption FROM read_parquet('captions/*.parquet', union_by_name = true) WHERE width > 99"
```

The rows of whatever was forgotten (`batchcap forget`) are gone; nothing else is ever rewritten.
"""


# --- the catalog ---


def tables_page() -> str:
    """docs/tables.md."""
    classes = [mapper.class_ for mapper in tables.Base.registry.mappers]
    order = list(tables.Base.metadata.tables)
    classes.sort(key=lambda each: order.index(each.__tablename__))
    schema = (ROOT / "sql" / "schema" / "sqlite.sql").read_text(encoding="utf-8")
    view = re.search(r"^CREATE VIEW captions .*?;$", schema, re.MULTILINE | re.DOTALL)
    if view is None:
        raise ValueError("sql/schema/sqlite.sql has no view captions")
    return _TABLES_PAGE.format(
        written=_WRITTEN, view=view[0], tables="\n".join(_table(each) for each in classes)
    )


_TABLES_PAGE = """# The catalog's tables

{written}

`batchcap sql "SELECT ..."` reads them, and the view, in SQLite and in PostgreSQL alike. Most questions need
the view alone. [cookbook.md](cookbook.md) has queries to start from, `sql/schema` the statements that make
all of it. Times are UTC but for `taken_at`. Not listed is what the full-text search keeps for itself.

## captions

The view: a row for every file that has not vanished, with the caption that is shown.

```sql
{view}
```

{tables}"""


def _table(mapped: Any) -> str:
    described: Table = mapped.__table__
    comments = _comments(mapped)
    rows = (
        (
            f"`{column.name}`",
            str(column.type.compile()).split("(")[0].lower() if not _is_time(column) else "timestamp",
            _key(described, column.name),
            comments.get(column.name, ""),
        )
        for column in described.columns
    )
    checks = sorted(
        f"`{each.sqltext}`" for each in described.constraints if isinstance(each, CheckConstraint)
    )
    text = f"## {described.name}\n\n{' '.join((mapped.__doc__ or '').split())}\n\n"
    text += table(("column", "type", "", "is"), rows)
    return text + (f"\nAlways: {'; '.join(checks)}.\n" if checks else "")


def _is_time(column: Any) -> bool:
    return "DATETIME" in str(column.type.compile())


def _key(described: Table, name: str) -> str:
    """What else is to be said of a column."""
    column = described.columns[name]
    words = ["key"] if column.primary_key else []
    words += [f"of `{key.target_fullname}`" for key in column.foreign_keys]
    for each in described.constraints:
        if isinstance(each, UniqueConstraint) and name in each.columns:
            others = [other.name for other in each.columns if other.name != name]
            words.append("unique" + (f" with `{'`, `'.join(others)}`" if others else ""))
    words += ["may be NULL"] if column.nullable else []
    return ", ".join(words)


def _comments(mapped: Any) -> dict[str, str]:
    """What the source says above a column."""
    found: dict[str, str] = {}
    said: list[str] = []
    for line in inspect.getsource(mapped).splitlines():
        if (stripped := line.strip()).startswith("# "):
            said.append(stripped.removeprefix("# "))
            continue
        if column := re.match(r"    (\w+): Mapped\[", line):
            found[column[1]] = " ".join(said)
        said = []
    return found


# --- the cookbook ---


def cookbook_page() -> str:
    """docs/cookbook.md."""
    queries = named_queries()
    # Without the question, which stands above it.
    sections = (
        f"## {name}\n\n{query.description}\n\n```sql\n{_without_comment(query.sql)}\n```\n"
        for name, query in queries.items()
    )
    return _COOKBOOK_PAGE.format(
        written=_WRITTEN,
        index=table(
            ("name", "answers"),
            ((f"[{name}](#{name})", query.description) for name, query in queries.items()),
        ),
        sections="\n".join(sections),
    )


_COOKBOOK_PAGE = """# The SQL cookbook

{written}

`batchcap sql --named NAME` answers each of these, and `batchcap sql "..."` whatever you make of them;
[tables.md](tables.md) has the columns. They answer the same in SQLite and in PostgreSQL; shown is what is
said to SQLite.

{index}
{sections}"""


def _without_comment(sql: str) -> str:
    lines = sql.strip().splitlines()
    while lines and lines[0].startswith("--"):
        lines.pop(0)
    return "\n".join(lines)
