"""The three sets never share a sample, and depend on the seed alone."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gossamer.errors import DataError
from gossamer.intake.samples import read_samples
from gossamer.intake.splits import split
from gossamer.nouns.samples import Samples, samples_from_arrays


def numbered(n: int, copies: int = 1) -> Samples:
    """n samples of which groups of `copies` are equal."""
    return samples_from_arrays({"x": (np.arange(n) // copies)[:, None].astype(np.float32)}, np.arange(n))


@given(n=st.integers(30, 400), seed=st.integers(0, 99))
def test_enough_samples_are_parted(n: int, seed: int) -> None:
    *sets, optimistic = split(numbered(n), seed)
    rows = [set(part.rows.tolist()) for part in sets]
    assert optimistic == ()
    assert set.union(*rows) == set(range(n)) and sum(map(len, rows)) == n
    assert (
        len(sets[0]) == min(256, n // 4) and len(sets[1]) == min(1000, n // 3) and len(sets[2]) >= n - n // 4 - n // 3
    )
    again = split(numbered(n), seed)
    assert [part.digest() for part in sets] == [part.digest() for part in again[:3]]


@given(n=st.integers(60, 200), copies=st.integers(1, 6), seed=st.integers(0, 9))
def test_equal_samples_stay_together(n: int, copies: int, seed: int) -> None:
    *sets, optimistic = split(numbered(n, copies), seed)
    contents = [{int(batch.feeds["x"][0, 0]) for batch in part.batches(1)} for part in sets]
    if optimistic:
        assert n / copies < 30
        assert not contents[0] & contents[2]
    else:
        assert not contents[0] & contents[1] and not contents[0] & contents[2] and not contents[1] & contents[2]
        assert sum(len(part) for part in sets) == n and all(len(part) for part in sets)
        assert len(sets[0]) <= n // 4 and len(sets[1]) <= n // 3


@pytest.mark.parametrize("n", range(1, 30))
def test_few_samples_are_shared_and_it_is_said(n: int) -> None:
    calibrate, select, verify, optimistic = split(numbered(n), 0)
    assert all(len(part) for part in (calibrate, select, verify))
    assert calibrate.rows.tolist() == select.rows.tolist()
    if n < 8:
        assert optimistic == ("accuracy", "candidates.accuracy") and len(verify) == n
    else:
        assert optimistic == ("candidates.accuracy",)
        assert not set(calibrate.rows.tolist()) & set(verify.rows.tolist()) and len(verify) >= n / 2


def test_one_sample_many_times_is_one_sample() -> None:
    assert split(numbered(100, 100), 0)[3] == ("accuracy", "candidates.accuracy")


def test_the_seed_matters() -> None:
    assert split(numbered(90), 0)[2].digest() != split(numbered(90), 1)[2].digest()


@given(size=st.integers(1, 50))
def test_how_the_data_was_batched_does_not_matter(size: int) -> None:
    x = np.arange(80, dtype=np.float32)[:, None]
    parts = split(read_samples(x[i : i + size] for i in range(0, 80, size)), 3)
    assert [part.rows.tolist() for part in parts[:3]] == [part.rows.tolist() for part in split(read_samples(x), 3)[:3]]


def test_labels_follow() -> None:
    for part in split(numbered(50), 0)[:3]:
        for feeds, labels in part.batches(7):
            assert labels is not None
            np.testing.assert_array_equal(feeds["x"][:, 0], labels)


def test_pictures_are_compared_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.intake import image_folder

    for n in range(40):
        Image.new("RGB", (4, 4), (n // 2, 0, 0)).save(tmp_path / f"{n:02}.png")
    monkeypatch.setattr(image_folder, "decode", None)
    calibrate, _, verify, optimistic = split(read_samples(tmp_path), 0)
    assert optimistic == ("candidates.accuracy",)  # 20 different ones
    assert not {row // 2 for row in calibrate.rows} & {row // 2 for row in verify.rows}


def test_text_samples() -> None:
    words = np.array([[f"word {n}"] for n in range(40)], dtype=object)
    assert split(samples_from_arrays({"s": words}), 0)[3] == ()


def test_nothing_to_split() -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        split(numbered(5).take(np.arange(0)), 0)


def test_the_cost_of_hashing() -> None:
    samples = samples_from_arrays({"x": np.random.default_rng(0).random((100, 250_000), np.float32)})
    begin = time.process_time()
    split(samples, 0)
    assert time.process_time() - begin < 5  # 100 MB; about 0.1 s on a machine of 2026
