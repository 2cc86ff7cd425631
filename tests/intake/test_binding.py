"""Samples meet a model's inputs: what fits goes through, what can be cast is, the rest is said in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from gossamer.errors import DataError
from gossamer.intake.binding import bind, cast_notes
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.nouns.samples import Samples, samples_from_arrays

F4 = np.dtype("float32")
IMAGE = {"image": (F4, ("N", 3, 8, 8))}
X = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


def assert_refused(data: Any, wanted: Any, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        bind(read_samples(data), wanted)
    assert "\n" not in str(caught.value)


def test_what_fits_is_not_copied() -> None:
    samples = read_samples({"image": X, "labels": np.arange(5)})
    bound = bind(samples, IMAGE)
    assert bound.columns["image"] is X and bound.labels is samples.labels and bound.source == samples.source
    assert not cast_notes(samples, IMAGE)


def test_a_file_column_stays_one(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    samples = read_samples(tmp_path / "x.npy")
    assert bind(samples, IMAGE).columns["image"] is samples.columns["input_0"]


@pytest.mark.parametrize(
    "shape", [("N", 3, 8, 8), (None, 3, 8, 8), (1, 3, 8, 8), ("N", None, "h", "w"), (4, 3, "h", 8)]
)
def test_free_and_fixed_axes(shape: tuple[Any, ...]) -> None:
    assert len(bind(read_samples(X), {"x": (F4, shape)})) == 5


def test_inputs_by_position() -> None:
    bound = bind(read_samples([((X, X[..., 0]), None)]), {"b": (F4, ("N", 3, 8, 8)), "a": (F4, ("N", 3, 8))})
    assert bound.columns["a"][0].shape == (3, 8)


def test_names_win_over_positions() -> None:
    wanted = {"input_1": (F4, ("N", 3, 8, 8)), "input_0": (F4, ("N", 3, 8))}
    assert_refused([((X, X[..., 0]), None)], wanted, r"input 'input_1' wants \(3, 8, 8\), sample 0 has \(3, 8\)")


@given(
    array=hnp.arrays(
        st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "i1", "i4", "i8", "u2", "b1"]),
        (4, 3),
        elements=st.integers(0, 1),
    ),
    want=st.sampled_from(["f2", "f4", "f8", "i4", "i8", "u1", "i1"]),
)
def test_a_cast_keeps_the_values_or_is_refused(array: np.ndarray, want: str) -> None:
    dtype = np.dtype(want)
    samples = read_samples(array)
    allowed = (
        array.dtype.kind == dtype.kind == "f"
        or (array.dtype.kind in "iu" and dtype.kind in "iu")
        or np.can_cast(array.dtype, dtype, "safe")
    )
    if not allowed:
        assert_refused(
            array, {"x": (dtype, ("N", 3))}, f"input 'x' wants {dtype}, sample 0 has .*; that cast could lose"
        )
        return
    bound = bind(samples, {"x": (dtype, ("N", 3))})
    for row in range(4):
        assert bound.columns["x"][row].dtype == dtype
        np.testing.assert_array_equal(bound.columns["x"][row], array[row].astype(dtype))
    assert bool(cast_notes(samples, {"x": (dtype, ("N", 3))}))


def test_casts_are_noted() -> None:
    samples = read_samples({"arr_0": np.zeros((2, 3), np.uint8)})
    assert cast_notes(samples, {"x": (F4, ("N", 3))}) == (
        "the data's 'arr_0' feeds the model's input 'x'",
        "input 'x' is cast from uint8 to float32; whole numbers are not scaled on the way",
    )


def test_a_name_that_is_not_the_model_s_is_refused_for_one_input_too() -> None:
    with pytest.raises(DataError, match="the model takes 'x'; the data lacks 'x', has 'pixels'"):
        bind(read_samples({"pixels": np.zeros((2, 3), np.float32)}), {"x": (F4, ("N", 3))})


def test_integers_out_of_range() -> None:
    ids = np.array([[1, 2], [3, 1 << 40]])
    assert_refused(
        ids,
        {"ids": (np.dtype("int32"), ("N", 2))},
        "input 'ids' wants int32, sample 1 has int64 with values from 3 to 1099511627776",
    )
    assert_refused(-ids, {"ids": (np.dtype("uint8"), ("N", 2))}, "with values from -2 to -1, which do not fit")


def test_floats_too_large() -> None:
    big = np.array([[1.0], [1e300]])
    assert_refused(big, {"x": (F4, ("N", 1))}, "input 'x', sample 1: a number is too large for the model's float32")


def test_text_for_a_model_of_text() -> None:
    bound = bind(read_samples({"s": np.array([["ab"], ["c"]])}), {"s": (np.dtype(object), ("N", 1))})
    assert bound.columns["s"][1].tolist() == ["c"] and bound.columns["s"][1].dtype == object


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["memory", "file", "list", "iterable"])
def test_nan_names_input_and_sample(tmp_path: Path, value: float, kind: str) -> None:
    bad = X.copy()
    bad[3, 1, 2, 2] = value
    np.save(tmp_path / "x.npy", bad)
    source = {"memory": bad, "file": tmp_path / "x.npy", "list": {"image": list(bad)}, "iterable": iter([bad])}[kind]
    assert_refused(source, IMAGE, "input 'image', sample 3 has NaN or Inf; remove or correct that sample")


def test_only_the_samples_in_use_are_checked() -> None:
    bad = X.copy()
    bad[3] = np.nan
    bind(read_samples(bad).take(np.array([0, 1, 2, 4])), IMAGE)


@pytest.mark.parametrize(
    ("shape", "want", "match"),
    [
        (
            (224, 224, 3),
            (3, 224, 224),
            r"input 'image' wants \(3, 224, 224\), sample 0 has \(224, 224, 3\): try --layout nchw",
        ),
        ((3, 224, 224), (224, 224, 3), "try --layout nhwc"),
        ((3, 32, 32), (3, 224, 224), "try --size 224"),
        ((3, 32, 48), (3, "h", "h"), None),
        ((3, 8, 8), (1, 8, 8), "try --channels grey"),
        ((1, 3, 8, 8), (3, 8, 8), "drop the axis of 1 behind the sample axis"),
        ((8, 8), (1, 8, 8), r"add an axis, array\[:, None\]"),
        ((7,), (9,), r"wants \(9,\), sample 0 has \(7,\): the axes behind the batch axis must agree"),
        ((), (9,), r"wants \(9,\), sample 0 has \(\)"),
        ((7, 7), (None, "t", 3), r"wants \(\?, t, 3\), sample 0 has \(7, 7\)"),
    ],
)
def test_shapes(shape: tuple[int, ...], want: tuple[Any, ...], match: str | None) -> None:
    data, wanted = np.zeros((2, *shape), np.float32), {"image": (F4, ("N", *want))}
    if match is None:
        bind(read_samples(data), wanted)
    else:
        assert_refused(data, wanted, match)


def test_a_later_sample_of_another_shape_is_found() -> None:
    ragged = {"x": [np.zeros((2, 3), F4), np.zeros((4, 3), F4), np.zeros((4, 2), F4)]}
    bind(read_samples({"x": ragged["x"][:2]}), {"x": (F4, ("N", "t", 3))})
    assert_refused(ragged, {"x": (F4, ("N", "t", 3))}, r"input 'x' wants \(t, 3\), sample 2 has \(4, 2\)")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (
            ["ids", "masks"],
            r"the model takes 'ids', 'mask'; the data lacks 'mask' \(is it 'masks'\?\), has 'masks', which",
        ),
        (["ids"], "the data lacks 'mask'; rename the arrays"),
        (["ids", "mask", "token_types"], "the data has 'token_types', which the model does not take"),
    ],
)
def test_names(names: list[str], match: str) -> None:
    wanted = {"ids": (F4, ("N", 3)), "mask": (F4, ("N", 3))}
    assert_refused({name: np.zeros((2, 3), F4) for name in names}, wanted, match)


def test_an_input_called_like_labels() -> None:
    wanted = {"x": (F4, ("N", 3)), "y": (F4, ("N", 3))}
    arrays = {"x": np.zeros((2, 3), F4), "y": np.zeros((2, 3), F4)}
    assert_refused(arrays, wanted, "lacks 'y', keeps labels under one of .*, so give them the name 'labels'")
    assert set(bind(read_samples({**arrays, "labels": np.arange(2)}), wanted).columns) == {"x", "y"}


def test_a_model_input_without_batch_axis() -> None:
    assert_refused(X, {"x": (F4, ())}, "input 'x' of the model is a single number without a batch axis")


def test_labels() -> None:
    rows = np.arange(5)
    for labels, match in (
        (np.arange(3), "5 samples of 'image' and 3 labels"),
        (np.array(list("abcde")), "must be numbers"),
    ):
        with pytest.raises(DataError, match=match):
            bind(Samples({"image": X}, labels, rows), IMAGE)


def test_an_empty_set() -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        bind(samples_from_arrays({"image": X}).take(np.arange(0)), IMAGE)


def test_one_sample() -> None:
    assert len(bind(read_samples(X[:1]), IMAGE)) == 1


def test_pictures_are_decoded_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.intake import image_folder

    for n in range(6):
        Image.new("RGB", (10, 10)).save(tmp_path / f"{n}.png")
    decoded = []
    decode = image_folder.decode
    monkeypatch.setattr(image_folder, "decode", lambda path, options: (decoded.append(path), decode(path, options))[1])
    bound = bind(read_samples(tmp_path, DataOptions(size=8)), IMAGE)
    assert len(decoded) == 1
    assert [len(batch.feeds["image"]) for batch in bound.batches(4)] == [4, 2] and len(decoded) == 7


def test_a_picture_of_another_size_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    bound = bind(read_samples(tmp_path), IMAGE)
    with pytest.raises(DataError, match=r"wants \(3, 8, 8\), sample 1 has \(3, 8, 9\): try --size 8"):
        list(bound.batches(1))
