"""The settings of training: the `train` section of a recipe."""

from __future__ import annotations

import os
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from latentlm.config.strict import Strict


class ParallelConfig(Strict):
    """How the weights lie with the processes that torchrun starts."""

    replicate: int = Field(1, ge=1, description="copies of the model, each spread over its share of the processes (HSDP)")


class ProfileConfig(Strict):
    """Which steps are traced."""

    start: int = Field(10, ge=0, description="the first step of the trace, counted from 0; the very first ones are slow")
    steps: int = Field(3, ge=1, le=100, description="how many; a step of a small model takes some MB")

    @property
    def last(self) -> int:
        """The last step of the trace."""
        return self.start + self.steps - 1


def means_file(task: str) -> bool:
    """Whether a task is given as a file: `./mine` and `mine.yaml` are, whatever lies there. `mine` is a name, even where a file
    is called so."""
    return "/" in task or os.sep in task or task.endswith((".yaml", ".yml"))


class EvaluateConfig(Strict):
    """What is measured beside the held-out bound, every so many steps and after the last. It moves no weight and no noise."""

    every: int = Field(1000, ge=1, description="steps between two evaluations; one comes after the last step")
    tasks: list[str] = Field(
        default_factory=list, description="names of lm-eval tasks and patterns of them; no files, which can hold code"
    )
    limit: int | None = Field(100, ge=1, description="items of each task at most; null: all")
    documents: int = Field(0, ge=0, description="held-out documents whose likelihood is estimated")
    document_bytes: int | None = Field(4096, ge=1, description="of each, its beginning; null: the whole document")
    tolerance: float = Field(0.01, gt=0, description="bits per byte that the likelihood of a document is to be good to")
    max_samples: int = Field(256, ge=32, description="latent samples of a document at most")

    @field_validator("tasks")
    @classmethod
    def _names(cls, tasks: list[str]) -> list[str]:
        if files := [name for name in tasks if means_file(name)]:
            said = f"{files[0]} is a file, which can hold code, and a recipe is no place for that"
            raise ValueError(f"{said}: name a task of lm-eval (`latentlm eval run --tasks` takes files)")
        return tasks

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.tasks and not self.documents:
            raise ValueError("nothing is to be evaluated: name `tasks`, or a number of `documents`.")
        return self


class TrainConfig(Strict):
    """The optimiser, its schedule, and what is written when. Lengths are in optimiser steps."""

    steps: int = Field(1000, ge=1, description="optimiser steps in all")
    batch: int = Field(16, ge=1, description="sequences per micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches per step, weighted by their target tokens")
    context: int | None = Field(None, ge=2, description="tokens per sequence; default: the backbone's context")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's, at its highest")
    min_learning_rate: float = Field(0.1, ge=0, le=1, description="end of the cosine, as a share of learning_rate")
    warmup: int = Field(50, ge=0, description="steps over which the learning rate rises")
    weight_decay: float = Field(0.1, ge=0, description="on matrices; never on norms or embeddings")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the mean square")
    clip: float = Field(1.0, gt=0, allow_inf_nan=True, description="largest global gradient norm")
    prompts: float = Field(0.0, ge=0, le=1, description="share of rows that begin with a given prompt (data.packing=false)")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the forward pass")
    compile: bool = Field(False, description="compile the blocks with torch.compile, which pays on a GPU; rounding changes")
    recompute: bool = Field(
        False,
        exclude_if=lambda value: not value,  # recipes of before, and their hashes, stay what they were
        description="compute blocks again on the way back instead of keeping what is in them: less memory, a third more work",
    )
    head_chunk: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda value: value is None,  # as above
        description="positions whose logits are held at a time, computed twice; default: all at once",
    )
    device: str = Field("auto", description="auto (a GPU where there is one), cpu, cuda, cuda:N")
    threads: int | None = Field(None, ge=1, le=4096, description="CPU threads; default: torch's")
    parallel: ParallelConfig = Field(
        ParallelConfig(),
        exclude_if=lambda value: value == ParallelConfig(),  # as above
        description="how several processes (torchrun) share the weights",
    )
    seed: int = Field(0, description="of weights, order of rows, and noise")
    init: str | None = Field(
        None,
        min_length=1,
        exclude_if=lambda value: value is None,  # as above
        description="a card, run or Hugging Face folder whose weights it begins with, where they fit; default: fresh ones",
    )
    log_every: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    eval_every: int = Field(200, ge=1, description="steps between scores of held-out documents")
    eval_documents: int = Field(16, ge=1, description="held-out documents (first window of each) scored during training")
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")
    tensorboard: bool = Field(False, description="write event files too (needs the extra `tensorboard`)")
    profile: ProfileConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # as above
        description="steps whose operations are written as a trace that Perfetto opens; default: none",
    )
    evaluate: EvaluateConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,  # as above
        description="tasks and honest likelihoods measured during training; default: none",
    )
