"""Loading by name and by path; what is loaded, what is refused and in which words."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from latentlm import plugins, zoo
from latentlm.composed import build
from latentlm.config import PartSpec, memory
from latentlm.errors import CheckpointError, UnknownNameError, UserError
from latentlm.interface import Shape
from latentlm.tokenizer import BPETokenizer
from latentlm.zoo.weights import weights_of
from latentlm_free import FreeEncoder
from zoo_models import edit_card, make_run, small_recipe, trust


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's shelf nor their LATENTLM_ZOO_PATH, and a folder of our own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("LATENTLM_ZOO_PATH", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


# ------------------------------------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("decoder", ["free", "vanilla"])
def test_a_run_folder_loads_what_was_trained(tmp_path: Path, decoder: str) -> None:
    trained = make_run(tmp_path / "run", recipe=small_recipe(decoder))
    loaded = zoo.load(tmp_path / "run", weights="required")
    for name, tensor in weights_of(trained).items():
        assert torch.equal(tensor, weights_of(loaded)[name]), name
    assert not loaded.training
    assert loaded.card is not None
    assert loaded.tokenizer is not None
    assert (loaded.card.name, loaded.card.status, loaded.tokenizer.name) == ("mine", "trained", "bytes")


def test_a_card_file_and_a_relative_path_load_the_same(run: Path) -> None:
    for path in ("run", "./run", "run/card.yaml", str(run)):
        assert zoo.load(path).card == zoo.load(run).card


def test_a_run_with_its_own_tokenizer_loads_it(tmp_path: Path) -> None:
    tokenizer = BPETokenizer.train(["low lower lowest"] * 4, vocabulary=260)
    make_run(tmp_path / "run", recipe=small_recipe(vocabulary=tokenizer.vocabulary), tokenizer="tokenizer.json")
    tokenizer.save(tmp_path / "run")
    loaded = zoo.load(tmp_path / "run").tokenizer
    assert loaded is not None
    assert loaded.encode("slower") == tokenizer.encode("slower")


def test_the_type_is_the_cards_unless_another_is_asked_for(run: Path) -> None:
    edit_card(run, dtype="bfloat16")
    assert {tensor.dtype for tensor in zoo.load(run).parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in zoo.load(run, dtype="float32").parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in zoo.load(run, dtype=torch.float64).parameters()} == {torch.float64}


def test_tied_embeddings_are_still_tied_and_the_gradient_is_on(run: Path) -> None:
    model = zoo.load(run)
    assert "backbone.readout.weight" not in weights_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loaded_model_runs() -> None:
    with pytest.warns(zoo.RandomWeightsWarning) if not _trained("free-tiny") else warnings.catch_warnings():
        model = zoo.load("free-tiny")
    generated = model.generate(["def "], max_tokens=4)
    assert len(generated) == 1


def _trained(name: str) -> bool:
    return zoo.list(name)[0].status == "trained"


@pytest.mark.parametrize("name", ["vanilla-tiny", "free-tiny"])
def test_shipped_weights_are_small_and_load(name: str) -> None:
    card = zoo.list(name)[0]
    if card.weights is None:
        pytest.skip("the card has no weights yet")
    assert card.weights.size < 5_000_000
    assert zoo.load(name, weights="required").card == card


class Buffered(FreeEncoder):
    """An encoder with a number that is not saved with its weights."""

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__(config, shape)
        self.register_buffer("scale", torch.empty(1), persistent=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        super().init_weights(generator)
        self.scale.fill_(3.0)


def test_what_is_not_saved_is_set_all_the_same(tmp_path: Path) -> None:
    plugins.register("encoder", "buffered", Buffered)
    try:
        recipe = small_recipe()
        recipe.model.encoder = PartSpec(name="buffered")
        trained = make_run(tmp_path / "run", recipe=recipe)
        loaded = zoo.load(tmp_path / "run")
        assert float(loaded.get_buffer("encoder.scale")) == 3.0
        assert torch.equal(loaded.get_parameter("encoder.zeta"), trained.get_parameter("encoder.zeta"))
    finally:
        plugins.unregister("encoder", "buffered")


# ------------------------------------------------------------------------------------------------------ fresh weights


def untrained(run: Path) -> Path:
    """Make the run's card an architecture's."""
    edit_card(run, status="architecture", weights=None)
    return run


def test_an_architecture_is_loaded_fresh_and_says_so_once(run: Path) -> None:
    with pytest.warns(zoo.RandomWeightsWarning, match="random ones") as seen:
        model = zoo.load(untrained(run), seed=5)
    assert len(seen) == 1
    assert model.card is not None
    assert model.card.status == "architecture"
    same = build(model.card.model, seed=5)
    assert all(torch.equal(weights_of(model)[name], tensor) for name, tensor in weights_of(same).items())


def test_required_weights_that_are_not_there_are_an_error(run: Path) -> None:
    with pytest.raises(UserError, match=r"architecture without trained weights.*weights=\"auto\""):
        zoo.load(untrained(run), weights="required")


def test_fresh_weights_on_request_never_pass_for_trained_ones(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = zoo.load(run, weights=None)
    assert model.card is not None
    assert (model.card.status, model.card.weights, model.card.scores) == ("architecture", None, {})
    saved = load_file(run / "model.safetensors")
    assert not torch.equal(model.get_parameter("encoder.zeta"), saved["encoder.zeta"])


def test_given_weights_are_loaded_and_told_by_the_card(run: Path, tmp_path: Path) -> None:
    other = build(small_recipe().model, seed=11)
    file = tmp_path / "other.safetensors"
    save_file(weights_of(other), file)
    model = zoo.load(untrained(run), weights=file)
    assert torch.equal(model.get_parameter("encoder.zeta"), other.get_parameter("encoder.zeta"))
    assert model.card is not None
    assert model.card.weights is not None
    assert model.card.status == "trained"
    assert model.card.weights.size == file.stat().st_size


# ------------------------------------------------------------------------------------------------------ refusals


def test_a_wrong_name_gets_the_nearest_one() -> None:
    nearest = r'Unknown model "fre-tiny"\. Did you mean "free-tiny"\? Available: causal-tiny, .*free-1\.5b'
    with pytest.raises(UnknownNameError, match=nearest):
        zoo.load("fre-tiny")


def test_a_path_that_is_not_there_is_no_name() -> None:
    with pytest.raises(UserError, match="runs/mine does not exist"):
        zoo.load("runs/mine")


def test_a_flipped_bit_is_refused(run: Path) -> None:
    file = run / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match their card: SHA-256"):
        zoo.load(run)


def test_truncated_weights_are_refused(run: Path) -> None:
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="truncated"):
        zoo.load(run)


def test_missing_weights_are_refused(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="are missing"):
        zoo.load(run)
    with pytest.raises(CheckpointError, match="do not exist"):
        zoo.load(run, weights=run / "model.safetensors")


def test_weights_outside_the_cards_folder_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "model.safetensors", tmp_path / "model.safetensors")
    data = yaml.safe_load((run / "card.yaml").read_text())
    edit_card(run, weights=data["weights"] | {"uri": "../model.safetensors"})
    with pytest.raises(CheckpointError, match="leads out of"):
        zoo.load(run)


def test_a_tokenizer_outside_the_cards_folder_is_refused(run: Path) -> None:
    edit_card(run, tokenizer="../tokenizer.json")
    with pytest.raises(UserError, match="lies outside"):
        zoo.load(run)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    tensors = load_file(run / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "encoder.zeta"}, run / "model.safetensors")
    trust(run)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(encoder\.zeta\)"):
        zoo.load(run)


def test_a_pickle_is_refused_wherever_it_is_named(run: Path) -> None:
    (run / "model.pt").write_bytes(b"\x80\x04.")
    data = yaml.safe_load((run / "card.yaml").read_text())
    for load in (lambda: zoo.load(run, weights=run / "model.pt"), lambda: zoo.load(run / "model.pt"), lambda: zoo.load("m.pt")):
        with pytest.raises(CheckpointError, match="is a pickle"):
            load()
    edit_card(run, weights=data["weights"] | {"uri": "model.pt"})
    with pytest.raises(CheckpointError, match="is a pickle"):
        zoo.load(run)


def test_weights_alone_are_no_model(run: Path) -> None:
    with pytest.raises(UserError, match="give the folder of their card"):
        zoo.load(run / "model.safetensors")


def test_tokenizer_and_model_must_agree(tmp_path: Path) -> None:
    make_run(tmp_path / "run", recipe=small_recipe(vocabulary=300))
    with pytest.raises(UserError, match=r"vocabulary of 300, the tokenizer \"bytes\" has 257"):
        zoo.load(tmp_path / "run")


def test_too_little_memory_is_said_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 10 * 2**30)
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("allocated"))
    with pytest.raises(UserError, match=r'"free-8b" in bfloat16 needs 15\.9 GiB on cpu, and 10\.0 GiB are free'):
        zoo.load("free-8b")


def test_an_unfinished_run_says_how_to_go_on(run: Path) -> None:
    (run / "card.yaml").unlink()
    with pytest.raises(UserError, match=r"not finished.*--resume"):
        zoo.load(run)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no card\.yaml and no Llama weights"):
        zoo.load(tmp_path)


def test_a_typo_in_a_card_is_named(run: Path) -> None:
    edit_card(run, licens="MIT")
    with pytest.raises(UserError, match=r'unknown key "licens"\. Did you mean "licence"\?'):
        zoo.load(run)


def test_a_plugin_that_is_not_installed_is_named(run: Path) -> None:
    edit_card(run, plugins=["free", "schedules", "unheard-of"])
    with pytest.raises(UserError, match=r'"unheard-of" is needed but not installed'):
        zoo.load(run)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, r'Unknown device "gpu"\. Give "cpu"'),
        ({"device": "cuda:99"}, r"no device cuda:99 here"),
        ({"dtype": "float23"}, r'Unknown dtype "float23"\. Did you mean "float32"'),
    ],
)
def test_devices_and_types_that_are_not_there_are_refused(run: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.load(run, **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ Llama folders


def llama_folder(folder: Path) -> Path:
    """What transformers would save; the weights are never read here."""
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,'
        ' "intermediate_size": 64}'
    )
    return folder


def test_a_llama_brings_its_own_weights(tmp_path: Path) -> None:
    for weights in (None, tmp_path / "other.safetensors"):
        with pytest.raises(UserError, match="brings its own weights"):
            zoo.load(llama_folder(tmp_path / str(weights is None)), weights=weights)


def test_memory_is_checked_for_a_llama_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(UserError, match="GiB are free"):
        zoo.load(llama_folder(tmp_path / "llama"))


def test_a_llama_is_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no card of the zoo"):
        zoo.describe(llama_folder(tmp_path / "llama"))
