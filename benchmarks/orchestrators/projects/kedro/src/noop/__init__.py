"""Six steps in a row, as a Kedro project: `kedro run`, and `kedro run --only-missing-outputs` to reuse what is there."""
