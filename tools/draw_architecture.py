"""Draw the picture of the architecture that the README and the pages show: `python tools/draw_architecture.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"
WIDTH, HEIGHT = 1240, 800
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
TEXT, FEATURES, LATENT = "#3b5bdb", "#0c8599", "#e8590c"
PALE = {TEXT: "#e7ecfd", FEATURES: "#dff3f6", LATENT: "#fdeadf", FAINT: "#f1f3f5"}
CELL = 25
"""Width of a token in the picture."""

DOCUMENTS = (
    ((TEXT, 1), (FEATURES, 7), (TEXT, 6)),
    ((TEXT, 4), (LATENT, 8)),
)
"""Runs of tokens of two documents, as (role, number): a clip to describe, and a prompt with the clip to make."""
CAPTIONS = ("understand: a clip, then its caption", "generate: a prompt, then a clip")


def main() -> None:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif">',
        "<title>Architecture of SoundOmni</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{FAINT}"/></marker></defs>',
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="16" fill="{PAPER}" stroke="#dde2e7"/>',
        *sequence(),
        *layer(),
        *hearing(),
        *making(),
        *outputs(),
    ]
    TARGET.write_text("\n".join([*parts, "</svg>", ""]), encoding="utf-8")


def sequence() -> list[str]:
    """Draw the packed batch, and the two runs into which the router sorts its tokens."""
    parts = [label(620, 40, "packed batch: documents of any length in one token budget, no padding", size=15, color=FAINT)]
    x = 620 - (CELL * 26 + 20) / 2
    for number, document in enumerate(DOCUMENTS):
        start = x
        for color, count in document:
            parts += [token(x + i * CELL, 62, color) for i in range(count)]
            x += count * CELL
        parts.append(f'<path d="M{start} 96 v6 H{x - 3} v-6" fill="none" stroke="{FAINT}"/>')
        parts.append(label((start + x) / 2, 118, CAPTIONS[number], size=13))
        x += 20
    parts += [box(290, 140, 660, 40, ["router: each token goes to the expert of its role"], FAINT)]
    parts += [arrow(455, 180, 455, 214), arrow(785, 180, 785, 214)]
    return parts


def layer() -> list[str]:
    """Draw one layer of the backbone: an expert per column, joined by attention."""
    parts = [
        f'<rect x="290" y="262" width="660" height="368" rx="14" fill="none" stroke="{FAINT}" stroke-dasharray="6 5"/>',
        label(620, 288, "one layer of the backbone, repeated", size=14, color=FAINT),
    ]
    for left, color, counts in ((310, TEXT, ((TEXT, 5), (FEATURES, 4))), (640, LATENT, ((LATENT, 6),))):
        center = left + 145
        x = center - CELL * sum(count for _, count in counts) / 2
        for role, count in counts:
            parts += [token(x + i * CELL, 218, role, size=20) for i in range(count)]
            x += count * CELL
        parts += [
            arrow(center, 242, center, 304),
            box(left, 306, 290, 44, ["norm · queries, keys, values"], color),
            arrow(center, 350, center, 378),
            arrow(center, 450, center, 478),
            box(left, 480, 290, 44, ["output projection"], color),
            arrow(center, 524, center, 542),
            box(left, 544, 290, 44, ["norm · feed-forward network"], color),
        ]
    parts += [
        label(455, 614, "understanding expert", size=15, color=TEXT, bold=True),
        label(785, 614, "generation expert", size=15, color=LATENT, bold=True),
        f'<rect x="310" y="380" width="620" height="70" rx="10" fill="{INK}"/>',
        label(620, 410, "attention, shared by all experts", size=17, color=PAPER, bold=True),
        label(620, 433, "text is causal, a clip sees all of itself, and noise is seen by nothing outside it", size=13, color="#d5dbe1"),
    ]
    return parts


def hearing() -> list[str]:
    """Draw the left side: how a clip is encoded to be understood."""
    return [
        wave(135, 60, FEATURES),
        label(135, 112, "a clip to understand", size=13),
        arrow(135, 122, 135, 150),
        box(40, 152, 190, 58, ["encoder", "log-mel · Qwen2-Audio"], FEATURES),
        arrow(135, 210, 135, 238),
        box(40, 240, 190, 44, ["connector"], FEATURES),
        f'<path d="M230 262 h24 V74 h26" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>',
        box(40, 360, 190, 58, ["tokenizer", "byte-level BPE"], TEXT),
        label(135, 340, "text", size=13),
        f'<path d="M230 389 h36 V90 h14" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>',
    ]


def making() -> list[str]:
    """Draw the right side: how a clip becomes a noisy target in training, and what replaces it in sampling."""
    return [
        wave(1105, 60, LATENT),
        label(1105, 112, "a clip to learn from", size=13),
        arrow(1105, 122, 1105, 150),
        box(1010, 152, 190, 58, ["codec: encode", "Oobleck · MDCT · harmonic"], LATENT),
        arrow(1105, 210, 1105, 238),
        box(1010, 240, 190, 58, ["objective", "mixes latents with noise"], LATENT),
        arrow(1105, 298, 1105, 326),
        box(1010, 328, 190, 44, ["connector"], LATENT),
        f'<path d="M1010 350 h-26 V74 h-24" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>',
        box(1010, 440, 190, 58, ["sampler", "Euler · Heun · DPM++"], LATENT),
        f'<path d="M1105 440 V374" fill="none" stroke="{FAINT}" stroke-width="1.6" stroke-dasharray="4 4" marker-end="url(#tip)"/>',
        label(1114, 412, "next step", size=12, color=FAINT, anchor="start"),
        arrow(1105, 498, 1105, 526),
        box(1010, 528, 190, 44, ["codec: decode"], LATENT),
        arrow(1105, 572, 1105, 600),
        wave(1105, 626, LATENT),
        label(1105, 678, "a clip that was made", size=13),
    ]


def outputs() -> list[str]:
    """Draw the outputs of the experts, and the two losses."""
    return [
        arrow(455, 630, 455, 662),
        box(310, 664, 290, 44, ["text head: the next token"], TEXT),
        arrow(785, 630, 785, 662),
        box(640, 664, 290, 44, ["connector: the velocity"], LATENT),
        label(455, 736, "trained by cross-entropy", size=13, color=FAINT),
        label(785, 736, "trained by flow matching", size=13, color=FAINT),
        f'<path d="M310 686 H135 V650" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>',
        label(135, 618, "“a loud rising chirp,", size=14, color=TEXT),
        label(135, 638, "then two clicks”", size=14, color=TEXT),
        f'<path d="M930 686 h40 V469 h38" fill="none" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>',
        token(420, 762, TEXT, size=16),
        label(442, 775, "text", size=13, anchor="start"),
        token(510, 762, FEATURES, size=16),
        label(532, 775, "audio to understand", size=13, anchor="start"),
        token(690, 762, LATENT, size=16),
        label(712, 775, "audio to generate", size=13, anchor="start"),
    ]


def token(x: float, y: float, color: str, *, size: int = 22) -> str:
    return f'<rect x="{x}" y="{y}" width="{size}" height="{size + 4}" rx="4" fill="{color}" opacity="0.88"/>'


def box(x: float, y: float, width: float, height: float, lines: list[str], color: str) -> str:
    """Draw a box with a title and, optionally, a line of small print."""
    middle = y + height / 2
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{PALE[color]}" stroke="{color}" stroke-width="1.4"/>'
    if len(lines) == 1:
        return shape + label(x + width / 2, middle + 5, lines[0], size=15)
    return shape + label(x + width / 2, middle - 4, lines[0], size=15, bold=True) + label(x + width / 2, middle + 16, lines[1], size=12)


def label(x: float, y: float, text: str, *, size: int, color: str = INK, bold: bool = False, anchor: str = "middle") -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{color}"{weight}>{escape(text)}</text>'


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path d="M{x0} {y0} L{x1} {y1}" stroke="{FAINT}" stroke-width="1.6" marker-end="url(#tip)"/>'


def wave(x: float, y: float, color: str) -> str:
    """Draw a waveform: bars around a line that is centered at x."""
    heights = (4, 9, 16, 26, 34, 22, 30, 38, 24, 14, 22, 30, 20, 12, 18, 10, 6)
    left = x - len(heights) * 8 / 2
    bars = (f'<rect x="{left + 8 * i}" y="{y + 12 - h / 2}" width="4" height="{h}" rx="2" fill="{color}"/>' for i, h in enumerate(heights))
    return "".join(bars)


if __name__ == "__main__":
    main()
