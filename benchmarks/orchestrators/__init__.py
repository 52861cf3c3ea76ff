"""A six-step DAG of which no step does anything, by our runner and by its peers: `make bench-orchestrators`."""
