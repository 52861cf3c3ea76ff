"""Release: what may go where and who said so, from a judged version to all traffic. Importing it imports nothing else."""
