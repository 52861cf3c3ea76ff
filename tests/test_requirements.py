"""A requirement counts as proven only when it is proven; an unknown id fails; the five lines are exact."""

import json
import re
import subprocess
import sys

import pytest

from tests.requirements import PAGES, ROOT, STATUS, catalogue, five_lines, marked, page, proven

SANDBOX = """
import pytest

@pytest.mark.requirement("K-01")
def test_passes(): ...

@pytest.mark.requirement("K-02")
def test_also_passes(): ...

@pytest.mark.requirement("K-02")
@pytest.mark.skip(reason="no server")
def test_skipped(): ...

@pytest.mark.requirement("K-03")
@pytest.mark.xfail
def test_expected_to_fail(): assert False

@pytest.mark.requirement("K-04")
def test_fails(): assert False

@pytest.mark.requirement("K-05", "K-06")
@pytest.mark.parametrize("n", [1, 2])
def test_fails_once(n): assert n == 1

@pytest.fixture
def broken():
    yield
    raise RuntimeError("tear-down")

@pytest.mark.requirement("K-07")
def test_tear_down_fails(broken): ...

@pytest.mark.requirement("K-999")
def test_proves_something_unknown(): ...

@pytest.mark.requirement("S-01")
class TestTwo:
    def test_one(self): ...
    def test_two(self): ...
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\npytest_plugins = ('tests.requirements',)\n", encoding="utf-8"
    )
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    requirement(id): proves it\n", encoding="utf-8")
    (folder / "test_sandbox.py").write_text(SANDBOX, encoding="utf-8")
    record = folder / "record.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder),
         "--requirements", str(record)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 1 == done.returncode, done.stdout + done.stderr
    return done.stdout, json.loads(record.read_text(encoding="utf-8"))


def test_only_tests_that_really_passed_prove_a_requirement(sandbox: tuple[str, dict[str, dict[str, str]]]) -> None:
    _, outcomes = sandbox

    assert {"K-01", "S-01"} == proven(outcomes)
    assert {"passed", "skipped"} == set(outcomes["K-02"].values())
    assert {"expected to fail"} == set(outcomes["K-03"].values())
    assert {"failed"} == set(outcomes["K-07"].values())
    assert 2 == len(outcomes["S-01"])


def test_a_test_marked_with_an_unknown_id_fails_and_names_it(sandbox: tuple[str, dict[str, dict[str, str]]]) -> None:
    printed, outcomes = sandbox

    assert {"failed"} == set(outcomes["K-999"].values())
    assert "K-999 does not" in printed


def test_every_id_in_the_tests_is_a_requirement() -> None:
    assert set() == set(marked()) - set(catalogue())


def test_the_proofs_of_a_requirement_quote_all_of_its_done_when() -> None:
    """Clauses end with a semicolon; several tests may share them, and each names what it proves."""
    requirements = catalogue()
    missing = []
    for identity, tests in marked().items():
        clauses = [_plain(clause) for clause in requirements[identity].done_when.split(";")]
        said = [(test, docstring, _plain(docstring)) for test, docstring in tests]
        missing += [
            f"{identity}: no test quotes {clause!r}"
            for clause in clauses
            if not any(clause in text for *_, text in said)
        ]
        missing += [
            f"{test} must quote {identity}: {requirements[identity].done_when}"
            for test, docstring, text in said
            if identity not in docstring and not any(clause in text for clause in clauses)
        ]

    assert [] == missing


def test_the_five_lines_are_those_of_the_promise() -> None:
    requirements = catalogue()

    lines = five_lines(requirements.values(), {"K-01", "K-02", "H-01"})

    assert ["kryonix 2/119", "synapse 0/44", "hivemind 1/58", "famachat 0/122", "hybrid_llm 0/41"] == lines


def test_every_requirement_says_when_it_is_done() -> None:
    assert [] == [requirement.id for requirement in catalogue().values() if not requirement.done_when]


def test_status_names_every_requirement_and_only_proofs_that_stand_in_the_tests() -> None:
    """The page is written by `make requirements`; here it must at least agree with the text of the tests."""
    text = STATUS.read_text(encoding="utf-8")
    rows = {
        row[0]: row for row in re.findall(r"^\| ([A-Z]-\d+) \| (.*?) \| (\w[\w ]*)? ?\| (.*?) ?\|$", text, re.MULTILINE)
    }
    proofs = marked()

    assert set(catalogue()) == set(rows)
    claimed = {identity for identity, row in rows.items() if row[2].strip() == "proven"}
    assert set() == claimed - set(proofs), "run `make requirements`"


def test_the_page_tells_proven_from_not_proven() -> None:
    requirements = catalogue()

    text = page(requirements.values(), {"K-01": {"tests/test_a.py::test_x": "passed"}, "K-02": {"t::y": "skipped"}})

    assert "- kryonix 1/119" in text
    assert "| proven | tests/test_a.py::test_x |" in text
    assert "| not proven | t::y (skipped) |" in text


def test_the_index_lists_the_requirements_of_the_pages() -> None:
    listed = re.findall(r"^\| ([A-Z]-\d+) \|", (PAGES / "index.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert sorted(catalogue()) == sorted(listed)


def _plain(text: str) -> str:
    """Words only: line breaks, quotes and emphasis do not count."""
    return " ".join(re.sub(r"[`*\"'“”‘’]", "", text).split()).rstrip(".").lower()
