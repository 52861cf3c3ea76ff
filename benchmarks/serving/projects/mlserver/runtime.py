"""The model as MLServer's users write a runtime: a data frame by the V2 protocol in, labels and probabilities out."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel  # type: ignore[import-not-found]  # in the peer's environment only
from mlserver.codecs import NumpyCodec, PandasCodec, StringCodec  # type: ignore[import-not-found]  # as above
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]  # as above


class Scorer(MLModel):  # type: ignore[misc]  # as above
    """The graph in ONNX Runtime."""

    async def load(self) -> bool:
        """Open the graph."""
        folder = Path(os.environ["MODEL"])
        said = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
        self.names, self.classes = said["columns"], said["classes"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            str(folder / "graph.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One label and one row of probabilities for each row."""
        frame = self.decode_request(payload, default_codec=PandasCodec)
        y = self.session.run(["y"], {"x": frame[self.names].to_numpy(np.float32)})[0]
        labels = [self.classes[at] for at in y.argmax(axis=1)]
        outputs = [StringCodec.encode_output("prediction", labels), NumpyCodec.encode_output("probabilities", y)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
