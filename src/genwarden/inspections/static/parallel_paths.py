"""SMI (1): disjoint or parallel paths in the executed graph, and selections by the latent.

A computation bypass ("The Devil is in the GAN", Eq. 3) computes G(z) and G_target(z) and lets the
latent choose. Two exact properties show it, whatever the modules are called:

*Selection.* A truth value (comparison, rank, Python branch) derived from the latent decides between
values that are not elementwise functions of the same tensor. A ReLU written as
``where(h > 0, h, 0)`` compares and selects within one tensor ``h`` and is not a selection.

*Disjoint paths.* Weight layers fall into groups with no data flow from one group to another, so
that the groups have only the latent and the end of the network in common. A skip connection starts
and ends inside one group, and a style input (the latent feeding many layers) meets the trunk
inside the network: neither adds a group. Filters after the join that map samples to samples (the
post filter of WaveGAN) belong to the end. A generator that composes separately generated layers
(foreground and background) does have this structure and would be reported.
"""

from __future__ import annotations

from genwarden.inspections.finding import EXACT, Evidence, Finding, Table
from genwarden.inspections.graph import COMPARISONS, MOVEMENT, POINTWISE, ExecutedGraph, names
from genwarden.inspections.workbench import Workbench

NAME = "parallel-paths"
TITLE = "Parallel paths and latent-dependent selection"
_REASON = "An exact property of the graph; no clean network of these kinds has it."

#: Operations that use values as addresses.
_INDEXED = names(
    "index index_put index_select gather take take_along_dim scatter scatter_add masked_scatter "
    "masked_select embedding nonzero"
)
_CONTROL = names("cond while_loop item _local_scalar_dense")


def inspect(bench: Workbench) -> Finding:
    """Count disjoint parametric paths and list selections that derive from the latent."""
    graph = bench.graph
    if graph.failure:
        return _untraced(graph)
    groups = disjoint_groups(graph)
    selections = find_selections(graph)
    bypass = len(groups) > 1 or bool(selections)
    parts = []
    if len(groups) > 1:
        parts.append(f"{len(groups)} groups of weight layers share only the latent and the output")
    if selections:
        parts.append(f"{len(selections)} operations select by a test of the latent")
    rows: list[list[str | int | float]] = [
        [operation, graph.nodes[operation].target, reason] for operation, reason in selections
    ]
    evidence: list[Evidence] = [
        Table(
            title="Groups of weight layers without data flow between them",
            columns=["group", "layers", "parameters read"],
            rows=[
                [number, len(group), ", ".join(_weights(graph, group)[:6])]
                for number, group in enumerate(groups, start=1)
            ],
        )
    ]
    if rows:
        evidence.append(
            Table(
                title="Selections that derive from the latent",
                columns=["operation", "executed as", "why"],
                rows=rows,
            )
        )
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="scored",
        summary=f"Computation bypass: {'; '.join(parts)}."
        if bypass
        else "One connected path from the latent to the output, and nothing selects by the latent.",
        score=float(len(groups) - 1 + len(selections)),
        score_name="extra disjoint paths plus latent-dependent selections",
        structural=bypass,
        p_value_reason=_REASON,
        null=EXACT,
        budget={"operations": len(graph.nodes), "weight_layers": len(graph.weighted)},
        power="Finds every bypass that uses a comparison, an index or a branch, and every second "
        "network that is joined at the end; not one whose gate is smooth arithmetic inside a "
        "shared trunk.",
        evidence=evidence,
    )


def disjoint_groups(graph: ExecutedGraph) -> list[list[str]]:
    """Weight layers grouped by data flow, without filters from samples to samples at the end."""
    layers = [node.name for node in graph.weighted]
    flow = {name: graph.descendants(name) for name in layers}
    end = graph.nodes[graph.output].parents
    sample_shape = graph.nodes[end[0]].shape if end else None
    for name in reversed(layers.copy()):
        node = graph.nodes[name]
        source = graph.nodes[node.parents[0]].shape
        if node.shape == source == sample_shape and len(layers) > 1:
            layers.remove(name)
        else:
            break
    groups: list[list[str]] = []
    for name in layers:
        touching = [g for g in groups if any(name in flow[m] or m in flow[name] for m in g)]
        joined = [member for group in touching for member in group]
        groups = [group for group in groups if group not in touching]
        groups.append([*joined, name])
    return groups


def find_selections(graph: ExecutedGraph) -> list[tuple[str, str]]:
    """Operations that select by the latent, each with the reason; in the order of execution."""
    found: dict[str, str] = {}
    for name, node in graph.nodes.items():
        if name not in graph.on_path:
            continue
        if node.op in _CONTROL:
            found[name] = "a branch or a number that Python reads depends on the latent"
        elif node.op in _INDEXED and any(p in graph.on_path for p in node.parents[1:]):
            found[name] = "an index or mask that depends on the latent"
        elif node.op in COMPARISONS:
            found.update(dict.fromkeys(mask_uses(graph, name), "decided by a test of the latent"))
    found.pop(graph.output, None)  # a binarised sample is no selection
    return [(name, found[name]) for name in graph.nodes if name in found]


def mask_uses(graph: ExecutedGraph, comparison: str) -> list[str]:
    """Where a truth value meets values that are no elementwise function of what was tested.

    The truth value is followed through casts, logic and arithmetic with constants. Where it meets
    the very tensor it was computed from (``h * (h > 0)``), it is an activation function. The
    output itself counts as a use.
    """
    tested = graph.roots(comparison)
    uses: list[str] = []
    stack, seen = [comparison], set()
    while stack:
        name = stack.pop()
        for reader in graph.children[name]:
            node = graph.nodes[reader]
            if reader in seen:
                continue
            seen.add(reader)
            others = [p for p in node.parents if p != name and p in graph.on_path]
            if node.op in POINTWISE or node.op in MOVEMENT:
                roots = frozenset().union(*(graph.roots(p) for p in others))
                if not others or all(graph.is_truth_value(p) for p in others):
                    stack.append(reader)
                elif not (roots <= tested and len(roots) == 1):
                    uses.append(reader)
            else:
                uses.append(reader)
    return uses


def _untraced(graph: ExecutedGraph) -> Finding:
    if graph.data_dependent:
        return Finding(
            inspection=NAME,
            group="static",
            title=TITLE,
            outcome="scored",
            summary="Python code of the network reads values computed from the latent, so the "
            "latent chooses what is executed.",
            score=1.0,
            score_name="extra disjoint paths plus latent-dependent selections",
            structural=True,
            p_value_reason=_REASON,
            null=EXACT,
            power="The branches themselves could not be traced.",
            evidence=[
                Table(
                    title="Why the network cannot be traced",
                    columns=["message"],
                    rows=[[graph.failure]],
                )
            ],
        )
    return Finding(
        inspection=NAME,
        group="static",
        title=TITLE,
        outcome="failed",
        summary=f"The network could not be traced: {graph.failure}",
        p_value_reason="not carried out",
    )


def _weights(graph: ExecutedGraph, group: list[str]) -> list[str]:
    return list(dict.fromkeys(p for name in group for p in graph.nodes[name].parameters))
