"""Writes a new family that keeps every rule from the first minute: its folder, its block in params.yaml, its overlay.

What it writes is an example to be changed, not a layer to build on. It overwrites nothing.
"""

import keyword
import re
import sys
from pathlib import Path

import click

from esteira import outputs
from esteira.console import conduct
from esteira.errors import ConfigError, Refused
from pipelines.shape import NAMES

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = Path(__file__).parent / "template"


def scaffold(name: str, root: Path = ROOT) -> list[Path]:
    """Write `families/<name>/`, a block in params.yaml and `manifests/overlays/<name>/`.

    Args:
        name: lower-case letters, digits and underscores, starting with a letter; no keyword of Python, since it is imported.
        root: of the repository.

    Returns:
        What was written or changed. The folder `sample` is not: its answers need a fit, see `families/<name>/sample.py`.

    Raises:
        ConfigError: the name has another form.
        Refused: a family, block or overlay of this name is there; nothing was written.
    """
    if re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name) is None or keyword.iskeyword(name):
        raise ConfigError(
            f"a family's name is lower-case letters, digits and '_', at most 40, and no word of Python's, but got {name!r}",
            code="bad_family_name",
            where="NAME",
            cure="make family NAME=churn_risk",
        )
    dashed = name.replace("_", "-")
    family, overlay, params = root / "families" / name, root / "manifests" / "overlays" / dashed, root / "params.yaml"
    text = params.read_text(encoding="utf-8") if params.exists() else "families:\n"
    there = [path for path in (family, overlay) if path.exists()]
    if there or re.search(rf"^  {name}:", text, re.MULTILINE):
        raise Refused(
            f"a new family overwrites nothing, but {there[0].relative_to(root) if there else f'{name} in params.yaml'} is there",
            code="family_exists",
            where=name,
            cure="take another name, or remove it first",
        )
    words = {"@NAME@": name, "@DASHED@": dashed}
    written = {path.name.removesuffix(".txt"): _filled(path, words) for path in sorted(TEMPLATE.glob("*.txt"))}
    outputs.write(overlay, {"kustomization.yaml": written.pop("kustomization.yaml")})
    outputs.write(family, written)
    sections = "".join(f"    {step}: {{}}\n" for step in NAMES)
    block = f"families:\n  {name}:\n    source: families/{name}/sample/table.jsonl\n    target: minutes\n    seed: 42\n{sections}"
    outputs.write(root, {"params.yaml": re.sub(r"^families:.*\n", block, text, count=1, flags=re.MULTILINE).encode()})
    return [*(family / file for file in sorted(written)), overlay / "kustomization.yaml", params]


def _filled(path: Path, words: dict[str, str]) -> bytes:
    text = path.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    return text.encode()


@click.command()
@click.argument("name")
def command(name: str) -> None:
    """Write family NAME, its block in params.yaml and its overlay; its sample is written by `make family NAME=x`."""
    for path in scaffold(name):
        click.echo(path.relative_to(ROOT))


def main() -> None:
    """`python -m pipelines.scaffold NAME`."""
    conduct(command, sys.argv[1:], prog="python -m pipelines.scaffold")
