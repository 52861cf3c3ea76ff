"""The release record: one document of all that is known of a version, and a page that holds enough to check it by hand."""

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from esteira import ledger
from esteira.charts import Stair, stairs
from esteira.errors import NotFound
from esteira.registry import Registry
from esteira.release.page import render
from esteira.release.record import lines, record
from esteira.settings import Settings
from esteira.store import Store
from tests.stores import sqlite_store, sqlite_template

__all__ = ["sqlite_store", "sqlite_template"]

LINE = "tabular@shop"
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
EVIL = "<script>alert('1')</script>&"
RULES = [
    {
        "rule": "good_enough", "outcome": "PASS", "metric": "roc_auc", "value": 0.91, "op": ">=", "bound": 0.8, "n": 1200,
        "interval": [0.9, 0.92], "reason": "roc_auc is 0.91 and must be >= 0.8",
    },
    {
        "rule": "late", "outcome": "NO_DATA", "metric": "p95", "value": None, "op": "<=", "bound": 100.0, "n": None,
        "interval": None, "reason": EVIL,
    },
]  # fmt: skip


def bundle(version: int) -> str:
    """A bundle_id of its own for each version."""
    return f"{version:064x}"


class Story:
    """Writes versions and entries as registry, approvals, rehearsal and rollout do."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = NOON

    def tell(
        self, kind: str, version: int, actor: str = "ana", after: timedelta = HOUR, **evidence: Any
    ) -> ledger.Entry:
        """One entry, an hour after the one before."""
        self.now += after
        return ledger.append(
            self.store, kind=kind, line=LINE, version=version, bundle_id=bundle(version), actor=actor, evidence=evidence,
            now=self.now,
        )  # fmt: skip

    def version(self, number: int, state: str = "validated") -> None:
        """A registered version with its verdict."""
        self.tell("verdict", number, verdict="pass", summary="all 2 rules passed", moment="evaluation", rules=RULES)
        self.tell("registration", number, run_id=f"run-{number}")
        with self.store.begin() as connection:
            self.store.add_version(
                connection,
                {
                    "line": LINE, "version": number, "bundle_id": bundle(number), "uri": "file:///x", "run_id": f"run-{number}",
                    "mlflow_run_id": "m", "data_hash": "da" * 32, "code_revision": "c0ffee", "params_hash": "ab" * 32,
                    "params": {"seed": 1}, "metrics": {"roc_auc": 0.91, "log_loss": None, "baseline": {"roc_auc": 0.5}},
                    "actor": "ana", "state": state,
                },
            )  # fmt: skip

    def champion(self, version: int, former: int | None, reason: str = "released", **said: Any) -> None:
        """A move of the champion, and where its names point from then on."""
        entry = self.tell(
            "alias", version, actor="bob", alias="champion", reason=reason, to=version,
            moves={"champion": [former, version], "production": [former, version]}, **{"from": former}, **said,
        )  # fmt: skip
        with self.store.begin() as connection:
            for alias in ("champion", "production"):
                self.store.put_alias(
                    connection, line=LINE, alias=alias, version=version, bundle_id=bundle(version), ledger_seq=entry.seq
                )

    def traffic(self, percent: float, before: float, action: str, reason: str) -> None:
        """A change of the shares of versions 1 and 2."""
        both = [(1, 1 - percent / 100), (2, percent / 100)]
        shares = [{"version": v, "bundle_id": bundle(v), "share": share} for v, share in both if share > 0]
        self.tell(
            "traffic", 2, actor="rollout", after=24 * HOUR, test_id="t-1", stage=0, to=percent, shares=shares, action=action,
            reason=reason, findings=RULES[:1], **{"from": before},
        )  # fmt: skip


@pytest.fixture
def told(sqlite_store: Store, tmp_path: Path) -> Registry:
    """Version 1, then version 2: rehearsed, approved, rolled out, promoted, and taken back."""
    story = Story(sqlite_store)
    sqlite_store.register_dataset(
        name="shop", content_hash="da" * 32, created_by="ana", row_count=12_345, column_count=7, quality_score=0.9876,
        source_config={"source": "shop.csv"},
    )  # fmt: skip
    story.version(1)
    story.champion(1, None)
    story.version(2, state="rolled_back")
    story.tell(
        "rehearsal", 2, verdict="pass", summary="fine", source="log", requests=200, compared=200, differing=7, max_difference=0.25,
        errors=0, rules=RULES[:1], candidate={"p50_ms": 1.5, "p95_ms": 2.5},
        champion={"version": 1, "p50_ms": 1.4, "p95_ms": 2.4}, reason="",
    )  # fmt: skip
    story.tell("approval_request", 2, reason="staged", hours=72)
    story.tell("denied", 2, action="approve")
    story.tell("approval", 2, actor="bob", reason="read it " + EVIL, expires_at="2026-11-09T12:00:00+00:00")
    story.tell("rollout", 2, actor="bob", test_id="t-1", action="started", policy="rules", reason="go", findings=[])
    story.traffic(10.0, 0.0, "start", "go")
    story.traffic(25.0, 10.0, "advance", "stable")
    story.tell(
        "rollout",
        2,
        actor="rollout",
        test_id="t-1",
        action="ended",
        status="approved",
        reason="approved",
        findings=RULES,
    )
    story.traffic(100.0, 25.0, "promote", "approved")
    story.champion(2, 1)
    story.tell("rollback", 1, actor="bob", reason="prices are off", **{"from": 2, "to": 1})
    story.champion(1, 2, reason="prices are off")
    story.version(3)
    return Registry(Settings(home=tmp_path / "home"), sqlite_store)


class TestRecord:
    def test_it_gathers_data_code_gate_rehearsal_and_approver(self, told: Registry) -> None:
        found = record(told, LINE, 2)

        assert (2, bundle(2), "rolled_back") == (found["version"], found["bundle_id"], found["state"])
        assert ("da" * 32, "shop", "shop.csv", 12_345, 0.9876) == tuple(
            found["data"][name] for name in ("hash", "name", "source", "rows", "quality_score")
        )
        assert ("c0ffee", {"seed": 1}) == (found["code"]["revision"], found["code"]["params"])
        assert ({"roc_auc": 0.91, "log_loss": None}, {"roc_auc": 0.5}) == (found["metrics"], found["baseline"])
        assert RULES == found["gate"]["rules"]
        assert (200, 7, "pass") == tuple(found["rehearsal"][name] for name in ("requests", "differing", "verdict"))
        assert ("approved", "bob", "2026-11-09T12:00:00+00:00") == tuple(
            found["approval"][name] for name in ("status", "by", "expires_at")
        )
        assert ["requested", "denied", "approved"] == [event["status"] for event in found["approval"]["events"]]
        assert found == json.loads(json.dumps(found, allow_nan=False)), "it is JSON"

    def test_it_follows_the_share_from_the_first_to_the_last(self, told: Registry) -> None:
        found = record(told, LINE, 2)

        assert [(0.0, 0.1), (0.1, 0.25), (0.25, 1.0), (1.0, 0.0)] == [
            (change["before"], change["share"]) for change in found["shares"]
        ]
        assert [{"version": 1, "share": 1.0}] == found["shares"][0]["others_before"]
        assert ["start", "advance", "promote", "alias"] == [change["action"] for change in found["shares"]]
        assert "prices are off" == found["shares"][-1]["reason"]
        assert (0.0, 1.0) == (found["serving"], record(told, LINE, 1)["serving"])
        [rollout] = found["rollouts"]
        assert ("t-1", "rules", "approved", RULES[:1]) == tuple(
            rollout[name] for name in ("test_id", "policy", "end", "findings")
        )
        assert [None, 10.0, 25.0, None, 100.0] == [step["to"] for step in rollout["steps"]]

    def test_it_names_what_it_replaced_and_what_replaced_it(self, told: Registry) -> None:
        first, second = record(told, LINE, 1), record(told, LINE, 2)

        assert (1, bundle(1)) == (second["replaced"]["version"], second["replaced"]["bundle_id"])
        assert (1, "prices are off") == (second["replaced_by"]["version"], second["replaced_by"]["reason"])
        assert (None, None) == (first["replaced"], first["replaced_by"]), "it serves again"

    def test_it_holds_every_entry_about_the_version_and_none_about_others(self, told: Registry) -> None:
        found = record(told, LINE, 2)["ledger"]
        whole = ledger.log(told.store, limit=None)

        assert (True, len(whole), whole[-1].hash) == (found["ok"], found["entries"], found["head"])
        kinds = [entry["kind"] for entry in found["about"]]
        assert ["verdict", "registration", "rehearsal"] == kinds[:3]
        assert ["alias", "rollback", "alias"] == kinds[-3:], "the entries that left it are about it"
        assert {2, 1} == {entry["version"] for entry in found["about"]}

    def test_a_version_without_a_history_is_told_as_it_is(self, told: Registry) -> None:
        found = record(told, LINE, 3)

        assert (None, "none", [], [], 0.0) == (
            found["rehearsal"], found["approval"]["status"], found["rollouts"], found["shares"], found["serving"],
        )  # fmt: skip
        assert "never took traffic" in render(found)

    @pytest.mark.parametrize(
        ("said", "why"),
        [
            ({"basis": "policy", "rehearsal": None}, "the line says rehearse: false"),
            ({"basis": "approval", "rehearsal": None}, "the line says rehearse: false"),
            ({"basis": "test_id", "rehearsal": None}, "the line says rehearse: false"),
            ({"basis": "override", "override": "all is down", "rehearsal": None}, "overridden: all is down"),
            ({"basis": "policy", "rehearsal": 7}, ""),
            ({}, ""),
        ],
        ids=str,
    )
    def test_a_release_that_was_not_rehearsed_says_why(self, said: dict[str, Any], why: str, told: Registry) -> None:
        story = Story(told.store)
        story.now += 40 * 24 * HOUR
        story.champion(3, 1, **said)

        found = record(told, LINE, 3)
        assert why == found["unrehearsed"]
        for text in ("\n".join(lines(found)).lower(), render(found).lower()):
            assert bool(why) == (f"not rehearsed: {why}" in text)
        assert "" == record(told, LINE, 2)["unrehearsed"], "it was rehearsed"

    def test_a_run_that_left_out_what_its_line_asks_for_is_told_from_its_line(self, told: Registry) -> None:
        story = Story(told.store)
        story.now += 40 * 24 * HOUR
        story.tell("registration", 3, release={"rehearse": True})
        story.champion(3, 1, basis="policy", rehearsal=None)

        assert "its run says rehearse: false" == record(told, LINE, 3)["unrehearsed"]

    def test_without_a_number_it_is_the_champion_and_the_newest_where_there_is_none(self, told: Registry) -> None:
        assert 1 == record(told, LINE)["version"]
        with told.store.begin() as connection:
            told.store.drop_alias(connection, LINE, "champion")
        assert 3 == record(told, LINE)["version"]

    @pytest.mark.parametrize(("line", "version"), [(LINE, 9), ("tabular@none", None), ("tabular@none", 1)])
    def test_what_is_not_registered_has_no_record(self, line: str, version: int | None, told: Registry) -> None:
        with pytest.raises(NotFound) as refused:
            record(told, line, version)

        assert "unknown_version" == refused.value.code

    def test_entries_of_another_bundle_of_that_number_are_none_of_it(self, told: Registry) -> None:
        ledger.append(
            told.store,
            kind="approval",
            line=LINE,
            version=3,
            bundle_id="ff" * 32,
            actor="eve",
            evidence={"reason": "x"},
        )

        assert "none" == record(told, LINE, 3)["approval"]["status"]

    def test_a_terminal_gets_it_in_lines(self, told: Registry) -> None:
        text = "\n".join(lines(record(told, LINE, 2)))

        for part in (
            "version 2: rolled_back",
            "all 2 rules passed",
            "approved by bob",
            "t-1: approved",
            "25 %  by ",
            "the chain holds",
        ):
            assert part in text
        assert lines(record(told, LINE, 3))


class _Tags(HTMLParser):
    """Open tags, in order; fails where one is closed that is not open."""

    VOID = frozenset({"meta", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop(), (tag, self.open)


class TestPage:
    def test_it_is_whole_html_without_script_or_outside_file(self, told: Registry) -> None:
        for number in (1, 2, 3):
            page = render(record(told, LINE, number))
            tags = _Tags()
            tags.feed(page)

            assert [] == tags.open
            assert set() == tags.seen & {"script", "link", "img", "iframe", "object"}
            assert [] == [address for address in tags.addresses if not address.startswith("#")]
            assert set(re.findall(r'href="#(e\d+)"', page)) <= set(re.findall(r'id="(e\d+)"', page)), (
                "every link leads to its entry"
            )

    def test_what_people_wrote_is_text(self, told: Registry) -> None:
        page = render(record(told, LINE, 2))

        assert EVIL not in page
        assert "&lt;script&gt;" in page

    def test_it_says_what_a_release_is_asked_for(self, told: Registry) -> None:
        page = unescape(re.sub(r"<[^>]+>", " ", render(record(told, LINE, 2))))

        for part in (
            "rolled back", bundle(2), "shop.csv", "12,345 rows", "c0ffee", "good enough", "0.91", ">=  0.8", "0.9 to 0.92",
            "200 from log", "bob", "2026-11-09 12:00:00", "10 % → 25 %", "It replaced version 1", "Version 1 replaced it",
            "prices are off", "Decided by policy  rules",
        ):  # fmt: skip
            assert " ".join(part.split()) in " ".join(page.split()), part

    def test_the_hash_of_every_entry_can_be_made_again_from_the_page_alone(self, told: Registry) -> None:
        page = render(record(told, LINE, 2))
        entries = [json.loads(unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", page, re.S)]

        assert len(entries) == len(record(told, LINE, 2)["ledger"]["about"])
        for entry in entries:
            digest, prev = entry.pop("hash"), entry.pop("prev")
            body = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert digest == hashlib.sha256((prev + body).encode()).hexdigest()

    def test_the_picture_has_a_line_a_version_and_a_dot_a_change(self, told: Registry) -> None:
        page = render(record(told, LINE, 2))
        chart = page[page.index("Share of the traffic over time") :].split("</svg>")[0]

        assert [">v1<", ">v2<"] == sorted(set(re.findall(r">v\d<", chart)))
        assert 4 == chart.count("<circle")
        assert "Nov" in chart

    def test_a_broken_ledger_is_said_first(self, told: Registry) -> None:
        found = record(told, LINE, 2)
        found["ledger"] |= {"ok": False, "broken_at": 4, "reason": "its content was changed"}

        assert "proves nothing" in render(found)

    def test_what_somebody_wrote_in_place_of_a_hash_is_text(self, told: Registry) -> None:
        found = record(told, LINE, 2)
        found["ledger"]["about"][0] |= {"hash": "<script>1</script>", "prev": "<img src=x>"}

        page = render(found)
        assert "<script>" not in page
        assert "<img" not in page

    def test_the_same_record_gives_the_same_page(self, told: Registry) -> None:
        assert render(record(told, LINE, 2)) == render(record(told, LINE, 2))


class TestStairs:
    def test_names_that_end_at_the_same_place_do_not_lie_upon_each_other(self) -> None:
        chart = stairs(
            [Stair("v1", [(0, 50, "")]), Stair("v2", [(0, 50, "half")], "champion")],
            title="t",
            xs=(0, 1),
            marks=[(0.5, "noon")],
        )
        places = [float(y) for y in re.findall(r'class="tick halo" x="[\d.]+" y="([\d.]+)"', chart)]

        assert 2 == len(places)
        assert abs(places[0] - places[1]) >= 12

    def test_one_moment_and_values_out_of_range_still_give_a_picture(self) -> None:
        chart = stairs(
            [Stair("v1", [(5, 150, "x"), (5, -3, "y")], filled=True), Stair("none", [])], title="t", xs=(5, 5), marks=[]
        )

        assert "nan" not in chart
        assert 2 == chart.count("<circle")
