"""How a search goes on: in waves that look at no clock, or job by job until the time is used up. `course.py` decides
what comes next, `prune.py` what stops early.
"""

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

import numpy as np

from esteira.automl import prune
from esteira.automl.course import SAMPLE_ROWS, Course
from esteira.automl.evaluate import Outcome, side_by_side
from esteira.automl.trial import Trial

BATCH = 4
"""Trials that are begun together: not the number of cores, because proposals depend on what was told before them."""
FIRST = 2
"""Trials of the first wave: the trivial model and one that is quick to fit, by which others are judged."""
DEEPENED = 8
"""Trials that are scored on further dealings of the folds, where one dealing says too little."""
FEW = 3
"""A search bounded by fewer trials than so many times DEEPENED is a quick one, and does not deepen."""
SAMPLE = -1
"""In the place of a fold: a sample of the first one."""


def run(course: Course, storage: str) -> None:
    """Search until trials or seconds are used up, or somebody says stop."""
    course.open(storage)
    try:
        if course.question.seconds is None:
            _by_trials(course)
        else:
            _by_clock(course)
        course.catch_up()
    finally:
        course.study.close()


def _by_trials(course: Course) -> None:
    """Waves: those that passed the first fold are finished while the next begin, so that cores are busy and order is kept."""
    waiting: list[Trial] = []
    while True:
        stop = course.question.stop() and bool(course.done)
        batch = course.next(BATCH if course.asked or course.done else FIRST) if not stop and course.ready() else []
        if not batch and not waiting:
            # Another worker may be at the last ones, or may have died at them.
            if course.shared and not stop and course.study.wait():
                continue
            break
        if course.large:
            batch = _sampled(course, batch)
        jobs = [(trial, fold) for trial in waiting for fold in range(1, course.dealing)]
        jobs += [(trial, 0) for trial in batch]
        # The slow first, so that no core waits for one at the end; what comes out does not depend on it.
        jobs.sort(key=lambda job: -course.expected(job[0].proposal.kind))
        fit = partial(course.fit, watch=prune.watch(course, behind=2 * BATCH))
        for (trial, fold), outcome in zip(jobs, side_by_side(fit, jobs), strict=True):
            course.note(trial, fold, outcome)
        for trial in waiting:
            course.tell(trial)
        begun, waiting = batch, []
        for trial in begun:
            if _goes_on(course, trial, begun) and course.dealing > 1:
                waiting.append(trial)
            else:
                course.tell(trial)


def _goes_on(course: Course, trial: Trial, others: list[Trial], *, sample: bool = False) -> bool:
    """Judge a trial by the folds that it was scored on."""
    if trial.state == "complete":
        cut = prune.hopeless(course, trial, others, sample=sample)
        if cut:
            trial.state, trial.why = "pruned", cut
    return trial.state == "complete"


def _sampled(course: Course, batch: list[Trial]) -> list[Trial]:
    """Of a batch on a large table, those that do well on a sample of the first fold."""
    watch = prune.watch(course)
    outcomes = side_by_side(lambda trial: course.fit((trial, 0), watch, most_rows=SAMPLE_ROWS), batch)
    for trial, outcome in zip(batch, outcomes, strict=True):
        _note_sample(course, trial, outcome)
    good = []
    for trial in batch:
        if _passed_sample(course, trial, batch):
            good.append(trial)
        else:
            course.tell(trial)
    return good


def _note_sample(course: Course, trial: Trial, outcome: Outcome) -> None:
    course.note(trial, 0, outcome, share=SAMPLE_ROWS / len(course.question.folds.folds[0].fit))
    trial.sampled = trial.scores.get(0)


def _passed_sample(course: Course, trial: Trial, others: list[Trial]) -> bool:
    good = _goes_on(course, trial, others, sample=True)
    if good:
        trial.spare = replace(trial)
        trial.scores, trial.predictions, trial.fitted, trial.rounds = {}, {}, {}, {}
    else:
        trial.why += f", on a sample of {SAMPLE_ROWS:,} rows"
    return good


