"""`python -m tests.golden`: write the golden files anew; `git diff tests/golden` then shows what changed."""

from tests.golden import HERE, write_all

if __name__ == "__main__":
    for stale in HERE.glob("*.yaml"):
        stale.unlink()
    write_all(HERE)
    print("\n".join(str(path.relative_to(HERE.parents[1])) for path in sorted(HERE.glob("*.yaml"))))
