"""A student as ONNX, TorchScript and int8: bytes, each with the description that `vfmgl predict` reads."""

from __future__ import annotations

import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from vfmgl_lib.models.students import Student
from vfmgl_lib.tools.predict import KEY, Description

OPSET = 18


class Outputs(nn.Module):
    """A student with the outputs of an exported model: logits and, where a CAM can be made of it, the last stage's map."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student
        self.with_map = student.pooled_classifier is not None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits, maps = self.student.forward_stages(images)
        return (logits, maps[-1]) if self.with_map else (logits,)


def onnx_model(student: Student, about: Description | None = None, image_size: int | None = None) -> bytes:
    """A student as ONNX: input `image` (batch, 3, S, S) in [0, 1]; outputs `logits` and, where the classifier
    reads its mean (`Student.pooled_classifier`), `map`, the last stage's.

    Args:
        about: goes into the metadata; None: a file without, for measurements; then `image_size` says S.
    """
    model = Outputs(student).eval()
    side = about.image_size if about else image_size
    assert side is not None  # one of the two says it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about itself
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, side, side),),  # two: torch takes a size of one for a constant
            input_names=["image"],
            output_names=["logits", "map"] if model.with_map else ["logits"],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # with `dynamo`
    proto = program.model_proto
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # traces of the stack, with places on this machine
    return _with_description(proto, about)


def _with_description(proto: onnx.ModelProto, about: Description | None) -> bytes:
    if about:
        onnx.helper.set_model_props(proto, {KEY: about.to_json()})
        proto.doc_string = f"{about.task}, model of {about.study['model_center']}, {about.precision}; vfmgl_lib {about.library}"
    onnx.checker.check_model(proto)
    return proto.SerializeToString(deterministic=True)


def torchscript_model(student: Student, about: Description) -> bytes:
    """A student traced, with the description as extra file `vfmgl.json`. torch keeps TorchScript, and warns that it will not for ever."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Outputs(student).eval(), torch.zeros(2, 3, about.image_size, about.image_size))
        torch.jit.save(traced, buffer, _extra_files={f"{KEY}.json": about.to_json()})
    return buffer.getvalue()


class _Calibration(CalibrationDataReader):
    """Training images one at a time, as onnxruntime asks for them."""

    def __init__(self, pixels: np.ndarray):
        self._images = iter(np.moveaxis(pixels, 3, 1).astype(np.float32) / np.float32(255))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def int8_model(file: Path, calibration: np.ndarray, about: Description) -> bytes:
    """The model of `file` in int8 by static quantisation: weights per output channel, activations by their range on training images.

    7 bits of the weights are used: with 8, processors without VNNI instructions overflow. That is the reason, not accuracy: on six small
    models 8 bits were nearer to float32 on the validation images of four.

    Args:
        calibration: (n, S, S, 3) uint8, training images.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(file), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(done),
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        proto = onnx.load(done)
    return _with_description(proto, replace(about, precision="int8"))
