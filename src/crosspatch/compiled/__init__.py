"""Transformers compiled from programs, whose circuits are known: what a discovery method has to find.

`modeling` is the architecture, `program` what a folder says about its program, `load` reads the weights, `known` the
circuit with its measured effects and the examples.

Importing this package registers the architecture with ``AutoConfig`` and ``AutoModelForCausalLM``.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM

from crosspatch.compiled.known import Example, KnownCircuit, KnownEdge, KnownNode, read_known_circuit
from crosspatch.compiled.load import load_compiled
from crosspatch.compiled.modeling import CompiledConfig, CompiledForCausalLM, CompiledModel
from crosspatch.compiled.program import Program, read_program

AutoConfig.register(CompiledConfig.model_type, CompiledConfig, exist_ok=True)
AutoModelForCausalLM.register(CompiledConfig, CompiledForCausalLM, exist_ok=True)

__all__ = [
    "CompiledConfig",
    "CompiledForCausalLM",
    "CompiledModel",
    "Example",
    "KnownCircuit",
    "KnownEdge",
    "KnownNode",
    "Program",
    "load_compiled",
    "read_known_circuit",
    "read_program",
]
