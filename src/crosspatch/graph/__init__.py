"""The vocabulary: names, addresses, nodes, receivers, edges. No torch here."""

from crosspatch.graph.edges import EdgeTable, edge_table
from crosspatch.graph.names import (
    ALL,
    INDEXED,
    KINDS,
    Address,
    Site,
    parse_address,
    parse_position,
    parse_site,
    validate,
)
from crosspatch.graph.order import children, comes_before, edges, key_value, nodes, receivers
from crosspatch.graph.select import select
from crosspatch.graph.shape import ModelShape
from crosspatch.graph.suggest import suggest

__all__ = [
    "ALL",
    "INDEXED",
    "KINDS",
    "Address",
    "EdgeTable",
    "ModelShape",
    "Site",
    "children",
    "comes_before",
    "edge_table",
    "edges",
    "key_value",
    "nodes",
    "parse_address",
    "parse_position",
    "parse_site",
    "receivers",
    "select",
    "suggest",
    "validate",
]
