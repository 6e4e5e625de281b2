"""Weights files: what is refused, with which words, and that what is taken is taken exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlm.composed import build
from latentlm.config.tensor_files import save_one_by_one
from latentlm.errors import CheckpointError
from latentlm.zoo import weights as _weights
from latentlm.zoo.weights import weights_of
from samples import small_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(weights_of(build(small_config("free"), seed=3)), path)
    return path


def facts(path: Path) -> tuple[int, str]:
    return path.stat().st_size, _weights.sha256(path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_a_file_is_loaded_exactly(tmp_path: Path, decoder: str) -> None:
    saved, other = build(small_config(decoder), seed=3), build(small_config(decoder), seed=4)
    save_file(weights_of(saved), tmp_path / "a.safetensors")
    _weights.load_into(other, tmp_path / "a.safetensors")
    for name, tensor in weights_of(saved).items():
        assert torch.equal(tensor, weights_of(other)[name]), name


def test_a_file_is_cast_to_the_models_type(file: Path) -> None:
    model = build(small_config("free"), dtype=torch.bfloat16, seed=4)
    _weights.load_into(model, file)
    name, tensor = next(iter(weights_of(model).items()))
    assert tensor.dtype == torch.bfloat16
    assert torch.equal(tensor, load_file(file)[name].to(torch.bfloat16))


def test_tensors_saved_one_by_one_make_the_file_of_all_at_once(tmp_path: Path) -> None:
    """Byte for byte, in whatever order they come: of every type, without dimensions, without elements, not contiguous."""
    types = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8]
    tensors = {f"b.{dtype}": torch.arange(7).to(dtype) for dtype in types}
    tensors |= {"a": torch.tensor(2.5), "c": torch.tensor([True, False]), "é": torch.empty(0, 3), "d": torch.rand(3, 5)}
    save_file(tensors, tmp_path / "at once")
    shuffled = sorted({**tensors, "d": tensors["d"].t().contiguous().t()}.items(), key=lambda each: each[0][::-1])
    save_one_by_one(tmp_path / "one by one", tensors, shuffled)
    assert (tmp_path / "one by one").read_bytes() == (tmp_path / "at once").read_bytes()


def test_the_right_file_passes(file: Path) -> None:
    size, digest = facts(file)
    _weights.verify(file, size=size, digest=digest)


def test_one_flipped_bit_is_found_by_the_hash(file: Path) -> None:
    size, digest = facts(file)
    flip(file, size - 5)
    with pytest.raises(CheckpointError, match="do not match their card"):
        _weights.verify(file, size=size, digest=digest)


def test_a_short_file_is_called_truncated(file: Path) -> None:
    size, digest = facts(file)
    file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(CheckpointError, match=rf"truncated: {size // 2:,} bytes instead of {size:,}"):
        _weights.verify(file, size=size, digest=digest)


def test_a_longer_file_is_another_file(file: Path) -> None:
    size, digest = facts(file)
    with pytest.raises(CheckpointError, match="not the file that its card describes"):
        _weights.verify(file, size=size - 1, digest=digest)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors are missing"):
        _weights.verify(file.with_name("gone.safetensors"), size=1, digest="0" * 64)


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text"])
def test_a_damaged_file_without_a_card_is_refused(file: Path, damage: str) -> None:
    data = file.read_bytes()
    damaged = {"truncated": data[: len(data) // 2], "header": b"\xff" * 8 + data[8:], "empty": b"", "text": b"not a model"}
    file.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        _weights.check(build(small_config("free"), device="meta"), file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.zeta": None}, r"lacks 1 tensors \(encoder\.zeta\)"),
        ({"encoder.extra": torch.zeros(2)}, r"has the unknown 1 tensors \(encoder\.extra\)"),
        ({"encoder.zeta": torch.zeros(31)}, r"encoder\.zeta has shape \(31,\), but the model wants \(32,\)"),
        ({"encoder.zeta": torch.zeros(32, dtype=torch.int8)}, "quantised"),
    ],
)
def test_other_tensors_than_the_models_are_refused(file: Path, change: dict[str, torch.Tensor | None], words: str) -> None:
    tensors = {name: tensor for name, tensor in (load_file(file) | change).items() if tensor is not None}
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=words):
        _weights.check(build(small_config("free"), device="meta"), file)


def test_nothing_is_written_into_a_model_whose_file_does_not_fit(file: Path) -> None:
    save_file(load_file(file) | {"encoder.zeta": torch.zeros(31)}, file)
    model = build(small_config("free"), seed=4)
    before = {name: tensor.clone() for name, tensor in weights_of(model).items()}
    with pytest.raises(CheckpointError):
        _weights.load_into(model, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_pickle_is_refused_unread(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for refuse in (_weights.check_file, lambda file: _weights.verify(file, size=24, digest=_weights.sha256(file))):
        with pytest.raises(CheckpointError, match=r"is a pickle.*Convert it to safetensors"):
            refuse(path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/../../model.safetensors", "link"])
def test_a_card_may_not_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    (tmp_path / "model.safetensors").touch()
    (folder / "link").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="leads out of"):
        _weights.inside(folder, name)


def test_a_file_in_a_folder_below_the_card_is_inside(tmp_path: Path) -> None:
    assert _weights.inside(tmp_path, "weights/model.safetensors") == (tmp_path / "weights" / "model.safetensors").resolve()


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([([0, 0], (2, 3)), ([2, 0], (2, 3))], None),
        ([([2, 0], (2, 3)), ([0, 0], (2, 3))], None),  # in any order
        ([([0, 0], (4, 1)), ([0, 1], (4, 2))], None),  # along another dimension
        ([([0, 0], (3, 3)), ([2, 0], (2, 3))], "not there in full"),  # they overlap
        ([([0, 0], (2, 3)), ([3, 0], (2, 3))], "not there in full"),  # a gap
        ([([0, 0], (2, 3)), ([1, 0], (2, 3)), ([4, 0], (1, 3))], "not there in full"),  # both, and as many numbers as a whole
        ([([-1, 0], (3, 3)), ([3, 0], (1, 3))], "begins where nothing can"),
        ([([0, 0], (2, 3)), ([True, 0], (2, 3))], "begins where nothing can"),
        ([([0, 0], (2, 3)), ([2, 0], (2, 2))], "not there in full"),  # narrower
        ([([0, 0], (2, 3)), ([2, 1], (2, 2))], "not there in full"),  # along both
    ],
)
def test_pieces_are_those_of_a_whole_tensor(
    pieces: list[tuple[list[int], tuple[int, int]]], says: str | None, tmp_path: Path
) -> None:
    whole = torch.arange(float(4 * 3)).view(4, 3)
    for number, (begin, (rows, columns)) in enumerate(pieces):
        part = whole[max(0, begin[0]) :, max(0, begin[1]) :][:rows, :columns]
        part = part if part.shape == (rows, columns) else torch.zeros(rows, columns)
        places = json.dumps({"w": {"saved_offsets": begin}})
        save_file({"w": part.contiguous()}, tmp_path / f"{number}.safetensors", metadata={"DCP_SHARDING_INFO": places})
    names = [f"{number}.safetensors" for number in range(len(pieces))]
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.full((4, 3), -1.0))
    with _weights.hold_parts(tmp_path, names) as parts:
        if says is None:
            _weights.load_into(model, parts)
            assert torch.equal(model.w, whole)
        else:
            with pytest.raises(CheckpointError, match=says):
                _weights.load_into(model, parts)
