"""Deploy goes as far as the line's policy lets it: staging and a request, a first share of traffic, or the alias at once."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from components import deploy
from esteira import access, ledger
from esteira.errors import GateHeld, Refused
from esteira.registry import Registry
from esteira.release import approvals, rehearsal
from esteira.release.staging import stage
from esteira.rollout import files, split
from esteira.settings import load_settings
from esteira.store.store import now as present
from tests import keyholders
from tests.small_bundle import make_bundle
from tests.test_deploy import LINE, PASSED, identity, receipt

# MLflow's own mappers, when a registration imports it.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*noload.*")]

DATA = "d" * 64


class Home(NamedTuple):
    """Three registered versions of a line, and keys by name."""

    bundles: dict[int, Path]
    keys: dict[str, str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    place = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESTEIRA_HOME", str(place / "home"))
        patch.chdir(place)
        keys = {"root": keyholders.add(place / "home", "root", "admin")}
        keys |= {
            name: keyholders.add(place / "home", name, role)
            for name, role in (("lia", "data_scientist"), ("bob", "approver"), ("vera", "viewer"))
        }
        patch.setenv("ESTEIRA_KEY", keys["lia"])
        registry = Registry(load_settings())
        bundles = {}
        for number in (1, 2, 3):
            bundles[number] = place / f"bundle{number}"
            make_bundle(bundles[number], weight=0.05 * number, card=True)
            registry.register(
                LINE, bundles[number], run_id=f"run{number}", data_hash=DATA, code_revision="unknown", params_hash="p" * 64,
                metrics={"roc_auc": 0.9}, verdict=PASSED,
            )  # fmt: skip
        registry.store.register_dataset(
            name="shop", content_hash=DATA, created_by="lia", row_count=20_000, source_type="upload"
        )
        yield Home(bundles, keys)


def run(home: Home, number: int, folder: Path, **params: Any) -> deploy.Report:
    told = receipt(folder, number, identity(home.bundles[number]))
    return deploy.run(
        receipt=told, bundle=home.bundles[number], line=LINE, out=folder / "out", params=deploy.Params(**params)
    )


def registry() -> Registry:
    return Registry(load_settings())


def entries(*kinds: str) -> list[ledger.Entry]:
    return [entry for entry in ledger.log(registry().store, LINE, limit=None) if entry.kind in kinds]


def acts(patch: pytest.MonkeyPatch, home: Home, name: str) -> access.Actor:
    patch.setenv("ESTEIRA_KEY", home.keys[name])
    return access.who(load_settings())


# In this order: each goes on where the one before stopped.


@pytest.mark.requirement("S-20")
def test_a_release_runs_in_staging_first_with_full_traces(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-20 Done when: every release runs in staging first with full traces. (A line that asks: without a passed rehearsal there
    is no request, so no approval, and no promotion. A line that asks nobody: the last test of this file. Each request has its
    trace.)"""
    report = run(home, 1, tmp_path, approval_mode="required", rollout="direct", approval_hours=72)

    found = registry()
    assert ("awaiting_approval", "staging", None, None) == (
        report.status, report.alias, report.previous, report.test_id,
    )  # fmt: skip
    assert report == deploy.Report.model_validate_json(
        (tmp_path / "out" / "deployment.json").read_text(encoding="utf-8")
    )
    assert 1 == found.aliases(LINE)["staging"]
    assert found.resolve(LINE) is None
    assert "staging" == found.must(LINE, 1).state
    (held,) = entries("rehearsal")
    assert ("pass", 1, identity(home.bundles[1])) == (held.evidence["verdict"], held.version, held.bundle_id)
    traces = held.evidence["traces"]
    assert (0, True) == (traces["missing"], traces["spans"] >= held.evidence["calls"] > 0)
    kept = list((load_settings().home / rehearsal.FOLDER).rglob("*"))
    assert any(path.is_file() and path.stat().st_size > 0 for path in kept)
    (asked,) = entries("approval_request")
    assert (held.seq, 72.0, "lia") == (asked.evidence["rehearsal"], asked.evidence["hours"], asked.actor)
    assert asked.seq > held.seq

    bob = acts(monkeypatch, home, "bob")
    with pytest.raises(Refused) as caught:
        found.promote(LINE, 1, actor=bob, reason="now", evidence={"policy": "automatic"})
    assert "not_approved" == caught.value.code
    approvals.approve(found, LINE, actor=bob, reason="seen", now=present())
    assert "production" == found.promote(LINE, 1, actor=bob, reason="go", evidence={"approval": True}).state


