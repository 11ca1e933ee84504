"""A codec, a sampler and a router for SoundOmni, found through the entry points of this distribution."""
