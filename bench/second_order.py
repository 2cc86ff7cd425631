"""Second-order compression beside the nearest point: weights only, activations in float.

    python bench/second_order.py [--nets demo,digits,lite0,minilm]
                                 [--parts bits,sparse,codebook,corrected,spread,eighth]
                                 [--ways nearest,second_order,sequential+bias] [--only grid:4,sparse:2:4]

- bits, sparse, codebook: every weight of the network under one constraint, as each solver does it.
- corrected: EfficientNet-Lite0 at 4 bits a channel, with what stands before and behind the solver.
- spread: 70 % of all weights zero, layer by layer as the ledger says, beside the same ratio everywhere and beside one
  threshold of magnitude for the whole network.
- eighth: whole networks at 1/8 of their float bytes, mixed by the ledger, beside uniform constraints.

What is judged lies in `judge.npz`, which no solver saw; solvers see at most 300 samples of `data.npz`. Noise, agreement
and accuracy repeat to the digit; seconds are processor seconds of one thread, taken beside whatever else ran.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial

import numpy as np
from msgspec.structs import replace

import judge
from gossamer.constraints.contract import constraint_from_text
from gossamer.constraints.sparse import Sparse
from gossamer.nouns.model import to_bytes
from gossamer.nouns.plan import Plan, Scope, Step, plan_from_yaml
from gossamer.passes.contract import run_plan
from gossamer.planning.allocated import allocated
from gossamer.planning.allocation import allocate
from gossamer.planning.budgeted import fitted
from gossamer.planning.ledger import Entry, ledger, uses_of
from gossamer.planning.ledger import each as each_of
from gossamer.solving import matrix_of
from second_order_cases import HEAD, Net, code_digest, constrained, in_a_way, row

NETS = ("demo", "digits", "lite0", "minilm")
CONSTRAINTS = {
    "bits": [f"grid:{bits}" for bits in (8, 6, 5, 4, 3, 2)],
    "sparse": [*(f"sparse:{ratio}" for ratio in (0.5, 0.7, 0.9, 0.95)), "sparse:2:4"],
    "codebook": ["codebook:32", "codebook:16"],
}
GRIDS = [f"grid:{bits}" for bits in (2, 3, 4, 5, 6, 8)]
MENUS = {
    "grids": GRIDS,
    "grids and codebooks": [*GRIDS, "codebook:4:channel", "codebook:8", "codebook:16", "codebook:32"],
}
ZEROS = 0.7
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
UNIFORM = ("grid:2", "grid:3", "grid:4", "codebook:8", "codebook:16")
LEDGER_S = 900.0
WAYS = ("nearest", "second_order", "second_order+bias", "sequential", "sequential+bias")


def side_by_side(net: Net, part: str, constraints: Iterable[str], ways: Sequence[str]) -> None:
    """One table: every constraint, every way."""
    print(f"### {net.name}, {part}, judged on {len(net.original)} samples\n\n{HEAD}\n" + 8 * "|---" + "|")
    for constraint in constraints:
        nearest = net.made([constrained(constraint, "nearest")])
        for way in ways:
            made = nearest if way == "nearest" else net.made(in_a_way([constrained(constraint, "nearest")], way))
            print(row(net, f"{constraint} {way}", made, None if way == "nearest" else nearest), flush=True)
    print()


def corrected(net: Net) -> None:
    """4 bits a channel: what each part of the whole brings."""
    print(f"### {net.name}, grid:4 and what stands around it\n\n{HEAD}\n" + 8 * "|---" + "|")
    plain = [constrained("grid:4", "nearest")]
    nearest = net.made(plain)
    for way in ("nearest", "nearest+bias", *WAYS[1:]):
        print(row(net, way, net.made(in_a_way(plain, way)), nearest), flush=True)
        equalized = [Step("equalize_channels"), *in_a_way(plain, way)]
        print(row(net, f"equalized, {way}", net.made(equalized), nearest), flush=True)
    print()


def spread(net: Net) -> None:
    """As many zeros as the same ratio everywhere makes, where they cost least."""
    print(f"### {net.name}, {ZEROS:.0%} zeros spread over the layers\n\n{HEAD}\n" + 8 * "|---" + "|")
    steps = _spread(net)
    nearest = net.made(in_a_way(steps, "nearest"))
    uniform = net.made([constrained(f"sparse:{ZEROS}", "nearest")])
    print(row(net, "same ratio everywhere, nearest", uniform), flush=True)
    print(row(net, "one threshold of magnitude, nearest", net.made(_one_threshold(net))), flush=True)
    print(row(net, "spread by the ledger, nearest", nearest), flush=True)
    for way in WAYS[1:]:
        print(row(net, f"spread by the ledger, {way}", net.made(in_a_way(steps, way)), uniform), flush=True)
    print()


def _spread(net: Net) -> tuple[Step, ...]:
    """The least predicted noise with that many zeros among the weights that can have any."""
    kept = net.folder / f"spread-{code_digest()}.yaml"
    if not kept.exists():
        sparse = [Sparse(ratio=ratio) for ratio in RATIOS]
        entries = ledger(net.clean, net.evidence, each_of(sparse), budget_s=LEDGER_S)
        left = [_left(entry) for entry in entries]
        limit = (1 - ZEROS) * sum(float(one[0]) for one in left)
        choices = allocate([entry.noise_ratios() for entry in entries], left, limit, "weights").choices
        chosen = [entry.options[choice].constraint for entry, choice in zip(entries, choices, strict=True)]
        nodes = [node for entry in entries for node in entry.nodes]
        each = [one for entry, one in zip(entries, chosen, strict=True) for _ in entry.nodes]
        kept.write_text(allocated(Plan("none"), nodes, each, {"solver": "second_order"}, "spread").to_yaml())
    return plan_from_yaml(kept.read_text()).steps


def _left(entry: Entry) -> np.ndarray:
    """How many weights every option leaves."""
    size = entry.options[0].stored_bytes / 4
    shares = [one.constraint.ratio or 0.0 if isinstance(one.constraint, Sparse) else 0.0 for one in entry.options]
    return size * (1 - np.array(shares))


def _one_threshold(net: Net) -> list[Step]:
    """The smallest of all weights of the network, as Han et al. 2015 and most tools cut them globally."""
    found = {weight: matrix_of(readers[0]) for weight, readers in uses_of(net.clean).items()}
    nodes = {weight: readers[0].node.name or "" for weight, readers in uses_of(net.clean).items()}
    threshold = np.quantile(np.abs(np.concatenate([w.ravel() for w in found.values()])), ZEROS)
    ratios = {nodes[weight]: round(float((np.abs(w) < threshold).mean()), 4) for weight, w in found.items()}
    texts = {node: f"sparse:{min(ratio, 0.9999)}" for node, ratio in ratios.items() if ratio > 0}
    config = {"constraint": f"sparse:{ZEROS}", "by_layer": texts, "solver": "nearest"}
    return [Step("constrain_weights", config, Scope(only=tuple(texts)))]


def eighth(net: Net) -> None:
    """1/8 of the float file's bytes: what the ledger mixes, one shot and sequential, and constraints for all alike."""
    limit = net.work.model.stat().st_size / 8
    print(f"### {net.name} within {limit / 1e6:.3f} MB, 1/8 of its float bytes\n\n{HEAD}\n" + 8 * "|---" + "|")
    entries = cache(partial(_entries, net))  # asked for where a plan is not in the cache
    for menu in MENUS:
        steps = _mixed(net, menu, limit, entries)
        for way in WAYS:
            print(row(net, f"mixed from {menu}, {way}", net.made(in_a_way(steps, way))), flush=True)
    for constraint in UNIFORM:
        made = net.made([constrained(constraint, "second_order")])
        over = " (too large)" if made.facts.get("bytes", 0) > limit else ""
        print(row(net, f"all {constraint}, second_order{over}", made), flush=True)
    print()


