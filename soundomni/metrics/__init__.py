"""Measures of audio and text: one metric per file, pure functions on arrays or words, or a small class that holds a
network.

| module | measures |
|---|---|
| waveform | SI-SDR, multi-resolution STFT and mel distance of an estimate from its reference |
| frechet, kernel | how far one set of embeddings is from another |
| kl | how differently a classifier hears two clips |
| text | word and character error rates |
| cider | agreement of a caption with several references |
| bandwidth | how much of a sound lies above a frequency |
| shares | how certain a share of right answers is |
| caption_judge | whether a clip sounds like its caption and is new, judged by training clips only |
| log_mel, nearest, softmax_classifier | what that judge is made of: features, nearest neighbors, a linear classifier |
| clap, classifier | networks from a local directory that give embeddings, scores and probabilities |
"""
