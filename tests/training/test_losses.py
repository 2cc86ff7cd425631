"""Losses: what they are by their formulas, what they are at their least, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from tests.passes.graphs import normal, parse  # noqa: E402

from gossamer.errors import DataError, OptionError  # noqa: E402
from gossamer.training.hints import propose  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.features import Features, Hint  # noqa: E402
from gossamer.training.losses.hard_labels import HardLabels, check_labels  # noqa: E402
from gossamer.training.losses.outputs import Outputs  # noqa: E402
from gossamer.training.losses.soft_labels import SoftLabels, divergence  # noqa: E402

scores = arrays(np.float32, (4, 5), elements=st.floats(-8, 8, width=32))
CONVOLUTIONS = """
    g (float[N,3,16,16] x) => (float[N,10] y) {
        a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, a_w)
        ar = Relu(a)
        b = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(ar, b_w)
        br = Relu(b)
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(br, c_w)
        cr = Relu(c)
        m = GlobalAveragePool(cr)
        f = Flatten(m)
        y = Gemm<transB=1>(f, head_w)
    }"""
TOKENS = """
    g (float[N,T,8] x) => (float[N,T,8] y) {
        a = MatMul(x, a_w)
        x1 = Add(x, a)
        b = MatMul(x1, b_w)
        x2 = Add(x1, b)
        c = MatMul(x2, c_w)
        x3 = Add(x2, c)
        y = MatMul(x3, d_w)
    }"""


def seen(student: Any, teacher: Any = None, labels: Any = None) -> Seen:
    taught = () if teacher is None else (torch.as_tensor(teacher),)
    return Seen((torch.as_tensor(student),), taught, None if labels is None else torch.as_tensor(labels))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@given(scores, scores, st.floats(0.5, 8))
def test_soft_labels_are_the_divergence_of_the_distributions(student: Any, teacher: Any, temperature: float) -> None:
    p, q = (softmax(x.astype(np.float64) / temperature) for x in (teacher, student))
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    got = SoftLabels(temperature)(seen(student, teacher)).item()
    assert got == pytest.approx(expected, rel=1e-3, abs=2e-5 * temperature**2)
    assert got > -1e-5 * temperature**2


@given(scores, st.floats(0.5, 8), st.floats(-5, 5))
def test_soft_labels_vanish_where_both_say_the_same(student: Any, temperature: float, shift: float) -> None:
    loss = SoftLabels(temperature)(seen(student, student + np.float32(shift)))
    assert loss.item() == pytest.approx(0, abs=1e-4)


@given(scores, scores)
def test_at_high_temperature_the_gradient_does_not_vanish(student: Any, teacher: Any) -> None:
    """It tends to the difference of centred scores over the number of classes (Hinton et al. 2015, equation 4)."""
    x = torch.tensor(student.astype(np.float64), requires_grad=True)
    torch.autograd.backward(divergence(x, torch.tensor(teacher.astype(np.float64)), 1e4))
    centred = [z - z.mean(1, keepdims=True) for z in (student.astype(np.float64), teacher.astype(np.float64))]
    assert x.grad is not None
    assert np.allclose(x.grad.numpy(), (centred[0] - centred[1]) / student.shape[1] / len(student), atol=2e-3)


@given(scores, scores, st.floats(0, 1))
def test_alpha_mixes_teacher_and_labels(student: Any, teacher: Any, alpha: float) -> None:
    both = seen(student, teacher, np.array([0, 1, 2, 3]))
    hard, soft = HardLabels()(both).item(), SoftLabels(2.0)(both).item()
    assert SoftLabels(2.0, alpha)(both).item() == pytest.approx(alpha * soft + (1 - alpha) * hard, rel=1e-4, abs=1e-5)


@given(scores, scores)
def test_probabilities_are_taken_for_what_they_are(student: Any, teacher: Any) -> None:
    of_scores = SoftLabels(1.0)(seen(student, teacher)).item()
    of_shares = SoftLabels(1.0, probabilities=True)(seen(softmax(student), softmax(teacher))).item()
    assert of_shares == pytest.approx(of_scores, rel=1e-2, abs=1e-3)


@given(scores)
def test_hard_labels_are_the_surprise_at_the_right_class(student: Any) -> None:
    labels = np.array([4, 0, 2, 2])
    expected = -np.log(softmax(student.astype(np.float64))[np.arange(4), labels]).mean()
    assert HardLabels()(seen(student, labels=labels)).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_labels_that_are_numbers_are_met_in_the_least_squares() -> None:
    loss = HardLabels()(seen(np.float32([[1], [3]]), labels=np.float32([2, 5])))
    assert loss.item() == pytest.approx((1 + 4) / 2)


@given(scores, st.floats(0.01, 100))
def test_outputs_do_not_depend_on_their_scale(teacher: Any, scale: float) -> None:
    wanted = teacher + np.float32(10)
    loss = Outputs()(seen(wanted * np.float32(1.1 * scale), wanted * np.float32(scale))).item()
    assert loss == pytest.approx(0.01, rel=1e-2)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3]))
def test_adapters_bring_the_student_to_the_teachers_channels(student: int, teacher: int, axis: int) -> None:
    shape = [2, 3, 4, 5]
    shapes = [[*shape[:axis], channels, *shape[axis + 1 :]] for channels in (student, teacher)]
    loss = Features((Hint("a", "b", student, teacher, axis, True),))
    given_, wanted = torch.randn(shapes[0]), torch.randn(shapes[1])
    assert loss.adapters[0](given_).shape == wanted.shape
    value = loss(Seen((given_,), (wanted,), None))
    torch.autograd.backward(value)
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_features_that_are_the_teachers_own_need_no_adapter_and_cost_nothing() -> None:
    loss = Features((Hint("a", "a", 3, 3, 1, False),))
    feature = torch.randn(2, 3, 4, 4)
    assert not list(loss.parameters())
    assert loss(Seen((torch.zeros(2, 5), feature), (torch.zeros(2, 5), feature), None)).item() == 0


def convolutions(name: str, widths: tuple[int, int, int]) -> Any:
    a, b, c = widths
    model = parse(
        CONVOLUTIONS, a_w=normal(a, 3, 3, 3), b_w=normal(b, a, 3, 3), c_w=normal(c, b, 3, 3), head_w=normal(10, c)
    )
    for node in model.ir.graph:
        node.outputs[0].name = (
            node.outputs[0].name if node.outputs[0].is_graph_output() else f"{name}.{node.outputs[0].name}"
        )
    return model


def test_the_last_tensors_of_each_resolution_are_pairs() -> None:
    feeds = {"x": normal(1, 3, 16, 16)}
    hints = propose(convolutions("small", (4, 4, 6)), convolutions("big", (8, 12, 16)), feeds)
    ends = [(hint.student, hint.teacher, hint.student_channels, hint.teacher_channels) for hint in hints]
    assert ("small.ar", "big.ar", 4, 8) in ends
    assert ("small.cr", "big.cr", 6, 16) in ends
    assert all(hint.adapted and hint.axis == 1 for hint in hints)


def test_a_network_of_one_resolution_gives_pairs_along_its_depth() -> None:
    model = parse(TOKENS, a_w=normal(8, 8), b_w=normal(8, 8), c_w=normal(8, 8), d_w=normal(8, 8))
    hints = propose(model, model, {"x": normal(1, 4, 8)})
    assert [hint.student for hint in hints] == ["x1", "x2", "x3"]
    assert not any(hint.adapted for hint in hints)
    assert {hint.axis for hint in hints} == {2}


def test_networks_without_a_common_resolution_are_refused() -> None:
    model = parse(TOKENS, a_w=normal(8, 8), b_w=normal(8, 8), c_w=normal(8, 8), d_w=normal(8, 8))
    other = convolutions("big", (4, 4, 4))
    with pytest.raises(
        OptionError, match=r"has tensors of 4 positions, .* of 16x16, 8x8; no pair agrees, so leave out losses"
    ):
        from gossamer.training import hints

        own, others = hints.features(model, {"x": normal(1, 4, 8)}), hints.features(other, {"x": normal(1, 3, 16, 16)})
        hints.paired(own, others, "tokens", "big")


@pytest.mark.parametrize(
    ("loss", "given_", "message"),
    [
        (HardLabels(), seen(np.zeros((2, 3), np.float32)), "hard_labels needs labels"),
        (SoftLabels(), seen(np.zeros((2, 3), np.float32)), "soft_labels needs a teacher"),
        (Outputs(), seen(np.zeros((2, 3), np.float32)), "outputs needs a teacher"),
        (
            Features((Hint("a", "a", 3, 3, 1, False),) * 2),
            seen(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)),
            "features needs 2 tensors of student and teacher as their last outputs, got 1 and 1",
        ),
    ],
)
def test_a_loss_says_what_it_lacks(loss: Any, given_: Seen, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loss(given_)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [((0.0, 1.0), "temperature is 0.0; allowed is a number above 0"), ((1.0, 1.5), "alpha is 1.5; allowed is 0")],
)
def test_settings_out_of_range_are_refused(settings_: tuple[float, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SoftLabels(*settings_)


def test_a_wrong_label_is_named_by_its_place_in_the_data() -> None:
    with pytest.raises(DataError, match="the label of sample 35 is 77"):
        check_labels(torch.zeros(2, 10), torch.tensor([1, 77]), "data", [3, 35])