def _entries(net: Net) -> tuple[Entry, ...]:
    """What every weight could become."""
    texts = dict.fromkeys(text for menu in MENUS.values() for text in menu)
    return ledger(net.clean, net.evidence, each_of([constraint_from_text(text) for text in texts]), budget_s=LEDGER_S)


def _mixed(net: Net, menu: str, limit: float, entries: Callable[[], tuple[Entry, ...]]) -> tuple[Step, ...]:
    """The plan that the ledger leads to, from the cache or found now."""
    kept = net.folder / f"mixed-{menu.replace(' ', '-')}-{code_digest()}.yaml"
    if not kept.exists():
        allowed = {constraint_from_text(text) for text in MENUS[menu]}
        menu_entries = [
            entry._replace(options=tuple(one for one in entry.options if one.constraint in {None, *allowed}))
            for entry in entries()
        ]
        config = {"solver": "second_order", "form": "cast"}
        other_bytes = len(to_bytes(net.clean)) - sum(entry.options[0].stored_bytes for entry in menu_entries)
        found = fitted(menu_entries, limit, other_bytes, Plan("none"), config, menu, partial(_size_of, net))
        kept.write_text(found.plan.to_yaml())
        print(f"{net.name}, {menu}: predicted noise {found.allocation.loss:.4g}", file=sys.stderr, flush=True)
    return plan_from_yaml(kept.read_text()).steps


def _size_of(net: Net, plan: Plan) -> int:
    """Bytes of the file; the nearest point has as many as any other."""
    steps = tuple(replace(step, config={**step.config, "solver": "nearest"}) for step in plan.steps)
    return len(to_bytes(run_plan(Plan("size", steps), net.clean).model))


def main() -> None:
    """Each network's tables in turn."""
    arguments = parsed()
    print(judge.header(f"python bench/second_order.py --nets {arguments.nets} --parts {arguments.parts}"), flush=True)
    only = set(filter(None, arguments.only.split(",")))
    for name in arguments.nets.split(","):
        net = Net(name)
        for part in arguments.parts.split(","):
            if part in CONSTRAINTS:
                chosen = [one for one in CONSTRAINTS[part] if not only or one in only]
                side_by_side(net, part, chosen, arguments.ways.split(","))
            elif part == "corrected" and name == "lite0":
                corrected(net)
            elif part == "spread" and name in ("demo", "lite0", "minilm"):
                spread(net)
            elif part == "eighth" and name in ("lite0", "minilm"):
                eighth(net)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--parts", default="bits,sparse,codebook,corrected,spread,eighth")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--only", default="", help="constraints, of those of the parts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
