"""Which versions a line has and which of them serves: the platform store is the truth, MLflow shows the same."""

from esteira.registry.registry import ALIASES, Registry
from esteira.store.records import Version

__all__ = ["ALIASES", "Registry", "Version"]
