"""Which files of a folder hold the weights, as transformers chooses them, and the tensors in them.

model.safetensors alone, else what model.safetensors.index.json names, else the only safetensors file of the folder. Any other
one beside them (an adapter, a copy in another layout, an optimiser's) is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from latentlm.config import read_json
from latentlm.config.tensor_files import finite, held
from latentlm.errors import CheckpointError, UserError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, sorted. Raises CheckpointError."""
    if (folder / _ADAPTER).is_file():
        raise UserError(f"{folder} has an adapter ({_ADAPTER}), which changes the weights: merge it into them, and save these.")
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / _INDEX).is_file():
        return _indexed(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        hint = f" It has {pickled}, which only unpickling could read: save it as safetensors." if pickled else ""
        raise CheckpointError(f"{folder} has no safetensors file.{hint}")
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} has several safetensors files ({', '.join(file.name for file in files)}), and neither {_WHOLE} nor "
            f"{_INDEX} says which are the model's: give the one that is its name, or download the index."
        )
    return files


def _indexed(folder: Path) -> list[Path]:
    """The files that the index names."""
    names = read_mapping(folder / _INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{folder / _INDEX} has no weight_map of tensors to files; download it again.")
    # A name that leads out of the folder is cut down to its last part.
    files = [folder / Path(name).name for name in sorted(set(names.values()))]
    if absent := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{folder} lacks {', '.join(absent)}, which its index names; download it again.")
    return files


def tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, one in memory at a time. Raises CheckpointError where it is damaged or holds no floats."""
    with held(file) as plain, plain.tensors() as opened:
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            tensor = opened.get_tensor(name)
            if not tensor.is_floating_point():
                raise CheckpointError(f'{file}: "{name}" holds {tensor.dtype} numbers; quantised weights are not read.')
            yield name, finite(tensor, name, file)


def tensor_of(files: list[Path], name: str) -> Tensor | None:
    """One tensor by its name, None where no file has it. Raises CheckpointError."""
    for file in files:
        with held(file) as plain, plain.tensors() as opened:
            if name in opened.keys():  # noqa: SIM118 - not a mapping
                return opened.get_tensor(name)
    return None


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is a mapping. Raises UserError where it is not there, CheckpointError for another one."""
    if not path.exists():
        raise UserError(f"{path} does not exist; a folder of Llama weights has it beside the safetensors files.")
    try:
        data = read_json(path)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} should hold a mapping, not {type(data).__name__}.")
    return data
