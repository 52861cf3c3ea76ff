"""Which files of this repository a step's code is: its module and all it imports, read from the source without running it.

An import inside a function counts, and so does a module named in text (`import_module("esteira.automl")`, `"room.module:name"`)
or started as a process of its own (`[python, "-m", "serving", ...]`). What a step loads by a name made at run time is told by
`Step.family` and `Step.files`. Imports for types only, and what a module does when it is run as a program, do not count.
"""

import ast
import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("esteira", "families", "components", "pipelines", "serving")


def files_of(modules: Iterable[str], *, root: Path = ROOT, rooms: Sequence[str] = ROOMS) -> list[Path]:
    """The source files that these modules reach by imports, they themselves included, in order of their paths.

    Args:
        modules: dotted names; one that is no module of `rooms` is ignored.
        root: folder that holds the rooms.
        rooms: top-level packages whose code counts; everything else is a dependency, and told apart by its version.
    """
    reached: dict[Path, None] = {}
    waiting = [path for name in modules for path in _paths(name, root, rooms)]
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached[path] = None
        for name in _imports(path, root, tuple(rooms)):
            waiting += _paths(name, root, rooms)
    return sorted(reached)


def hashes(
    files: Iterable[Path], *, root: Path = ROOT, patterns: Iterable[str] = (), functions: Iterable[str] = ()
) -> dict[str, str]:
    """File (relative to root) -> SHA-256 of its bytes.

    Args:
        files: as `files_of` gives them.
        patterns: globs below root of further files, e.g. `families/tabular/*`; folders and caches are left out.
        functions: `FILE::NAME`: only the text of that function of the file counts, under this very key.
    """
    found = {_name(path, root): _hash(path) for path in files}
    for pattern in patterns:
        for path in root.glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                found[_name(path, root)] = _hash(path)
    for place in functions:
        file, _, name = place.partition("::")
        text = (root / file).read_text(encoding="utf-8")
        segments = [
            ast.get_source_segment(text, node) or ""
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        found[place] = hashlib.sha256("\n".join(segments).encode()).hexdigest()
    return dict(sorted(found.items()))


def packages(paths: Sequence[str] | None = None) -> dict[str, str]:
    """Installed distributions, name -> version, and Python's own; read from folder names, so it costs a millisecond.

    Args:
        paths: folders to look in; None means `sys.path`.
    """
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for folder in sys.path if paths is None else paths:
        for entry in Path(folder).glob("*.dist-info") if folder else ():
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return dict(sorted(found.items()))


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _paths(name: str, root: Path, rooms: Sequence[str]) -> Iterator[Path]:
    """The file of a module and those of the packages above it; nothing for what is no module."""
    parts = name.split(".")
    if parts[0] not in rooms:
        return
    folder = root
    for part in parts:
        package, module = folder / part / "__init__.py", folder / f"{part}.py"
        if package.is_file():
            yield package
            folder = folder / part
        else:
            if module.is_file():
                yield module
            return


@functools.cache
def _imports(path: Path, root: Path, rooms: tuple[str, ...]) -> tuple[str, ...]:
    """Dotted names that a file may import; some are functions of a module rather than modules, which does no harm."""
    dotted = re.compile(rf"(?:{'|'.join(map(re.escape, rooms))})(?:\.\w+)+(?::\w+)?")
    package = list(path.relative_to(root).parts[:-1])
    names: set[str] = set()
    for node in _walk(_tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and dotted.fullmatch(node.value):
            names.add(node.value.partition(":")[0])
        elif isinstance(node, ast.List | ast.Tuple | ast.Call):
            parts = node.args if isinstance(node, ast.Call) else node.elts
            words = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            for flag, started in itertools.pairwise(words):
                if flag == "-m" and isinstance(started, str) and started.split(".")[0] in rooms:
                    names |= {started, f"{started}.__main__"}
    return tuple(sorted(name for name in names if name.split(".")[0] in rooms))


def _tree(path: Path) -> ast.Module:
    """The syntax tree of a file; empty where it has none: whoever imports the file then says so, with line and place."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, without what is not run in a step: imports for types, and what a module does as a program."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "__name__ == '__main__'"}:
            for other in child.orelse:
                yield from _walk(other)
        else:
            yield from _walk(child)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str]]:
    """What differs between two of these maps, as (name, "changed" | "added" | "removed"), by name."""
    return [
        (name, "added" if name not in before else "removed" if name not in now else "changed")
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
