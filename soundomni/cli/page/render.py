"""A report as one HTML page, which needs no other file and makes no request, and whose only script is its own.

Every text is escaped, and the page's content security policy names its one style sheet and its one script by their
hashes, so that nothing else could run even if it got in.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources

from soundomni.cli.page.curves import curve_svg, linear_ticks
from soundomni.cli.page.report import Heard, Listening, Made, Model, Prompt, Report, Said, Score, Sound, Training, Verdict

TASKS = {
    "generated": "Generated: what analysis hears in clips made from captions",
    "described": "Described: what the model says about clips",
    "answered": "Answered: questions about clips",
    "reconstructed": "Reconstructed: through the codec and back",
}
MEASURES = {
    "right": "clips with every attribute right",
    "attributes": "all attributes together",
    "exact": "word for word",
    "events": "number of events",
    "kinds": "kinds of sound",
    "order": "order of events",
    "clicks": "number of clicks",
    "direction": "direction of chirps",
    "loudness": "loudness",
    "noise": "color of noise",
    "pitch": "pitch of tones",
    "waveform": "waveform of tones",
    "si_sdr": "SI-SDR",
    "wer": "word error rate",
    "cer": "character error rate",
    "cider_d": "CIDEr-D",
    "stft_distance": "STFT distance",
    "mel_distance": "mel distance",
    "si_sdr_file": "SI-SDR at the file's rate",
    "stft_distance_file": "STFT distance at the file's rate",
    "mel_distance_file": "mel distance at the file's rate",
    "energy_above": "energy above what the codec keeps",
}
ALL_ANSWERS = "all questions together"
ATTRIBUTES = {"events": "events", "kinds": "kind", "pitch": "note", "noise": "color"}
"""Attribute → its name on the page, if that differs from the analysis."""
LOSSES = {
    "ce": "cross-entropy of the words, in nats",
    "velocity": "squared error of the flow that makes audio",
}
QUIETEST_SCALE = 0.3
"""Waveforms within this range are drawn to this scale, so that quiet clips look quiet."""
_FREQUENCIES = [factor * 10**power for power in range(1, 5) for factor in (1, 2, 5)]


def render(report: Report) -> str:
    """Return the page: the same report always gives the same text."""
    style, script = _template("page.css"), _template("page.js")
    policy = (
        f"default-src 'none'; img-src data:; media-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = {
        "Generated": _generated(report),
        "Heard": _heard(report),
        "Measured": _measured(report.models),
        "Training": _training(report.training),
        "How it was made": _making(report),
    }
    links = "".join(f'<li><a href="#{_anchor(title)}">{title}</a></li>' for title in sections)
    body = "".join(
        f'<section id="{_anchor(title)}" aria-labelledby="{_anchor(title)}-title">'
        f'<h2 id="{_anchor(title)}-title">{title}</h2>{content}</section>'
        for title, content in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>SoundOmni: {escape(' and '.join(model.name for model in report.models))}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n'
        f'<header>{_introduction(report)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f"<main>{body}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _template(name: str) -> str:
    return (resources.files("soundomni") / "cli" / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _duration(seconds: float) -> str:
    """Return a time in the two units that matter.

    >>> [_duration(7.26), _duration(241.9), _duration(4000)]
    ['7.3 s', '4 min 2 s', '1 h 7 min']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"


def _introduction(report: Report) -> str:
    training, first = report.training, report.models[0]
    hears = " and to say what it hears" if "described" in first.scores else ""
    text = (
        f"One small model learned to make sounds from words{hears}: {training.steps:,} steps in {_duration(training.seconds)}, on the "
        "machine that wrote this page."
    )
    others = [model.name for model in report.models[1:]]
    beside = f" Next to it is {escape(others[0])}, trained earlier, with the same prompts." if others else ""
    facts = {
        "Parameters": f"{first.parameters:,}",
        "Steps": f"{training.steps:,}",
        "Training": _duration(training.seconds),
        "Samples seen": f"{training.samples:,}",
        "Spec": training.spec,
    }
    tiles = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<h1>SoundOmni <span>demo</span></h1><p class="lead">{text}{beside}</p><dl class="facts">{tiles}</dl>'


def _generated(report: Report) -> str:
    low, high = report.levels
    ends = [f"{level:g} dB".replace("-", "−") for level in (low, high)]
    legend = (
        f'<p class="legend"><span>{ends[0]}</span><img src="{_data("image/png", report.colors)}" width="160" height="10" '
        f'alt="Colors of the spectrograms, from dark at {ends[0]} to light at {ends[1]}."><span>{ends[1]}</span></p>'
    )
    text = (
        "<p>Each prompt, and what was made from it. The marks say whether signal analysis, which knows nothing about the models, hears "
        "in the clip what the prompt asks for. Pictures show the waveform above its spectrogram, whose colors are levels relative to "
        "full scale.</p>"
    )
    names = [model.name for model in report.models]
    return f'{text}{legend}<div class="prompts models-{len(names)}">{"".join(_prompt(prompt, names) for prompt in report.prompts)}</div>'


