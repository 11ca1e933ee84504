"""Tokens of tiny clips, and models of them whose distribution is known.

Shape letters: B clips, K levels, N tokens.
"""

from collections import Counter
from itertools import product

import numpy as np
import torch

from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec
from soundomni.flow import Autoregressive


def start_of(order, sizes, *frames, known=None):
    """The start of clips, of which `known` frames are given, all of them code 1."""
    spec = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=sizes)
    codes = torch.ones(len(frames), len(sizes), max(frames), dtype=torch.int64)
    given = Representation(codes, torch.tensor(frames), spec, frames)
    first = torch.arange(max(frames)) < torch.tensor(known or [0] * len(frames))[:, None]
    return Autoregressive(order=order).start(given, first, generators(len(frames)))


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def table(order, sizes, frames, seed=0):
    """Logits that depend on the place and on the token before it."""
    classes = (sizes[0] + 1, *sizes[1:])
    rng = torch.Generator().manual_seed(seed)
    places = Autoregressive(order=order).num_tokens(start_of(order, sizes, frames).spec, frames) + 1
    after = [torch.randn(places, size + 2, sum(classes), generator=rng) for size in classes]

    def predict(values, timesteps, *, first=0):
        place = torch.as_tensor(first).reshape(-1, 1) + torch.arange(values.shape[2])
        return sum(one[place, ids + 1] for one, ids in zip(after, values.unbind(1), strict=True)).transpose(1, 2)

    return predict


def exact(order, sizes, frames, predict):
    """The probability of every clip, by the chain rule over all of them."""
    objective, found = Autoregressive(order=order), {}
    classes = (sizes[0] + 1, *sizes[1:])
    for length in range(1, frames + 1):
        for cells in product(*(range(size) for size in sizes for _ in range(length))):
            codes = torch.tensor(cells).reshape(1, len(sizes), length)
            spec = RepresentationSpec(kind="codes", sample_rate=1, channels=1, downsampling_ratio=1, codebook_sizes=sizes)
            clean = Representation(codes, torch.tensor([length]), spec)
            query = objective.corrupt(clean, known=torch.zeros(1, length) > 0, noise=torch.tensor([True]), generators=generators(1))
            logits = predict(query.inputs, torch.ones(1)).split(classes, 1)
            total = 0.0
            for level, own in enumerate(logits):
                for token, target in enumerate(query.targets[0, level].tolist()):
                    scores = own[0, :, token].clone()
                    if target == HIDDEN or (target == sizes[0] and level == 0 and length == frames):
                        continue  # the last end is not drawn
                    if level == 0 and token == 0:
                        scores[sizes[0]] = -np.inf  # a clip has a frame
                    total += float(scores.log_softmax(0)[target])
            found[tuple(map(tuple, codes[0].tolist()))] = np.exp(total)
    return found


def distance(order, tokens, expected):
    """The total variation between the clips that tokens hold and the probability of each clip."""
    made = Autoregressive(order=order).made(tokens)
    drawn = Counter(tuple(map(tuple, values[:, :count].tolist())) for values, count in zip(made.values, made.frame_counts, strict=True))
    assert set(drawn) <= set(expected)
    return 0.5 * sum(abs(drawn[clip] / len(made.values) - share) for clip, share in expected.items())
