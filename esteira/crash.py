"""Named places where the kill test ends the process; does nothing unless ESTEIRA_CRASH_AT names one of them."""

import os
import signal

# Every write says here where it may be cut off; a test compares this list with the calls in the source.
POINTS: tuple[str, ...] = (
    "alias.before_commit",
    "alias.before_mirror",
    "approval.before_commit",
    "artefact.before_rename",
    "artefact.half_written",
    "batch.after_note",
    "batch.before_end",
    "batch.before_errors",
    "batch.before_note",
    "batch.before_part",
    "batch.before_progress",
    "batch.before_start",
    "batch.errors_half_written",
    "batch.note_half_written",
    "bundle.before_seal",
    "deploy.built",
    "deploy.moved",
    "fetch.before_rename",
    "keys.before_entry",
    "keys.before_rename",
    "keys.before_revoked",
    "keys.before_shown",
    "ledger.before_commit",
    "ledger.export_half_written",
    "outputs.before_rename",
    "promote.before_beacon",
    "promote.before_commit",
    "promote.before_mirror",
    "receipt.before_rename",
    "register.before_mirror",
    "register.before_row",
    "register.before_version",
    "rollback.before_beacon",
    "rollback.before_commit",
    "rollback.before_mirror",
    "rollout.before_handover",
    "rollout.before_record",
    "rollout.before_registry",
    "rollout.before_shift",
    "rollout.before_state",
    "run.before_finish",
)

# The step of the DAG that this process is; set by whoever forks it.
STEP = ""


def point(name: str) -> None:
    """Die here, by SIGKILL, when `ESTEIRA_CRASH_AT` is this point's name, or `POINT@STEP` within that step of the DAG."""
    if os.environ.get("ESTEIRA_CRASH_AT") in {name, f"{name}@{STEP}"}:
        os.kill(os.getpid(), signal.SIGKILL)
