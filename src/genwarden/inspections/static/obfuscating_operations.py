"""SMI (4): operations that hide gradients from a search, or make outputs random.

An attacker who expects optimisation-based inspection (OB-OI) places operations whose gradient is
zero, undefined or noisy between the latent and the sample: rounding, comparisons, quantisation,
active dropout, ``detach``, or exp/log pairs that compute nothing.
"""

from __future__ import annotations

from genwarden.inspections.finding import EXACT, Finding, Table
from genwarden.inspections.graph import COMPARISONS, ExecutedGraph, Node, names
from genwarden.inspections.static.parallel_paths import mask_uses
from genwarden.inspections.workbench import Workbench

NAME = "obfuscating-operations"
TITLE = "Operations that hide gradients"
_REASON = "An exact property of the graph; no clean network of these kinds has it."

_STEPS = names("round floor ceil trunc fix floor_divide remainder fmod frac one_hot histc")
_SAMPLING = names(
    "bernoulli native_dropout dropout multinomial rrelu rrelu_with_noise poisson binomial "
    "rand rand_like randint randint_like randperm uniform exponential geometric cauchy"
)
_NOISE = names("randn randn_like normal normal_functional")
_COPIES = names("clone alias detach view slice to _to_copy expand getitem")
_INVERSES = {"exp": {"log"}, "log": {"exp"}, "expm1": {"log1p"}, "log1p": {"expm1"}}


def inspect(bench: Workbench) -> Finding:
    """List every operation with a zero, undefined or random gradient that reaches the output."""
    graph = bench.graph
    if graph.failure:
        return Finding(
            inspection=NAME,
            group="static",
            title=TITLE,
            outcome="failed",
            summary=f"The network could not be traced: {graph.failure}",
            p_value_reason="not carried out",
        )
    found = [(node, reason) for node in graph.nodes.values() if (reason := _reason(graph, node))]
    noise = [node for node in graph.nodes.values() if node.op in _NOISE]
    rows: list[list[str | int | float]] = [[n.name, n.target, reason] for n, reason in found]
    rows += [[n.name, n.target, "additive noise (not counted)"] for n in noise]
    blocked = graph.without_gradient == "part"
    if blocked:
        rows.append(["no_grad block", "torch.no_grad", "part of the network has no gradient"])
    count = len(found) + int(blocked)
    summary = "No operation between latent and output hides gradients."
    if count:
        kinds = ", ".join(dict.fromkeys(n.op for n, _ in found)) or "no_grad block"
        summary = f"{count} operations hide gradients or randomise the output: {kinds}."
    elif noise:
        summary = "Only noise inputs (as in StyleGAN); no operation hides gradients."
    if graph.without_gradient == "all":
        summary += " The whole forward pass runs without gradients, so searches cannot use them."
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=summary,
        score=float(count),
        score_name="gradient-hiding operations",
        structural=count > 0,
        p_value_reason=_REASON,
        null=EXACT,
        budget={"operations": len(graph.nodes)},
        power="Finds every such operation that runs; not gradients that vanish through weights "
        "(dead or saturated units), which the dynamic inspections measure.",
        evidence=[
            Table(
                title="Operations",
                caption="names as in the executed graph",
                columns=["operation", "executed as", "why"],
                rows=rows,
            )
        ]
        if rows
        else [],
    )


def _reason(graph: ExecutedGraph, node: Node) -> str | None:
    if node.op in _SAMPLING:
        return "random at every call"
    if node.name not in graph.on_path:
        return None
    if node.op in _STEPS:
        return "gradient zero almost everywhere, or shattered"
    if "quantize" in node.op:
        return "quantisation: gradient zero almost everywhere"
    if node.op == "detach":
        return "cuts the gradient"
    if node.op in COMPARISONS and mask_uses(graph, node.name):
        return "comparison feeds the output: gradient zero or undefined"
    if node.op in {"to", "_to_copy"} and _to_integer(node):
        return "cast to integers: gradient undefined"
    if node.op in _INVERSES and _inverse_before(graph, node):
        return "undoes the operation before it (log-exp pair)"
    return None


def _to_integer(node: Node) -> bool:
    value, source = node.fx.meta.get("val"), node.fx.all_input_nodes[0].meta.get("val")
    if value is None or source is None:
        return False
    return bool(source.is_floating_point()) and not value.is_floating_point()


def _inverse_before(graph: ExecutedGraph, node: Node) -> bool:
    """Whether the inverse function comes before, with nothing but copies between."""
    name = node.parents[0]
    while graph.nodes[name].op in _COPIES:
        name = graph.nodes[name].parents[0]
    return graph.nodes[name].op in _INVERSES[node.op]
