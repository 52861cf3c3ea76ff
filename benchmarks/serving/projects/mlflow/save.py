"""Saves the model with its signature, as MLflow asks for: `python save.py MODEL OUT`."""

import json
import sys
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

model, out = sys.argv[1:]
names = json.loads((Path(model) / "columns.json").read_text(encoding="utf-8"))["columns"]
mlflow.pyfunc.save_model(
    out,
    python_model=str(Path(__file__).with_name("scorer.py")),
    artifacts={"model": model},
    signature=ModelSignature(inputs=Schema([ColSpec("double", name) for name in names])),
    # It is served in the environment that it was saved in.
    pip_requirements=["mlflow", "onnxruntime"],
)
