"""Distillation through time: the hidden states of a recurrent student follow its teacher's, step by step."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[train]'")
pytest.importorskip("lightning_fabric", reason="lightning-fabric is not installed: pip install 'gossamer[train]'")

from tests.passes.graphs import normal, parse  # noqa: E402

from gossamer.measuring.fetching import with_outputs  # noqa: E402
from gossamer.nouns.model import Model  # noqa: E402
from gossamer.nouns.samples import samples_from_arrays  # noqa: E402
from gossamer.training.lessons import Lessons  # noqa: E402
from gossamer.training.loop import train  # noqa: E402
from gossamer.training.losses.attention import Attention  # noqa: E402
from gossamer.training.losses.contract import Seen  # noqa: E402
from gossamer.training.losses.features import Features, Hint  # noqa: E402
from gossamer.training.lower import lower  # noqa: E402
from gossamer.training.options import Options  # noqa: E402
from gossamer.training.pupil import Pupil, WeightedLoss  # noqa: E402
from gossamer.training.run import Job  # noqa: E402
from gossamer.training.teacher import from_model  # noqa: E402

STEPS, INPUTS = 5, 3
GATES = {"LSTM": 4, "GRU": 3}


def recurrent(kind: str, width: int) -> Model:
    """Sequences (B, T, 3) to two scores; `states` (B, T, width) are the hidden states of all steps."""
    graph = f"""g (float[N,{STEPS},{INPUTS}] x) => (float[N,2] scores) {{
        steps = Transpose<perm=[1,0,2]>(x)
        all, last = {kind}<hidden_size={width}>(steps, w, r)
        squeezed = Squeeze(all, one)
        states = Transpose<perm=[1,0,2]>(squeezed)
        end = Squeeze(last, zero)
        scores = MatMul(end, head)
    }}"""
    rows = GATES[kind] * width
    weights = {"w": normal(1, rows, INPUTS), "r": normal(1, rows, width) / 2, "head": normal(width, 2)}
    return parse(graph, **weights, one=np.array([1]), zero=np.array([0]))


def hint(student: int, teacher: int) -> Hint:
    return Hint("states", "states", student, teacher, 2, True)


def test_a_recurrent_student_comes_to_follow_the_states_of_another_kind() -> None:
    student, teacher = recurrent("LSTM", 4), recurrent("GRU", 6)
    data = samples_from_arrays({"x": normal(96, STEPS, INPUTS)})
    taught = from_model(teacher, ["scores"], ["states"])
    module = lower(with_outputs(student, ["states"], "features"))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    torch.manual_seed(0)
    loss = Features((hint(4, 6),), 1.0, [(Attention(), 0.1)])
    lessons = [Lessons(data.take(rows), taught) for rows in (np.arange(80), np.arange(80, 96))]
    trained = train(Job(Pupil(module, [WeightedLoss(loss)]), *lessons, Options(6, 16, rate=0.03, device="cpu")))
    assert trained.epochs[-1].loss < 0.6 * trained.epochs[1].loss
    changed = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert len(changed) == 2  # input and recurrent weights; no state says anything of the head


def test_a_hint_over_time_is_the_mean_over_steps() -> None:
    """Each step by itself, with the same adapter."""
    loss = Features((hint(4, 6),))
    own, taught = torch.randn(3, STEPS, 4), torch.randn(3, STEPS, 6)
    adapter = loss.adapters[0]
    errors = [(adapter(own[:, t : t + 1]) - taught[:, t : t + 1]).square().mean() for t in range(STEPS)]
    expected = torch.stack(errors).mean() / taught.square().mean()
    assert loss(Seen((own,), (taught,), None)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_over_time_is_which_steps_are_loud() -> None:
    own, taught = torch.zeros(1, STEPS, 4), torch.zeros(1, STEPS, 6)
    own[0, 2], taught[0, 2] = 1, -3
    loss = Features((hint(4, 6),), 0.0, [(Attention(), 1.0)])
    assert loss(Seen((own,), (taught,), None)).item() == pytest.approx(0, abs=1e-6)
    assert loss(Seen((own.roll(1, 1),), (taught,), None)).item() > 100
