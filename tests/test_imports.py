"""The structure of the code, as docs/design.md has it in section 2: who may import whom, and how early."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part may import besides itself, from left to right. A part is the module or package right below
# `batchcap`, a module of `jobs`, or a whole top-level package. `batchcap` alone is its `__init__.py`.
_CORE = {"batchcap", "batchcap.errors", "batchcap.captioner"}
_LOADING = {"batchcap.loading", "batchcap.decoder_child"}
_MIDDLE = (
    _CORE
    | _LOADING
    | {*("batchcap.balance", "batchcap.globs", "batchcap.storage", "batchcap.collection")}
    | {"batchcap.catalog", "batchcap.parts"}
)
_STAGES = _MIDDLE | {"batchcap.run_options", "batchcap.run_report", "batchcap.stages"}
_RUNS = _STAGES | {
    *("batchcap.pipeline", "batchcap.preview", "batchcap.observers", "batchcap.report", "batchcap.submit"),
    *("batchcap.verify", "batchcap.rebuild", "batchcap.thumbnails", "batchcap.contact_sheet"),
    *(
        "batchcap.exchange",
        "batchcap.forgetting",
        "batchcap.likeness",
        "batchcap.repair",
        "batchcap.sampling",
    ),
}
MAY_IMPORT = {
    "batchcap": _RUNS,  # its public names, and these lazily: see below
    "batchcap.errors": set[str](),
    "batchcap.publishing": set[str](),
    "batchcap.balance": {"batchcap.errors"},
    "batchcap.captioner": {"batchcap", "batchcap.errors"},
    "batchcap.globs": set[str](),
    "batchcap.storage": _CORE | {"batchcap.globs"},
    "batchcap.collection": _CORE | {"batchcap.globs", "batchcap.storage"},
    "batchcap.catalog": _CORE | {"batchcap.publishing"},
    "batchcap.parts": _CORE | {"batchcap.publishing"},
    "batchcap.decoder_child": _CORE | {"batchcap.storage"},
    "batchcap.loading": _CORE | {"batchcap.decoder_child"},
    "batchcap.run_options": _MIDDLE,
    "batchcap.run_report": _MIDDLE,
    "batchcap.stages": _MIDDLE,
    "batchcap.in_process": _STAGES,
    "batchcap.hashing": _CORE | _LOADING,
    "batchcap.model_copies": _CORE,
    "batchcap.ray_start": _CORE | {"batchcap.balance"},
    "batchcap.ray_background": _STAGES | {"batchcap.ray_start"},
    "batchcap.ray_cluster": _STAGES | {"batchcap.model_copies", "batchcap.ray_start"},
    "batchcap.ray_runtime": _STAGES | {"batchcap.ray_cluster", "batchcap.ray_start"},
    "batchcap.pipeline": _STAGES
    | {
        "batchcap.hashing",
        "batchcap.in_process",
        "batchcap.ray_background",
        "batchcap.ray_cluster",
        "batchcap.ray_runtime",
    },
    "batchcap.verify": _MIDDLE | {"batchcap.publishing"},
    "batchcap.rebuild": _MIDDLE | {"batchcap.verify"},
    "batchcap.sampling": _STAGES | {"batchcap.contact_sheet", "batchcap.in_process"},
    "batchcap.repair": _MIDDLE | {"batchcap.verify"},
    "batchcap.likeness": _MIDDLE,
    "batchcap.preview": _STAGES | {"batchcap.sampling"},
    "batchcap.observers": _STAGES,
    "batchcap.thumbnails": _MIDDLE,
    "batchcap.contact_sheet": _MIDDLE | {"batchcap.publishing", "batchcap.thumbnails"},
    "batchcap.forgetting": _MIDDLE,
    "batchcap.exchange": _MIDDLE | {"batchcap.publishing"},
    "batchcap.report": _STAGES | {"batchcap.observers", "batchcap.thumbnails"},
    "batchcap.submit": _CORE,
    "batchcap.console": _RUNS,
    "batchcap.cli": _RUNS | {"batchcap.console", "batchcap.serving", "batchcap.serving.on_ray"},
    "batchcap.serving": _CORE | _LOADING | {"batchcap.catalog", "batchcap.storage"},
    "batchcap.serving.on_ray": _CORE
    | {"batchcap.balance", "batchcap.catalog", "batchcap.serving"}
    | {"batchcap.model_copies", "batchcap.ray_start"},
    "batchcap.__main__": {"batchcap.cli"},
    "model_training": _CORE | {"model_training.retrieval"},
    "model_training.retrieval": _CORE | {"model_training", "batchcap.catalog"},
    "jobs.index_images": {"batchcap.cli"},
    "jobs.train": _CORE | {"model_training"},
    "sql": {"batchcap.catalog"},
}

# Who may import a heavy or optional library at all, be it inside a function.
_CAPTIONER_NETWORK = (
    "batchcap.captioner.attention",
    "batchcap.captioner.backbone",
    "batchcap.captioner.cached_attention",
    "batchcap.captioner.captioner",
    "batchcap.captioner.decoding",
    "batchcap.captioner.model",
    "batchcap.captioner.runtime",
)
ONLY = {
    "alembic": ("batchcap.catalog", "sql"),
    "fastapi": ("batchcap.serving",),
    "h11": ("batchcap.serving",),
    "huggingface_hub": ("batchcap.captioner.transformers_files",),
    "jinja2": ("batchcap.serving",),
    "keras": ("batchcap.captioner", "model_training"),
    "matplotlib": ("model_training",),
    "openvino": ("batchcap.captioner.runtime",),
    "psycopg": ("batchcap.catalog.postgresql", "batchcap.catalog.postgresql_query"),
    "ray": (
        *("batchcap.model_copies", "batchcap.ray_start", "batchcap.ray_cluster", "batchcap.ray_runtime"),
        *("batchcap.serving.on_ray", "batchcap.submit", "jobs"),
    ),
    "prometheus_client": ("batchcap.observers", "batchcap.serving"),
    "pydantic": ("batchcap.serving",),
    "python_multipart": ("batchcap.serving",),
    "pyarrow.fs": ("batchcap.storage.objects",),
    "simplejpeg": ("batchcap.captioner.jpeg",),
    "sqlalchemy": ("batchcap.catalog", "batchcap.storage.queries", "sql"),
    "starlette": ("batchcap.serving",),
    "tensorflow": ("batchcap.captioner", "model_training"),
    "torch": ("batchcap.captioner.transformers_captioner",),
    "transformers": ("batchcap.captioner.transformers_captioner",),
    "uvicorn": ("batchcap.serving",),
    "wandb": ("model_training.tracking",),
}

# Who may import it at module level: whoever imports these modules gets the library too.
EAGERLY = ONLY | {
    "alembic": ("sql",),
    "huggingface_hub": (),
    "keras": (*_CAPTIONER_NETWORK, "model_training"),
    "matplotlib": (),
    "openvino": (),
    "prometheus_client": ("batchcap.serving",),
    "simplejpeg": (),
    "sqlalchemy": ("batchcap.catalog", "sql"),
    "tensorflow": (*_CAPTIONER_NETWORK, "model_training"),
    "wandb": (),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, as it stands in a module."""

    importer: str
    target: str
    line: int
    is_eager: bool  # runs when the importer is imported

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    """The modules of this project, by name."""
    folders = ("batchcap", "model_training", "jobs", "sql")
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def imports_in(node: ast.AST, importer: str, is_package: bool, is_eager: bool = True) -> Iterator[Import]:
    """All imports below a node but those for type checkers only, which never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(importer, alias.name, child.lineno, is_eager)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                package = importer.split(".")[: None if is_package else -1]
                base = ".".join([*package[: len(package) - child.level + 1], *filter(None, [child.module])])
            for alias in child.names:
                # `from batchcap import catalog` must not pass for an import of `batchcap` alone. Nor must
                # a public name, which hides whose it is: inside, it is taken from its own module.
                full = f"{base}.{alias.name}"
                is_public_name = base == "batchcap" and not alias.name.startswith("__")
                target = full if full in sources() or is_public_name else base
                yield Import(importer, target, child.lineno, is_eager)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from imports_in(ast.Module(child.orelse, []), importer, is_package, is_eager)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(child, importer, is_package, is_eager and not is_function)


def all_imports() -> list[Import]:
    return [
        found
        for name, path in sources().items()
        for found in imports_in(ast.parse(path.read_text("utf-8")), name, path.name == "__init__.py")
    ]


def part_of(module: str) -> str:
    """The row of `MAY_IMPORT` that a module belongs to."""
    if module in MAY_IMPORT:
        return module
    top, *rest = module.split(".")
    return f"{top}.{rest[0]}" if top in ("batchcap", "jobs") and rest else top


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_tests_below_see_the_code() -> None:
    names = set(sources())
    assert {"batchcap", "batchcap.errors", "batchcap.captioner.images", "model_training.metrics"} <= names
    assert any(found.target == "tensorflow" for found in all_imports())


def test_every_module_has_its_place() -> None:
    unknown = {part_of(name) for name in sources()} - {*MAY_IMPORT, "jobs"}
    assert not unknown, "give it a row in MAY_IMPORT and in docs/design.md"


def test_imports_point_left_only() -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if found.target.split(".")[0] in ("batchcap", "model_training", "jobs", "sql")
        and part_of(found.target) != part_of(found.importer)
        and part_of(found.target) not in MAY_IMPORT[part_of(found.importer)]
    ]
    assert wrong == []


def test_the_package_itself_imports_nothing_of_its_own_early() -> None:
    eager = [found.target for found in all_imports() if found.importer == "batchcap" and found.is_eager]
    assert not {target for target in eager if target.split(".")[0] not in sys.stdlib_module_names}


@pytest.mark.parametrize("library", sorted(ONLY))
def test_a_heavy_library_stays_in_its_place(library: str) -> None:
    wrong = [
        str(found)
        for found in all_imports()
        if is_within(found.target, (library,))
        and not is_within(found.importer, (EAGERLY if found.is_eager else ONLY)[library])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "targets"),
    [
        ("import ray.data", {("ray.data", True)}),
        ("from batchcap import errors", {("batchcap.errors", True)}),
        ("from batchcap import __version__", {("batchcap", True)}),
        ("from batchcap import Catalog", {("batchcap.Catalog", True)}),
        ("from . import images", {("batchcap.captioner.images", True)}),
        ("from .. import errors", {("batchcap.errors", True)}),
        ("from ..errors import Reason", {("batchcap.errors", True)}),
        ("def f():\n    import keras", {("keras", False)}),
        ("class C:\n    import keras", {("keras", True)}),
        ("try:\n    import keras\nexcept ImportError: pass", {("keras", True)}),
        ("if TYPE_CHECKING:\n    import ray\nelse:\n    import keras", {("keras", True)}),
    ],
)
def test_how_imports_are_read(code: str, targets: set[tuple[str, bool]]) -> None:
    found = imports_in(ast.parse(code), "batchcap.captioner.example", is_package=False)
    assert {(each.target, each.is_eager) for each in found} == targets


# --- what is loaded in fact ---


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after some code."""
    code += "\nimport sys; print('\\nloaded:', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


