"""Sizes have bounds from memory and addressable size, before anything is built."""

from __future__ import annotations

from collections.abc import Iterator

from hostile.base import recipe
from hostile.harness import Case

_ABSURD = (0, -1, 2**31, 2**40, 2**63, 2**64, 10**30, 10**400)
_SETTINGS = (
    "model.backbone.width",
    "model.backbone.blocks",
    "model.backbone.heads",
    "model.backbone.kv_heads",
    "model.backbone.context",
    "model.backbone.vocabulary",
    "model.backbone.feed_forward",
    "model.event_dims",
    "train.steps",
    "train.batch",
    "train.context",
    "train.accumulate",
    "train.seed",
    "train.threads",
    "train.eval_documents",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "data.seed",
    "data.held_out",
)
_MAY = {
    ("train.seed", 0),
    ("data.seed", 0),
    ("data.held_out", 0),
    ("train.threads", 0),
    ("train.steps", 2**31),
    ("train.steps", 2**40),
    ("train.save_every", 0),
    ("train.log_every", 0),
    ("train.keep", 0),
    ("train.steps", 2**63),
    ("model.event_dims", 0),
    ("model.backbone.context", 2**31),
    ("model.backbone.context", 2**40),
}
"""Where no bound is owed, or nothing hangs on it: many steps take long, and say so."""


_PLANNED = ("model.backbone.context", "model.backbone.feed_forward", "train.batch", "train.accumulate")


def cases() -> Iterator[Case]:
    """Of every size that a recipe or an option has."""
    for key in _SETTINGS:
        for value in _ABSURD:
            shown = value if abs(value) < 10**40 else f"10**{len(str(value)) - 1}"
            either = (
                None
                if (key, value) in _MAY
                or key
                in (
                    "train.save_every",
                    "train.keep",
                    "train.log_every",
                    "train.seed",
                    "data.seed",
                    "train.eval_documents",
                    "train.steps",
                )
                else False
            )
            for ending in (("--dry-run",), ("-q", "--out", "new")):
                if ending[0] == "-q" and (key in ("train.steps", "train.accumulate") or (either is None and value <= 2**31)):
                    continue
                if ending[0] == "--dry-run" and key in _PLANNED and 0 < value < 2**63:
                    either = None  # a plan may say that it takes more than there is
                yield Case(f"recipe: {key}={shown} {ending[0]}", ("train", "my.yaml", *ending, f"{key}={value}"), good=either)  # type: ignore[arg-type]
    for value in ("chunk:0", "chunk:-1", f"chunk:{10**400}", "chunk:x", "chunk:1.5", "chunk:"):
        yield Case(f"granularity {value[:30]}", ("train", "my.yaml", "--dry-run", f"model.granularity={value}"))
    for value in ("bpe:0", "bpe:-5", "bpe:255", f"bpe:{2**31}", f"bpe:{10**30}", "bpe:x", "bpe:"):
        yield Case(f"tokenizer {value}", ("train", "my.yaml", "-q", "--out", "new", f"data.tokenizer={value}"))
    for device in ("cuda", "cuda:99", "tpu", "meta", "mps", "cpu:7", "", "xpu", "privateuseone", "\x1b[31m"):
        for command in (
            ("generate", "run", "x", "--device", device),
            ("score", "run", "notes.txt", "--device", device),
            ("train", "my.yaml", "-q", "--out", "new", f"train.device={device}"),
        ):
            yield Case(f"{command[0]} on {device!r}", command, good=None if device in ("cpu:7",) else False)  # type: ignore[arg-type]
    options = {
        ("generate", "run", "x", "--max-tokens", "2"): ("--max-tokens", "--top-k", "--seed", "--samples"),
        ("score", "run", "notes.txt"): ("--samples", "--max-samples", "--seed", "--context", "--batch"),
        ("eval", "run", "--tasks", "latentlm_copy"): ("--limit", "--samples", "--max-samples", "--seed", "--batch-size"),
        ("reproduce", "synthetic", "--only", "vanilla-*", "--groups", "2", "--out", "new"): ("--groups", "--seed"),
        ("schedules", "revive", "--schedules", "linear", "--steps", "2", "--collapse-steps", "2", "--out", "new"): ("--seeds",),
        ("diversity", "free-tiny", "--task", "automaton", "--dry-run"): (
            "--samples",
            "--prompts",
            "--answers",
            "--calibration",
        ),
        ("compare", "run", "--tasks", "latentlm_copy", "--limit", "2", "--dry-run"): (
            "--jobs",
            "--samples",
            "--max-samples",
            "--documents",
            "--document-bytes",
            "--seed",
            "--task-samples",
        ),
        ("probe", "run", "--attribute", "synthetic:reviews"): ("--texts", "--pairs", "--groups", "--max-tokens", "--seed"),
    }
    for command, names in options.items():
        if command[0] not in ("probe", "schedules"):  # which take their time
            yield Case(f"{command[0]} as it should be", command, good=True)
        for name in names:
            for value in ("-1", "x", "1.5", str(2**63), str(2**70), str(10**400), "nan", "", "1e3", "٣"):
                large = value.isascii() and value.isdigit()
                bounded = name in (
                    "--max-tokens",
                    "--samples",
                    "--batch",
                    "--context",
                    "--max-samples",
                    "--task-samples",
                    "--pairs",
                    "--groups",
                    "--seeds",
                    "--prompts",
                    "--answers",
                )
                either = None if name == "--seed" or (large and not bounded) or value == "٣" else False
                if name == "--limit" and value in ("1.5", "1e3", "nan"):
                    either = None
                if large and name in ("--texts", "--documents", "--document-bytes", "--jobs", "--limit", "--pairs"):
                    continue  # at most so many: more than there are is as good as all
                yield Case(f"{command[0]} {name} {value[:30]}", (*command, name, value), good=either)  # type: ignore[arg-type]
    for name, values in {
        "--temperature": ("-1", "nan", "inf", "x", "1e400"),
        "--top-p": ("-1", "0", "1.5", "nan"),
        "--prior-temperature": ("-1", "nan", "inf", "0"),
    }.items():
        for value in values:
            yield Case(
                f"generate {name} {value}",
                ("generate", "run", "x", "--max-tokens", "2", name, value),
                good=None if value == "0" else False,
            )  # type: ignore[arg-type]
    for value in ("-1", "0", "nan", "inf", "x"):
        yield Case(f"score --tolerance {value}", ("score", "run", "notes.txt", "--tolerance", value))
    for block in ("width: 4096000000", "blocks: 1000000000", "width: 99999999, heads: 3"):
        card = f"card_version: 1\nname: big\nstatus: architecture\nmodel: {{decoder: vanilla, backbone: {{{block}}}}}\n"
        for command in (("zoo", "describe", "./big.yaml"), ("generate", "./big.yaml", "x"), ("zoo", "list")):
            yield Case(f"card: {block}: {command[0]} {command[1]}", command, files={"big.yaml": card}, good=None)  # type: ignore[arg-type]
    yield from _studies()
    yield Case(
        "recipe: many latents",
        ("train", "bad.yaml", "--dry-run"),
        files={
            "bad.yaml": recipe(
                model__decoder="composed",
                model__latents={f"z{n}": {"like": "free", "dims": 4} for n in range(2000)},
            ).replace("  event_dims: 4\n", "")
        },
    )


