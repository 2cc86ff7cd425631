"""The Keras door: a .keras or .h5 file, or a model in memory, becomes ONNX through tf2onnx."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from gossamer.errors import MissingExtraError, ModelError
from gossamer.intake.tensorflow_graph import TF2ONNX_OPSET, check_converted, mend, quiet, reason, rename, settle

SUFFIXES = (".keras", ".h5", ".hdf5")
OLDEST_KERAS = (3, 12)  # before, a Lambda layer in an .h5 file ran its code in spite of safe_mode (CVE-2025-9905)


def is_keras_model(source: Any) -> bool:
    """Whether an object is a Keras model; asked without importing Keras."""
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(source, keras.Model)


def convert_keras(source: Any) -> tuple[onnx.ModelProto, str]:
    """Convert a model for inference; no code in a file is run.

    The batch axis stays free, and images keep the layout the model takes, (N, H, W, C) as a rule.

    Args:
        source: the path of a .keras or .h5 file, or a keras.Model; it needs known inputs (Functional, Sequential).

    Returns:
        The ONNX message, and a note on what made it.

    Raises:
        MissingExtraError: keras, tensorflow or tf2onnx is not installed.
        ModelError: the file cannot be loaded, or an operator cannot be converted.
    """
    where = str(source) if isinstance(source, (str, Path)) else f"Keras model {source.name!r}"
    with quiet() as errors:
        try:
            import keras
            import tensorflow
            import tf2onnx
            import tf2onnx.convert
        except ImportError as error:
            raise MissingExtraError(
                f"{where} is a Keras model, which needs keras, tensorflow and tf2onnx: pip install 'gossamer[keras]'; "
                "or export it where it was trained: model.export('model.onnx', format='onnx')"
            ) from error
        if tuple(map(int, keras.__version__.split(".")[:2])) < OLDEST_KERAS:
            raise MissingExtraError(
                f"{where}: Keras is {keras.__version__}; 3.12 and up are read: pip install -U keras"
            )
        if keras.config.backend() != "tensorflow":
            raise ModelError(
                f"{where}: Keras runs on {keras.config.backend()} here; set KERAS_BACKEND=tensorflow, and give a model "
                "in memory as a saved .keras file"
            )
        model = _functional(keras, _loaded(keras, Path(source)) if isinstance(source, (str, Path)) else source, where)
        try:
            with _inlined(tensorflow):
                proto, _ = tf2onnx.convert.from_keras(model, opset=TF2ONNX_OPSET, custom_rewriter=[mend])
        except Exception as error:  # TensorFlow and tf2onnx raise many unrelated types
            raise ModelError(
                f"{where}: tf2onnx {tf2onnx.__version__} cannot convert it: {reason(error)}; "
                "give an ONNX file made in another way"
            ) from error
        check_converted(proto, errors, where, f"tf2onnx {tf2onnx.__version__}")
        settle(proto)
        rename(proto, {tensor.name: tensor._keras_history.operation.name for tensor in model.inputs})
    return proto, f"Keras {keras.__version__} model converted by tf2onnx {tf2onnx.__version__}"


def _loaded(keras: Any, path: Path) -> Any:
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py, json and Keras raise their own types
        text = str(error).lower()
        if "lambda" in text or "safe_mode" in text:
            raise ModelError(
                f"{path} holds a Lambda layer, which is Python code and is not run; build the model in Python, "
                "load its weights and give the model itself"
            ) from error
        raise ModelError(
            f"{path} cannot be loaded by Keras {keras.__version__}: {reason(error)}; save it again as .keras, "
            "or, if it has layers of your own, load it in Python and give the model itself"
        ) from error


def _functional(keras: Any, model: Any, where: str) -> Any:
    """The model between named inputs and outputs, in a flat list; tf2onnx follows only such a one in every case."""
    try:
        return keras.Model(model.inputs, model.outputs, name=model.name)
    except Exception as error:  # a model that was not called has no inputs
        raise ModelError(
            f"{where} has no known inputs; wrap it: x = keras.Input(shape); give keras.Model(x, model(x))"
        ) from error


@contextlib.contextmanager
def _inlined(tensorflow: Any) -> Iterator[None]:
    """Keras compiles grouped convolutions as functions of their own, which tf2onnx cannot look into."""
    before = tensorflow.config.functions_run_eagerly()
    tensorflow.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tensorflow.config.run_functions_eagerly(before)
