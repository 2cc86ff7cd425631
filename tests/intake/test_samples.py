"""The doors for data: every source gives the same samples, and what is wrong with one is said in one line."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from gossamer.errors import DataError, OptionError, OutputError
from gossamer.intake.file_column import FileColumn
from gossamer.intake.samples import DataOptions, read_samples
from gossamer.nouns.samples import Samples

X = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)
Y = np.arange(10) % 3


def assert_refused(source: Any, match: str, options: DataOptions | None = None) -> None:
    with pytest.raises(DataError, match=match) as caught:
        samples = read_samples(source, options)
        for _ in samples.batches(4):
            pass
    assert "\n" not in str(caught.value)


def whole(samples: Samples, name: str) -> np.ndarray:
    return np.concatenate([batch.feeds[name] for batch in samples.batches(3)])


# files of arrays


@pytest.mark.parametrize("label", ["labels", "label", "y", "target", "targets"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path: Path, label: str, compressed: bool) -> None:
    write = np.savez_compressed if compressed else np.savez
    write(tmp_path / "d.npz", image=X, **{label: Y})
    samples = read_samples(str(tmp_path / "d.npz"))
    np.testing.assert_array_equal(whole(samples, "image"), X)
    assert samples.labels is not None and samples.labels.tolist() == Y.tolist()
    assert isinstance(samples.columns["image"], FileColumn) and samples.source == str(tmp_path / "d.npz")


def test_npz_without_labels_and_with_several_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=X, b=Y)
    samples = read_samples(tmp_path / "d.npz")
    assert samples.labels is None and set(samples.columns) == {"a", "b"} and len(samples) == 10


def test_npy_is_one_unlabelled_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    samples = read_samples(tmp_path / "d.npy")
    assert samples.labels is None
    np.testing.assert_array_equal(whole(samples, "input_0"), X)


@given(
    array=hnp.arrays(
        st.sampled_from(["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", "|b1", "<U3"]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4),
        elements=None,
    ),
    fortran=st.booleans(),
    compressed=st.booleans(),
)
def test_arrays_come_back_as_they_were(
    array: np.ndarray, fortran: bool, compressed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npz") / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, a=np.asfortranarray(array) if fortran else array)
    column = read_samples(path).columns["a"]
    for row, sample in enumerate(array):
        read = np.asarray(column[row])
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, sample)


def test_memory_of_an_array_file_is_one_sample(tmp_path: Path) -> None:
    import tracemalloc

    np.save(tmp_path / "d.npy", np.zeros((200, 25_000), np.float32))
    tracemalloc.start()
    samples = read_samples(tmp_path / "d.npy")
    for _ in samples.batches(4):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # of 20 MB


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
def test_pickles_are_never_loaded(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (sys.exit, (99,))

    array = np.array([Trap()], dtype=object)
    if name == "d.npy":
        np.save(tmp_path / name, array, allow_pickle=True)
    else:
        np.savez(tmp_path / name, a=array)
    assert_refused(tmp_path / name, "holds Python objects; pickles are never loaded")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({}, "holds no arrays"),
        ({"a": X[:0]}, "the data set is empty"),
        ({"labels": Y}, "no input arrays"),
        ({"a": X, "labels": Y[:7]}, "a has 10, labels has 7 samples; every input and the labels need the same number"),
        ({"a": X, "b": X[:9]}, "a has 10, b has 9 samples"),
        ({"a": np.float32(3)}, "array 'a' is a single number"),
        ({"a": X, "labels": np.array(list("abcdefghij"))}, "'labels' has type <U1; labels must be numbers"),
        ({"a": X, "labels": np.where(Y == 1, np.nan, Y)}, "'labels' has NaN or Inf at sample 1"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    assert_refused(tmp_path / "d.npz", match)


@given(cut=st.floats(0, 0.999), compressed=st.booleans())
def test_truncated_files(cut: float, compressed: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, a=X)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    assert_refused(path, "d.npz: cannot be read as .npz")
    path = path.with_suffix(".npy")
    np.save(path, X)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    assert_refused(path, "d.npy: cannot be read as .npy|d.npy is cut short")


@given(content=st.binary(max_size=100), suffix=st.sampled_from([".npy", ".npz"]))
def test_random_files(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / f"d{suffix}"
    path.write_bytes(content)
    assert_refused(path, f"d{suffix}: cannot be read as {suffix}")


def test_a_header_that_claims_too_much(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    content = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(content.replace(b"(10, 2, 3), }      ", b"(10**15, 2, 3), }  "[:19]))
    assert_refused(tmp_path / "d.npy", "cannot be read|cut short")
    (tmp_path / "d.npy").write_bytes(content.replace(b"(10, 2, 3), }          ", b"(99999999999, 2, 3), } "))
    assert_refused(tmp_path / "d.npy", "cut short: shape .99999999999, 2, 3. of float32 needs")


@pytest.mark.parametrize("name", ["absent.npz", "d.csv", "d.pkl", "plain"])
def test_other_files(tmp_path: Path, name: str) -> None:
    if "absent" not in name:
        (tmp_path / name).write_bytes(b"x")
    assert_refused(tmp_path / name, "no such file or folder; give|is not a kind of data gossamer reads; give a .npz")


def test_the_file_is_closed_when_the_samples_are_gone(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    samples = read_samples(tmp_path / "d.npy")
    file = samples.columns["input_0"].file  # type: ignore[union-attr]
    del samples
    gc.collect()
    assert file.closed


# arrays in memory


def test_mappings_arrays_and_pairs() -> None:
    assert set(read_samples({"a": X, "b": X, "y": Y}).columns) == {"a", "b"}
    assert read_samples({"a": X, "y": Y[:, None]}).labels.shape == (10,)  # type: ignore[union-attr]
    assert read_samples(X).labels is None
    assert read_samples((X, Y)).labels is not None
    given = read_samples(X)
    assert read_samples(given) is given
    ragged = read_samples({"a": [np.zeros((n, 2)) for n in (1, 1, 3)]})
    assert [batch.feeds["a"].shape for batch in ragged.batches(4)] == [(2, 1, 2), (1, 3, 2)]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"a": np.array([{}, {}])}, "'a' has type object; only arrays of numbers"),
        ({"a": X, "y": [1, 2]}, "a has 10, labels has 2 samples"),
        ({}, "no input arrays"),
        (3, "data of type int; give a .npz"),
        ({"a": 3.0}, "single number"),
    ],
)
def test_memory_that_cannot_be_used(source: Any, match: str) -> None:
    assert_refused(source, match)


# iterables


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6), form=st.sampled_from(["pair", "dict", "in_dict", "list"])
)
def test_an_iterable_gives_the_same_whatever_its_batches(sizes: list[int], form: str) -> None:
    n = sum(sizes)
    x, y = np.resize(X, (n, 2, 3)), np.resize(Y, n)

    def batches() -> Iterator[Any]:
        start = 0
        for size in sizes:
            a, b = x[start : start + size], y[start : start + size]
            yield {"pair": (a, b), "dict": ({"input_0": a}, b), "in_dict": {"input_0": a, "y": b}, "list": [[a], b]}[
                form
            ]
            start += size

    samples = read_samples(batches())  # a generator: it can be read only once
    for _ in range(2):
        np.testing.assert_array_equal(whole(samples, "input_0"), x)
    assert samples.digest() == read_samples((x, y)).digest()


def test_ragged_batches_and_several_inputs() -> None:
    source = [(np.zeros((2, n)), np.full((2, 3), n), np.ones((2, 1))) for n in (4, 4, 7, 0)]
    samples = read_samples(source)
    assert list(samples.columns) == ["input_0", "input_1", "input_2"]
    assert [batch.feeds["input_0"].shape for batch in samples.batches(3)] == [(3, 4), (1, 4), (2, 7), (2, 0)]
    assert [batch.feeds["input_1"][0, 0] for batch in samples.batches(3)] == [4, 4, 7, 0]


def test_a_pair_with_none_is_unlabelled() -> None:
    assert read_samples([((X, X), None)]).labels is None
    assert set(read_samples([((X, X), None)]).columns) == {"input_0", "input_1"}


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ([], "gave no batch"),
        (iter(()), "gave no batch"),
        ([X[:0]], "the data set is empty"),
        ([(X, Y[:3])], r"batch 0 holds input_0 \(10, 2, 3\), labels \(3,\); each needs the same number"),
        ([{"a": X}, {"b": X}], "batch 1 holds b; the first batch held a"),
        ([X, X.astype("f8")], "batch 1: 'input_0' has type float64; the batches before had float32"),
        ([np.array([object()])], "batch 0, 'input_0' has type object"),
        ([3], "batch 0 is a int; give an array, a sequence of arrays or a mapping"),
        ([np.float32(3)], r"holds input_0 \(\)"),
    ],
)
def test_iterables_that_cannot_be_used(source: Any, match: str) -> None:
    assert_refused(source, match)


def test_a_failing_iterable_is_named() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield X
        raise KeyError("shard 2")

    assert_refused(broken(), "generator: raised KeyError: 'shard 2'")


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.intake import file_column

    class Full:
        def write(self, _: Any) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(file_column.tempfile, "TemporaryFile", Full)
    with pytest.raises(
        OutputError, match=r"cannot keep input 'input_0' in .*No space left on device; free some space or"
    ):
        read_samples([X])


def test_tensors_are_taken_without_importing_torch() -> None:
    class Tensor:
        """What a torch tensor looks like from outside."""

        dtype, shape = "torch.float32", (10, 2, 3)

        def detach(self) -> Tensor:
            return self

        def cpu(self) -> np.ndarray:
            return X

        def __array__(self) -> np.ndarray:
            raise AssertionError("not detached")

    np.testing.assert_array_equal(whole(read_samples([(Tensor(), Y)]), "input_0"), X)


def test_a_torch_loader() -> None:
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y))
    samples = read_samples(torch.utils.data.DataLoader(data, batch_size=4))
    np.testing.assert_array_equal(whole(samples, "input_0"), X)
    assert samples.labels is not None and samples.labels.tolist() == Y.tolist()
    half = read_samples([torch.ones(2, 3, dtype=torch.bfloat16)])
    assert whole(half, "input_0").dtype == np.float32


# module:function


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_data_xyz.py").write_text(
        "import numpy as np\n"
        "def batches():\n    yield np.ones((2, 3)), np.array([0, 1])\n"
        "loader = [np.ones((2, 3))] * 3\n"
        "def arrays():\n    return {'a': np.ones((2, 3))}\n"
        "def fails():\n    raise RuntimeError('no disk')\n"
        "def text():\n    return 'x.npz'\n"
        "def attribute():\n    return np.nothing_of_this_name\n"
    )
    (tmp_path / "broken_xyz.py").write_text("import not_there_xyz\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield "my_data_xyz"
    assert sys.path == before
    sys.modules.pop("my_data_xyz", None)


def test_a_function_in_the_current_folder(module: str) -> None:
    assert len(read_samples(f"{module}:batches")) == 2
    assert len(read_samples(f"{module}:loader")) == 6
    assert set(read_samples(f"{module}:arrays").columns) == {"a"}


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("my_data_xyz:batchs", "the module has no 'batchs'; did you mean batches?"),
        ("my_data_xyz:fails", "my_data_xyz:fails: raised RuntimeError: no disk"),
        ("my_data_xyz:text", "gave a text, 'x.npz'"),
        ("my_data_xyz:attribute", "my_data_xyz:attribute: raised AttributeError"),
        ("no_such_module_xyz:f", "no module 'no_such_module_xyz' here or among the installed ones"),
        ("broken_xyz:f", "importing it raised ModuleNotFoundError: No module named 'not_there_xyz'"),
    ],
)
def test_functions_that_cannot_be_used(module: str, address: str, match: str) -> None:
    assert_refused(address, match)


# folders of images


def paint(path: Path, colour: Any = (255, 0, 51), size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_class_folders_by_name(tmp_path: Path) -> None:
    for name in ("dog", "ant", "cat"):
        paint(tmp_path / name / "b.png")
        paint(tmp_path / name / "a.png")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "empty").mkdir()
    samples = read_samples(tmp_path)
    assert samples.labels is not None and samples.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.parent.name for path in samples.columns["input_0"].paths][::2] == ["ant", "cat", "dog"]  # type: ignore[union-attr]


def test_class_folders_by_number(tmp_path: Path) -> None:
    for name in ("10", "2", "0"):
        paint(tmp_path / name / "a.png")
    samples = read_samples(tmp_path)
    assert samples.labels is not None and samples.labels.tolist() == [0, 2, 10]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.jpg")
    samples = read_samples(str(tmp_path))
    assert samples.labels is None and len(samples) == 2
    ((feeds, _),) = samples.take(np.array([0])).batches(1)
    np.testing.assert_allclose(feeds["input_0"][0, :, 0, 0], [1, 0, 0.2])
    assert feeds["input_0"].shape == (1, 3, 6, 8) and feeds["input_0"].dtype == np.float32


@pytest.mark.parametrize(
    ("options", "shape", "first"),
    [
        (DataOptions(size=4), (3, 4, 4), 1.0),
        (DataOptions(size=4, resize=6), (3, 4, 4), 1.0),
        (DataOptions(size=16), (3, 16, 16), 1.0),
        (DataOptions(size=4, layout="nhwc"), (4, 4, 3), 1.0),
        (DataOptions(channels="bgr"), (3, 6, 8), 0.2),
        (DataOptions(channels="grey"), (1, 6, 8), 82 / 255),
        (DataOptions(scale=1, mean=(127,), std=(128,)), (3, 6, 8), 1.0),
        (DataOptions(mean=(0.5, 0.2, 0.1), std=(0.25, 1, 1)), (3, 6, 8), 2.0),
        (DataOptions(scale=1), (3, 6, 8), 255),
    ],
)
def test_options_of_pictures(tmp_path: Path, options: DataOptions, shape: tuple[int, ...], first: float) -> None:
    paint(tmp_path / "a.png")
    image = read_samples(tmp_path, options).columns["input_0"][0]
    assert image.shape == shape and image.ravel()[0] == pytest.approx(first, abs=0.01)
    assert image.dtype == (np.uint8 if options == DataOptions(scale=1) else np.float32)
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(options)), DataOptions) == options


def test_the_crop_is_central(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (read_samples(tmp_path, DataOptions(size=10)).columns["input_0"][0] == 1).all()


def test_transparency_becomes_white(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (255, 0, 0, 0), mode="RGBA")
    assert (read_samples(tmp_path).columns["input_0"][0] == 1).all()


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    assert_refused(tmp_path, "no pictures")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert_refused(tmp_path, "bad.png: cannot be decoded as a picture .*; replace or remove the file")
    paint(tmp_path / "cats" / "a.png")
    assert_refused(tmp_path, "bad.png lies beside the class folder 'cats'")


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg", size=(64, 64))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    assert_refused(tmp_path, "a.jpg: cannot be decoded as a picture")


def test_deep_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    assert_refused(tmp_path, "a.png: has mode I.*, more than 8 bits a channel")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"size": 0}, "size is 0; allowed is a number of pixels from 1 up"),
        ({"resize": 8}, "resize is 8 and size is None"),
        ({"size": 9, "resize": 8}, "resize is 8 and size is 9; resize needs a size no greater"),
        ({"mean": (1.0, 2.0)}, "mean has 2 numbers; channels rgb needs 1 or 3"),
        ({"std": (0.0,)}, "scale and std not zero"),
        ({"scale": float("nan")}, "all must be finite"),
        ({"layout": "chw"}, "layout is 'chw'; allowed are nchw, nhwc"),
        ({"channels": "gray"}, "channels is 'gray'; allowed are rgb, grey, bgr"),
    ],
)
def test_options_that_are_wrong(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        DataOptions(**fields)
    with pytest.raises((OptionError, msgspec.ValidationError)):
        msgspec.convert(fields, DataOptions)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert({"colour": "rgb"}, DataOptions)
