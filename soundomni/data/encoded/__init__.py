"""Clips that a codec encoded before a run: written once by `soundomni encode`, read by the dataset `encoded`.

| name | what it is |
|---|---|
| encoded.json | the header: the codec, its spec and fingerprint, and how the clips were encoded |
| clips-00000.safetensors | one tensor `values` `[N, D]` or `[N, K]`: the frames of some clips, one clip after the other |
| clips-00000.jsonl | one line per clip of that file: its key, texts, length, first frame and number of frames |
| codec.safetensors | what the codec measured on the data, such as codebooks; missing for a codec that is not fitted |

A clip's frames are consecutive rows, so that a part of a clip is read without the rest.
"""
