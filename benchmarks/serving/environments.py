"""The peers' own environments, from the hash-pinned lock beside each.

python -m benchmarks.serving.environments          # make those that are missing
python -m benchmarks.serving.environments --lock   # take newer versions into the locks
"""

import os
from pathlib import Path

from benchmarks.orchestrators.environments import ensure, main, write_locks

PROJECTS = Path(__file__).parent / "projects"
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "serving" / "environments"


def commands(project: str) -> Path:
    """The folder of commands of a peer's environment, which is made if it is not there.

    Raises:
        SystemExit: it could not be made.
    """
    return ensure(PROJECTS / project / "requirements.lock", BUILD)


def lock_all() -> None:
    """Write the peers' locks anew, for every platform."""
    kept = {name: value for name, value in os.environ.items() if name not in {"UV_FIND_LINKS", "PIP_FIND_LINKS"}}
    write_locks(PROJECTS, "benchmarks.serving.environments", kept, lambda _asked: ["--universal"])


if __name__ == "__main__":
    main(
        __doc__, lock_all, lambda: (commands(file.parent.name) for file in sorted(PROJECTS.glob("*/requirements.lock")))
    )
