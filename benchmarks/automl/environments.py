"""The peers' own environments, from the hash-pinned lock beside each; torch without CUDA comes from a wheel or its own index.

python -m benchmarks.automl.environments          # make those that are missing
python -m benchmarks.automl.environments --lock   # take newer versions into the locks
"""

import os
import subprocess
from pathlib import Path

from benchmarks.orchestrators.environments import ensure, main, uv, write_locks

PROJECTS = Path(__file__).parent / "projects"
ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "automl" / "environments"
# The wheel of the index holds CUDA: gigabytes that no run here uses. No hash: wheels of the same version differ by where they lie.
_TORCH = """
set -euo pipefail
python="$1/python"; uv="$2"; . requirements/index.sh
"$uv" pip install --quiet --python "$python" --no-deps $([ -n "${UV_FIND_LINKS:-}" ] || echo --torch-backend=cpu) "$3"
"""


def commands(project: str) -> Path:
    """The folder of commands of a peer's environment, which is made if it is not there.

    Raises:
        SystemExit: it could not be made.
    """
    place = ensure(PROJECTS / project / "requirements.lock", BUILD)
    torch = _torch(PROJECTS / project / "requirements.in")
    if torch and not (place.parent / "torch").exists():
        done = subprocess.run(
            ["bash", "-c", _TORCH, "torch", str(place), uv(), torch],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{torch} could not be installed for {project}:\n{done.stderr[-3000:]}")
        (place.parent / "torch").touch()
    return place


def _torch(asked: Path) -> str:
    lines = asked.read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith("torch==")), "")


def lock_all() -> None:
    """Write the peers' locks anew, for Linux."""
    # A wheel of torch without CUDA beside us, or the index that uv knows for it: either spares the lock CUDA's packages.
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")

    def words(asked: Path) -> list[str]:
        plain = ["--torch-backend=cpu"] if _torch(asked) and not links else []
        return ["--python-platform", "linux", "--no-emit-package", "torch", *plain]

    environment = {**os.environ, **({"UV_FIND_LINKS": links} if links else {})}
    write_locks(PROJECTS, "benchmarks.automl.environments", environment, words)


if __name__ == "__main__":
    main(
        __doc__, lock_all, lambda: (commands(file.parent.name) for file in sorted(PROJECTS.glob("*/requirements.lock")))
    )
