"""Six steps in a row, as a Metaflow flow: `python flow.py run`, and `python flow.py resume` to reuse what succeeded."""

import os
from pathlib import Path

from metaflow import FlowSpec, step


def write(number: int, before: str = "") -> str:
    text = f"{before} {number}".strip()
    Path("out").mkdir(exist_ok=True)
    Path(f"out/{number}.txt").write_text(text, encoding="utf-8")
    with Path(os.environ["NOOP_LOG"]).open("a", encoding="utf-8") as log:
        log.write(text + "\n")
    return text


class Chain(FlowSpec):
    @step
    def start(self):
        self.text = write(1)
        self.next(self.second)

    @step
    def second(self):
        self.text = write(2, self.text)
        self.next(self.third)

    @step
    def third(self):
        self.text = write(3, self.text)
        self.next(self.fourth)

    @step
    def fourth(self):
        self.text = write(4, self.text)
        self.next(self.fifth)

    @step
    def fifth(self):
        self.text = write(5, self.text)
        self.next(self.end)

    @step
    def end(self):
        self.text = write(6, self.text)


if __name__ == "__main__":
    Chain()
