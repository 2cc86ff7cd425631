"""The loop: the same bits twice, one step whatever it is cut into, and clear ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402
from tests.training.small_jobs import job, network, same_bits, samples, values  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

from gossamer.errors import CandidateError, DataError, ModelError, OptionError  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.training.lessons import Lessons  # noqa: E402
from gossamer.training.loop import steps_of, train  # noqa: E402
from gossamer.training.losses.hard_labels import HardLabels  # noqa: E402
from gossamer.training.losses.soft_labels import SoftLabels  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.pupil import Pupil, WeightedLoss  # noqa: E402
from gossamer.training.run import Job  # noqa: E402
from gossamer.training.teacher import from_model  # noqa: E402
from gossamer.training.watching import Watch  # noqa: E402

CLOSE = 2e-6


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    ours, theirs = values(a), values(b)
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def test_the_network_learns_and_ends_in_eval_mode() -> None:
    module = network()
    trained = train(job(module, options={"epochs": 8, "rate": 0.03}))
    first, last = trained.epochs[0], trained.epochs[trained.best_epoch]
    assert last.right > 0.75 > first.right + 0.2
    assert last.validation_loss < first.validation_loss
    assert [epoch.epoch for epoch in trained.epochs] == list(range(9))
    assert not module.training


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_others() -> None:
    twins = [network(dropout=0.2) for _ in range(2)]
    for module in twins:
        train(job(module, options={"rate": None, "average": 0.9}))
    other = network(dropout=0.2)
    train(job(other, options={"rate": None, "average": 0.9, "seed": 1}))
    assert same_bits(*twins)
    assert not same_bits(twins[0], other)


def test_the_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(job(network(dropout=0.2), options={"epochs": 1}))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_batches_that_are_accumulated_make_the_step_of_one_large_batch(optimizer: Any) -> None:
    whole, parts = network(), network()
    train(job(whole, options={"batch": 64, "optimizer": optimizer}))
    train(job(parts, options={"batch": 16, "accumulate": 4, "optimizer": optimizer}))
    assert largest_difference(whole, parts) < CLOSE


def test_two_processes_make_the_step_of_the_doubled_batch() -> None:
    alone, shared = network(), network()
    one = train(job(alone, options={"batch": 64, "rate": None, "average": 0.9}))
    two = train(job(shared, options={"batch": 32, "rate": None, "average": 0.9, "devices": 2}))
    assert largest_difference(alone, shared) < CLOSE
    assert two.rate == one.rate
    assert two.epochs[-1].loss == pytest.approx(one.epochs[-1].loss, rel=1e-5)
    assert two.epochs[-1].right == one.epochs[-1].right


def test_two_processes_ask_a_teacher_that_is_not_remembered() -> None:
    teacher = from_model(parse("g (float[N,8] x) => (float[N,3] y) { y = MatMul(x, w) }", w=normal(8, 3)), ["y"])
    losses = (WeightedLoss(SoftLabels()),)
    modules = network(), network()
    for module, devices in zip(modules, (1, 2), strict=True):
        plain = job(module, losses=losses, options={"batch": 32 // devices, "devices": devices})
        lessons = [Lessons(part.samples, teacher) for part in (plain.data, plain.validation)]
        train(Job(plain.pupil, lessons[0], lessons[1], plain.options))
    assert largest_difference(*modules) < CLOSE


def test_an_error_in_one_of_two_processes_is_the_error_of_the_run() -> None:
    with pytest.raises(CandidateError, match=r"the loss became NaN .* is the first that is not finite"):
        train(job(options={"batch": 32, "devices": 2, "rate": 1e30, "optimizer": "sgd", "clip": 0.0}))


def test_training_ends_when_patience_does_and_keeps_the_best() -> None:
    data = samples()
    wrong = np.where(np.arange(len(data)) < len(data) * 4 // 5, (data.labels + 1) % 3, data.labels)
    module = network()
    before = values(module)
    trained = train(job(module, samples_from_arrays(data.columns, wrong), options={"epochs": 30, "patience": 3}))
    assert trained.best_epoch + 3 == len(trained.epochs) - 1 < 30
    if trained.best_epoch == 0:
        assert all((values(module)[name] == before[name]).all() for name in before)


def test_weights_under_a_parametrization_train() -> None:
    class Rounded(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + (torch.round(weight * 8) / 8 - weight).detach()

    module = network()
    parametrize.register_parametrization(module[0], "weight", Rounded())
    before = module[0].weight.detach().clone()
    train(job(module))
    after = module[0].weight.detach()
    assert not torch.equal(before, after)
    assert torch.allclose(after * 8, torch.round(after * 8), atol=1e-6)


def test_bfloat16_keeps_the_weights_in_float32() -> None:
    module = network()
    trained = train(job(module, options={"precision": "bfloat16", "epochs": 4}))
    assert trained.epochs[-1].right > trained.epochs[0].right + 0.2
    assert module[0].weight.dtype == torch.float32


def test_samples_of_differing_shapes_train() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.scores(tokens.mean(1))
            return result

    data = samples(60)
    lengths = np.random.default_rng(1).integers(1, 4, 60)
    columns = {"x": [np.repeat(x[None], length, 0) for x, length in zip(data.columns["x"], lengths, strict=True)]}
    torch.manual_seed(0)
    ragged, even = Mean(), Mean()
    even.load_state_dict(ragged.state_dict())
    train(job(ragged, samples_from_arrays(columns, data.labels)))
    train(job(even, samples_from_arrays({"x": data.columns["x"][:, None]}, data.labels)))
    assert largest_difference(ragged, even) < CLOSE


def test_a_model_with_a_fixed_batch_always_gets_that_many() -> None:
    sizes = set()

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            sizes.add(len(x))
            result: Tensor = self.inner(x)
            return result

    plain = job(Fixed(), options={"batch": 4, "accumulate": 8})
    lessons = [Lessons(part.samples, None, 4) for part in (plain.data, plain.validation)]
    train(Job(plain.pupil, lessons[0], lessons[1], plain.options))
    assert sizes == {4}


# --- clear ends


class Greedy(nn.Module):
    """Has no memory for more than some samples."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner = network()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} samples")
        result: Tensor = self.inner(x)
        return result


