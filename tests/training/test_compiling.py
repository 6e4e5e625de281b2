"""Compiled training: the numbers of the uncompiled one, and nothing compiled where shapes vary."""

from __future__ import annotations

import os

import pytest
import torch

from latentlm import zoo
from latentlm.backbone.block import Block
from latentlm.composed import build
from latentlm.config import TrainConfig
from latentlm.errors import UserError, compiling
from latentlm.interface import Batch, Noise
from latentlm.training.compiling import compile_blocks, uncompiled
from latentlm_free import mapper
from samples import pack, small_config


def test_compiled_blocks_give_the_same_loss_and_stand_aside_where_asked() -> None:
    model = build(small_config("free"), seed=0)
    batch, noise = Batch.of([[1, 2, 3, 4, 5]], [[2, 3, 4, 5, 6]]), Noise.keyed(0, [0])
    names, expected = list(model.state_dict()), model.loss(batch, step=0, noise=noise).total
    compile_blocks(model, backend="eager")
    torch._dynamo.utils.counters.clear()
    with uncompiled(TrainConfig(compile=True)):
        torch.testing.assert_close(model.loss(batch, step=0, noise=noise).total, expected)
    assert not torch._dynamo.utils.counters["frames"]
    torch.testing.assert_close(model.loss(batch, step=0, noise=noise).total, expected)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert list(model.state_dict()) == names


class OfAPart(torch.nn.Linear):
    """A module that wants to be compiled, and counts how often it was asked."""

    compiles = True

    def compile(self, *, backend: str) -> None:  # type: ignore[override]
        self.asked = [*getattr(self, "asked", []), backend]


def test_a_part_says_what_else_is_compiled() -> None:
    model = build(small_config("free", bits=10), seed=0)
    model.injection.mine = OfAPart(2, 2)
    compile_blocks(model, backend="eager")
    assert model.injection.mine.asked == ["eager"]
    assert model.injection.get_submodule("table").estimator.backend == "eager"
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert len(blocks) == 5
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_a_compiled_table_has_its_gradient_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    blocks = mapper._compiled_blocks
    monkeypatch.setattr(mapper, "_compiled_blocks", lambda backend: asked.append(backend) or blocks(backend))
    model = build(small_config("free", bits=10), seed=0)
    batch, noise = Batch.of([[1, 2, 3, 4, 5]], [[2, 3, 4, 5, 6]]), Noise.keyed(0, [0])
    grads = []
    for _ in range(2):
        model.loss(batch, step=0, noise=noise).total.backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.zero_grad()
        compile_blocks(model, backend="eager")
    assert asked == ["eager"]
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient, msg=name)


def test_what_cannot_be_compiled_is_one_message() -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    said = pytest.raises(UserError, match=r"compile failed: .*No working C\+\+ compiler.*train\.compile=false")
    with said, compiling(remedy="Set train.compile=false"):
        raise InvalidCxxCompiler
    in_torch = {"__name__": "torch._inductor.codecache", "os": os}
    with pytest.raises(UserError, match="false, or set TORCHINDUCTOR_CACHE_DIR"), compiling(remedy="Set train.compile=false"):
        exec("os.listdir('/nowhere')", in_torch)
    with pytest.raises(FileNotFoundError), compiling(remedy="Set train.compile=false"):
        os.listdir("/nowhere")
    anew = type("FailOnRecompileLimitHit", (Exception,), {"__module__": "torch._dynamo.exc"})
    with pytest.raises(UserError, match=r"changed more often.*or load the model again"), compiling(remedy="Leave compile out"):
        raise anew
    with pytest.raises(ValueError, match="mine"), compiling(remedy="Set train.compile=false"):
        raise ValueError("mine")


@pytest.mark.parametrize(
    "kind", ["vanilla", "free", "gaussian", "gaussian memory", "causal", "chunk", "della", "two-level", "ltm"]
)
def test_a_second_batch_needs_no_graph_of_its_own(kind: str) -> None:
    """Of the same shape, whatever is in it: a graph for each step would be slower than none."""
    memory = small_config("gaussian", granularity="document")
    model = build(memory, seed=0) if kind == "gaussian memory" else zoo.load(f"{kind}-tiny", weights=None)
    compile_blocks(model.train(), backend="eager")
    graphs, kept = [], []
    torch._dynamo.reset()  # of other models there may be as many graphs as torch makes
    torch._dynamo.utils.counters.clear()
    for step in range(4):
        rows = torch.randint(1, 9, (2, 2, 5), generator=torch.Generator().manual_seed(step)).tolist()
        kept.append(model.loss(pack(rows), step=step, noise=Noise.keyed(step, range(2))))  # else memory is used again
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(graphs)) == 1