def _prompt(prompt: Prompt, names: list[str]) -> str:
    made = "".join(_made(one, prompt.text, name) for one, name in zip(prompt.made, names, strict=True))
    return f'<article class="card"><h3>{escape(prompt.text)}</h3><div class="pair">{made}</div></article>'


def _made(made: Made, prompt: str, name: str) -> str:
    verdicts = "".join(_verdict(verdict) for verdict in made.verdicts)
    right = sum(verdict.right for verdict in made.verdicts)
    return (
        f'<figure class="sound"><figcaption><span class="model">{escape(name)}</span> '
        f'<span class="count">{right} of {len(made.verdicts)} right</span></figcaption>'
        f'{_sound(made.sound, f"{prompt}, made by {name}")}<ul class="verdicts">{verdicts}</ul></figure>'
    )


def _verdict(verdict: Verdict) -> str:
    name = ATTRIBUTES.get(verdict.name, verdict.name)
    if verdict.right:
        return f'<li class="right">{_mark(True)}{escape(name)} <b>{escape(verdict.wanted)}</b></li>'
    heard = f"heard {verdict.heard}" if verdict.heard else "not heard"
    return f'<li class="wrong">{_mark(False)}{escape(name)} <b>{escape(verdict.wanted)}</b>, {escape(heard)}</li>'


def _mark(right: bool) -> str:
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    return f'<span class="mark" aria-hidden="true">{sign}</span><span class="spoken">{word}: </span>'


def _sound(sound: Sound, what: str) -> str:
    """Return a waveform above a spectrogram with its axes, a player, and, for print, the name of the file."""
    low, high = sound.frequencies
    width, height = sound.size
    shown = f"Spectrogram of {what}: {sound.seconds:g} s from left to right, {low:.0f} to {high:.0f} Hz from the bottom up, logarithmic."
    points = [f"{i} {-top:g}" for i, (_, top) in enumerate(sound.outline)]
    points += [f"{i} {-bottom:g}" for i, (bottom, _) in reversed(list(enumerate(sound.outline)))]
    limit = max(QUIETEST_SCALE, *(max(abs(bottom), abs(top)) for bottom, top in sound.outline))
    return (
        f'<div class="plot"><svg class="wave" viewBox="0 {-limit:g} {len(sound.outline) - 1} {2 * limit:g}" preserveAspectRatio="none" '
        f'aria-hidden="true"><polygon points="{" ".join(points)}"/></svg>'
        f'<div class="spectrum"><img src="{_data("image/png", sound.spectrogram)}" width="{width}" height="{height}" alt="{escape(shown)}">'
        f'{_axes(sound)}<span class="now" hidden></span></div></div>'
        f'<audio controls preload="metadata" aria-label="{escape(f"Play {what}")}" src="{_data("audio/wav", sound.wav)}"></audio>'
        f'<p class="file">{escape(sound.file)}</p>'
    )


