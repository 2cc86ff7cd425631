from __future__ import annotations

from tests.planning.plans import constraints_in

from gossamer.constraints.contract import as_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.nouns.plan import Plan, Step, plan_from_yaml
from gossamer.planning.allocated import allocated

CLEAN = Plan("clean", (Step("fold_constants"),))


def test_one_step_for_all_layers_and_floats_left_out() -> None:
    nodes = ["a", "conv[1]", "conv1", "d", "e"]
    given = [Grid(4), Grid(8), Grid(4), None, Grid(4)]
    plan = allocated(CLEAN, nodes, given, {"solver": "second_order"}, "2 MB")
    assert plan.name == "2 MB"
    assert [step.method for step in plan.steps] == ["fold_constants", "constrain_weights"]
    assert plan.steps[1].config["solver"] == "second_order"
    assert len(plan.steps[1].config["by_layer"]) == 1  # the others have the constraint of most
    wanted = {node: as_text(one) for node, one in zip(nodes, given, strict=True) if one is not None}
    assert constraints_in(plan, nodes) == wanted  # a name with brackets is no pattern


def test_constraints_come_back_from_a_written_plan() -> None:
    given = [Grid(3, granularity=64), Sparse(pattern=(2, 4))]
    plan = plan_from_yaml(allocated(CLEAN, ["a", "b"], given, {}, "small").to_yaml())
    assert list(constraints_in(plan, ["a", "b"]).values()) == [as_text(one) for one in given]


def test_nothing_to_constrain_leaves_the_steps() -> None:
    assert allocated(CLEAN, ["a"], [None], {}, "float").steps == CLEAN.steps
