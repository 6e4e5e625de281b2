"""The report page of a comparison: one HTML file that needs nothing beside it.

Table, what each number is, curves, lm-eval tasks with their chance level, and samples under fresh and shared latents.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path

from latentlm.config.reading import MOST_BYTES, read_bytes
from latentlm.errors import UserError
from latentlm_evals import bits_html, paired_tables, plots
from latentlm_evals.outputs import is_picture
from latentlm_evals.results import (
    Comparison,
    Estimate,
    ModelResult,
    Sample,
    TaskComparison,
    TaskDifference,
    TaskResult,
    taxed,
)

_STYLE = """
:root{color-scheme:light;--ink:#1d1f24;--soft:#5f6673;--line:#dfe3ea;--wash:#f6f7f9}
body{font:15px/1.55 system-ui,sans-serif;color:var(--ink);max-width:1180px;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{font-size:1.15rem;margin-top:2.4rem} p.sub{color:var(--soft);margin-top:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums} .wide{overflow-x:auto}
th,td{padding:.42rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left} th{font-weight:600;color:var(--soft);font-size:.83rem;white-space:normal}
.se{color:var(--soft);font-size:.85em} .dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
pre{background:var(--wash);padding:.7rem .9rem;border-radius:6px;overflow-x:auto;font:12.5px/1.4 monospace;margin:.3rem 0}
pre b{font-weight:600;color:#0b7285} dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem}
dt{font-weight:600} dd{margin:0;color:var(--soft)} .grid{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
.grid>div{min-width:0} pre{white-space:pre-wrap;overflow-wrap:anywhere}
svg,img{width:100%;height:auto} code{background:var(--wash);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}
@media(max-width:760px){.grid{grid-template-columns:1fr}dl{grid-template-columns:1fr}}
"""

_TERMS = (
    (
        "bits per byte",
        "honest likelihood of held-out documents; exact for a plain decoder, a lower bound on the likelihood "
        "(importance-weighted) for a latent one. Standard error clustered by document.",
    ),
    ("difference", "bits per byte minus the first model's, paired on the same documents. Negative is better."),
    ("ELBO", "the looser bound that training logs: cross-entropy + full KL."),
    (
        "posterior cross-entropy",
        "the loss under latents inferred from the very text that is scored. It is <b>not</b> a "
        "likelihood: it leaves out the cost of the latents.",
    ),
    ("KL", "what the latents know of the text beyond the prior, in bits per token."),
    ("live units", "latent dimensions whose posterior mean moves with the text (variance above 0.01)."),
    (
        "training operations",
        "floating-point operations of a training step per token, counted from the architecture; beside them the ratio to the "
        "first model's.",
    ),
)


PICTURES = {".svg": "image/svg+xml", ".png": "image/png"}
"""Kinds of picture that the page takes, by the end of their names."""


def page(comparison: Comparison, pictures: Sequence[Path] = (), captions: Sequence[str] = ()) -> str:
    """The whole page as HTML, with pictures at its end, and their captions where there are some."""
    held_out = comparison.held_out
    *firsts, last = (escape(model.name) for model in comparison.models)
    names = f"{', '.join(firsts)} and {last}" if firsts else last
    scored = f"{held_out['documents']} held-out documents, {held_out['bytes']:,} bytes: {comparison.scored.rstrip('.')}"
    parts = [
        _head(names),
        f'<h1>{names}</h1><p class="sub">{scored}. Made by <code>{escape(comparison.command)}</code></p>',
        "<h2>Side by side</h2>" + _table(comparison.models) + _warning(comparison.unconverged) + _warning(comparison.warning),
        "<dl>" + "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in _TERMS) + "</dl>",
        "<h2>Curves</h2>" + plots.curves(comparison.models),
        _use_of_latents(comparison.models),
        _balance(comparison.models),
        _bits(comparison.models),
        _tasks(comparison.models, comparison.task_scoring),
        _differences(comparison.paired_tasks),
        _samples(comparison.models),
        *itertools.starmap(_picture, zip(pictures, captions or [""] * len(pictures), strict=True)),
        _provenance(comparison),
    ]
    return "\n".join(parts) + "\n</html>\n"


def tasks_page(comparison: TaskComparison, command: str) -> str:
    """The page of a comparison of tasks alone."""
    names = " and ".join(escape(name) for name in comparison.models)
    head = f'{_head(names)}<h1>{names}</h1><p class="sub">Made by <code>{escape(command)}</code></p>'
    return f"{head}\n{_differences(comparison)}\n</html>\n"


def _head(title: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>latentlm: {title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    )


def _warning(text: str | None) -> str:
    return "" if text is None else f"<p><b>{escape(text)}</b></p>"


def _dot(index: int) -> str:
    return f'<span class="dot" style="background:{plots.COLOURS[index % len(plots.COLOURS)]}"></span>'


def _estimate(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    number = f"{value.value:+.4f}" if signed else f"{value.value:.4f}"
    return f'{number} <span class="se">± {value.standard_error:.4f}</span>'


def _table(models: list[ModelResult]) -> str:
    head = (
        "model", "bits per byte (honest)", "difference", "method", "ELBO, bits per byte",
        "posterior cross-entropy, bits per byte (not a likelihood)", "KL, bits per token", "live units",
        "parameters", "training operations per token", "training tokens/s", "training text, tokens",
    )  # fmt: skip
    rows = []
    for index, model in enumerate(models):
        latent = model.has_latents
        cells = (
            _dot(index) + escape(model.name), _estimate(model.bits_per_byte), _estimate(model.difference, signed=True),
            _method(model), f"{model.elbo_bits_per_byte:.4f}",
            f"{model.posterior_bits_per_byte:.4f}" if latent else "–", f"{model.kl_bits_per_token:.3f}" if latent else "–",
            "–" if model.live_units is None else f"{model.live_units} of {model.units}", f"{model.parameters:,}",
            _operations(model, models[0]), _fact(model, "tokens_per_second"), _fact(model, "tokens"),
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr>{"".join(rows)}</table></div>'


def _fact(model: ModelResult, name: str) -> str:
    """A number that the training record may have."""
    found = (model.training or {}).get(name)
    return f"{found:,.0f}" if isinstance(found, int | float) else "–"


def _operations(model: ModelResult, first: ModelResult) -> str:
    """Operations and their ratio to the first model's."""
    ratio = model.training_operations / first.training_operations
    return f"{model.training_operations:.3g}" + ("" if model is first else f' <span class="se">{ratio:.2f}x</span>')


def _method(model: ModelResult) -> str:
    """How the likelihood was estimated, and how well."""
    if model.estimator_error == 0:
        return escape(model.method)
    quality = f"± {model.estimator_error:.4f}, {model.effective_samples:.1f} effective; "
    quality += f"{'converged' if model.converged else '<b>not converged</b>'}: {model.good_to}"
    return f'{escape(model.method)}<br><span class="se">{quality}</span>'


def _use_of_latents(models: list[ModelResult]) -> str:
    """Cross-entropy under other latents than the text's own."""
    latent = [(index, model) for index, model in enumerate(models) if model.cross_entropy_bits]
    if not latent:
        return ""
    sources = {"posterior": "own z", "prior": "z from the prior", "shuffled": "another text's z", "constant": "constant z"}
    head = "".join(f"<th>{words}</th>" for words in sources.values()) + "<th>mutual information, bits per site</th>"
    rows = ""
    for index, model in latent:
        cells = "".join(f"<td>{model.cross_entropy_bits[source]:.4f}</td>" for source in sources)
        information = "–" if model.mutual_information_bits is None else f"{model.mutual_information_bits:.4f}"
        rows += f"<tr><td>{_dot(index)}{escape(model.name)}</td>{cells}<td>{information}</td></tr>"
        for name, own in model.latents.items():
            cells = "".join(f"<td>{own.cross_entropy_bits[source]:.4f}</td>" for source in sources)
            information = "–" if own.mutual_information_bits is None else f"{own.mutual_information_bits:.4f}"
            live = "" if own.live_units is None else f", {own.live_units} of {own.units} live"
            about = f'<span class="se">{escape(name)} alone: KL {own.kl_bits_per_token:.3f} bits per token{live}</span>'
            rows += f"<tr><td>{about}</td>{cells}<td>{information}</td></tr>"
    return (
        "<h2>Does the decoder use its latents?</h2><p>Cross-entropy in bits per token of the documents' first windows, with "
        "latents from elsewhere. Equal columns mean that the decoder ignores z.</p>"
        f'<div class="wide"><table><tr><th>model</th>{head}</tr>{rows}</table></div>'
    )


def _balance(models: list[ModelResult]) -> str:
    """What z gives where it is known, and what it costs where it is not, beside a first model that has none."""
    first, latent = models[0], [(index, models[index]) for index in taxed(models)]
    if not latent:
        return ""
    rows = ""
    for index, model in latent:
        known = first.bits_per_byte.value - model.posterior_bits_per_byte
        paid = model.elbo_bits_per_byte - model.posterior_bits_per_byte
        verdict = "converged" if model.converged else "<b>not converged</b>: more likely too high than too low"
        other = f"{model.another_costs:+.4f}"
        tax = _estimate(model.difference, signed=True)
        cells = (f"{known:+.4f}", other, f"{paid:.4f}", tax, f"{verdict}, good {model.good_to}")
        rows += f"<tr><td>{_dot(index)}{escape(model.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    columns = ("gained under its own z", "another text's z costs, bits per token", "KL paid for it", "the tax", "the tax is")
    head = "".join(f"<th>{name}</th>" for name in columns)
    return (
        "<h2>What z gives, and what it costs</h2><p>In bits per byte of the held-out documents, beside "
        f"{escape(first.name)}. A z that the encoder has read off the text makes it cheaper (gained; where another text's "
        "z serves as well, z has no part in it), but z has to be told too (KL). What is left on the honest likelihood, where z "
        "is not known, is the <b>tax</b> of a used latent: positive is worse.</p>"
        f'<div class="wide"><table><tr><th>model</th>{head}</tr>{rows}</table></div>'
    )


def check_picture(path: Path) -> None:
    """Raise UserError unless the page can take this picture."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--picture {path} is neither an SVG nor a PNG file.")
    if not path.is_file():
        raise UserError(f"--picture {path} does not exist.")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"--picture {path} is larger than {MOST_BYTES // 2**20} MiB, too large for a page: shrink it.")
    if not is_picture(path):
        raise UserError(f"--picture {path} is no {path.suffix.lower()[1:].upper()} file, whatever its name.")


def check_captions(pictures: Sequence[Path], captions: Sequence[str]) -> None:
    """Raise UserError unless there is a caption for each picture, or none at all."""
    if captions and len(captions) != len(pictures):
        raise UserError(f"--caption is given {len(captions)} times and --picture {len(pictures)} times: give one for each.")


def _picture(path: Path, caption: str) -> str:
    """A picture inside the page, under the caption's heading, or else the file's name. An image runs no scripts, whatever is
    in it."""
    data = base64.b64encode(read_bytes(path, most=MOST_BYTES)).decode("ascii")
    heading, colon, text = caption.partition(": ")
    if not colon:
        heading, text = path.stem, caption
    image = f'<img alt="{escape(text or heading)}" src="data:{PICTURES[path.suffix.lower()]};base64,{data}">'
    return f"<h2>{escape(heading)}</h2>{f'<p>{escape(text)}</p>' if text else ''}{image}"


def _bits(models: list[ModelResult]) -> str:
    """What the bits of the models that have some look like."""
    sections = "".join(bits_html.section(model.name, model.bits) for model in models if model.bits is not None)
    return f"<h2>What z does</h2>{sections}" if sections else ""


def _tasks(models: list[ModelResult], scoring: str) -> str:
    """A row per task and metric, a column per model."""
    keys = list(dict.fromkeys((result.task, result.metric) for model in models for result in model.tasks))
    if not keys:
        return ""
    head = "".join(f"<th>{_dot(index)}{escape(model.name)}</th>" for index, model in enumerate(models))
    rows = []
    for task, metric in keys:
        found = [next((r for r in m.tasks if (r.task, r.metric) == (task, metric)), None) for m in models]
        first = next(result for result in found if result is not None)
        chance = "–" if first.chance is None else f"{first.chance:.3f}"
        cells = "".join(f"<td>{_task_cell(result)}</td>" for result in found)
        name = f'{escape(task)} <span class="se">{escape(metric)}, n={first.items}</span>'
        rows.append(f"<tr><td>{name}</td>{cells}<td>{chance}</td></tr>")
    table = f"<table><tr><th>task</th>{head}<th>chance</th></tr>{''.join(rows)}</table>"
    said = "".join(_warning(f"{model.name}: {model.tasks_verdict}") for model in models if model.tasks_verdict is not None)
    return f'<h2>lm-eval tasks</h2><p>{escape(scoring)}</p><div class="wide">{table}</div>{said}'


def _task_cell(result: TaskResult | None) -> str:
    if result is None:
        return "–"
    error = "" if result.standard_error is None else f' <span class="se">± {result.standard_error:.3f}</span>'
    return f"{result.value:.3f}{error}"


def _differences(found: TaskComparison | None) -> str:
    """The paired differences: a figure and a table for every model but the first."""
    if found is None:
        return ""
    first, *others = found.models if found.differences else [""]
    parts = [f"<h2>Tasks, item by item</h2><p>{escape(paired_tables.explained(found))}</p>"]
    parts += [plots.differences(found)] if found.differences else []
    for name in others:
        columns = ("task", first, name, "difference", "95% interval", "McNemar", "items", "seeds")
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        rows = "".join(_difference_row(one) for one in found.differences if one.second == name)
        title = f"<h3>{escape(name)} minus {escape(first)}</h3>"
        parts.append(f'{title}<div class="wide"><table><tr>{head}</tr>{rows}</table></div>')
    notes = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return "\n".join(parts) + (f"<ul>{notes}</ul>" if notes else "")


def _difference_row(one: TaskDifference) -> str:
    about = paired_tables.about(one)
    name = f'{escape(one.name)} <span class="se">{escape(about)}</span>'
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in paired_tables.cells(one))
    return f"<tr><td>{f'<b>{name}</b>' if one.tasks else name}</td>{cells}</tr>"


def _samples(models: list[ModelResult]) -> str:
    blocks = []
    for index, model in enumerate(models):
        groups = "".join(f"<div><h3>{_dot(index)}{escape(model.name)}: {_group(sample)}</div>" for sample in model.samples)
        blocks.append(f'<div class="grid">{groups}</div>')
    return "<h2>Samples</h2><p>The prompt is in bold; all at temperature 1.</p>" + "".join(blocks) if any(blocks) else ""


def _group(sample: Sample) -> str:
    label = {"fresh": "independent latents", "shared": "one shared latent", "none": "no latents"}[sample.latents]
    texts = "".join(f"<pre><b>{escape(sample.prompt)}</b>{escape(text)}</pre>" for text in sample.texts)
    return f"{label}</h3>{texts}"


def _provenance(comparison: Comparison) -> str:
    facts = {**comparison.settings, **{f"{name} version": version for name, version in comparison.versions.items()}}
    facts["held-out text"] = ", ".join(f"{key} {value}" for key, value in comparison.held_out.items())
    rows = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in facts.items())
    return f"<h2>How this was measured</h2><dl>{rows}</dl>"
