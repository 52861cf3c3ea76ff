"""The whole DAG against one plain script: `make bench`."""
