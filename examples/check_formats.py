"""Run every file of a delivered model with its own runtime alone, and compare with the manifest.

    paretune pull STUDY --best size_bytes --format onnx,openvino,executorch --to MODEL_DIR
    python examples/save_split.py JOB.yaml evaluate.npz
    python examples/check_formats.py MODEL_DIR evaluate.npz [FORMAT ...]

Needs numpy and the runtimes (onnxruntime, openvino, executorch, ai-edge-litert), not paretune. A
file for ExecuTorch or LiteRT computes batches of one size; the last one is padded.
"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np


def onnx(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return 100, lambda batch: session.run(None, {"input": batch})[0]


def openvino(file):
    import openvino

    packed, core = zipfile.ZipFile(file), openvino.Core()
    model = core.read_model(packed.read("model.xml"), packed.read("model.bin"))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return 100, lambda batch: compiled(batch)[0]


def executorch(file):
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    method = program.load_method("forward")
    size = int(method.metadata.input_tensor_meta(0).sizes()[0])

    def run(batch):
        return method.execute([torch.from_numpy(batch)])[0].numpy().copy()

    run.program = program  # lives as long as its method
    return size, run


def litert(file):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=file)
    interpreter.allocate_tensors()
    (given,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(batch):
        if given["dtype"] is np.int8:
            scale, zero = given["quantization"]
            integers = np.rint(batch / np.float32(scale)) + zero
            batch = np.clip(integers, -128, 127).astype(np.int8)
        interpreter.set_tensor(given["index"], batch)
        interpreter.invoke()
        return interpreter.get_tensor(gives["index"])  # int8 keeps the order of the classes

    return int(given["shape"][0]), run


LOADERS = {"onnx": onnx, "openvino": openvino, "executorch": executorch, "litert": litert}


def main(folder, data, asked):
    manifest = json.loads(Path(folder, "manifest.json").read_text())
    inputs, targets = data["inputs"], data["targets"]
    agreed = True
    for one in manifest["formats"]:
        if asked and one["format"] not in asked:
            continue
        size, run = LOADERS[one["format"]](f"{folder}/{one['file']}")
        found = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            places = np.minimum(np.arange(size), len(part) - 1)
            found.append(run(np.ascontiguousarray(part[places]))[: len(part)])
        accuracy = float((np.concatenate(found).argmax(1) == targets).mean())
        recorded = one["values"]["accuracy"]
        same = abs(accuracy - recorded) <= 1.5 / len(inputs)
        agreed = agreed and same
        print(
            f"{one['format']}: accuracy {accuracy:.4f} on {len(inputs)}, recorded {recorded:.4f}: "
            f"{'as' if same else 'NOT as'} recorded",
            flush=True,
        )
    return agreed


if __name__ == "__main__":
    done = main(sys.argv[1], np.load(sys.argv[2]), sys.argv[3:])
    print("paretune was loaded" if "paretune" in sys.modules else "without paretune")
    sys.exit(0 if done else 1)
