from __future__ import annotations

from fnmatch import fnmatchcase

from gossamer.constraints.contract import constraint_from_text
from gossamer.constraints.grid import Grid
from gossamer.constraints.sparse import Sparse
from gossamer.nouns.plan import Plan, Step, plan_from_yaml
from gossamer.planning.allocated import allocated

CLEAN = Plan("clean", (Step("fold_constants"),))


def test_one_step_for_every_constraint_in_graph_order_and_floats_left_out() -> None:
    nodes = ["a", "conv[1]", "c", "d"]
    plan = allocated(CLEAN, nodes, [Grid(4), Grid(8), None, Grid(4)], {"solver": "second_order"}, "2 MB")
    assert plan.name == "2 MB"
    assert [step.method for step in plan.steps] == ["fold_constants", "constrain_weights", "constrain_weights"]
    four, eight = plan.steps[1:]
    assert four.scope.only == ("a", "d")
    assert [name for name in nodes if fnmatchcase(name, eight.scope.only[0])] == ["conv[1]"]
    assert four.config["solver"] == "second_order"


def test_constraints_come_back_from_a_written_plan() -> None:
    given = [Grid(3, granularity=64), Sparse(pattern=(2, 4))]
    plan = plan_from_yaml(allocated(CLEAN, ["a", "b"], given, {}, "small").to_yaml())
    assert [constraint_from_text(step.config["constraint"]) for step in plan.steps[1:]] == given


def test_nothing_to_constrain_leaves_the_steps() -> None:
    assert allocated(CLEAN, ["a"], [None], {}, "float").steps == CLEAN.steps
