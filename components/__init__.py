"""What one step of the DAG does: one module a step; each is the work of a container."""
