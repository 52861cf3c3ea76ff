"""One model behind our service and behind its peers, asked by wrk by turns: `make bench-serving`."""
