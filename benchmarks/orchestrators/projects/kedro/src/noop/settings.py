"""Kedro's settings of this project: one folder of configuration."""

CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "base"}
