from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import DataError
from gossamer.nouns.samples import Samples, samples_from_arrays


@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=20), size=st.integers(1, 6))
def test_batches_give_every_sample_once_in_order_and_never_mix_shapes(lengths: list[int], size: int) -> None:
    arrays = [np.full(length, index, np.float32) for index, length in enumerate(lengths)]
    samples = samples_from_arrays({"x": arrays}, np.arange(len(lengths)))
    seen = []
    for feeds, labels in samples.batches(size):
        assert labels is not None and len(feeds["x"]) == len(labels) <= size
        seen += [(len(row), int(row[0]), int(label)) for row, label in zip(feeds["x"], labels, strict=True)]
    assert seen == [(length, index, index) for index, length in enumerate(lengths)]


@given(st.integers(1, 30), st.integers(0, 1000))
def test_taking_is_by_position_and_can_be_repeated(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = samples_from_arrays({"x": rng.standard_normal((count, 2))}, np.arange(count))
    first, second = rng.permutation(count), rng.permutation(count)
    twice = samples.take(first).take(second)
    (batch,) = list(twice.batches(count))
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.labels, np.arange(count)[first][second])


def test_the_digest_sees_content_order_names_and_labels() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    plain = samples_from_arrays({"x": x})
    others: list[Samples] = [
        samples_from_arrays({"x": x + 1}),
        samples_from_arrays({"x": x[::-1]}),
        samples_from_arrays({"y": x}),
        samples_from_arrays({"x": x.astype(np.float64)}),
        samples_from_arrays({"x": x}, np.zeros(3)),
        plain.take(np.arange(2)),
    ]
    digests = {plain.digest(), *(other.digest() for other in others)}
    assert len(digests) == 1 + len(others)
    assert samples_from_arrays({"x": list(x)}).digest() == plain.digest()


@pytest.mark.parametrize(
    ("inputs", "labels", "match"),
    [
        ({}, None, "no input arrays"),
        ({"x": np.zeros((0, 2))}, None, "empty"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((4, 2))}, None, "x has 3, y has 4"),
        ({"x": np.zeros((3, 2))}, np.zeros(2), "labels has 2"),
    ],
)
def test_what_cannot_be_samples_is_refused(
    inputs: dict[str, np.ndarray], labels: np.ndarray | None, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        samples_from_arrays(inputs, labels)
