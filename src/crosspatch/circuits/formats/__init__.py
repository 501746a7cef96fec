"""Files of other programs: EAP-IG and MIB, circuit-tracer and Neuronpedia, GraphML, DOT."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.circuits.formats.attribution_graph import (
        AttributionGraph,
        GraphNode,
        Link,
        read_attribution_graph,
        write_attribution_graph,
    )
    from crosspatch.circuits.formats.components import component_circuit, component_graph
    from crosspatch.circuits.formats.convert import FORMATS, read_circuit, write_circuit
    from crosspatch.circuits.formats.dot import to_dot, write_dot
    from crosspatch.circuits.formats.eap import EapGraph, read_eap, to_eap, write_eap
    from crosspatch.circuits.formats.graphml import read_graphml, write_graphml
    from crosspatch.circuits.formats.mib import MibEntry, circuits_by_size, read_mib, write_mib

__all__ = [
    "FORMATS",
    "AttributionGraph",
    "EapGraph",
    "GraphNode",
    "Link",
    "MibEntry",
    "circuits_by_size",
    "component_circuit",
    "component_graph",
    "read_attribution_graph",
    "read_circuit",
    "read_eap",
    "read_graphml",
    "read_mib",
    "to_dot",
    "to_eap",
    "write_attribution_graph",
    "write_circuit",
    "write_dot",
    "write_eap",
    "write_graphml",
    "write_mib",
]

make_lazy(
    __name__,
    {
        "attribution_graph": (
            "AttributionGraph",
            "GraphNode",
            "Link",
            "read_attribution_graph",
            "write_attribution_graph",
        ),
        "components": ("component_circuit", "component_graph"),
        "convert": ("FORMATS", "read_circuit", "write_circuit"),
        "dot": ("to_dot", "write_dot"),
        "eap": ("EapGraph", "read_eap", "to_eap", "write_eap"),
        "graphml": ("read_graphml", "write_graphml"),
        "mib": ("MibEntry", "circuits_by_size", "read_mib", "write_mib"),
    },
)
