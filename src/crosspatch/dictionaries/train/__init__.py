"""Training dictionaries on streamed activations."""

from crosspatch.dictionaries.train.batch_topk import BatchTopK
from crosspatch.dictionaries.train.gated import Gated
from crosspatch.dictionaries.train.jumprelu import JumpReLU
from crosspatch.dictionaries.train.loop import JobReport, Report, train
from crosspatch.dictionaries.train.matryoshka import Matryoshka
from crosspatch.dictionaries.train.p_anneal import PAnneal
from crosspatch.dictionaries.train.settings import Job, Settings, sweep
from crosspatch.dictionaries.train.standard import Standard
from crosspatch.dictionaries.train.stream import Activations, Arrays, contexts
from crosspatch.dictionaries.train.topk import TopK

__all__ = [
    "Activations",
    "Arrays",
    "BatchTopK",
    "Gated",
    "Job",
    "JobReport",
    "JumpReLU",
    "Matryoshka",
    "PAnneal",
    "Report",
    "Settings",
    "Standard",
    "TopK",
    "contexts",
    "sweep",
    "train",
]
