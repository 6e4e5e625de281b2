"""Several processes train one model: the losses are those of one, to rounding, for decoders of every kind; what is refused is
refused once. (Their checkpoints: test_sharded_checkpoints.py.)"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentlm.config import Recipe
from latentlm.errors import UserError
from latentlm.training import load_recipe, parallel, train
from latentlm.training.mesh_plan import check_share, share_of
from latentlm.training.parallel import Ranks, check_ranks
from latentlm.training.plan import check_memory, estimate_memory
from latentlm.training.setup import resolve
from latentlm_schedules.levels import pool
from torchrun import SMALL, assert_alike, lines, run

DECODERS = {
    "free-tiny": [  # a hinge on the whole batch; table and embedding are gathered alone
        'model.kl_schedule={"name": "free_bits", "bits": 0.5, "level": "batch"}', "model.backbone.tie_embeddings=false",
    ],
    "chunk-tiny": ['model.kl_schedule={"name": "geco"}'],  # a state that moves by what all processes saw
    "ltm-tiny": [  # its encoder descends through the decoder
        "train.evaluate.every=4", "train.evaluate.documents=2", "train.evaluate.max_samples=32",
        'train.evaluate.tasks=["latentlm_copy"]', "train.evaluate.limit=2",
    ],
    "vanilla-tiny": [],
    "two-level-tiny": [],
}  # fmt: skip
LONG = {"free-tiny", "chunk-tiny", "vanilla-tiny", "two-level-tiny"}


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.conformance if name in LONG else ()) for name in DECODERS]
)
def test_two_processes_train_as_one(recipe: str, tmp_path: Path) -> None:
    train(load_recipe(recipe, [*SMALL, *DECODERS[recipe]]), out=tmp_path / "one", progress=False)
    done = run(recipe, tmp_path / "two", *DECODERS[recipe])
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")
    evaluated = [[line for line in lines(tmp_path / name) if line["split"] == "evaluation"] for name in ("one", "two")]
    for one, two in zip(*evaluated, strict=True):
        assert two["likelihood"] == pytest.approx(one["likelihood"], rel=1e-4)
        (first,), (second,) = (each["tasks"]["latentlm_copy"]["metrics"].values() for each in (one, two))
        assert second == pytest.approx(first, rel=1e-4)
    assert "FSDP" not in done.stderr


@pytest.mark.conformance
def test_two_processes_that_compile_train_as_one_that_does_not(tmp_path: Path) -> None:
    """Blocks, and the table's exact gradient; both are gathered alone."""
    train(load_recipe("free-tiny", SMALL), out=tmp_path / "one", progress=False)
    done = run("free-tiny", tmp_path / "two", "train.compile=true")
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.conformance
@pytest.mark.parametrize(("processes", "copies"), [(4, 2), (3, 1)])
def test_more_processes_and_copies_of_the_model_train_as_one(processes: int, copies: int, tmp_path: Path) -> None:
    """Rows that do not divide evenly among them, too."""
    train(load_recipe("free-tiny", SMALL), out=tmp_path / "one", progress=False)
    done = run("free-tiny", tmp_path / "many", f"train.parallel.replicate={copies}", processes=processes)
    assert done.returncode == 0, done.stderr
    assert_alike(tmp_path / "one", tmp_path / "many")


