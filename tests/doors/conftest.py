"""What the doors of TensorFlow's world share: one small network, trained for a few seconds on pictures of the demo."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DEMO = Path(__file__).parents[2] / "src" / "gossamer" / "demo" / "data.npz"
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # read when TensorFlow loads
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
TRAINED_ON = 1_000  # of the 2,000 pictures; the rest are for compressing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = [name for name in ("keras", "tensorflow", "tf2onnx") if find_spec(name) is None]
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore")
            )  # Keras and TensorFlow warn about each other and numpy
            if absent:
                item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(absent)}: make test-doors"))


@pytest.fixture(scope="session")
def pictures() -> dict[str, np.ndarray]:
    """Fashion-MNIST as Keras takes it: images (2000, 28, 28, 1) float32, labels (2000,)."""
    with np.load(DEMO) as data:
        return {"image": np.ascontiguousarray(data["image"].transpose(0, 2, 3, 1)), "labels": data["labels"]}


@pytest.fixture(scope="session")
def trained(pictures: dict[str, np.ndarray]) -> Any:
    """The issue's case: 32 convolutions of 3x3, max-pool, dense 128, soft-max 10."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(pictures["image"][:TRAINED_ON], pictures["labels"][:TRAINED_ON], epochs=8, batch_size=64, verbose=0)
    return model


@pytest.fixture(scope="session")
def rest_npz(pictures: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that the network was not trained on, as a file."""
    path = tmp_path_factory.mktemp("data") / "rest.npz"
    np.savez(path, **{name: array[TRAINED_ON:] for name, array in pictures.items()})
    return path
