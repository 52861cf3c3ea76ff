"""Which requirements the tests prove: a pytest plugin, and the command behind `make requirements`.

A requirement of docs/requirements is proven when at least one test is marked with its id and every such test really
passed: not skipped, not expected to fail, not lost to a module that could not be imported.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "requirements"
STATUS = PAGES / "status.md"
SYSTEMS = ("kryonix", "synapse", "hivemind", "famachat", "hybrid_llm")
_KEY = "requirement"


@dataclass(frozen=True)
class Requirement:
    """One entry of docs/requirements: its id, title, system, and the sentence that says when it is done."""

    id: str
    title: str
    system: str
    done_when: str


def catalogue(folder: Path = PAGES) -> dict[str, Requirement]:
    """Every requirement by id, in the order of the pages."""
    found: dict[str, Requirement] = {}
    for system in SYSTEMS:
        text = (folder / f"{system}.md").read_text(encoding="utf-8")
        for section in re.split(r"^(?=### )", text, flags=re.MULTILINE)[1:]:
            head = re.match(r"### ([A-Z]-\d+) · (.+)", section)
            assert head is not None, f"{system}.md: not a requirement's heading: {section.splitlines()[0]!r}"
            done = re.search(r"\*\*Done when:\*\*\s*(.+?)(?=\n\s*\n|\n#|\Z)", section, flags=re.DOTALL)
            found[head[1]] = Requirement(head[1], head[2].strip(), system, " ".join(done[1].split()) if done else "")
    return found


def marked(folder: Path = ROOT / "tests") -> dict[str, list[tuple[str, str]]]:
    """Requirement id -> (test, docstring) pairs, read from the text of the tests without importing them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(module):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("mark.requirement"):
                    test = f"{path.relative_to(folder.parent).as_posix()}::{node.name}"
                    for argument in decorator.args:
                        identity = str(ast.literal_eval(argument))
                        found.setdefault(identity, []).append((test, ast.get_docstring(node) or ""))
    return found


def proven(outcomes: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The ids whose tests all passed. `outcomes`: id -> test -> `passed` or what else became of it."""
    return {identity for identity, tests in outcomes.items() if tests and set(tests.values()) == {"passed"}}


def five_lines(requirements: Iterable[Requirement], done: set[str]) -> list[str]:
    """`kryonix 12/119`, one line a system."""
    every = list(requirements)
    return [
        f"{system} {sum(r.id in done for r in every if r.system == system)}/{sum(r.system == system for r in every)}"
        for system in SYSTEMS
    ]


def page(requirements: Iterable[Requirement], outcomes: Mapping[str, Mapping[str, str]]) -> str:
    """The text of status.md: what is proven, by which tests, and what is marked but not proven."""
    done = proven(outcomes)
    every = list(requirements)
    lines = [
        "# What is proven",
        "",
        "Written by `make requirements`; not by hand. A requirement is proven when every test marked with its id passed.",
        "",
        *(f"- {line}" for line in five_lines(every, done)),
    ]
    for system in SYSTEMS:
        lines += ["", f"## {system}", "", "| Id | Title | State | Tests |", "|---|---|---|---|"]
        for requirement in (r for r in every if r.system == system):
            tests = outcomes.get(requirement.id, {})
            state = "proven" if requirement.id in done else ("not proven" if tests else "")
            names = "<br>".join(
                f"{test}" + ("" if outcome == "passed" else f" ({outcome})") for test, outcome in sorted(tests.items())
            )
            lines.append(f"| {requirement.id} | {requirement.title} | {state} | {names} |")
    return "\n".join(lines) + "\n"


# ---- the plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", metavar="FILE", help="write what became of each test marked with a requirement")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(config.getoption("--requirements")), "esteira-requirements")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers(_KEY):
            for identity in mark.args:
                item.user_properties.append((_KEY, identity))


def pytest_runtest_setup(item: pytest.Item) -> None:
    asked = [identity for mark in item.iter_markers(_KEY) for identity in mark.args]
    unknown = sorted(set(asked) - set(catalogue())) if asked else []
    if unknown:
        pytest.fail(f"a requirement's id stands in docs/requirements, but {', '.join(unknown)} does not", pytrace=False)


class _Recorder:
    """Remembers, on the process that reports, what became of each marked test."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.outcomes: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = "expected to fail" if hasattr(report, "wasxfail") else report.outcome
        for key, value in report.user_properties:
            if key != _KEY:
                continue
            tests = self.outcomes.setdefault(str(value), {})
            before = tests.get(report.nodeid)
            # Set-up, call and tear-down must all pass, and there must have been a call.
            if outcome != "passed" or (report.when == "call" and before is None):
                tests[report.nodeid] = outcome

    def pytest_sessionfinish(self) -> None:
        if self.file is not None:
            Path(self.file).write_text(json.dumps(self.outcomes), encoding="utf-8")


# ---- the command


def prove(folder: Path = ROOT / "tests") -> dict[str, dict[str, str]]:
    """Run the marked tests, slow ones too; id -> test -> outcome. What pytest prints goes to standard error."""
    record = ROOT / "build" / f"requirements.{os.getpid()}.json"
    record.parent.mkdir(exist_ok=True)
    try:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-m", _KEY, "-q", "--requirements", str(record), str(folder)],
            cwd=ROOT,
            stdout=sys.stderr,
            check=False,
        )
        outcomes: dict[str, dict[str, str]] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    finally:
        record.unlink(missing_ok=True)
    # A test that stands in the text and was not run proves nothing, whatever its neighbours did.
    for identity, tests in marked(folder).items():
        ran = [re.sub(r"\[.*", "", node).split("::") for node in outcomes.get(identity, {})]
        for test, _ in tests:
            file, name = test.split("::")
            if not any(file == node[0] and name in node[1:] for node in ran):
                outcomes.setdefault(identity, {})[test] = "did not run"
    return outcomes


def main() -> None:
    requirements = catalogue()
    outcomes = {identity: tests for identity, tests in prove().items() if identity in requirements}
    temporary = STATUS.with_suffix(".tmp")
    temporary.write_text(page(requirements.values(), outcomes), encoding="utf-8")
    temporary.replace(STATUS)
    print("\n".join(five_lines(requirements.values(), proven(outcomes))))


if __name__ == "__main__":
    main()
