"""A toy family that is a policy: which message does a customer get? No engine, no graph; the artefact is a JSON table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from esteira.family import Answer, Answerer, ArtefactKind, Finding, Fitted, OpenBundle, Row, Sample, Score, Search

ACTIONS = ("email", "sms", "nothing")
SEGMENTS = ("new", "loyal", "sleeping")
WORTH: Mapping[str, Mapping[str, float]] = {
    "new": {"email": 0.75, "sms": 0.25, "nothing": 0.0},
    "loyal": {"email": 0.25, "sms": 0.0, "nothing": 0.5},
    "sleeping": {"email": 0.0, "sms": 0.5, "nothing": 0.25},
}


class Params(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    prior: float = 0.0


def check(rows: Sequence[Row]) -> list[Finding]:
    return [
        Finding("required", "segment", index, f"must be one of {', '.join(SEGMENTS)}, but got {row.get('segment')!r}")
        for index, row in enumerate(rows)
        if row.get("segment") not in SEGMENTS
    ]


class Acting:
    """Takes the action of the greatest mean reward in the row's segment; `table` is segment -> action -> mean."""

    def __init__(self, table: Mapping[str, Mapping[str, float]]) -> None:
        self.table = table

    def check(self, rows: Sequence[Row]) -> list[Finding]:
        return check(rows)

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        answers = []
        for row in rows:
            means = self.table[row["segment"]]
            action = max(ACTIONS, key=lambda name: means[name])
            answers.append(
                {
                    "prediction": action,
                    "expected_reward": means[action],
                    "confidence": None,
                    "confidence_kind": "heuristic",
                    "warnings": [],
                }
            )
        return answers


class PolicyFitted(Acting):
    def export(self) -> dict[str, bytes]:
        return {"policy.json": json.dumps(self.table, sort_keys=True).encode()}

    def manifest(self) -> dict[str, Any]:
        return {
            "task": "policy",
            "schema": {"segment": list(SEGMENTS)},
            "units": {"expected_reward": "replies per message"},
            "stages": ["policy.json"],
            "post": {},
        }


@dataclass(frozen=True)
class Policy:
    name: str = "policy"
    artefact_kind: ArtefactKind = "policy"
    deterministic: bool = True
    params: type[BaseModel] = field(default=Params)

    def sample(self) -> Sample:
        """A truth is the reward, in [0, 1], that each action would have had."""
        rows = [{"segment": segment} for segment in SEGMENTS for _ in range(4)]
        broken = [({"segment": "ghost"}, "segment"), ({}, "segment")]
        return Sample(rows, [dict(WORTH[row["segment"]]) for row in rows], broken)

    def golden(self) -> Sequence[Answer]:
        best = {"new": ("email", 0.75), "loyal": ("nothing", 0.5), "sleeping": ("sms", 0.5)}
        return [
            {
                "prediction": best[row["segment"]][0],
                "expected_reward": best[row["segment"]][1],
                "confidence": None,
                "confidence_kind": "heuristic",
                "warnings": [],
            }
            for row in self.sample().rows
        ]

    def fit(self, rows: Any, truths: Sequence[Any], *, params: BaseModel, seed: int, search: Search) -> Fitted:
        prior = Params.model_validate(params.model_dump()).prior
        return PolicyFitted(
            {
                segment: {
                    action: float(
                        np.mean(
                            [prior] + [t[action] for r, t in zip(rows, truths, strict=True) if r["segment"] == segment]
                        )
                        if prior
                        else np.mean([t[action] for r, t in zip(rows, truths, strict=True) if r["segment"] == segment])
                    )
                    for action in ACTIONS
                }
                for segment in SEGMENTS
            }
        )

    def baseline(self, rows: Any, truths: Sequence[Any]) -> Answerer:
        means = {action: float(np.mean([truth[action] for truth in truths])) for action in ACTIONS}
        return Acting(dict.fromkeys(SEGMENTS, means))

    def features(self, rows: Any, fitted: Fitted) -> NDArray[np.float32]:
        return np.array([[row["segment"] == s for s in SEGMENTS] for row in rows], dtype=np.float32)

    def open(self, bundle: OpenBundle) -> Answerer:
        return Acting(json.loads(bundle.read("policy.json")))

    def metrics(self, truths: Sequence[Any], answers: Sequence[Answer]) -> dict[str, Score]:
        rewards = [self.outcome(truth, answer) for truth, answer in zip(truths, answers, strict=True)]
        return {"mean_reward": Score(float(np.mean(rewards)) if rewards else None, reason="" if rewards else "no rows")}

    def outcome(self, truth: Any, answer: Answer) -> float:
        return float(truth[answer["prediction"]])


FAMILY = Policy()
