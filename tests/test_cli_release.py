"""`esteira keys`, `release`, `rollback`: one JSON document each, exit codes of DESIGN 9, and a key's name in every entry."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components import deploy
from esteira import access, ledger
from esteira.ledger.chain import stamp
from esteira.registry import Registry
from esteira.release import approvals
from esteira.release.policy import ApprovalMode
from esteira.settings import load_settings
from tests.released import LOCAL, add, policy
from tests.stores import sqlite_template
from tests.test_approvals import POLICY, waited
from tests.test_registry import LINE, template

__all__ = ["sqlite_template", "template"]

# MLflow's own mappers, at its first import.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*")

Run = Callable[..., Any]


@pytest.fixture
def run(esteira_home: Path, template: Path, sqlite_template: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process; gives what it printed, parsed where it is JSON."""
    esteira_home.mkdir()
    shutil.copy(template, esteira_home / "mlflow.db")
    shutil.copy(sqlite_template, esteira_home / "esteira.db")

    def call(*words: str, code: int = 0) -> Any:
        from esteira.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == ended.value.code, out + err
        return json.loads(out) if "--json" in words else out + err

    return call


@pytest.fixture
def keys(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Keys of ana (admin), lia (data scientist), bob (approver) and vera (viewer); the call takes one up."""
    made = {"ana": run("keys", "add", "ana", "--role", "admin", "--json")["key"]}
    monkeypatch.setenv("ESTEIRA_KEY", made["ana"])
    for name, role in (("lia", "data_scientist"), ("bob", "approver"), ("vera", "viewer")):
        made[name] = run("keys", "add", name, "--role", role, "--json")["key"]
    return lambda name: monkeypatch.setenv("ESTEIRA_KEY", made[name])


def registry() -> Registry:
    return Registry(load_settings())


def versions(*numbers: int, line: str = LINE, **columns: Any) -> None:
    for number in numbers:
        add(registry().store, load_settings(), number, line=line, **columns)


def project(deploy: str) -> None:
    """A params.yaml in the working folder."""
    Path("params.yaml").write_text(f"families:\n  tabular:\n    deploy: {{{deploy}}}\n", encoding="utf-8")


def requested(number: int) -> None:
    """Staged and asked for, by whose key is taken up."""
    found, actor = registry(), access.who(load_settings())
    found.set_alias(LINE, "staging", number, actor=actor)
    approvals.request(found.store, found.must(LINE, number), actor=actor, policy=POLICY, hours=168)


def test_a_version_goes_from_request_to_production_and_back(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, 2)
    for number in (1, 2):
        requested(number)
        keys("bob")
        given = run("release", "approve", LINE, "--reason", "seen", "--json")
        assert (number, "approved", "bob") == (given["version"], given["state"], given["approver"])
        moved = run("release", "promote", LINE, "--reason", "go", "--json")
        assert (number, "production", None if number == 1 else 1) == (
            moved["version"], moved["state"], moved["previous"],
        )  # fmt: skip

    keys("lia")
    document = run("rollback", LINE, "--reason", "prices are off", "--json")

    assert (LINE, 2, 1, "release") == (document["line"], document["from"], document["to"], document["undone"])
    entry = next(one for one in ledger.log(registry().store) if one.seq == document["ledger_entry"])
    assert ("rollback", "lia", "prices are off") == (entry.kind, entry.actor, entry.evidence["reason"])
    refused = run("rollback", LINE, "--reason", "again", "--json", code=1)
    assert "nothing_before" == refused["error"]["code"]
    assert ledger.verify(registry().store).ok


def test_who_acts_is_the_name_of_the_key_whatever_the_environment_says(
    run: Run, keys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(1)
    requested(1)
    monkeypatch.setenv("ESTEIRA_ACTOR", "the director")
    keys("bob")
    run("release", "approve", LINE, "--reason", "seen", "--json")

    assert "bob" == ledger.log(registry().store)[-1].actor
    monkeypatch.delenv("ESTEIRA_KEY")
    error = run("release", "promote", LINE, "--reason", "I say so", "--json", code=1)["error"]
    assert "not_allowed" == error["code"]
    assert "the director gave no key" in error["message"]
    assert "denied" == ledger.log(registry().store)[-1].kind


def test_without_keys_everything_goes_as_before_but_approving(run: Run) -> None:
    project("rehearse: false")
    versions(1, 2, author=LOCAL)
    requested(2)
    assert 1 == run("release", "promote", LINE, "1", "--reason", "first", "--json")["version"]

    for words in (["approve", LINE], ["promote", LINE, "2"], ["promote", LINE, "2", "--override", "now"]):
        error = run("release", *words, "--reason", "now", "--json", code=1)["error"]
        assert error["code"] in {"not_allowed", "not_approved"}, words
    assert 1 == registry().aliases(LINE)["champion"]


def test_what_a_line_requires_is_required_from_every_folder(
    run: Run, keys: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without params.yaml says nothing of a line; what was said when a version was registered does."""
    versions(1, policy=policy("automatic"))
    versions(2, policy=policy("required"))
    versions(3, policy=policy("automatic").model_copy(update={"rollout": "staged"}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    keys("bob")
    assert 1 == run("release", "promote", LINE, "1", "--reason", "first", "--json")["version"]

    for number, command, code in (
        (2, "release promote", "not_requested"), (3, "release promote", "staged_line"), (2, "rollout start", "not_requested"),
    ):  # fmt: skip
        version = [str(number)] if command == "release promote" else ["--version", str(number)]
        error = run(*command.split(), LINE, *version, "--reason", "now", "--json", code=1)["error"]
        assert code == error["code"], (number, command)
    assert 1 == registry().aliases(LINE)["champion"]


def test_a_params_file_that_asks_for_more_than_the_registration_counts(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, policy=policy("automatic"))
    project("approval_mode: required")
    keys("bob")

    assert "not_requested" == run("release", "promote", LINE, "1", "--reason", "now", "--json", code=1)["error"]["code"]


def test_a_run_is_told_more_than_its_version_was_registered_under_and_not_less(run: Run) -> None:
    versions(1, policy=policy("required", rehearse=True).model_copy(update={"rollout": "staged"}))
    versions(2, policy=policy("automatic"))
    versions(3)
    said = [
        deploy._policy(
            registry(), LINE, number, deploy.Params.model_validate({**told, "min_samples": 5, "rehearse": False})
        )
        for number, told in (
            (1, {"approval_mode": "automatic", "rollout": "direct"}),
            (2, {"approval_mode": "notify"}),
            (3, {}),
        )
    ]

    assert [("required", "staged", 10_000), ("notify", "direct", 10_000), ("automatic", "direct", 5)] == [
        (found.approval_mode, found.rollout, found.min_samples) for found in said
    ]
    assert {False} == {found.rehearse for found in said}, "of one run, by who may release; its record says so"


@pytest.mark.parametrize("mode", ["required", "automatic"])
def test_what_is_refused_for_want_of_an_approval_names_what_lets_it_go_on(
    mode: ApprovalMode, run: Run, keys: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cure that is printed works where it is printed: in a folder whose params.yaml says nothing of the line."""
    versions(1, policy=policy(mode))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code = "not_requested"
    if mode == "automatic":  # somebody asked all the same, which holds it from then on
        requested(1)
        keys("bob")
        run("release", "withdraw", LINE, "1", "--reason", "a doubt", "--json")
        code = "approval_void"
    keys("bob")
    error = run("release", "promote", LINE, "1", "--reason", "now", "--json", code=1)["error"]
    assert code == error["code"]
    words = error["cure"].removeprefix("esteira ").partition(" asks for")[0].replace("TEXT", "again").split()
    assert ["release", "stage", LINE, "1"] == words[:4]
    keys("ana")
    asked = run(*words, "--json")["approval"]
    assert ("requested", "ana") == (asked["state"], asked["requested_by"])
    keys("bob")
    run("release", "approve", LINE, "1", "--reason", "seen", "--json")
    assert 1 == run("release", "promote", LINE, "1", "--reason", "now", "--json")["version"]


def test_who_approves_is_told_the_terms_before(run: Run, keys: Callable[[str], None]) -> None:
    """Whoever asked may have said them: how it goes on, how long the approval counts, and that nothing was rehearsed."""
    versions(1, 2)
    requested(1)
    keys("bob")
    told = run("release", "approve", LINE, "--reason", "seen")

    parts = (
        "asked for by ana",
        "required, direct by rules, 168 hours",
        "none; the request says rehearse: false",
        "is approved by bob",
    )
    assert sorted(map(told.index, parts)) == [told.index(part) for part in parts]
    keys("ana")
    requested(2)
    wanted = registry().must(LINE, 2)
    seq = ledger.append(
        registry().store, kind="rehearsal", line=LINE, version=2, bundle_id=wanted.bundle_id, actor="ana",
        evidence={"verdict": "pass", "summary": "5 of 5 rules passed"},
    ).seq  # fmt: skip
    keys("bob")
    assert f"pass: 5 of 5 rules passed; ledger entry {seq}" in run("release", "approve", LINE, "2", "--reason", "seen")


def test_a_command_that_waited_for_another_writer_is_stamped_when_it_moved(
    run: Run, keys: Callable[[str], None]
) -> None:
    versions(1)
    project("rehearse: false")
    released = waited(registry().store, lambda: run("release", "promote", LINE, "1", "--reason", "go", "--json"))

    move = ledger.log(registry().store)[-1]
    assert ("alias", "ana") == (move.kind, move.actor)
    assert move.at >= stamp(released)


def test_a_roll_back_holds_where_mlflow_is_not_installed(run: Run, keys: Callable[[str], None]) -> None:
    """It is told once, with exit code 0, so that nobody types it again and goes back one version more."""
    versions(1, 2, 3)
    project("rehearse: false")
    for number in (1, 2, 3):
        run("release", "promote", LINE, str(number), "--reason", "go", "--json")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'mlflow':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from esteira.cli import main\n"
        "main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "rollback", LINE, "--reason", "off", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stderr
    assert (3, 2) == (json.loads(done.stdout)["from"], json.loads(done.stdout)["to"])
    assert "MLflow does not show the aliases" in done.stderr
    assert {"champion": 2, "production": 2, "previous": 1} == registry().aliases(LINE)
    left = registry().store.list_aliases(LINE, mirrored=False)
    assert {"champion", "production", "previous"} == {alias.alias for alias in left}, "it is shown with the next move"


def test_the_list_filters_pages_and_hides_where_things_lie(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, 2, 3, model_type="classification", framework="xgboost")
    versions(1, line="tabular", model_type="regression", framework="scikit-learn")
    requested(2)

    page = run("release", "ls", LINE, "--limit", "2", "--json")
    assert (3, 2, 2) == (page["total"], page["limit"], len(page["models"]))
    (staged,) = run("release", "ls", "--state", "Staging", "--json")["models"]
    assert (2, "requested") == (staged["version"], staged["approval"]["state"])
    assert ["tabular"] == [
        model["line"]
        for model in run("release", "ls", "--framework", "scikit-learn", "--type", "regression", "--json")["models"]
    ]
    whole = run("release", "ls", "--id", staged["id"], "--json")
    assert staged["bundle_id"] == whole["bundle_id"]
    assert "file://" not in json.dumps([page, whole])
    assert "unknown_model" == run("release", "ls", "--id", "nobody", "--json", code=1)["error"]["code"]
    assert "unknown_state" == run("release", "ls", "--state", "live", "--json", code=2)["error"]["code"]
    told = run("release", "ls")
    assert "approval requested" in told
    assert "3 of 4" in run("release", "ls", "--limit", "3")
    assert "no such version" in run("release", "ls", "tabular", "--state", "retired")
    assert "unknown_line" == run("release", "ls", "tabular@none", "--json", code=1)["error"]["code"]


def test_the_record_of_a_version_is_a_document_and_a_page(run: Run, keys: Callable[[str], None]) -> None:
    versions(1)
    requested(1)
    keys("bob")
    run("release", "approve", LINE, "1", "--reason", "seen", "--json")
    run("release", "promote", LINE, "1", "--reason", "go", "--json")

    document = run("release", "show", LINE, "--html", "record.html", "--json")

    assert (LINE, 1, "production") == (document["line"], document["version"], document["state"])
    assert "bob" == document["approval"]["by"]
    page = Path("record.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.lower().startswith("<!doctype html>")
    assert document["bundle_id"] in page
    assert "read: record.html" in run("release", "show", LINE, "1", "--html", "record.html")
    assert "unknown_version" == run("release", "show", LINE, "7", "--json", code=1)["error"]["code"]


def test_an_approval_is_withdrawn_and_a_version_put_away(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, 2)
    requested(1)
    keys("bob")
    run("release", "approve", LINE, "--reason", "seen", "--json")
    assert "void" == run("release", "withdraw", LINE, "1", "--reason", "a doubt", "--json")["state"]
    assert "not_requested" == run("release", "approve", LINE, "--reason", "seen", "--json", code=1)["error"]["code"]
    assert "not_allowed" == run("release", "retire", LINE, "2", "--reason", "old", "--json", code=1)["error"]["code"]
    keys("lia")
    gone = run("release", "retire", LINE, "2", "--reason", "old", "--json")
    assert ("retired", True) == (gone["state"], gone["archived_at"] is not None)
    error = run("release", "retire", LINE, "1", "--reason", "old", "--json", code=1)["error"]
    assert "deployed" == error["code"], "staging is a place of its own"


def test_a_line_that_goes_by_shares_is_not_promoted_at_once(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, 2)
    project("rollout: staged, rehearse: false")
    keys("bob")
    run("release", "promote", LINE, "1", "--reason", "the first has nobody to share with", "--json")

    error = run("release", "promote", LINE, "2", "--reason", "go", "--json", code=1)["error"]
    assert "staged_line" == error["code"]
    assert "rollout start" in error["cure"]
    moved = run("release", "promote", LINE, "2", "--reason", "go", "--override", "the first answers nothing", "--json")
    assert (2, 1) == (moved["version"], moved["previous"])
    assert "the first answers nothing" == ledger.log(registry().store)[-1].evidence["override"]


def test_staging_by_hand_takes_up_what_was_rolled_back(run: Run, keys: Callable[[str], None]) -> None:
    versions(1, 2)
    project("approval_mode: required, rehearse: false, approval_hours: 72")
    for number in (1, 2):
        keys("lia")
        staged = run("release", "stage", LINE, str(number), "--reason", "new", "--json")
        assert ("staging", "requested") == (staged["state"], staged["approval"]["state"])
        keys("bob")
        run("release", "approve", LINE, "--reason", "seen", "--json")
        run("release", "promote", LINE, "--reason", "go", "--json")
    run("rollback", LINE, "--reason", "off", "--json")
    assert (
        "illegal_move"
        == run("release", "promote", LINE, "2", "--reason", "x", "--override", "x", "--json", code=1)["error"]["code"]
    )

    run("release", "stage", LINE, "2", "--reason", "it was the proxy", "--json")
    assert "not_approved" == run("release", "promote", LINE, "2", "--reason", "x", "--json", code=1)["error"]["code"]
    run("release", "approve", LINE, "--reason", "seen again", "--json")
    assert "production" == run("release", "promote", LINE, "2", "--reason", "go", "--json")["state"]


@pytest.mark.parametrize(
    "words",
    [
        ["release", "promote", "no line", "--reason", "x"], ["release", "approve", LINE], ["release", "retire", LINE, "--reason", "x"],
        ["release", "promote", LINE, "0", "--reason", "x"], ["release", "ls", "--limit", "0"], ["rollback", LINE],
        ["rollback", "no line", "--reason", "x"], ["rollback", LINE, "--to", "-1", "--reason", "x"], ["keys", "add", "ana"],
        ["keys", "add", "ana", "--role", "god"], ["rollback", LINE, "--reason", " "],
    ],
)  # fmt: skip
def test_wrong_words_are_exit_2_and_one_document(words: list[str], run: Run) -> None:
    error = run(*words, "--json", code=2)["error"]

    assert {"code", "message", "where", "cure"} == set(error)


class TestKeys:
    def test_a_key_is_printed_once_alone_on_standard_output(
        self, esteira_home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from esteira.cli import main

        with pytest.raises(SystemExit):
            main(["keys", "add", "ana", "--role", "admin"])
        out, err = capsys.readouterr()

        assert out.startswith("esk_")
        assert 1 == len(out.splitlines())
        assert out.strip() not in err
        with pytest.raises(SystemExit):
            main(["keys", "ls", "--json"])
        listed = capsys.readouterr().out
        assert out.strip() not in listed
        assert ["ana"] == [key["name"] for key in json.loads(listed)["keys"]]

    def test_only_an_admin_gives_and_takes_keys(self, run: Run, keys: Callable[[str], None]) -> None:
        keys("bob")
        for words in (["add", "eve", "--role", "viewer"], ["revoke", "vera"]):
            assert "not_allowed" == run("keys", *words, "--json", code=1)["error"]["code"]
        keys("ana")
        assert "vera" == run("keys", "revoke", "vera", "--json")["name"]
        keys("vera")
        assert "unknown_key" == run("release", "ls", "--json", code=1)["error"]["code"]

    def test_the_ledger_knows_every_key_and_none_of_them(self, run: Run, keys: Callable[[str], None]) -> None:
        told = [entry for entry in ledger.log(registry().store) if entry.kind == "key"]

        assert [("somebody", "ana"), ("ana", "lia"), ("ana", "bob"), ("ana", "vera")] == [
            ("somebody" if number == 0 else entry.actor, entry.evidence["name"]) for number, entry in enumerate(told)
        ]
        assert "esk_" not in json.dumps([entry.to_dict() for entry in told])
