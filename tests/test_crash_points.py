"""DESIGN 9, rule 9: every write says where it may be cut off, and a kill test ends a process at each of these places."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from esteira import crash

ROOT = Path(__file__).resolve().parents[1]
GUARDED = ("registry", "release", "ledger", "rollout", "access")

# Writes without a point of their own, and why they need none.
EXCEPT = {
    "esteira/registry/beacon.py:touch": "a signal that a service looks again; without it, it looks a little later",
    "esteira/rollout/telling.py:append": "one transaction; what shifts traffic has a point before and after it",
    "esteira/rollout/files.py:set_aside": "puts away a file that nobody could read",
    "esteira/rollout/files.py:withdraw": "the way out of a full disk; a state that is gone is read as no traffic",
}


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods, not those within others: a point anywhere inside counts."""
    for node in tree.body:
        for one in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(one, ast.FunctionDef):
                yield one


def _calls(node: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            yield one.func.attr, one


def _writes(function: ast.FunctionDef) -> bool:
    """Whether it opens a transaction that writes, or puts a file in the place of another.

    `Path.replace` and `rename` take one argument; `str.replace` takes two, `datetime.replace` keywords.
    """
    for name, call in _calls(function):
        of_os = (
            isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "os"
        )
        moves = (
            name in {"replace", "rename", "link", "symlink"} and (of_os or len(call.args) == 1) and not call.keywords
        )
        if moves or (name == "begin" and not call.args):
            return True
    return False


def _points(node: ast.AST) -> set[str]:
    return {
        call.args[0].value
        for name, call in _calls(node)
        if name == "point" and call.args and isinstance(call.args[0], ast.Constant)
    }  # fmt: skip


def _unguarded(path: Path, root: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(root).as_posix()
    return [f"{name}:{one.name}" for one in _functions(tree) if _writes(one) and not _points(one)]


def _guarded_files() -> list[Path]:
    places = [ROOT / "esteira" / name for name in GUARDED]
    return sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))


def test_every_write_of_a_release_has_a_point_or_a_reason() -> None:
    found = {name for path in _guarded_files() for name in _unguarded(path, ROOT)}

    assert set(EXCEPT) == found


@pytest.mark.parametrize(
    ("body", "writes"),
    [
        ("with self.store.begin() as c: pass", True),
        ("temporary.replace(final)", True),
        ("os.replace(a, b)", True),
        ("folder.rename(final)", True),
        ("text.replace('a', 'b')", False),
        ("now.replace(microsecond=0)", False),
        ("replace(key, shown=False)", False),
    ],
)
def test_a_write_is_known_by_its_call(body: str, writes: bool, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(f"def move(self):\n    {body}\n", encoding="utf-8")
    (tmp_path / "two.py").write_text(f"def move(self):\n    crash.point('x')\n    {body}\n", encoding="utf-8")

    assert (["one.py:move"] if writes else []) == _unguarded(tmp_path / "one.py", tmp_path)
    assert [] == _unguarded(tmp_path / "two.py", tmp_path)


def _killed(path: Path) -> set[str]:
    """Points at which the tests of a file end a process: named in it, or all of a prefix where it goes through the list."""
    text = path.read_text(encoding="utf-8")
    if not any(word in text for word in ("ESTEIRA_CRASH_AT", "die_at(")):
        return set()
    # In quotes of its own, or within those of a program that a child runs; a run's step may follow.
    said = set(re.findall(r"""['"]([a-z_.]+)(?:@\w+)?['"]""", text))
    whole = {word.rstrip(".") for word in said} if "in crash.POINTS" in text else set()
    return {point for point in crash.POINTS if point in said or point.partition(".")[0] in whole}


def test_every_point_is_killed_at_somewhere() -> None:
    killed = set().union(*(_killed(path) for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)))

    assert [] == sorted(set(crash.POINTS) - killed)
