"""Who may call: the keys of a service, compared in constant time. Knows no request."""

import hmac
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Keys:
    """Who may call: `caller` predicts and reads; `operator` may also ask for a version that is not deployed."""

    caller: bytes = field(repr=False)
    operator: bytes | None = field(default=None, repr=False)

    def role(self, authorization: bytes | None) -> str | None:
        """`caller`, `operator` or None; takes the same time for every wrong key of a length."""
        kind, _, given = (authorization or b"").partition(b" ")
        if kind.lower() != b"bearer" or not given:
            return None
        given = given.strip()
        caller = hmac.compare_digest(given, self.caller)
        operator = self.operator is not None and hmac.compare_digest(given, self.operator)
        return "operator" if operator else "caller" if caller else None
