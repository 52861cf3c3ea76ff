"""The model behind FastAPI as its users write it: one typed field a column, the graph in ONNX Runtime, one worker of uvicorn."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, create_model

folder = Path(os.environ["MODEL"])
said = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
names, classes = said["columns"], said["classes"]

options = onnxruntime.SessionOptions()
# As in our own service: more threads make one row slower.
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"])

columns: dict[str, Any] = dict.fromkeys(names, (float, ...))
Row = create_model("Row", __config__=ConfigDict(extra="forbid"), **columns)


class Request(BaseModel):
    """What is asked."""

    rows: list[Row] = Field(min_length=1, max_length=1000)  # type: ignore[valid-type]  # it is made above


class Answer(BaseModel):
    """What is said of one row."""

    prediction: str
    probabilities: dict[str, float]


class Answers(BaseModel):
    """What is said, in the order of the rows."""

    rows: list[Answer]


app = FastAPI()


# `async`, because a plain function would go through a thread each time and be slower.
@app.post("/predict")
async def predict(request: Request) -> Answers:
    """Answer rows."""
    x = np.array([[getattr(row, name) for name in names] for row in request.rows], dtype=np.float32)
    y = session.run(["y"], {"x": x})[0].tolist()
    return Answers(
        rows=[
            Answer(prediction=classes[row.index(max(row))], probabilities=dict(zip(classes, row, strict=True)))
            for row in y
        ]
    )