def test_for_want_of_memory_the_batch_is_halved_and_the_steps_stay_the_same() -> None:
    said: list[str] = []
    greedy, ample = Greedy(16), Greedy(32)
    trained = train(job(greedy, watch=Watch(said.append)))
    train(job(ample))
    assert largest_difference(greedy, ample) < CLOSE
    assert trained.batch == 16
    assert [line for line in said if "memory" in line] == [
        "memory does not suffice for a batch of 32 (no memory for 32 samples); going on with 16, twice as many a "
        "step, so that the steps stay as they were"
    ]


def test_want_of_memory_for_half_the_batch_is_the_end() -> None:
    with pytest.raises(CandidateError, match="memory does not suffice for a batch of 16; give a smaller batch"):
        train(job(Greedy(4)))


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_what_was_good(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    module = network()
    before = values(module)
    with pytest.raises(CandidateError, match=r"in epoch 1, step 2: layer 3 is the first .* at most 1e\+30\) or clip"):
        train(job(module, checkpoint=checkpoint, options={"rate": 1e30, "optimizer": "sgd", "clip": 0.0, "warm_up": 0}))
    assert checkpoint.exists()
    assert all((values(module)[name] == before[name]).all() for name in before)


def test_an_epoch_whose_validation_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    class Once(nn.Module):
        """Judged badly the second time."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.judged = 0

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x)
            self.judged += not self.training and len(x) > 2
            return result * math.nan if not self.training and self.judged in (3, 4) else result

    said: list[str] = []
    trained = train(job(Once(), checkpoint=tmp_path / "run.safetensors", watch=Watch(said.append)))
    assert [epoch.validation_loss is None for epoch in trained.epochs] == [False, True, False]
    assert trained.best_epoch == 2
    assert said[1].endswith("validation loss is not finite")


def test_the_layer_of_a_lowered_graph_goes_by_its_node() -> None:
    graph = """g (float[N,8] x) => (float[N,3] y) {
        h = MatMul(x, first)
        low = Sub(h, shift)
        root = Sqrt(low)
        y = MatMul(root, second)
    }"""
    model = parse(graph, first=normal(8, 4), shift=np.full(4, 99, np.float32), second=normal(4, 3))
    with pytest.raises(CandidateError, match="in epoch 1, step 1: layer node_root is the first that is not finite"):
        train(job(lower(model)))


def test_a_graph_without_float_weights_is_refused() -> None:
    module = network().requires_grad_(False)
    with pytest.raises(ModelError, match="little has no float weights to train; its weights are integers"):
        train(job(module))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=f"little: weight 0.weight is {str(dtype)[6:]}, in which small steps vanish"):
        train(job(network().to(dtype)))


def test_a_layer_that_lets_no_gradient_through_is_named() -> None:
    graph = """g (float[N,8] x) => (float[N,3] y) {
        h = MatMul(x, first)
        top = ArgMax<axis=1>(h)
        number = Cast<to=1>(top)
        y = Mul(number, fixed)
    }"""
    module = lower(parse(graph, first=normal(8, 3), fixed=np.ones(3, np.float32)))
    module.get_parameter("fixed").requires_grad_(False)
    with pytest.raises(ModelError, match="no gradient reaches its weights, as layer node_top lets none through"):
        train(job(module))


def test_a_module_whose_gradient_is_cut_is_refused() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x).argmax(1, keepdim=True).float().expand(-1, 3)
            return result

    with pytest.raises(ModelError, match="little cannot be trained: no gradient reaches its weights"):
        train(job(Cut()))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 3] * 80), "the label of sample 2 is 3; the model gives 3 scores, so labels go from 0 to 2"),
        (np.array([0, -1, 2] * 80), "the label of sample 1 is -1; the model gives 3 scores"),
        (np.zeros((240, 4), np.int64), r"labels have shape \(N, 4\) and the model's scores \(N, 3\)"),
        (np.zeros((240, 4), np.float32), "labels are 4 numbers a sample, the model gives 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(job(data=samples_from_arrays(samples().columns, labels)))


def test_a_teacher_of_other_classes_is_refused() -> None:
    plain = job()
    other = Lessons(plain.data.samples, lambda rows, _: (np.zeros((len(rows), 5), np.float32),))
    with pytest.raises(DataError, match=r"output 0 of the teacher has shape \(N, 5\), that of the student \(N, 3\)"):
        train(Job(plain.pupil, other, other, plain.options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; allowed is a whole number from 1 up"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; allowed are adamw, sgd"),
        ({"rate": -1.0}, "rate is -1.0; allowed is a number above 0"),
        ({"rate": math.nan}, "rate is nan; allowed is a number above 0"),
        ({"average": 1.0}, "average is 1.0; allowed is a share from 0 to under 1"),
        ({"clip": -1.0}, "clip is -1.0; allowed is a number from 0 up"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(OptionError, match="device is cuda, which torch does not find here; allowed are auto, cpu"):
        train(job(options={"device": "cuda"}))


# --- what is told


def test_every_epoch_is_told_and_every_step_counted() -> None:
    said: list[str] = []
    steps: list[tuple[int, int]] = []
    figures: list[tuple[dict[str, float], int]] = []
    watch = Watch(
        said.append, lambda done, all_: steps.append((done, all_)), lambda f, at: figures.append((dict(f), at))
    )
    train(job(watch=watch))
    assert [line[:12] for line in said] == ["epoch 0 of 2", "epoch 1 of 2", "epoch 2 of 2"]
    assert steps == [(done, 12) for done in range(1, 13)]
    assert [at for _, at in figures] == [0, 1, 2]
    assert set(figures[1][0]) == {"loss", "validation loss", "validation right", "rate"}


# --- the order of samples


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 4), st.integers(0, 5))
def test_an_epoch_sees_each_sample_once_but_for_a_short_last_step(
    count: int, batch: int, each: int, epoch: int
) -> None:
    options = Options(batch=batch, accumulate=each)
    steps = steps_of(count, options, epoch)
    seen = np.concatenate(steps)
    assert len(set(seen.tolist())) == len(seen) <= count
    assert count - len(seen) < options.step_samples / 2
    assert all(len(step) == options.step_samples for step in steps[:-1])
    assert all((a == b).all() for a, b in zip(steps, steps_of(count, options, epoch), strict=True))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 8))
def test_every_process_has_a_share_of_every_step(count: int, batch: int, devices: int) -> None:
    options = Options(batch=batch, devices=devices)
    if count < devices:
        with pytest.raises(DataError, match=f"{count} samples cannot be shared by {devices} processes; give fewer"):
            steps_of(count, options, 0)
    else:
        assert all(len(step[rank::devices]) for step in steps_of(count, options, 0) for rank in range(devices))


@given(st.integers(1, 40), st.integers(1, 12))
def test_pieces_are_the_samples_in_parts_of_even_size(count: int, most: int) -> None:
    lessons = Lessons(samples(50))
    positions = np.random.default_rng(count).permutation(50)[:count]
    pieces = lessons.pieces(positions, most)
    assert np.array_equal(
        np.concatenate([piece.inputs[0].numpy() for piece in pieces]), lessons.samples.columns["x"][positions]
    )
    sizes = [piece.size for piece in pieces]
    assert max(sizes) <= most
    assert len(sizes) == -(-count // most)


def test_samples_in_files_are_read_a_few_steps_ahead_and_no_further() -> None:
    reads: list[int] = []

    class OnDemand(list):  # type: ignore[type-arg]
        def __getitem__(self, row: Any) -> Any:
            reads.append(row)
            return super().__getitem__(row)

    lessons = Lessons(samples_from_arrays({"x": OnDemand(np.zeros((400, 8), np.float32))}))
    steps = np.split(np.arange(400), 50)
    for done, _ in enumerate(lessons.in_turn(steps, 8), 1):
        assert len(reads) <= 8 * (done + 4)
    assert sorted(reads) == list(range(400))


def test_a_pupil_sums_its_losses_by_their_shares() -> None:
    piece = Lessons(samples(8)).pieces(np.arange(8), 8)[0]
    module = network()
    one, _ = Pupil(module, [WeightedLoss(HardLabels())])(piece)
    two, _ = Pupil(module, [WeightedLoss(HardLabels(), 0.25), WeightedLoss(HardLabels(), 0.5)])(piece)
    assert two.item() == pytest.approx(0.75 * one.item())


def test_an_interrupt_keeps_the_best_so_far_and_the_checkpoint(tmp_path: Path) -> None:
    def steps(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    said: list[str] = []
    asked = {"epochs": 6, "rate": 0.01}
    begun = job(checkpoint=tmp_path / "run.safetensors", watch=Watch(said.append, steps), options=asked)
    trained = train(begun)
    assert trained.interrupted and 0 < trained.best_epoch <= 3
    assert any("interrupted: going on with the best so far" in line for line in said)
    again = train(job(checkpoint=tmp_path / "run.safetensors", options=asked))
    whole = train(job(options=asked))
    assert not again.interrupted and again.epochs == whole.epochs


def test_an_interrupt_before_anything_is_better_ends_training() -> None:
    def steps(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(watch=Watch(steps=steps)))