def _axes(sound: Sound) -> str:
    """Return ticks in percent of the picture, over its edges: text that neither scales nor distorts with it."""
    low, high = sound.frequencies
    parts = ['<svg class="axes" aria-hidden="true">']
    for tick in _FREQUENCIES:
        place = 100 * (1 - math.log(tick / low) / math.log(high / low))
        if 4 <= place <= 96:
            label = f"{tick / 1000:g}k" if tick >= 1000 else f"{tick}"
            parts.append(f'<text x="-6" y="{place:.1f}%" dy=".35em" text-anchor="end">{label}</text>')
    parts.append('<text x="-6" y="-8" text-anchor="end">Hz</text>')
    ticks = [tick for tick in linear_ticks(0, sound.seconds) if tick <= sound.seconds]
    for tick in ticks:
        anchor = "start" if tick == 0 else "end" if tick > 0.95 * sound.seconds else "middle"
        label = f"{tick:g} s" if tick == ticks[-1] else f"{tick:g}"
        parts.append(f'<text x="{100 * tick / sound.seconds:.1f}%" y="100%" dy="1.3em" text-anchor="{anchor}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _heard(report: Report) -> str:
    text = (
        "<p>Clips synthesized from a seed that the training here did not use. Each is shown with what it is and, below the player, what "
        "the models say about it. A model listens to the first clips of the list that it is measured on.</p>"
    )
    return text + "".join(_listening(listening) for listening in report.listening)


def _listening(listening: Listening) -> str:
    clips = "".join(_clip(clip, listening.models) for clip in listening.clips)
    return f'<h3>{escape(listening.kind[:1].upper() + listening.kind[1:])}</h3><div class="clips">{clips}</div>'


def _clip(clip: Heard, names: tuple[str, ...]) -> str:
    said = "".join(_said(said, name) for said, name in zip(clip.said, names, strict=True))
    return (
        f'<article class="card sound"><h4>{escape(clip.truth)}</h4>{_sound(clip.sound, clip.truth)}<dl class="said">{said}</dl></article>'
    )


def _said(said: Said, name: str) -> str:
    if said.text is None:
        return f"<div><dt>{escape(name)}</dt><dd>only generates</dd></div>"
    missed = [ATTRIBUTES.get(attribute, attribute) for attribute in said.wrong]
    missed += [f"{ATTRIBUTES.get(attribute, attribute)} not said" for attribute in said.unsaid]
    about = f' <span class="count">({escape(", ".join(missed))})</span>' if missed else ""
    text = escape(said.text) or "nothing"
    return f'<div class="{"wrong" if missed else "right"}"><dt>{escape(name)}</dt><dd>{_mark(not missed)}<q>{text}</q>{about}</dd></div>'


def _measured(models: tuple[Model, ...]) -> str:
    lists = "".join(f"<li><b>{escape(model.name)}</b>: {escape(model.measured_on)}.</li>" for model in models)
    head = "".join(f'<th scope="col">{escape(model.name)}</th>' for model in models)
    order = {measure: place for place, measure in enumerate(MEASURES)}
    bodies = []
    for task in dict.fromkeys(task for model in models for task in model.scores):
        found = dict.fromkeys(measure for model in models for measure in model.scores.get(task, {}))
        measures = sorted(found, key=lambda measure: order.get(measure, len(order)))
        rows = "".join(_row(task, measure, [model.scores.get(task, {}).get(measure) for model in models]) for measure in measures)
        title = TASKS.get(task, task)
        bodies.append(f'<tbody><tr><th class="task" scope="rowgroup" colspan="{len(models) + 1}">{escape(title)}</th></tr>{rows}</tbody>')
    return (
        "<p>The same marks, counted over more clips: one list for each model.</p>"
        f'<ul class="lists">{lists}</ul>'
        '<div class="card sheet"><table class="scores"><caption>Percentages are shares that are right, except for error rates. Next to a '
        "share are its 95 % interval and the count behind it.</caption>"
        f'<thead><tr><th scope="col">Measure</th>{head}</tr></thead>{"".join(bodies)}</table></div>'
    )


def _row(task: str, measure: str, scores: Iterable[Score | None]) -> str:
    name = ALL_ANSWERS if (task, measure) == ("answered", "right") else MEASURES.get(measure, measure.replace("_", " "))
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(score) for score in scores)}</tr>'


def _cell(score: Score | None) -> str:
    if score is None:
        return "<td>–</td>"
    shown, bars = escape(score.text), ""
    if score.interval is not None:
        low, high = (100 * end for end in score.interval)
        shown += f' <span class="count">{low:.0f}–{high:.0f}, of {score.count}</span>'
        bars = f'<rect class="interval" x="{low:.1f}" width="{high - low:.1f}" height="1"/>'
    if score.share is None:
        return f"<td>{shown}</td>"
    bars = f'<rect width="{100 * score.share:.1f}" height="1"/>{bars}'
    return f'<td>{shown}<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">{bars}</svg></td>'


def _training(training: Training) -> str:
    figures = "".join(
        f'<figure class="card"><figcaption><b>{escape(name)}</b>{escape(LOSSES.get(name, "a loss that the spec adds"))}</figcaption>'
        f"{curve_svg(name, points)}</figure>"
        for name, points in training.curves.items()
        if any(value is not None for _, value in points)
    )
    return (
        "<p>The losses as they were logged while the first model trained. The faint line is each logged step, the strong one a moving "
        f'average.</p><div class="curves">{figures}</div>'
    )


def _making(report: Report) -> str:
    specs = "".join(
        f"<details><summary>Spec: {escape(model.name)}, {model.parameters:,} parameters</summary><pre>{escape(model.spec)}</pre></details>"
        for model in report.models
    )
    earlier = "<p>The training itself was already done by an earlier call of this command.</p>" if report.training.earlier else ""
    return (
        f"<pre><code>{escape(report.command)}</code></pre>{earlier}"
        f'<div class="tables">{_pairs("Seeds", report.seeds)}{_pairs("Versions", report.versions)}</div>'
        f'<div class="specs">{specs}</div>'
    )


def _pairs(caption: str, pairs: Mapping[str, str]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs.items())
    return f'<table class="pairs"><caption>{caption}</caption><tbody>{rows}</tbody></table>'
