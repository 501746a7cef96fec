"""Tasks: prompt pairs, their tokens, alignment and gates, readers and generators."""

from crosspatch.tasks.align import PairMap, PositionMap, align, token_diff
from crosspatch.tasks.builtin import TaskInfo, corruptions, list_tasks, make_task
from crosspatch.tasks.changes import mark_changes
from crosspatch.tasks.checks import behaviour, preference, static_gates
from crosspatch.tasks.findings import GateFinding
from crosspatch.tasks.gates import GateReport, gates
from crosspatch.tasks.pairs import Pair, Task, concat
from crosspatch.tasks.public import list_public, load_public
from crosspatch.tasks.readers import from_dataset, read_csv, read_jsonl, read_task, write_task
from crosspatch.tasks.tokenize import TokenizedTask, tokenize

__all__ = [
    "GateFinding",
    "GateReport",
    "Pair",
    "PairMap",
    "PositionMap",
    "Task",
    "TaskInfo",
    "TokenizedTask",
    "align",
    "behaviour",
    "concat",
    "corruptions",
    "from_dataset",
    "gates",
    "list_public",
    "list_tasks",
    "load_public",
    "make_task",
    "mark_changes",
    "preference",
    "read_csv",
    "read_jsonl",
    "read_task",
    "static_gates",
    "token_diff",
    "tokenize",
    "write_task",
]
