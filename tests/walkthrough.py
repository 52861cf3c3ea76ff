"""Reads a walk-through page and does what it says: its commands are run, its files written, its settings changed.

A block's first line says what it is: `sh` is run; `python FILE` and `markdown FILE` are that file of the family, whole;
`yaml params.yaml` is a line of the family's block there, which replaces the line of the same key.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families" / "new.md"


@dataclass(frozen=True)
class Block:
    """One code block: `kind` is sh, python, markdown or yaml, `file` what it is the text of."""

    kind: str
    file: str
    text: str


def blocks(page: Path = PAGE) -> Iterator[Block]:
    """The code blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for kind, file, body in re.findall(r"^```(\w+)(?: ([\w.]+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(kind, file, body)


def family_of(page: Path = PAGE) -> str:
    """The family that the page makes."""
    found = re.search(r"make family NAME=(\w+)", page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def follow(root: Path, env: Mapping[str, str], page: Path = PAGE) -> list[subprocess.CompletedProcess[str]]:
    """Do all that the page says in a copy of the repository; the commands' outcomes, each of which must be 0."""
    folder = root / "families" / family_of(page)
    done = []
    for block in blocks(page):
        if block.kind == "sh":
            for command in block.text.splitlines():
                one = subprocess.run(
                    ["bash", "-c", command], cwd=root, env=dict(env), capture_output=True, text=True, check=False
                )
                assert 0 == one.returncode, f"{command}: {one.stdout[-3000:]}{one.stderr[-3000:]}"
                done.append(one)
        elif block.file == "params.yaml":
            _set(root / "params.yaml", folder.name, block.text)
        else:
            assert (folder / block.file).is_file(), f"the scaffold writes no {block.file}"
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return done


def _set(params: Path, family: str, line: str) -> None:
    key = line.split(":")[0]
    lines = params.read_text(encoding="utf-8").splitlines(keepends=True)
    start = lines.index(f"  {family}:\n")
    at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{key}:"))
    lines[at] = line
    params.write_text("".join(lines), encoding="utf-8")