def _studies() -> Iterator[Case]:
    """How much a study asks for: each run is listed before the first is trained, each text drawn after the last."""
    settings = {
        "seeds": "seeds: {0}",
        "an arm's seeds": "arms: {{a: {{recipe: my.yaml, seeds: {0}}}}}",
        "texts": "measure: {{texts: {0}}}",
        "samples": "measure: {{texts: 2, max_samples: {0}}}",
        "tolerance": "measure: {{texts: 2, tolerance: {0}}}",
        "given": "measure: {{texts: 2, given: {0}}}",
        "bytes": "measure: {{texts: 2, bytes: {0}}}",
    }
    arms = "arms: {a: {recipe: my.yaml}}"
    for what, setting in settings.items():
        for value in ("0", "-1", "1.5", "x", "null", "10000000000", str(10**12), str(2**63), str(10**400)):
            text = setting.format(value)
            said = f"name: s\n{text}\n" + ("" if text.startswith("arms") else arms + "\n")
            many = value.startswith("1000")
            good = (
                None
                if (what == "tolerance" and (many or value == "1.5")) or (what, value) in _TAKEN or (many and what in _MANY)
                else False
            )
            yield Case(
                f"study: {what} {value[:30]}",
                ("study", "s.yaml", "--dry-run"),
                files={"s.yaml": said},
                good=good,
                says="" if good is None else "study s.yaml: ",
            )
    said = "name: s\nseeds: 600\narms: {a: {recipe: my.yaml}, b: {recipe: my.yaml}}\n"
    yield Case("study: runs of many arms", ("study", "s.yaml", "--dry-run"), files={"s.yaml": said}, says="1,200 runs")
    yield Case(
        "study: as it should be", ("study", "s.yaml", "--dry-run"), files={"s.yaml": said.replace("600", "3")}, good=True
    )
    yield Case(
        "study: as many seeds as may be",
        ("study", "s.yaml", "--dry-run"),
        files={"s.yaml": f"name: s\nseeds: 1000\n{arms}\n"},
        good=True,
    )
    for option in ("--bits", "--target"):
        for value in ("nan", "inf", "-inf", "x"):
            command = ("schedules", "plot", "--schedules", "linear", "--steps", "2", "--out", "new", option, value)
            yield Case(f"schedules plot: {option} {value}", command)


_TAKEN = {("given", "0"), ("an arm's seeds", "null")}
_MANY = ("bytes", "samples")
"""Of which there may be as many as there is time or text for."""
