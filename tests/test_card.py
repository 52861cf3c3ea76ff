"""A model card is complete or it says what it lacks; it is made from the README, the data and the measurements."""

from typing import Any

import pytest

from esteira.card import HISTORY_LENGTH, card_missing, make_card, readme_sections, to_markdown

README = """# Family

Words before any section.

## Question

What is it?

## Data

Rows.

## Metric

ROC AUC.

## Limits

It knows little.

## Contact

us@example.org

## Licence

MIT
"""
SEGMENTS = [{"segment": "sex=F", "n": 40, "metric": "roc_auc", "value": 0.8, "interval": [0.7, 0.9], "weak": True}]


def card(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "line": "tabular@shop",
        "answers": "Answers which `buys` a row has.",
        "readme": README,
        "overrides": {},
        "data": {"name": "shop", "content_hash": "ab" * 32, "training_rows": 1200, "left_out": []},
        "metrics": {
            "primary": "roc_auc",
            "overall": {
                "roc_auc": {"value": 0.9, "interval": [0.85, 0.95], "baseline": 0.5, "reason": ""},
                "f1": {"value": None, "interval": None, "baseline": None, "reason": "no rows"},
            },
            "segments": SEGMENTS,
        },
        "found_limits": ["Only 60 rows were held back."],
        "versions": {"code_revision": "abc"},
        "example": {"age": 41, "city": "Porto"},
        "former": None,
    }
    return make_card(**{**arguments, **changes})


class TestComplete:
    def test_a_card_made_of_a_whole_readme_lacks_nothing(self) -> None:
        assert [] == card_missing(card())

    @pytest.mark.parametrize("section", ["purpose", "data", "metrics", "limits", "contact", "licence"])
    def test_an_absent_section_is_named(self, section: str) -> None:
        short = {key: value for key, value in card().items() if key != section}

        assert [section] == card_missing(short)

    @pytest.mark.parametrize("nothing", ["", "  ", "TODO", "tbd.", "N/A", "?", "-", None, [], {}, [""], {"about": ""}])
    def test_an_empty_or_placeholder_section_is_missing(self, nothing: Any) -> None:
        assert ["contact"] == card_missing({**card(), "contact": nothing})

    @pytest.mark.parametrize(
        "segments", [[], None, "all", [{"segment": "", "n": 3}], [{"segment": "sex=F"}], ["sex=F"]]
    )
    def test_metrics_without_segments_are_not_complete(self, segments: Any) -> None:
        whole = card()
        whole["metrics"] = {**whole["metrics"], "segments": segments}

        assert ["metrics.segments"] == card_missing(whole)

    def test_all_that_is_missing_is_named_in_order(self) -> None:
        assert ["purpose", "data", "metrics", "limits", "contact", "licence"] == card_missing({})
        expected = ["purpose", "metrics.segments", "contact"]
        assert expected == card_missing({**card(), "purpose": "", "metrics": {"a": 1}, "contact": "todo"})

    def test_a_readme_without_a_licence_gives_an_incomplete_card(self) -> None:
        assert ["licence"] == card_missing(card(readme=README.replace("## Licence", "## Licences")))


class TestMade:
    def test_sections_are_read_by_heading(self) -> None:
        found = readme_sections(README)

        assert {"question", "data", "metric", "limits", "contact", "licence"} == set(found)
        assert "It knows little." == found["limits"]

    def test_a_line_may_speak_for_itself(self) -> None:
        made = card(overrides={"contact": "shop@example.org", "purpose": "", "licence": "CC0"})

        assert ("shop@example.org", "CC0") == (made["contact"], made["licence"])
        assert "Answers which `buys` a row has. What is it?" == made["purpose"]

    def test_found_limits_stand_beside_the_known_ones(self) -> None:
        assert ["It knows little.", "Only 60 rows were held back."] == card()["limits"]

    def test_the_history_grows_by_the_former_champion_and_stays_bounded(self) -> None:
        made = card()
        for number in range(HISTORY_LENGTH + 5):
            made = card(former={**made, "bundle_id": f"{number:064x}"})

        assert HISTORY_LENGTH == len(made["history"])
        assert f"{HISTORY_LENGTH + 4:064x}" == made["history"][-1]["bundle_id"]
        assert {"roc_auc": 0.9, "f1": None} == made["history"][-1]["metrics"]

    def test_the_page_holds_every_section_and_how_to_ask(self) -> None:
        page = to_markdown(card())

        for heading in ("Purpose", "Data", "Metrics", "Limits", "Contact", "Licence", "Usage", "Versions", "History"):
            assert f"\n## {heading}\n" in page
        assert "| sex=F (weak) | 40 | roc_auc | 0.8 | 0.7 to 0.9 |" in page
        assert "undefined: no rows" in page
        assert "/v1/tabular@shop/predict" in page
        assert '"city": "Porto"' in page
        assert "first release" in page

    def test_a_cell_cannot_break_the_table(self) -> None:
        page = to_markdown(card(data={"name": "a|b\nc"}))

        assert "| name | a\\|b c |" in page
