"""A head that is kept elsewhere finds what a chain alone cannot: an end that is gone, a history that was written anew."""

import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger
from esteira.cli import main
from esteira.errors import OutsideError, Refused, SourceError
from esteira.settings import load_settings
from esteira.store import Store
from tests.stores import sqlite_store, sqlite_template, store, store_url

__all__ = ["sqlite_store", "sqlite_template", "store", "store_url"]

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def grow(store: Store, count: int, actor: str = "ana") -> None:
    """Append so many entries."""
    for number in range(count):
        ledger.append(store, kind="alias", line="tabular", actor=actor, evidence={"n": number}, now=NOW)


def cut(store: Store, left: int) -> None:
    """Remove all but the first entries, as somebody could who owns the file."""
    with store.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_delete")
        connection.exec_driver_sql(f"DELETE FROM ledger WHERE seq > {left}")


class TestFile:
    def test_an_anchor_is_the_length_and_the_head_at_a_time(self, store: Store) -> None:
        grow(store, 3)

        assert ledger.Anchor(
            "2026-11-22T12:00:00.000000Z", 3, ledger.log(store)[-1].hash, store.tenant
        ) == ledger.anchor(store, now=NOW)

    def test_a_file_holds_a_line_an_anchor_and_the_chain_holds_to_all(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "elsewhere" / "anchors.jsonl"
        for day in range(3):
            grow(store, 2)
            ledger.add_anchor(store, file, now=NOW + timedelta(days=day))

        kept = ledger.load_anchors(file, tenant=store.tenant)
        assert [2, 4, 6] == [one.count for one in kept]
        assert [json.loads(line)["anchor"]["count"] for line in file.read_text("utf-8").splitlines()] == [2, 4, 6]
        assert ledger.verify(store, anchors=kept).ok
        grow(store, 5)
        assert ledger.verify(store, anchors=kept).ok

    def test_an_empty_ledger_can_be_anchored(self, sqlite_store: Store, tmp_path: Path) -> None:
        ledger.add_anchor(sqlite_store, tmp_path / "a.jsonl", now=NOW)
        grow(sqlite_store, 1)

        assert ledger.verify(sqlite_store, anchors=ledger.load_anchors(tmp_path / "a.jsonl", tenant="default")).ok

    def test_a_history_that_was_written_anew_is_found_by_its_anchor(self, sqlite_store: Store, tmp_path: Path) -> None:
        grow(sqlite_store, 4)
        kept = ledger.anchor(sqlite_store, now=NOW)
        forged = Store.open(f"sqlite:///{tmp_path / 'forged.db'}")
        grow(forged, 6, actor="eve")

        verdict = ledger.verify(forged, anchors=[kept])
        assert ledger.verify(forged).ok, "the forged chain holds in itself"
        assert (False, 4, True) == (verdict.ok, verdict.broken_at, "written anew" in verdict.reason)

    @pytest.mark.parametrize("order", [1, -1], ids=["genuine first", "forged first"])
    def test_a_forged_anchor_replaces_no_genuine_one_of_the_same_length(
        self, order: int, sqlite_store: Store, tmp_path: Path
    ) -> None:
        grow(sqlite_store, 4)
        forged = Store.open(f"sqlite:///{tmp_path / 'forged.db'}")
        grow(forged, 4, actor="eve")
        both = [ledger.anchor(sqlite_store, now=NOW), ledger.anchor(forged, now=NOW)][::order]

        for either in (sqlite_store, forged):
            verdict = ledger.verify(either, anchors=both)
            assert (False, 4, True) == (verdict.ok, verdict.broken_at, "forged" in verdict.reason)

    def test_the_anchor_of_an_empty_ledger_names_its_beginning(self, sqlite_store: Store) -> None:
        wrong = ledger.Anchor("x", 0, "a" * 64, "default")

        verdict = ledger.verify(sqlite_store, anchors=[wrong])
        assert (False, 1) == (verdict.ok, verdict.broken_at)
        assert ledger.verify(sqlite_store, anchors=[ledger.anchor(sqlite_store, now=NOW)]).ok

    def test_an_export_is_held_against_anchors_too(self, sqlite_store: Store, tmp_path: Path) -> None:
        grow(sqlite_store, 2)
        ledger.export(sqlite_store, tmp_path / "old.jsonl")
        grow(sqlite_store, 2)
        kept = ledger.anchor(sqlite_store, now=NOW)

        verdict = ledger.verify(sqlite_store, tmp_path / "old.jsonl", anchors=[kept])
        assert (False, 3, True) == (verdict.ok, verdict.broken_at, "cut off" in verdict.reason)

    def test_a_break_is_not_anchored_over(self, sqlite_store: Store, tmp_path: Path) -> None:
        grow(sqlite_store, 4)
        ledger.add_anchor(sqlite_store, tmp_path / "a.jsonl", now=NOW)
        before = (tmp_path / "a.jsonl").read_bytes()
        cut(sqlite_store, 2)

        with pytest.raises(Refused) as refused:
            ledger.add_anchor(sqlite_store, tmp_path / "a.jsonl", now=NOW)
        assert "broken_ledger" == refused.value.code
        assert before == (tmp_path / "a.jsonl").read_bytes()
        assert ledger.anchor(sqlite_store, now=NOW).count == 2, "without the file nobody can know"

    @pytest.mark.parametrize(
        "text",
        [
            "a diary\n", "{}\n", '{"anchor":{}}\n', '{"anchor":{"at":"x","count":-1,"hash":"' + "0" * 64 + '","tenant":"default"}}',
            '{"anchor":{"at":"x","count":true,"hash":"' + "0" * 64 + '","tenant":"default"}}', "[" * 50_000,
            '{"anchor":{"at":"x","count":1,"hash":"00","tenant":"default"}}', '{"head":{"count":0,"hash":"0"}}', "null",
        ],
        ids=["text", "empty", "no fields", "negative", "true", "deep", "short hash", "a head line", "null"],
    )  # fmt: skip
    def test_a_file_of_something_else_is_refused_and_left_alone(
        self, text: str, sqlite_store: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")

        with pytest.raises(Refused) as refused:
            ledger.add_anchor(sqlite_store, tmp_path / "a.jsonl", now=NOW)
        assert ("bad_anchor", True) == (refused.value.code, "line 1" in refused.value.where)
        assert text == (tmp_path / "a.jsonl").read_text("utf-8")

    def test_another_tenant_s_anchor_is_refused(self, sqlite_store: Store) -> None:
        line = ledger.Anchor("x", 0, "0" * 64, "eve").to_line()
        with pytest.raises(Refused) as refused:
            ledger.read_anchors(f"\n{line}\n", tenant=sqlite_store.tenant, where="a.jsonl")

        assert ("other_tenant", True) == (refused.value.code, "line 2" in refused.value.where)

    def test_a_file_that_cannot_be_read_or_written_is_told(self, sqlite_store: Store, tmp_path: Path) -> None:
        with pytest.raises(SourceError):
            ledger.load_anchors(tmp_path / "none.jsonl", tenant="default")
        (tmp_path / "latin.jsonl").write_bytes(b"\xe7")
        with pytest.raises(SourceError):
            ledger.load_anchors(tmp_path / "latin.jsonl", tenant="default")
        (tmp_path / "file").touch()
        with pytest.raises(OutsideError):
            ledger.add_anchor(sqlite_store, tmp_path / "file" / "a.jsonl", now=NOW)


def git(folder: Path, *arguments: str) -> str:
    """git in a folder, with nobody's configuration."""
    surroundings = {
        **os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_AUTHOR_NAME": "ana",
        "GIT_AUTHOR_EMAIL": "ana@example.org", "GIT_COMMITTER_NAME": "ana", "GIT_COMMITTER_EMAIL": "ana@example.org",
    }  # fmt: skip
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=surroundings)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, and a name to write notes by."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    for name, value in {"GIT_COMMITTER_NAME": "ana", "GIT_COMMITTER_EMAIL": "ana@example.org",
                        "GIT_AUTHOR_NAME": "ana", "GIT_AUTHOR_EMAIL": "ana@example.org"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return folder


class TestNote:
    def test_a_note_keeps_anchors_of_a_commit_without_changing_it(self, sqlite_store: Store, repository: Path) -> None:
        commit = git(repository, "rev-parse", "HEAD").strip()
        for _ in range(2):
            grow(sqlite_store, 2)
            assert commit == ledger.add_note(ledger.anchor(sqlite_store, now=NOW), repository)

        text = git(repository, "notes", f"--ref={ledger.NOTES}", "show")
        kept = ledger.read_anchors(text, tenant="default", where="the note")
        assert [2, 4] == [one.count for one in kept]
        assert ledger.verify(sqlite_store, anchors=kept).ok
        assert ("", commit) == (git(repository, "status", "--porcelain"), git(repository, "rev-parse", "HEAD").strip())

    def test_without_a_repository_or_a_commit_git_s_word_is_told(self, sqlite_store: Store, tmp_path: Path) -> None:
        made = ledger.anchor(sqlite_store, now=NOW)
        (tmp_path / "none").mkdir()
        (tmp_path / "empty").mkdir()
        git(tmp_path / "empty", "init", "-q")
        for folder in ("none", "empty", "absent"):
            with pytest.raises(OutsideError) as refused:
                ledger.add_note(made, tmp_path / folder)
            assert ("git_note", True) == (refused.value.code, "--out" in refused.value.cure)


def _cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def home_store(esteira_home: Path) -> Store:
    settings = load_settings()
    return Store.open(settings.database_url, settings.tenant)


class TestCommand:
    def test_anchor_and_verify_find_an_end_that_was_cut_off(
        self, home_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grow(home_store, 5)
        file = str(tmp_path / "a.jsonl")

        assert 0 == _cli("ledger", "anchor", "--out", file, "--json")
        told = json.loads(capsys.readouterr().out)
        assert (5, ledger.log(home_store)[-1].hash, file, None) == tuple(
            told[key] for key in ("count", "hash", "out", "git_note")
        )
        assert 0 == _cli("ledger", "verify", "--anchor", file, "--json")
        assert {"ok": True, "entries": 5, "broken_at": None, "anchors": 1} == _some(
            capsys, "ok", "entries", "broken_at", "anchors"
        )
        cut(home_store, 3)
        assert 0 == _cli("ledger", "verify")
        assert 1 == _cli("ledger", "verify", "--anchor", file, "--json")
        assert {"ok": False, "entries": 3, "broken_at": 4} == _some(capsys, "ok", "entries", "broken_at")

    def test_anchor_alone_writes_nothing_anywhere(
        self, home_store: Store, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grow(home_store, 1)
        monkeypatch.chdir(repository)

        assert 0 == _cli("ledger", "anchor")
        assert "1 entries, head " in capsys.readouterr().out
        assert "" == git(repository, "for-each-ref", "refs/notes")
        assert [".git"] == [path.name for path in repository.iterdir()]

    def test_notes_at_whatever_commit_find_an_end_that_was_cut_off(
        self, home_store: Store, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(repository)
        for number in range(2):
            grow(home_store, 2)
            assert 0 == _cli("ledger", "anchor", "--git-note", "--json")
            assert git(repository, "rev-parse", "HEAD").strip() == _some(capsys, "git_note")["git_note"]
            git(repository, "commit", "-q", "--allow-empty", "-m", f"work {number}")
        assert 0 == _cli("ledger", "verify", "--git-notes", "--json")
        assert {"ok": True, "anchors": 2} == _some(capsys, "ok", "anchors")

        cut(home_store, 3)
        assert 0 == _cli("ledger", "verify"), "the chain alone cannot know"
        assert 1 == _cli("ledger", "verify", "--git-notes", "--json")
        assert {"ok": False, "broken_at": 4} == _some(capsys, "ok", "broken_at")
        assert 1 == _cli("ledger", "anchor", "--git-note")
        assert 2 == len(ledger.read_notes(repository, tenant="default")), "nothing is anchored over it"

    def test_what_holds_no_anchor_proves_nothing(
        self, home_store: Store, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        grow(home_store, 1)
        monkeypatch.chdir(repository)
        (tmp_path / "empty").write_text("\n", encoding="utf-8")
        ledger.add_note(ledger.Anchor("x", 9, "0" * 64, "another"), repository)
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        for words in (["--anchor", "-"], ["--anchor", str(tmp_path / "empty")], ["--git-notes"]):
            assert 1 == _cli("ledger", "verify", *words, "--json")
            assert "no_anchor" == _some(capsys, "error")["error"]["code"]

    def test_anchors_are_read_from_standard_input(
        self, home_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grow(home_store, 2)
        monkeypatch.setattr(sys, "stdin", io.StringIO(ledger.anchor(home_store, now=NOW).to_line() + "\n"))

        assert 0 == _cli("ledger", "verify", "--anchor", "-", "--json")
        assert {"anchors": 1} == _some(capsys, "anchors")

    def test_a_missing_or_odd_file_is_told(self, home_store: Store, tmp_path: Path) -> None:
        (tmp_path / "odd").write_text("odd", encoding="utf-8")

        assert 2 == _cli("ledger", "verify", "--anchor", str(tmp_path / "none"))
        assert 1 == _cli("ledger", "verify", "--anchor", str(tmp_path / "odd"))


def _some(capsys: pytest.CaptureFixture[str], *names: str) -> dict[str, Any]:
    # The last document: the error document of a command that came before went to the same stream.
    document = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return {name: document[name] for name in names}
