"""Our AutoML and its peers on public tables, and what our portfolio is learned from: `make bench-automl`, `make portfolio`."""
