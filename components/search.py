"""A worker of train's search, one of several: it tells the study its trials and writes nothing else.

On a cluster the workers are pods that meet at ESTEIRA_STUDY_URL, and train ends the study when they are done; here they are
processes beside train's own. Which of them makes which trial is decided by their speed, so that two runs may differ.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from components.train import Params, question
from esteira.errors import ConfigError
from esteira.settings import load_settings

__all__ = ["Params", "Report", "meeting", "run"]


class Report(BaseModel):
    """How many trials this worker told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    worker: int
    trials: int


def run(
    *, features: Path, contract: Path, line: str, seed: int = 42, worker: int = 0, params: Params | None = None
) -> Report:
    """Make trials of the search that train will end, until none of them is left; trials of a lost worker are made again.

    Args:
        features: featurize's folder.
        contract: validate's contract.yaml.
        line: `FAMILY` or `FAMILY@NAME`.
        seed: as train's.
        worker: from 0; told in the report, and nothing depends on it.
        params: train's section of params.yaml, the same for all workers.

    Raises:
        ConfigError: nobody says where the workers meet; and what train raises of the same words.
        OutsideError: the study's storage is away.
    """
    from esteira.automl.engine import work

    storage = load_settings().study_url
    if not storage:
        raise ConfigError(
            "workers of a search know where they meet, but ESTEIRA_STUDY_URL is not set",
            code="no_study_url", where="step search",
            cure="give the step a secret with ESTEIRA_STUDY_URL=postgresql://..., or set train.workers to 1",
        )  # fmt: skip
    x, y, words = question(features, contract, line, params or Params(), seed)
    made = 0

    def count(_done: int, _trials: int, _row: Mapping[str, Any]) -> None:
        nonlocal made
        made += 1

    work(x, y, **words, storage=storage, progress=count)
    return Report(worker=worker, trials=made)


@contextlib.contextmanager
def meeting(*, features: Path, contract: Path, line: str, seed: int, params: Params) -> Iterator[str]:
    """Where train's search is kept, with its other workers at work while the block runs.

    Where ESTEIRA_STUDY_URL is set, they are or were pods; otherwise they are processes on this machine, and meet at a journal in
    $ESTEIRA_HOME. One that dies is no failure: its trials are made by another, and a line on standard error says how it ended.

    Args:
        features, contract, line, seed, params: as for `run`.

    Returns:
        The storage; empty for memory, when there is one worker and no address.
    """
    settings = load_settings()
    if settings.study_url or params.workers == 1:
        yield settings.study_url
        return
    journal = settings.home / "studies" / f"{line}.journal"
    words = [
        sys.executable, "-m", "components.search", "--features", str(features), "--contract", str(contract),
        "--line", line, "--seed", str(seed), "--params", params.model_dump_json(),
    ]  # fmt: skip
    environment = {**os.environ, "ESTEIRA_STUDY_URL": str(journal)}
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(1, params.workers):
            # Not this process's own streams: a run reads its progress from them.
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [*words, "--worker", str(number)], stdout=subprocess.DEVNULL, stderr=log, env=environment
            )
            started.append((number, process, log))
        try:
            yield str(journal)
        finally:
            for number, process, log in started:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                elif process.returncode:
                    log.seek(0)
                    said = log.read().strip().splitlines()[-1:] or ["it said nothing"]
                    print(f"worker {number} ended with {process.returncode}: {said[0]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from components.door import main

    main("search")
