"""`python -m pipelines.scaffold NAME` is `make family NAME=...` without the golden answers."""

from pipelines.scaffold import main

main()
