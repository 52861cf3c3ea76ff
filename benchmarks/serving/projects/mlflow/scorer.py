"""The model as MLflow's users write a pyfunc from code; its scoring server loads it. Nothing is pickled."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd


class Scorer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # mlflow has no types
    """Rows of a data frame in, labels and probabilities out."""

    def load_context(self, context: Any) -> None:
        """Open the graph."""
        folder = Path(context.artifacts["model"])
        said = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
        self.names, self.classes = said["columns"], said["classes"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        """One row of answers for each row."""
        y = self.session.run(["y"], {"x": model_input[self.names].to_numpy(np.float32)})[0]
        answers = pd.DataFrame(y, columns=self.classes)
        answers.insert(0, "prediction", [self.classes[at] for at in y.argmax(axis=1)])
        return answers


mlflow.models.set_model(Scorer())