@pytest.mark.conformance
def test_two_processes_in_half_precision_stay_near_one_in_full(tmp_path: Path) -> None:
    """Blocks in bfloat16; weights, moments, KL and sums in float32."""
    train(load_recipe("free-tiny", SMALL), out=tmp_path / "one", progress=False)
    evaluate = ["train.evaluate.documents=1", "train.evaluate.max_samples=32", 'train.evaluate.tasks=["latentlm_copy"]']
    done = run("free-tiny", tmp_path / "two", "train.dtype=bfloat16", *evaluate, "train.evaluate.limit=1")
    assert done.returncode == 0, done.stderr
    *both, evaluated = lines(tmp_path / "two")
    assert evaluated["likelihood"]["bits_per_byte"] == pytest.approx(both[-1]["bits_per_byte"], rel=0.2)
    for one, two in zip(lines(tmp_path / "one"), both, strict=True):
        assert two["cross_entropy"] == pytest.approx(one["cross_entropy"], rel=2**-7)  # the spacing of such numbers
        assert two["kl"] == pytest.approx(one["kl"], rel=0.05)
    saved = load_file(tmp_path / "two" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

FIRST_WEIGHTS = """
import sys
import torch
from latentlm.tokenizer import load_tokenizer
from latentlm.training import load_recipe
from latentlm.training.parallel import joined, shard, spreads
from latentlm.training.setup import make_model, resolve
from latentlm.zoo.weights import weights_of, whole
with joined() as ranks:
    for name in sys.argv[1].split():
        recipe = resolve(load_recipe(name, sys.argv[2:]), tokenizer=load_tokenizer("bytes"))
        one, spread = make_model(recipe, "cpu"), make_model(recipe, "meta")
        assert spreads(spread), name
        shard(spread, recipe.train, ranks, torch.device("cpu"))
        wanted, found = weights_of(one), weights_of(spread)
        assert wanted.keys() == found.keys()
        assert all(len(tensor.to_local()) < len(tensor) for tensor in found.values() if hasattr(tensor, "to_local"))
        assert all(torch.equal(whole(tensor), wanted[key]) for key, tensor in found.items()), name
        sys.stdout.write(f"{name} {len(found)}\\n")  # at once: two write
"""


UNITS = """
import sys
import torch
from torch.distributed.fsdp import FSDPModule
from latentlm.training import load_recipe
from latentlm.training.parallel import joined, shard
from latentlm.training.setup import make_model, resolve
recipe = resolve(load_recipe("free-tiny", sys.argv[1:]), vocabulary=256)
with joined() as ranks:
    model = make_model(recipe, "meta")
    model.injection.gathered_alone = True  # it holds the table
    sharded = shard(model, recipe.train, ranks, torch.device("cpu"))
    if ranks.first:
        print(*[name for name, module in sharded.named_modules() if isinstance(module, FSDPModule) and name])
"""


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_tables_and_an_embedding_are_gathered_alone(tied: bool, tmp_path: Path) -> None:
    (tmp_path / "units.py").write_text(UNITS)
    start = [*TORCHRUN, str(tmp_path / "units.py")]
    settings = [*SMALL, f"model.backbone.tie_embeddings={tied}", "model.backbone.blocks=4"]
    done = subprocess.run([*start, *settings], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    blocks = [f"model.backbone.blocks.{index}" for index in range(4)]
    alone = [*blocks, "model.encoder.block", "model.injection", "model.injection.table"]
    alone += [] if tied else ["model.backbone.embedding"]
    assert sorted(done.stdout.split()) == sorted(alone)


def test_first_weights_are_those_of_one_process_and_made_where_they_are_spread(tmp_path: Path) -> None:
    (tmp_path / "first.py").write_text(FIRST_WEIGHTS)
    kinds = ("vanilla", "free", "two-level", "ltm", "chunk", "gaussian", "della", "causal")
    names = [f"{kind}-tiny" for kind in kinds]
    start = [*TORCHRUN, str(tmp_path / "first.py")]
    done = subprocess.run([*start, " ".join(names), *SMALL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"{name} " in done.stdout for name in names)


REFUSED = """
import sys
import torch
import torch.distributed as dist
from latentlm.cli.train import _first_speaks
from latentlm.errors import UserError
from latentlm.training.parallel import joined, speaks
who = [int(rank) for rank in sys.argv[1].split()]
def work(rank):
    if rank in who:
        raise UserError("the task is odd")
    for _ in range(1000):
        dist.all_reduce(torch.zeros(1))
try:
    with _first_speaks(speaks()), joined() as ranks:
        ranks.in_step(lambda: work(ranks.rank))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("who", ["1", pytest.param("0 1", marks=pytest.mark.conformance)])
def test_what_one_process_refuses_in_step_with_the_others_is_said_once(who: str, tmp_path: Path) -> None:
    """The others wait for it then, in the midst of something."""
    (tmp_path / "refused.py").write_text(REFUSED)
    start = [*TORCHRUN, str(tmp_path / "refused.py")]
    done = subprocess.run([*start, who], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == ["error: the task is odd"]
    assert "refused.py\", line" not in done.stderr, "no traceback of ours"


def test_each_process_needs_room_for_its_share_alone(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = resolve(recipe("train.batch=8"))
    every, gpu = share_of(mine, 8).total, torch.device("cuda:0")
    assert every < estimate_memory(mine).total
    monkeypatch.setattr("latentlm.config.memory.available", lambda device: 2 * every)
    check_share(mine, Ranks(0, 8, beside=2), torch.device("cpu"))
    check_share(mine, Ranks(0, 8, beside=8), gpu)  # each has its own
    for ranks, device in ((Ranks(0, 8, beside=3), torch.device("cpu")), (Ranks(0, 2), gpu)):
        with pytest.raises(UserError, match=f"each of {ranks.size} processes needs about"):
            check_share(mine, ranks, device)


def test_a_model_that_no_gpu_holds_may_be_trained_by_several(monkeypatch: pytest.MonkeyPatch) -> None:
    large = resolve(load_recipe("free-8b", ["train.batch=64"]))
    monkeypatch.setattr("latentlm.config.memory.available", lambda device: 80 * 10**9)
    check_share(large, Ranks(0, 64), torch.device("cuda:0"))
    with pytest.raises(UserError, match="of memory"):
        check_memory(estimate_memory(large), torch.device("cuda:0"))


def test_what_is_refused_is_said_once(tmp_path: Path) -> None:
    done = run("vanilla-tiny", tmp_path / "run", "train.batch=1")
    assert done.returncode != 0
    assert done.stderr.count("2 processes share the rows of a micro-batch, and train.batch is 1.") == 1
    assert "latentlm/training" not in done.stderr


def test_who_waits_for_processes_that_never_come_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(parallel, "_SOON", 0.1)
    monkeypatch.setattr(parallel, "_LONG", timedelta(seconds=1))
    with pytest.raises(UserError, match="did not find each other"), parallel.joined():
        pass
    assert "waiting for 1 other processes: WORLD_SIZE is 2" in capfd.readouterr().err


DIVERGED = """
import math
import sys
import torch
from latentlm.training import load_recipe
from latentlm.training.data.prepared import prepare
from latentlm.training.parallel import joined
from latentlm.training.setup import make_model, make_stream, resolve
from latentlm.training.trainer import DivergedError, Trainer
from latentlm.zoo.weights import weights_of, whole
recipe = load_recipe("vanilla-tiny", sys.argv[1:])
prepared = prepare(recipe.data)
recipe = resolve(recipe, tokenizer=prepared.tokenizer)
with joined() as ranks:
    run = Trainer(make_model(recipe, "meta"), recipe.train, make_stream(recipe, prepared), ranks, device=torch.device("cpu"))
    run.advance()
    before = [whole(tensor).clone() for tensor in weights_of(run.model).values()]
    accumulate = run._accumulate
    def broken(*arguments):
        found = accumulate(*arguments)
        if ranks.rank == 1:
            found.values.mul_(math.nan)
        return found
    run._accumulate = broken
    run.take()
    run.take()
    try:
        run.read()
    except DivergedError as error:
        same = all(torch.equal(whole(tensor), old) for tensor, old in zip(weights_of(run.model).values(), before))
        sys.stdout.write(f"rank {ranks.rank}: weights as before {same}, {run.step} done, {str(error)[:25]}\\n")
    run.close()
"""


def test_what_is_no_number_for_one_process_stops_all_at_the_same_step(tmp_path: Path) -> None:
    """The loss of its rows; their gradients are fine."""
    (tmp_path / "diverged.py").write_text(DIVERGED)
    start = [*TORCHRUN, str(tmp_path / "diverged.py")]
    done = subprocess.run([*start, *SMALL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"rank {rank}: weights as before True, 1 done, the loss is nan at step 2" in done.stdout


def test_rows_of_a_micro_batch_go_round() -> None:
    assert [list(Ranks(rank, 3).rows(7)) for rank in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


def test_copies_divide_the_processes() -> None:
    config = load_recipe("vanilla-tiny", ["train.parallel.replicate=2"]).train
    check_ranks(config, Ranks(0, 4))
    with pytest.raises(Exception, match="3 processes do not divide"):
        check_ranks(config, Ranks(0, 3))


def test_a_budget_of_the_batch_is_compared_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a batch that is over its budget charges by what the whole is over, not by what itself is."""
    kl, mask = torch.tensor([[[1.0]], [[5.0]]]), torch.ones(2, 1, dtype=torch.bool)
    monkeypatch.setattr("latentlm_schedules.levels.summed", lambda value: value + 4.0)  # the other half is 4 over
    own = pool(kl[:1], mask[:1], level="batch", kappa=2.0)
    assert bool(own.above)
    assert float(own.kl - own.budget) == -1.0
