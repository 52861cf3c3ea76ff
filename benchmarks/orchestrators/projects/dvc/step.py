"""One step: reads what the step before wrote, writes its own tiny file, notes that it ran."""

import os
import sys
from pathlib import Path

number, *before = sys.argv[1:]
text = " ".join([*(Path(path).read_text(encoding="utf-8") for path in before), number])
Path("out").mkdir(exist_ok=True)
Path(f"out/{number}.txt").write_text(text, encoding="utf-8")
with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
    log.write(text + "\n")
