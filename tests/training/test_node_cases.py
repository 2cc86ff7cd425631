"""The ONNX project's own test cases of operators: all but those listed here give what they should."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'gossamer[torch]'")

from tests.training.node_cases import cases, failure  # noqa: E402

DRAWN = "its numbers are drawn at random, by another generator"
KNOWN = {  # that fail, and why; the test fails if one of them passes
    "test_bernoulli": DRAWN,
    "test_bernoulli_double": DRAWN,
    "test_bernoulli_double_expanded": DRAWN,
    "test_bernoulli_expanded": DRAWN,
    "test_bernoulli_seed": DRAWN,
    "test_bernoulli_seed_expanded": DRAWN,
    "test_training_dropout": DRAWN,
    "test_training_dropout_default": DRAWN,
    "test_training_dropout_default_mask": DRAWN,
    "test_training_dropout_mask": DRAWN,
    "test_melweightmatrix": "MelWeightMatrix makes a table of constants, and no gradient passes it",
    "test_optional_get_element_tensor": "optional values have no counterpart in torch",
    "test_scan_sum": "Scan of opset 8 has a batch axis; intake reads opset 11 and up",
}
LEAST_CASES, LEAST_SHARE = 1_300, 0.95


def test_all_cases_with_a_float_path_pass_but_those_known() -> None:
    torch.manual_seed(0)
    failures = {case.name: reason for case in cases() if (reason := failure(case))}
    assert len(cases()) >= LEAST_CASES
    assert {name: reason for name, reason in failures.items() if name not in KNOWN} == {}
    assert set(KNOWN) - set(failures) == set(), "these pass now: take them off the list"
    assert 1 - len(failures) / len(cases()) >= LEAST_SHARE
