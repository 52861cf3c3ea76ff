"""What README and docs name exists; the picture is fresh; the tree names no machine, no package index and no pickle."""

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.flow import FILE, draw
from esteira.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("manifests/**/*.md")]
    if path.parent.name != "requirements"
)
PYTHON = [path for room in ("esteira", "families", "components", "pipelines", "serving", "tests", "benchmarks", "docs")
          for path in sorted((ROOT / room).rglob("*.py"))]  # fmt: skip
# Made by a command, so absent from a clean clone.
MADE = (".venv", ".esteira", ".env", "build", "data", "customers.csv")
# Reading these runs code.
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def _tree() -> list[Path]:
    """Every file that is or would be committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("needs a git checkout to know which files are part of the tree")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def _code(page: Path) -> Iterator[str]:
    """Code spans and lines of code blocks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from (
        " ".join(span.split())
        for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"```.*?```", "", text, flags=re.S))
    )


def _commands(code: str) -> Iterator[list[str]]:
    """Words of each shell command in a piece of code, comments left out."""
    for part in re.split(r"&&|\|\|?|;", re.sub(r"(^|\s)#.*", "", code)):
        try:
            words = shlex.split(part)
        except ValueError:
            continue
        if words:
            yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))

    assert [] == [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_path_named_exists(page: Path) -> None:
    named = {
        match
        for code in _code(page)
        for match in re.findall(r"(?<![\w/:.@-])(?:[\w.-]+/)+[\w.-]*|(?<![\w/:.@-])[\w-]+\.(?:py|md|yaml|toml)\b", code)
    }
    rooms = {path.name for path in ROOT.iterdir()}
    missing = []
    for name in sorted(named):
        first = name.split("/")[0]
        if first in MADE or (first not in rooms and "/" in name):
            continue
        found = (ROOT / name).exists() or (page.parent / name).exists() or ("/" not in name and _made_by_a_step(name))
        if not found:
            missing.append(name)

    assert [] == missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_module_named_exists(page: Path) -> None:
    named = {
        match
        for code in _code(page)
        for match in re.findall(r"^(?:esteira|families|components|pipelines|serving)(?:\.[a-z_]+)+$", code)
    }

    missing = [
        name
        for name in sorted(named)
        if not (ROOT / name.replace(".", "/")).is_dir() and not (ROOT / (name.replace(".", "/") + ".py")).exists()
    ]
    assert [] == missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_and_every_command_with_its_options_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for code in _code(page):
        for words in _commands(code):
            if words[0] == "make" and len(words) > 1 and words[1] not in targets:
                wrong.append(code)
            if words[0] in {"esteira", ".venv/bin/esteira"} and len(words) > 1 and not _understood(words[1:]):
                wrong.append(code)

    assert [] == wrong


def test_the_makefile_explains_each_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(" ".join(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)).split())
    explained = set(re.findall(r"^([a-z-]+):.*?## \S", makefile, re.MULTILINE))

    assert phony == explained
    promised = (
        "help setup demo data repro test test-all check bench family compile golden images requirements clean lock"
    )
    assert set(promised.split()) <= explained


def test_the_picture_is_drawn_from_the_shape_of_the_dag() -> None:
    assert draw() == FILE.read_text(encoding="utf-8"), "run `make docs`"


def test_a_newcomer_finds_two_commands_and_the_picture_first() -> None:
    start = (ROOT / "README.md").read_text(encoding="utf-8")[:1200]

    assert "make setup" in start
    assert "make demo" in start
    assert "docs/flow.svg" in start


def test_decisions_are_numbered_without_gaps_and_say_what_was_given_up() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))

    assert [f"{number:04}" for number in range(1, len(pages) + 1)] == [page.name[:4] for page in pages]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert [] == [word for word in ("**Situation.**", "**Choice.**", "**What we gave up.**") if word not in text], (
            page.name
        )


def test_the_tree_names_no_machine_and_no_package_index() -> None:
    places = {
        ROOT,
        Path.home(),
        *(Path(os.environ[name]) for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS") if name in os.environ),
    }
    named = [re.escape(str(place)) for place in places if len(place.parts) > 2 or place == Path("/root")]
    machine = re.compile(rf"(?<![\w.$}})\]-])(?:{'|'.join(named)})(?:/|\b)" if named else r"(?!)")
    index = re.compile(
        r"https?://[^\s\"'>]*(?:/simple\b|pythonhosted|artifactory|nexus)|^\s*--(?:extra-)?index-url|^\s*--find-links",
        re.M,
    )
    found = []
    for path in _tree():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path == Path(__file__):  # names them to look for them
            continue
        for pattern in (machine, index):
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]

    assert [] == found


def test_locks_pin_every_package_by_hash() -> None:
    for lock in ("dev.lock", "pipeline.lock", "serving.lock", "serving-gpu.lock"):
        text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
        pins = [part for part in re.split(r"\n(?=[a-z0-9])", text, flags=re.I) if not part.startswith("#")]
        assert [] == [pin.splitlines()[0] for pin in pins if "==" not in pin or "--hash=sha256:" not in pin]


def test_the_service_carries_neither_kfp_nor_great_expectations() -> None:
    names = set(
        re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements" / "serving.lock").read_text(encoding="utf-8"), re.M)
    )

    assert set() == names & {
        "kfp",
        "great-expectations",
        "mlflow",
        "pandas",
        "scikit-learn",
        "xgboost",
        "xgboost-cpu",
        "torch",
    }
    assert {"bentoml", "onnxruntime"} <= names


def test_nothing_imports_what_runs_code_when_read() -> None:
    found = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
            elif isinstance(node, ast.Call) and any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                value = next(keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle")
                names = ["pickle"] if not (isinstance(value, ast.Constant) and value.value is False) else []
            line = getattr(node, "lineno", 0)
            found += [f"{path.relative_to(ROOT)}:{line} {name}" for name in names if name.split(".")[0] in UNSAFE]

    assert [] == found


def _made_by_a_step(name: str) -> bool:
    """A product of a step or of a family, named without its folder."""
    return any(f'"{name}"' in path.read_text(encoding="utf-8") for path in PYTHON if path.parts[-2] != "tests") or any(
        ROOT.glob(f"families/*/{name}")
    )


def _understood(words: list[str]) -> bool:
    """Whether the command line knows these words: a command, its subcommand, its options."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return set(words) <= {"--help", "--version", "--debug"}
    if name not in COMMANDS:
        return name.isupper() or name == "..."
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    command = found
    rest = words[words.index(name) + 1 :]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        context = click.Context(command)
        if rest[0] not in command.list_commands(context):
            return rest[0].isupper()
        inner = command.get_command(context, rest.pop(0))
        assert inner is not None
        command = inner
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return {word.split("=")[0] for word in rest if word.startswith("--")} <= known
