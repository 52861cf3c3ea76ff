"""`python -m pipelines.scaffold NAME` is `make family NAME=...` without the golden answers."""

import sys

from pipelines.scaffold import main

sys.exit(main())
