"""SHIFT: take out of a classifier what a judge says has nothing to do with its task, and show what that is worth."""

from typing import TYPE_CHECKING

from crosspatch.lazy import make_lazy

if TYPE_CHECKING:
    from crosspatch.shift.ablate import feature_set, pooled_without
    from crosspatch.shift.circuit import ProbeCircuit, Settings, oracle_judge, probe_circuit, probe_judge
    from crosspatch.shift.compare import removed_features, shift
    from crosspatch.shift.data import Labelled, Splits, biographies, read_texts, splits_of
    from crosspatch.shift.export import AblatedModel, export, load_exported
    from crosspatch.shift.judges import (
        Answers,
        ByScores,
        Candidate,
        Judge,
        Judgement,
        TokenList,
        read_answers,
        write_template,
    )
    from crosspatch.shift.probe import Probe, pooled, probe_setup, probed, train_probe
    from crosspatch.shift.result import JudgedFeature, Method, ShiftResult, load_shift

__all__ = [
    "AblatedModel",
    "Answers",
    "ByScores",
    "Candidate",
    "Judge",
    "JudgedFeature",
    "Judgement",
    "Labelled",
    "Method",
    "Probe",
    "ProbeCircuit",
    "Settings",
    "ShiftResult",
    "Splits",
    "TokenList",
    "biographies",
    "export",
    "feature_set",
    "load_exported",
    "load_shift",
    "oracle_judge",
    "pooled",
    "pooled_without",
    "probe_circuit",
    "probe_judge",
    "probe_setup",
    "probed",
    "read_answers",
    "read_texts",
    "removed_features",
    "shift",
    "splits_of",
    "train_probe",
    "write_template",
]

# What was found is plain data: looking at it needs no torch.
make_lazy(
    __name__,
    {
        "ablate": ("feature_set", "pooled_without"),
        "circuit": ("ProbeCircuit", "Settings", "oracle_judge", "probe_circuit", "probe_judge"),
        "compare": ("removed_features", "shift"),
        "data": ("Labelled", "Splits", "biographies", "read_texts", "splits_of"),
        "export": ("AblatedModel", "export", "load_exported"),
        "judges": (
            "Answers",
            "ByScores",
            "Candidate",
            "Judge",
            "Judgement",
            "TokenList",
            "read_answers",
            "write_template",
        ),
        "probe": ("Probe", "pooled", "probe_setup", "probed", "train_probe"),
        "result": ("JudgedFeature", "Method", "ShiftResult", "load_shift"),
    },
)
