"""The few kinds of failure, each a letter to the person on duty: rule and value, where, cure.

A message states the rule and the value that broke it; `where` names family, step, column, row or file; `cure` says what
to do next. Our own bugs are not here: they are ordinary exceptions and are never caught on the way up.
"""

from typing import ClassVar


class EsteiraError(Exception):
    """Root of what Esteira raises on purpose.

    Args:
        message: the rule that must hold and the value that broke it, without secrets and bounded in length.
        code: stable snake_case name that scripts may match on.
        where: family, step, file, column and row, as far as known.
        cure: what the reader should do next.
    """

    exit_code: ClassVar[int] = 2
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, code: str, where: str = "", cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.where = where
        self.cure = cure

    def to_dict(self) -> dict[str, str]:
        """The `error` object that `--json` prints and that a step leaves for its runner."""
        return {"code": self.code, "message": self.message, "where": self.where, "cure": self.cure}

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        cure = f"\n  cure: {self.cure}" if self.cure else ""
        return f"{self.message}{where}{cure}"


class ConfigError(EsteiraError):
    """Arguments, parameters or settings are wrong (exit 2)."""

    http_status = 400


class SourceError(EsteiraError):
    """A file or source is missing or cannot be read as what it claims to be (exit 2)."""

    http_status = 404


class DataError(EsteiraError):
    """The data were read and break a rule (exit 1)."""

    exit_code = 1
    http_status = 422


class GateHeld(EsteiraError):
    """The gate said no: an outcome, not a crash (exit 1). The verdict is already written when this is raised."""

    exit_code = 1
    http_status = 409


class Refused(EsteiraError):
    """An operation may not be done: a tampered bundle, a broken ledger, a lock that is held (exit 1)."""

    exit_code = 1
    http_status = 409


class NotFound(Refused):
    """What is asked for by its name or id is not there, or is another tenant's, which looks the same (exit 1)."""

    http_status = 404


class OutsideError(EsteiraError):
    """Something outside failed (disk full, server away); worth a retry (exit 2)."""

    http_status = 503


class QuotaExceeded(EsteiraError):
    """A quota is used up (exit 3)."""

    exit_code = 3
    http_status = 429
