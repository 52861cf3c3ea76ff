"""A command that a text of ours names can be called as it stands: it and its options exist, and none that it asks for is missing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from esteira.cli import cli

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("esteira", "families", "components", "pipelines", "serving")
_NAMED = re.compile(r"(`?)\besteira ([a-z][^`<]*)")
# What ends a command that no backticks end.
_END = re.compile(r"[;,):]|\.(?:\s|$)|\n")
# Not a command: "the esteira that wrote it".
_PROSE = {"that"}


def test_every_command_that_a_text_names_can_be_called() -> None:
    found = [(place, command) for place, text in _texts() for command in _commands(text)]

    assert len(found) > 80
    assert [] == [f"{place}: esteira {command}: {fault}" for place, command in found if (fault := _fault(command))]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("wait, or end it: esteira rollout rollback 1 --reason 1", ""),
        ("`esteira run` makes one", ""),
        ("see `esteira rollout status 1`, or start one", ""),
        ("esteira release stage 1 1 --reason 1 rehearses it", ""),
        ("esteira ledger anchor --out 1 or --git-note makes one", ""),
        ("a fault of ours; esteira rollout tick 1 --debug", ""),
        ("esteira rollout rollback 1", "Missing option '--reason'."),
        ("`esteira rollout rollback` ends it", "Missing option '--reason'."),
        ("esteira release approve --reason 1", "Missing argument 'LINE'."),
        ("esteira rollout rollback 1 --reason 1 --now", "No such option '--now'."),
        ("esteira rollout undo 1", "no such command"),
        ("`esteira undo`", "no such command"),
    ],
)
def test_a_command_that_cannot_be_called_is_found(text: str, fault: str) -> None:
    (command,) = _commands(text)

    assert fault == _fault(command)


def _texts() -> Iterator[tuple[str, str]]:
    """Place and text of every string but docstrings; what stands for a value, in braces or capitals, is 1."""
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) or (isinstance(node, ast.keyword) and node.arg == "where"):
                inner.add(id(node.value))  # a docstring is for who reads the code, and a place is no command to call
            if isinstance(node, ast.JoinedStr):
                inner.update(id(part) for part in node.values)
            if isinstance(node, ast.JoinedStr) and id(node) not in inner:
                parts = [str(part.value) if isinstance(part, ast.Constant) else "1" for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                parts = [node.value]
            else:
                continue
            yield f"{path.relative_to(ROOT)}:{node.lineno}", re.sub(r"\b[A-Z]+(?:_[A-Z]+)*\b", "1", "".join(parts))


def _commands(text: str) -> Iterator[str]:
    """What stands after `esteira`, as far as it is a command."""
    for found in _NAMED.finditer(text):
        said = found[2] if found[1] else _END.split(found[2])[0]
        if said.split()[0] not in _PROSE:
            yield said


def _fault(said: str) -> str:
    """Why a command cannot be called so, or nothing. One that is only named, as in "`esteira run` makes one", needs no arguments."""
    words = [word for word in said.split() if word != "--debug"]
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        name, context = words.pop(0), click.Context(command)
        inner = command.get_command(context, name) if name in command.list_commands(context) else None
        if inner is None:
            return "" if name == "1" else "no such command"
        command = inner
    if isinstance(command, click.Group) or words == ["--help"]:
        return ""
    if not words:
        words = ["1"] * sum(parameter.required for parameter in command.params if isinstance(parameter, click.Argument))
    try:
        command.make_context(None, words, allow_extra_args=True)  # prose may follow
    except click.UsageError as error:
        return error.format_message()
    return ""
