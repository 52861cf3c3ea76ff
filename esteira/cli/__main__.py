"""`python -m esteira.cli` is `esteira`."""

from esteira.cli import main

main()