def _by_clock(course: Course) -> None:
    """Job by job: a core that is free takes the next fold of a trial that does well, else begins another."""
    cores = os.cpu_count() or 1
    begun: list[Trial] = []
    running: dict[Future[Outcome], tuple[Trial, int]] = {}
    with ThreadPoolExecutor(cores) as pool:
        while True:
            while len(running) < cores:
                job = _next_job(course, begun, running)
                if job is None:
                    break
                most = SAMPLE_ROWS if job[1] == SAMPLE else None
                running[pool.submit(course.fit, (job[0], max(0, job[1])), prune.watch(course), most)] = job
            if not running:
                if (
                    course.shared
                    and not course.question.stop()
                    and course.left_for_trials() > 0
                    and course.study.wait()
                ):
                    continue
                break
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                trial, fold = running.pop(future)
                if fold == SAMPLE:
                    _note_sample(course, trial, future.result())
                else:
                    course.note(trial, fold, future.result())
                _settle(course, trial, fold, begun, [other for other, _ in running.values()])
    for trial in begun:
        course.put_off(trial, "no time for the other folds")


def _next_job(
    course: Course, begun: list[Trial], running: dict["Future[Outcome]", tuple[Trial, int]]
) -> tuple[Trial, int] | None:
    if course.done and (course.question.stop() or course.left_for_trials() <= 0):
        return None
    busy = list(running.values())
    first = min(begun, key=lambda trial: trial.proposal.number, default=None)
    for trial in sorted(begun, key=lambda trial: (-trial.score, trial.proposal.number)):
        for fold in range(course.dealing):
            trivial = trial.proposal.kind == "constant"
            fits = course.expected(trial.proposal.kind) <= course.left_for_trials()
            # Whatever the time, there is an answer.
            fits = fits or (not course.done and trial is first and (fold == 0 or trivial))
            if fold not in trial.scores and (trial, fold) not in busy and fits:
                return trial, fold
    # What there is no time for any more would otherwise be waited for until the end.
    for trial in [one for one in begun if course.done and not any(one is other for other, _ in busy)]:
        begun.remove(trial)
        course.put_off(trial, "no time for the other folds")
    # The trivial model, and one that is quick to fit; until it is known how long it takes, nobody knows of others.
    while course.ready() and (course.timed or len(course.done) + len({*begun, *(trial for trial, _ in busy)}) < FIRST):
        left = course.left_for_trials() if course.done else float("inf")
        kinds = [name for name in course.leading() if course.expected(name) <= 0.5 * left]
        found = course.next(1, kinds)
        if not found:
            return None
        trial = found[0]
        expected = course.expected(trial.proposal.kind)
        if expected <= 0.7 * left:
            return trial, SAMPLE if course.large else 0
        course.put_off(trial, f"takes about {expected:.0f} s a fold, more than is left")
    return None


def _settle(course: Course, trial: Trial, fold: int, begun: list[Trial], others: list[Trial]) -> None:
    """After a fold: cut, go on, or done. A trial that fails while another fold of it runs is told once."""
    if fold == SAMPLE:
        if _passed_sample(course, trial, others):
            begun.append(trial)
        else:
            course.tell(trial)
        return
    if trial.state != "complete":
        if trial in begun:
            begun.remove(trial)
        if trial not in course.done:
            course.tell(trial)
        return
    if fold == 0 and not _goes_on(course, trial, others):
        if trial in begun:
            begun.remove(trial)
        course.tell(trial)
        return
    if len(trial.scores) >= course.dealing:
        if trial in begun:
            begun.remove(trial)
        course.tell(trial)
    elif trial not in begun:
        begun.append(trial)


def deepen(course: Course) -> None:
    """Score the best on the further dealings of the folds, as far as time allows; whole dealings only."""
    if course.question.folds.repeats == 1 or (
        course.question.seconds is None and course.question.trials < FEW * DEEPENED
    ):
        return
    ranked = [
        trial
        for trial in sorted(course.done, key=Trial.rank)
        if trial.state == "complete" and trial.proposal.kind != "constant" and np.isfinite(trial.score)
    ]
    for dealing in range(1, course.question.folds.repeats if not course.question.stop() else 1):
        folds = range(dealing * course.dealing, (dealing + 1) * course.dealing)
        for start in range(0, min(DEEPENED, len(ranked)), 2):
            pair = ranked[start : start + 2]
            expected = sum(course.expected(trial.proposal.kind) for trial in pair) * course.dealing
            if expected / (os.cpu_count() or 1) > 0.5 * course.left_for_trials():
                return
            jobs = [(trial, fold) for trial in pair for fold in folds]
            for (trial, fold), outcome in zip(jobs, side_by_side(course.fit, jobs), strict=True):
                course.note(trial, fold, outcome)
