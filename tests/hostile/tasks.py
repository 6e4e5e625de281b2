"""Task files of lm-eval that say what it cannot take: found before the work, by one message."""

from __future__ import annotations

from collections.abc import Iterator

from hostile.harness import Case

_TASK = (
    "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: t.jsonl}}\ntest_split: test\n"
    "output_type: loglikelihood\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1}\n"
)
_CHANGES = {
    "an aggregation that is none": ("aggregation: mean", "aggregation: nope", "no such aggregation"),
    "a number for a name": ("task: mine", "task: 5", "which is no text"),
    "a tag that is a number": ("task: mine", "tag: [5]\ntask: mine", "which is no text"),
    "repeats below one": ("task: mine\n", "task: mine\nrepeats: -1\n", "repeats is -1"),
    "a text for repeats": ("task: mine\n", "task: mine\nrepeats: x\n", "repeats"),
}


def cases() -> Iterator[Case]:
    """Of one task that is asked for."""
    command = ("eval", "run", "--tasks", "mine", "--include-path", "tasks", "--limit", "2", "--samples", "2")
    rows = {"t.jsonl": '{"q": "a b", "a": " c"}\n{"q": "d e", "a": " f"}\n'}
    yield Case("task: as it should be", command, files={**rows, "tasks/mine.yaml": _TASK}, good=True)
    for what, (said, odd, says) in _CHANGES.items():
        yield Case(f"task: {what}", command, files={**rows, "tasks/mine.yaml": _TASK.replace(said, odd)}, says=says)
    code = {"code.py": "import pathlib\npathlib.Path('ran').touch()\n"}
    for name in ("mine", "[m]ine", "./mine", "mine.yaml", "*.yaml"):  # a recipe is no place for code
        file = name if name.isalpha() else "mine.yaml" if name.endswith("yaml") else name.removeprefix("./")
        yield Case(
            f"task: a recipe that asks for {name}, where a file of that name runs code",
            ("train", "my.yaml", "-q", "--out", "new", f'train.evaluate.tasks=["{name}"]'),
            files={**rows, **code, file: f"{_TASK}process_results: !function code.run\n"},
            says="Unknown task|is a file, which can hold code",
        )
    beside = {"tasks/odd.yaml": _TASK.replace("task: mine", "task: 5"), "tasks/odder.yaml": "group: 1\ntask: [mine]\n"}
    files = {**rows, "tasks/mine.yaml": _TASK, **beside}
    yield Case("task: beside odd ones", command, files=files, good=True, says="odd.yaml is left out")