OF_TRANSFORMERS = {"huggingface_hub", "torch", "transformers"}
LIGHT = (
    *("batchcap.captioner.bundle", "batchcap.captioner.images", "batchcap.captioner.tokenizer"),
    *("batchcap.captioner.sources", "batchcap.captioner.transformers_source"),
    *("batchcap.catalog", "batchcap.collection", "batchcap.parts"),
    *("batchcap.decoder_child", "batchcap.loading"),
    *("batchcap.verify", "batchcap.rebuild", "batchcap.repair"),
)


def test_the_light_modules_load_nothing_heavy() -> None:
    modules = [name for name in LIGHT if name in sources()]
    assert len(modules) >= 3
    loaded = loaded_after(f"import {', '.join(modules)}")
    assert "batchcap" in loaded
    assert not loaded & {"ray", "tensorflow", "keras", "wandb", "pandas", "alembic", *OF_TRANSFORMERS}


def test_a_run_that_finds_nothing_to_do_loads_nothing_heavy() -> None:
    loaded = loaded_after("import batchcap.pipeline, batchcap.captioner.sources")
    assert not loaded & {"ray", "tensorflow", "keras", *OF_TRANSFORMERS}


def test_the_driver_of_a_run_on_ray_never_loads_tensorflow() -> None:
    loaded = loaded_after("import batchcap.ray_runtime, batchcap.captioner.sources")
    assert "ray" in loaded
    assert not loaded & {"tensorflow", "keras", *OF_TRANSFORMERS}


def test_only_the_catalog_loads_sqlalchemy() -> None:
    assert "sqlalchemy" not in loaded_after("import batchcap.collection, batchcap.captioner.images")


@pytest.mark.skipif("batchcap.cli" not in sources(), reason="there is no command line yet")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["index", "--help"], ["search", "--help"], ["serve", "--help"]]
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(
        "import sys\n"
        f"sys.argv = {['batchcap', *arguments]}\n"
        "from batchcap.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exit:\n    assert not exit.code, exit.code"
    )
    assert "typer" in loaded
    heavy = {"ray", "tensorflow", "keras", "wandb", "pandas", "sqlalchemy", "alembic", "fastapi", "uvicorn"}
    assert not loaded & {*heavy, *OF_TRANSFORMERS}
