"""What a checkpoint's state.json must say for a run to go on from it, checked before anything of it is taken over.

A hash only tells that the file is as it was written. One of another version, or written by hand, has a right hash and wrong
values; the run then goes on from the checkpoint before it, as after any other damage.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from latentlm.errors import CheckpointError, UserError, invalid, sentence, short
from latentlm.interface import LatentDecoder
from latentlm.training.evaluation import CollapseWatch
from latentlm.training.record.checkpoint import Checkpoint
from latentlm.training.record.metrics import MOST, Tally

FILES = ("model", "optimizer")
"""What a run saves beside its state."""


class RunState(BaseModel):
    """The state of a run, as `Run.save` writes it. (What is taken over is the state as it was read, to the last bit.)"""

    model_config = ConfigDict(strict=True, frozen=True)

    tokens: int = Field(ge=0, le=MOST)
    seconds: FiniteFloat = Field(ge=0)
    schedule: dict[str, Any]
    """Of the one latent, or of each by its name; what is in it is the schedule's to judge."""
    tally: Tally
    watch: CollapseWatch
    data: str
    next_batch: int = Field(0, ge=0, le=MOST)


def run_state(checkpoint: Checkpoint) -> RunState:
    """The state of a checkpoint. Raises CheckpointError where it is no run's."""
    try:
        return RunState.model_validate_json(json.dumps(checkpoint.state))
    except ValidationError as error:
        raise CheckpointError(f"the checkpoint {invalid(error, RunState, source=f'{checkpoint.path} is damaged')}.") from None


def schedule_states(checkpoint: Checkpoint, model: LatentDecoder) -> dict[str, dict[str, Any]]:
    """What the KL schedule of each latent has saved. Raises CheckpointError where it is not there."""
    names, found = list(model.kl_schedules), run_state(checkpoint).schedule
    states = dict.fromkeys(names, found) if len(model.latents) == 1 else {name: found.get(name) for name in names}
    if missing := [name for name, state in states.items() if not isinstance(state, dict)]:
        raise CheckpointError(f"the checkpoint {checkpoint.path} is damaged: it has no schedule of the latent {missing[0]}.")
    return states  # type: ignore[return-value]


def check_resumable(checkpoint: Checkpoint, model: LatentDecoder) -> None:
    """Raise CheckpointError unless `model` can go on from a checkpoint: files and state are those of a run, and the schedules
    take what they have saved. Nothing is changed."""
    if checkpoint.sharded:
        from latentlm.training.record.sharded import check_shards  # a run of one process needs none of it

        check_shards(checkpoint, model)
    elif missing := [name for name in FILES if name not in checkpoint.files]:
        raise CheckpointError(f"the checkpoint {checkpoint.path} is damaged: it has no {missing[0]}.safetensors.")
    for name, state in schedule_states(checkpoint, model).items():
        schedule = copy.deepcopy(model.kl_schedules[name])
        known = schedule.state_dict()
        odd = [key for key, value in state.items() if _is_number(known.get(key)) and not _is_number(value)]
        try:
            if odd:
                raise UserError(f"{odd[0]} should be a number")
            schedule.load_state_dict(state)
        except Exception as error:  # a plugin's, which meets what it did not save
            said = sentence(short(str(error) or type(error).__name__))
            raise CheckpointError(f"the checkpoint {checkpoint.path} is damaged: its schedule's state: {said}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