@pytest.mark.requirement("S-20")
@pytest.mark.parametrize("mode", ["required", "automatic"])
def test_a_release_that_stumbles_in_staging_goes_no_further(
    mode: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-20 Done when: every release runs in staging first with full traces. (The other way: held in staging, nobody is asked,
    also where nobody would be, and the champion goes on serving.)"""
    acts(monkeypatch, home, "bob")
    harder = [
        rule.model_copy(update={"threshold": 10**9}) if rule.rule == "rehearsal_took_place" else rule
        for rule in rehearsal.RULES
    ]
    monkeypatch.setattr(rehearsal, "RULES", tuple(harder))
    asked = len(entries("approval_request"))

    with pytest.raises(GateHeld) as caught:
        run(home, 2, tmp_path, approval_mode=mode, rollout="direct")

    assert "rehearsal_failed" == caught.value.code
    assert "held" == entries("rehearsal")[-1].evidence["verdict"]
    assert asked == len(entries("approval_request"))
    assert {"champion": 1, "staging": 2} == {
        alias: number for alias, number in registry().aliases(LINE).items() if alias in ("champion", "staging")
    }
    assert not (tmp_path / "out" / "deployment.json").exists()


def test_nobody_is_asked_to_approve_what_cannot_be_built(home: Home, tmp_path: Path) -> None:
    (tmp_path / "out" / "bento").mkdir(parents=True)
    (tmp_path / "out" / "bento" / "precious.txt").write_text("not a Bento", encoding="utf-8")
    before = ledger.log(registry().store, LINE, limit=None)

    with pytest.raises(Refused, match="holds other things"):
        run(home, 3, tmp_path, approval_mode="required", rollout="direct")

    assert before == ledger.log(registry().store, LINE, limit=None)


def test_a_line_that_goes_by_shares_starts_a_rollout(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(monkeypatch, home, "bob")
    report = run(home, 2, tmp_path, approval_mode="automatic", rollout="staged", min_samples=10_000)

    settings, found = load_settings(), registry()
    assert ("released", "staging", 1) == (report.status, report.alias, report.previous)
    state = files.load(settings.home, LINE)
    assert state is not None
    assert (report.test_id, "running", 1, 2) == (
        state.test_id, state.status, state.champion.version, state.challenger.version,
    )  # fmt: skip
    assert {"champion": 1, "challenger": 2, "staging": 2} == {
        alias: number for alias, number in found.aliases(LINE).items() if alias in ("champion", "challenger", "staging")
    }
    shared = split.read(split.path(settings.home, LINE))
    assert shared is not None
    assert (report.test_id, 10.0) == (shared.test_id, shared.percent)
    with pytest.raises(Refused) as caught:
        run(home, 3, tmp_path, approval_mode="automatic", rollout="staged")
    assert caught.value.code in {"rollout_running", "challenger_running"}


def test_the_way_out_ends_a_rollout_and_leaves_the_champion(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acts(monkeypatch, home, "lia")
    document = command("rollback", LINE, "--reason", "odd answers", "--json", capsys=capsys)

    assert (2, 1, "rollout") == (document["from"], document["to"], document["undone"])
    entry = next(one for one in entries("traffic", "rollout") if one.seq == document["ledger_entry"])
    assert entry.evidence["test_id"] == document["test_id"]
    settings = load_settings()
    shared = split.read(split.path(settings.home, LINE))
    assert shared is None or shared.percent == 0
    assert 1 == registry().aliases(LINE)["champion"]
    assert "challenger" not in registry().aliases(LINE)
    acts(monkeypatch, home, "bob")
    with pytest.raises(Refused) as caught:
        run(home, 2, tmp_path, approval_mode="automatic", rollout="staged")
    assert caught.value.code in {"rolled_back", "cooldown"}


def command(*words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    from esteira.cli import main

    with pytest.raises(SystemExit) as ended:
        main(words)
    out = capsys.readouterr().out
    assert code == ended.value.code, out
    return json.loads(out)


def test_a_line_that_notifies_moves_and_leaves_a_notice(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(monkeypatch, home, "bob")
    report = run(home, 3, tmp_path, approval_mode="notify", rollout="direct", rehearse=False)

    assert ("released", "champion", 1) == (report.status, report.alias, report.previous)
    assert 3 == registry().aliases(LINE)["champion"]
    (notice,) = entries("notice")
    assert (3, "bob") == (notice.version, notice.actor)
    assert "without asking" in notice.evidence["what"]
    assert {"policy": "notify", "basis": "policy"}.items() <= entries("alias")[-1].evidence.items()


def test_what_was_rolled_back_is_not_released_again_by_a_run(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acts(monkeypatch, home, "bob")
    document = command("rollback", LINE, "--reason", "prices are off", "--json", capsys=capsys)
    assert (3, 1, "release") == (document["from"], document["to"], document["undone"])
    assert document["ledger_entry"] == entries("rollback")[-1].seq

    for mode in ("automatic", "required"):
        with pytest.raises(Refused) as caught:
            run(home, 3, tmp_path / mode, approval_mode=mode, rollout="direct")
        assert "rolled_back" == caught.value.code
        assert not (tmp_path / mode / "out").exists(), "it is refused before anything is built"
    assert 1 == registry().aliases(LINE)["champion"]

    settings = load_settings()
    policy = deploy.decided(deploy.Params(rehearse=False), LINE)
    stage(
        registry(), LINE, 3, settings=settings, actor=access.who(settings), policy=policy, reason="it was the proxy",
        now=present(),
    )  # fmt: skip
    report = run(home, 3, tmp_path / "again", rehearse=False)
    assert ("released", 3) == (report.status, registry().aliases(LINE)["champion"])


@pytest.mark.parametrize("name", ["", "lia", "vera"])
def test_a_run_releases_only_what_its_key_may(
    name: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are keys, a line that asks nobody is still moved by a key that may."""
    if name:
        acts(monkeypatch, home, name)
    else:
        monkeypatch.delenv("ESTEIRA_KEY")
        monkeypatch.setenv("ESTEIRA_ACTOR", "somebody")  # whatever the account is called, it is no key's name
    before = registry().aliases(LINE)

    with pytest.raises(Refused) as caught:
        run(home, 1, tmp_path)

    assert "not_allowed" == caught.value.code
    assert before == registry().aliases(LINE)
    assert not (tmp_path / "out").exists()
    assert "denied" == entries("denied")[-1].kind


def test_an_alias_that_is_asked_for_moves_and_nothing_else(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts(monkeypatch, home, "bob")
    before = registry().aliases(LINE)
    report = run(home, 1, tmp_path, alias="challenger")

    assert ("challenger", "released") == (report.alias, report.status)
    assert {**before, "challenger": 1} == registry().aliases(LINE)
    assert os.environ["ESTEIRA_KEY"] not in (tmp_path / "out" / "deployment.json").read_text(encoding="utf-8")


@pytest.mark.requirement("S-20")
def test_a_line_that_asks_nobody_goes_by_staging_too_and_then_at_once(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-20 Done when: every release runs in staging first with full traces. (A plain table with every default.)"""
    acts(monkeypatch, home, "bob")
    number = 4
    home.bundles[number] = tmp_path / "bundle"
    make_bundle(home.bundles[number], weight=0.3, card=True)
    registry().register(
        LINE, home.bundles[number], run_id="run4", data_hash=DATA, code_revision="unknown", params_hash="p" * 64,
        metrics={"roc_auc": 0.9}, verdict=PASSED, actor=access.Actor("lia", "data_scientist", keyed=True),
    )  # fmt: skip
    before, asked = len(entries("alias", "rehearsal")), len(entries("approval_request", "rollout"))

    report = run(home, number, tmp_path)

    assert ("released", "champion", number) == (report.status, report.alias, registry().aliases(LINE)["champion"])
    staged, held, moved = entries("alias", "rehearsal")[before:]
    assert (number, number) == (staged.evidence["moves"]["staging"][1], moved.evidence["moves"]["champion"][1])
    assert ("pass", number) == (held.evidence["verdict"], held.version)
    traces = held.evidence["traces"]
    assert (0, True) == (traces["missing"], traces["spans"] >= held.evidence["calls"] > 0)
    kept = (load_settings().home / traces["file"]).read_bytes()
    assert traces["sha256"] == hashlib.sha256(kept).hexdigest()
    assert {"policy": "automatic", "rehearsal": held.seq}.items() <= moved.evidence.items()
    assert asked == len(entries("approval_request", "rollout"))
