"""Latents as files, and their editing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlm.errors import UserError
from latentlm.generation.latents import codes, cut, edited, from_codes, joined, load_latents, save_latents
from latentlm.interface import Latent, LatentDecoder, Latents

Maker = Callable[..., LatentDecoder]


def bits(rows: int, sites: int, events: int, seed: int = 0) -> Latent:
    return Latent(torch.randint(0, 2, (rows, sites, events), generator=torch.Generator().manual_seed(seed)).float())


def test_saved_latents_come_back_with_their_own_lengths(tmp_path: Path) -> None:
    first, second = bits(2, 5, 4), Latent(torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)))
    save_latents(tmp_path / "z.safetensors", [first, second])
    back = load_latents(tmp_path / "z.safetensors")
    assert [tuple(latent.value.shape) for latent in back] == [(1, 5, 4), (1, 5, 4), (1, 3, 4)]
    assert torch.equal(torch.cat([back[0].value, back[1].value]), first.value)
    assert torch.equal(back[2].value, second.value)


def test_a_file_of_format_1_is_read(tmp_path: Path, small: Maker) -> None:
    """Rows without a name are those of the only latent, and one word is its granularity."""
    first, second, path = bits(1, 5, 4), bits(1, 3, 4, seed=1), tmp_path / "z.safetensors"
    metadata = {"format": "latentlm.latents.1", "granularity": "chunk:3"}
    save_file({"latent.00000000": first.value[0], "latent.00000001": second.value[0]}, str(path), metadata=metadata)
    for model in (None, small("free", bits=4, granularity="chunk:3")):
        back = load_latents(path, model=model)
        assert [list(latents) for latents in back] == [["z"], ["z"]]
        assert torch.equal(back[0].value, first.value)
        assert torch.equal(back[1].value, second.value)
    with pytest.raises(UserError, match='"chunk:3" latents, but those of this model are "token"'):
        load_latents(path, model=small("free", bits=4))


def test_several_latents_come_back_by_name(tmp_path: Path) -> None:
    latents = Latents({"theme": bits(2, 1, 3), "bits": bits(2, 5, 4)})
    save_latents(tmp_path / "z.safetensors", latents)
    back = load_latents(tmp_path / "z.safetensors")
    assert len(back) == 2
    for row, each in enumerate(back):
        assert {name: latent.value.shape[1:] for name, latent in each.items()} == {"theme": (1, 3), "bits": (5, 4)}
        assert all(torch.equal(each[name].value[0], latent.value[row]) for name, latent in latents.items())


def test_latents_of_another_model_are_refused(tmp_path: Path, small: Maker) -> None:
    path = tmp_path / "z.safetensors"
    save_latents(path, bits(1, 5, 4), model=small("free", bits=4))
    assert len(load_latents(path, model=small("free", bits=4))) == 1
    with pytest.raises(UserError, match="4 events per site"):
        load_latents(path, model=small("free", bits=3))
    with pytest.raises(UserError, match="chunk:3"):
        load_latents(path, model=small("free", bits=4, granularity="chunk:3"))
    with pytest.raises(UserError, match="no latents"):
        load_latents(path, model=small("vanilla"))


def test_files_without_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_latents(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(UserError, match="not readable as safetensors"):
        load_latents(tmp_path / "text.safetensors")
    save_file({"latent.0": torch.zeros(2, 2)}, str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match="holds no latents"):
        load_latents(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="no latents to save"):
        save_latents(tmp_path / "none.safetensors", [])
    with pytest.raises(UserError, match="Choose a folder"):
        save_latents(tmp_path / "nowhere" / "z.safetensors", bits(1, 1, 1))


def test_editing_changes_what_is_named_and_leaves_the_original() -> None:
    latent = Latent(torch.zeros(2, 5, 4))
    new = edited(latent, sites=3, events=1, value=1.0).value
    assert new[:, 3, 1].tolist() == [1, 1]
    assert new.sum() == 2
    assert edited(latent, sites=slice(0, 2), value=torch.ones(4)).value.sum() == 16
    assert not latent.value.any()
    with pytest.raises(UserError, match="do not fit"):
        edited(latent, sites=9, value=1.0)


def test_latents_are_cut_and_joined_along_their_sites() -> None:
    latent = bits(2, 6, 4)
    assert torch.equal(joined(cut(latent, 0, 2), cut(latent, 2)).value, latent.value)
    with pytest.raises(UserError, match="along the sites only"):
        joined(latent, bits(1, 6, 4))


def test_codes_number_the_bits_from_the_lowest() -> None:
    latent = Latent(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]]))
    assert codes(latent).tolist() == [[1, 6]]
    wide = bits(3, 4, 16)
    assert torch.equal(from_codes(codes(wide), event_dims=16).value, wide.value)
    with pytest.raises(UserError, match="values 0 and 1"):
        codes(Latent(torch.full((1, 1, 2), 0.5)))
    with pytest.raises(UserError, match="from 0 to 7"):
        from_codes(torch.tensor([[8]]), event_dims=3)
