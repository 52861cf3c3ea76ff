"""Which versions a line has and which of them serves: the platform store is the truth, MLflow shows the same."""

from esteira.registry.reading import ALIASES
from esteira.registry.registry import Registry
from esteira.store.records import Version

__all__ = ["ALIASES", "Registry", "Version"]
