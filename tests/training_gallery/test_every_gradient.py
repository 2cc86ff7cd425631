"""Every differentiable operator against finite differences, on the ONNX project's own test cases.

Inputs are doubles, moved a little off the round numbers of the cases, where many functions have a kink.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from tests.training.node_cases import Case, cases, lowered, tensors  # noqa: E402

from gossamer.training.operators.table import DOMAINS, find  # noqa: E402

NO_GRADIENT_INTO = {  # inputs that are settings or statistics, though they come as floats
    "BatchNormalization": (3, 4),
    "NegativeLogLikelihoodLoss": (2,),
    "SoftmaxCrossEntropyLoss": (2,),
    "RoiAlign": (1,),
    "Resize": (1, 2),
    "Upsample": (1,),
    "Dropout": (1,),
    "Range": (0, 1, 2),
}
NOT_ASKED = {
    "Bernoulli": "draws at random",
    "Cast": "another type is another precision",
    "CastLike": "another type is another precision",
    "DynamicQuantizeLinear": "its gradient is not that of its steps, by design; see test_quantization",
    "QuantizeLinear": "its gradient is not that of its steps, by design; see test_quantization",
    "DequantizeLinear": "its gradient is that of a product; integers have none",
    "MelWeightMatrix": "is not lowered",
    "OptionalGetElement": "is not lowered",
}
CASES_NOT_ASKED = {
    "test_attention_24_qk_matmul_output_mode3_softmax_precision": "computes in single precision",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "an output holds minus infinity",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "an output holds minus infinity",
    "test_mod_float_edge_cases_fmod_0_float16": "inputs are infinite",
    "test_mod_float_edge_cases_fmod_0_float32": "inputs are infinite",
    "test_mod_float_edge_cases_fmod_0_float64": "inputs are infinite",
    "test_reduce_log_sum_empty_set": "there is nothing to differ by",
    "test_reduce_log_sum_exp_empty_set": "there is nothing to differ by",
    "test_scan_sum": "Scan of opset 8 is not lowered",
}
LEAST_OPERATORS = 120


def asked() -> dict[str, list[Case]]:
    """Cases of one node, by operator."""
    by_operator: dict[str, list[Case]] = {}
    for case in cases():
        operator = case.model.graph.node[0].op_type
        single = "_expanded" not in case.name and operator not in NOT_ASKED and case.name not in CASES_NOT_ASKED
        if single and not ("training_dropout" in case.name and "zero" not in case.name):
            by_operator.setdefault(operator, []).append(case)
    return by_operator


def moved(case: Case) -> list[Any]:
    """The case's inputs, floats as doubles that ask for a gradient."""
    node = case.model.graph.node[0]
    present = [index for index, name in enumerate(node.input) if name]
    inputs = []
    for index, tensor in zip(present, tensors(case.data_sets[0][0]), strict=True):
        if tensor.is_floating_point():
            tensor = tensor.double()
            if index not in NO_GRADIENT_INTO.get(node.op_type, ()) and index not in sizes_of(case):
                off = 1e-2 * torch.rand_like(tensor) * tensor.abs().clamp(min=0.1)
                tensor = (tensor + off * torch.where(tensor < 0, -1.0, 1.0)).requires_grad_()
        inputs.append(tensor)
    return inputs


def sizes_of(case: Case) -> tuple[int, ...]:
    """Inputs that are Python numbers."""
    node = case.model.graph.node[0]
    version = next(entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx"))
    operator = find("", node.op_type, version)
    return () if operator is None else operator.sizes


def test_gradients_are_those_of_the_functions() -> None:
    torch.set_num_threads(1)
    wrong, passed = {}, set()
    for operator, its_cases in asked().items():
        for case in its_cases:
            torch.manual_seed(0)
            try:
                if differs(case):
                    passed.add(operator)
            except Exception as error:  # whatever it is, the case counts as wrong
                wrong[case.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    assert wrong == {}
    assert len(passed) >= LEAST_OPERATORS, sorted(set(DOMAINS[""]) - passed)


def differs(case: Case) -> bool:
    """Whether any gradient passes; if so, it is checked."""
    module, inputs = lowered(case), moved(case)

    def function(*given: Any) -> tuple[Any, ...]:
        made = module(*given)
        outputs = made if isinstance(made, tuple) else (made,)
        return tuple(output for output in outputs if output.is_floating_point() and output.requires_grad)

    if not any(tensor.requires_grad for tensor in inputs) or not function(*inputs):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradcheck warns of what it cannot know
        return bool(torch.autograd.gradcheck(function, inputs, fast_mode=True, atol=1e-4, rtol=1e-3))
