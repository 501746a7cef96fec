"""Reading dictionaries in the formats that people have them in."""

from crosspatch.dictionaries.load.circuit_tracer import load_cross_layer
from crosspatch.dictionaries.load.load import FORMATS, load_dictionary

__all__ = ["FORMATS", "load_cross_layer", "load_dictionary"]
