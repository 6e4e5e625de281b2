"""What a run writes, and what is read again.

    folder        who may write into it, and whether a recipe continues what is there
    manifest      what the run was made with
    memory        how much the process took
    metrics       a line of numbers now and then
    checkpoint    whole or not there
    result        the finished model and its card
    reporting     what is said on the way
"""

from latentlm.training.record.checkpoint import Checkpoint, checkpoints, latest_checkpoint
from latentlm.training.record.folder import CHECKPOINTS, METRICS, WEIGHTS, write_recipe
from latentlm.training.record.manifest import read_manifest
from latentlm.training.record.metrics import read_metrics, whole_lines
from latentlm.training.record.result import RunResult, read_result, write_model

__all__ = [
    "CHECKPOINTS", "METRICS", "WEIGHTS", "Checkpoint", "RunResult", "checkpoints", "latest_checkpoint", "read_manifest",
    "read_metrics", "read_result", "whole_lines", "write_model", "write_recipe",
]  # fmt: skip
