"""Sources that decide a value: which modules they are, and a digest over what they say.

A key names the sources of what it was made by, so that a changed line makes another result. Only
what can change a result counts: files are parsed, and comments, docstrings, layout, type hints'
imports, the texts of deviations and published rows, and declared defaults (which a key names by
value) are left out. Nothing is imported; what a file says is remembered by its bytes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.store.durable import replace_file
from harness.store.keys import digest
from harness.store.store import home

if TYPE_CHECKING:
    from collections.abc import Iterable

READING = 1
"""Raised when this module reads sources in another way."""

MEMORY = "sources.json"
FACADE = "_HOMES"  # of a package: where the names that it hands on are defined
_TOLD = {"Deviation", "Reproduction"}  # prose about a method
_GUESSES = {"quick", "quick_s"}  # a quick budget is in a key by the values it sets
_DECLARED = {"options"}  # decorator of classes whose fields are declared options
_fresh: set[str] = set()


def sources_digest(modules: Iterable[str]) -> str:
    """Digest over what the sources of modules say, in 16 hexadecimal digits.

    Raises:
        HarnessError: A module has no source here.
    """
    said = [[name, _read(name)["said"]] for name in sorted(set(modules))]
    _remember()
    return digest(said)[:16]


def reach(
    start: Iterable[str], within: tuple[str, ...], *, skip: Iterable[str] = ()
) -> tuple[str, ...]:
    """Modules that the given ones import, directly or not, themselves included.

    Args:
        start: Module names.
        within: Packages and modules that count; others are not followed.
        skip: Modules that are neither counted nor followed.

    Raises:
        HarnessError: A module of ``start`` has no source here.
    """
    left_out = set(skip)
    waiting = [name for name in start if name not in left_out]
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = None
        for other in _read(name)["imports"]:
            if other not in left_out and _inside(other, within) and source_of(other) is not None:
                waiting.append(other)
    _remember()
    return tuple(sorted(found))


@cache
def source_of(module: str) -> Path | None:
    """File of a module; None where it has none. Imports neither it nor its packages."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        stem = Path(place).joinpath(*rest)
        for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def _inside(module: str, within: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in within)


def _read(module: str) -> dict[str, Any]:
    """What a module says (``said``) and imports (``imports``)."""
    path = source_of(module)
    if path is None:
        raise HarnessError(
            f"module '{module}' has no source here, so no key can name it",
            "install the package again, as source",
        )
    return _parsed(module, path, path.stat().st_mtime_ns)


@cache
def _parsed(module: str, path: Path, stamp: int) -> dict[str, Any]:
    """Parse a file, unless this machine remembers one with these bytes."""
    del stamp
    text = path.read_bytes()
    name = hashlib.sha256(f"{READING} {module} ".encode() + text).hexdigest()
    memory = _memory()
    if name not in memory:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError) as cause:
            raise HarnessError(
                f"'{path}' cannot be parsed: {cause}", "correct it; it decides what is made"
            ) from cause
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        imports = sorted(_imports(tree, package))
        said = ast.unparse(_Silent().visit(tree))
        memory[name] = {"said": hashlib.sha256(said.encode()).hexdigest(), "imports": imports}
        _fresh.add(name)
    found: dict[str, Any] = memory[name]
    return found


@cache
def _memory() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((home() / MEMORY).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _remember() -> None:
    """Keep what was parsed since the last time."""
    if not _fresh:
        return
    # A home that cannot be written is said by the check before the work; planning can go on.
    with contextlib.suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
        replace_file(home() / MEMORY, json.dumps(_memory(), sort_keys=True))
    _fresh.clear()


def _imports(tree: ast.Module, package: str) -> set[str]:
    """Modules that a file imports when it runs, wherever in it the statement stands."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _for_checkers(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            found |= {_home_of(base, alias.name) for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return found


def _for_checkers(test: ast.expr) -> bool:
    return _name(test) == "TYPE_CHECKING"


def _name(node: ast.expr) -> str:
    """Last part of the name that an expression is, or that it calls."""
    called = node.func if isinstance(node, ast.Call) else node
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _base(node: ast.ImportFrom, package: str) -> str:
    """The module that an import names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _home_of(base: str, name: str) -> str:
    """Where an imported name is defined: a module of the package, its facade's, or the package."""
    if source_of(f"{base}.{name}") is not None:
        return f"{base}.{name}"
    return _facade(base).get(name, base)


@cache
def _facade(package: str) -> dict[str, str]:
    """Names that a package hands on from modules, by its own table."""
    path = source_of(package)
    if path is None or path.name != "__init__.py":
        return {}
    with contextlib.suppress(SyntaxError, ValueError):
        for node in ast.parse(path.read_bytes()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            if any(getattr(target, "id", "") == FACADE for target in targets):
                table = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                return {str(name): str(module) for name, module in table.items()}
    return {}


_Body = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class _Silent(ast.NodeTransformer):
    """Takes out of a tree what cannot change a result."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._without_docstring(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if {_name(decorator) for decorator in node.decorator_list} & _DECLARED:
            node.body = [line for line in node.body if not isinstance(line, ast.AnnAssign)]
        node.body = [line for line in node.body if not _guess(line)]
        return self._without_docstring(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if _for_checkers(node.test) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if _name(node) in _TOLD:
            return ast.Constant(value=None)
        return self.generic_visit(node)

    def _without_docstring(self, node: _Body) -> ast.AST:
        """Texts that stand alone say something to readers only, wherever they stand."""
        self.generic_visit(node)
        node.body = [line for line in node.body if not _text(line)] or [ast.Pass()]
        return node


def _text(line: ast.stmt) -> bool:
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _guess(line: ast.stmt) -> bool:
    """Whether a class attribute is a guess of time or a budget that options hold."""
    if isinstance(line, ast.Assign):
        return any(getattr(target, "id", "") in _GUESSES for target in line.targets)
    return isinstance(line, ast.AnnAssign) and getattr(line.target, "id", "") in _GUESSES
