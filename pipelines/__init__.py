"""How steps are chained: one source of the DAG's shape, its kfp form, and running it here. The only importer of kfp."""
