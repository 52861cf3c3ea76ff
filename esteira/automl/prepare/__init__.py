"""Features made of features: fitted on training rows of a fold, kept only where cross-validation says so, drawn exactly."""

from esteira.automl.prepare.recipe import Columns, Preparation, Recipe

__all__ = ["Columns", "Preparation", "Recipe"]
