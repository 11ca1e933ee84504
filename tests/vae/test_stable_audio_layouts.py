"""Every layout in which people have Stable Audio's autoencoder loads to the bit, and what is not that autoencoder is refused."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stable_audio_files import SIZES, assert_same, diffusers, flat, full_model, tiny_codec, training, write_layout

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.foreign_weights import read_weights
from soundomni.vae import OobleckCodec
from soundomni.vae.checkpoints.stable_audio_layouts import check_fit, find_autoencoder, load_state, shapes_of, to_layout

LAYOUTS = ["stable-audio-vae", "unwrapped", "full-model", "training-average", "training", "diffusers-oobleck"]


def saved(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def expected(codec: OobleckCodec) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}


def load(path: Path, like: OobleckCodec) -> OobleckCodec:
    weights = read_weights(path)
    found = find_autoencoder(weights)
    assert shapes_of(weights, found) == expected(like)
    check_fit(weights, found, expected(like))
    arguments = {**SIZES, "use_snake": any(name.endswith("alpha") for name in expected(like))}
    codec = OobleckCodec(**arguments)
    codec.load_state_dict(load_state(weights, found))
    return codec


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_bit_and_every_key_is_told(tmp_path: Path, layout: str) -> None:
    source = tiny_codec(seed=3)
    path = write_layout(layout, source, tmp_path)
    assert_same(source, load(path, source))
    weights = read_weights(path)
    found = find_autoencoder(weights)
    assert found.layout == {"unwrapped": "stable-audio-vae"}.get(layout, layout)
    used = found.used()
    assert sorted([*used, *found.unused]) == sorted([*weights, *weights.others]) and found.unexpected == ()
    assert sorted(name for names in used.values() for name in names) == sorted(source.state_dict())
    reasons = set(found.unused.values())
    if layout == "full-model":
        assert reasons == {"the diffusion model", "a conditioner of the diffusion model"}
    if layout == "training-average":
        assert found.unused["state_dict.autoencoder.encoder.layers.0.bias"] == "the last weights; their average is used instead"
        assert found.unused["state_dict.autoencoder_ema.online_model.encoder.layers.0.bias"].startswith("the last weights")
    if layout.startswith("training"):
        assert {"the discriminator of its training", "a loss of its training", "not a tensor"} <= reasons
        assert found.unused["optimizer_states.0.state.0.exp_avg"] == "kept next to the weights by the training"


@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations", "folded"])
@pytest.mark.parametrize("use_snake", [True, False])
def test_every_spelling_of_weight_norm(tmp_path: Path, spelling: str, use_snake: bool) -> None:
    source = tiny_codec(use_snake=use_snake)
    loaded = load(saved(flat(source, spelling=spelling), tmp_path), source)
    assert_same(source, loaded, atol=1e-6 if spelling == "folded" else 0.0)
    path = saved(flat(source, spelling=spelling), tmp_path)
    used = find_autoencoder(read_weights(path)).used()
    if spelling == "folded":
        assert used["encoder.layers.0.weight"] == [f"encoder.layers.0.parametrizations.weight.original{i}" for i in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    halved = {name: tensor.to(dtype) for name, tensor in flat(tiny_codec()).items()}
    weights = read_weights(saved(halved, tmp_path))
    state = load_state(weights, find_autoencoder(weights))
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert torch.equal(state["encoder.layers.0.bias"], halved["encoder.layers.0.bias"].float())


@pytest.mark.parametrize(("layout", "reference"), [("stable-audio-vae", flat), ("diffusers-oobleck", diffusers)])
def test_names_go_out_as_they_came_in(tmp_path: Path, layout: str, reference) -> None:
    source = tiny_codec()
    written, wanted = to_layout(source.state_dict(), layout), reference(source)
    assert set(written) == set(wanted)
    assert all(torch.equal(written[name], wanted[name]) and written[name].shape == wanted[name].shape for name in wanted)
    path = saved({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path)
    assert_same(source, load(path, source))


def test_what_cannot_go_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unknown layout 'diffuser'; expected stable-audio-vae or diffusers-oobleck"):
        to_layout(tiny_codec().state_dict(), "diffuser")
    with pytest.raises(CheckpointError, match="'encoder.layers.0.weight' is not a parameter of an OobleckCodec with weight norm"):
        to_layout({"encoder.layers.0.weight": torch.zeros(1)}, "stable-audio-vae")


def refused(tensors: dict[str, torch.Tensor], folder: Path, like: OobleckCodec | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(saved(tensors, folder), like or tiny_codec())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_models_are_refused(tmp_path: Path) -> None:
    bert = {"encoder.layers.0.self_attn.in_proj_weight": torch.zeros(2), "embeddings.word": torch.zeros(3)}
    line = refused(bert, tmp_path)
    assert "does not hold Stable Audio's autoencoder; expected tensors such as encoder.layers.1.layers.0.layers.1.weight_g" in line
    assert "found 2 others (embeddings.word, encoder.layers.0.self_attn.in_proj_weight)" in line
    assert "found 0 others (none)" in refused({}, tmp_path)
    without = {name: tensor for name, tensor in full_model(tiny_codec()).items() if not name.startswith("pretransform")}
    assert "does not hold Stable Audio's autoencoder" in refused(without, tmp_path)


def check_refused(tensors: dict[str, torch.Tensor], folder: Path, like: OobleckCodec | None = None) -> str:
    weights = read_weights(saved(tensors, folder))
    with pytest.raises(CheckpointError) as caught:
        check_fit(weights, find_autoencoder(weights), expected(like or tiny_codec()))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_may_be_missing_unexpected_or_of_another_shape(tmp_path: Path) -> None:
    tensors = flat(tiny_codec())
    less = {name: tensor for name, tensor in tensors.items() if name != "decoder.layers.0.bias"}
    assert "1 missing (decoder.layers.0.bias)" in check_refused(less, tmp_path)
    line = check_refused({**tensors, "bottleneck.quantizer.codebook": torch.zeros(2)}, tmp_path)
    assert line.endswith("1 unexpected (bottleneck.quantizer.codebook)") and " missing (" not in line
    more = {**full_model(tiny_codec()), "encoder.layers.0.bias": torch.zeros(4), "pretransform.scale": torch.ones(1)}
    assert "2 unexpected (encoder.layers.0.bias, pretransform.scale)" in check_refused(more, tmp_path)
    line = check_refused(tensors, tmp_path, tiny_codec(base_channels=3))
    assert re.search(r"of another shape \(decoder\.layers\.\S+ \[\d.*\] instead of \[\d.*\]", line) and " missing (" not in line
    line = check_refused(tensors, tmp_path, tiny_codec(strides=[2, 4, 2], channel_multiples=[1, 2, 2]))
    assert "missing (" in line
    line = check_refused(tensors, tmp_path, tiny_codec(use_snake=False))
    assert f"{2 * 2 * (2 * 7 + 1)} unexpected (decoder.layers.1.layers.0.alpha" in line
    flipped = {**tensors, "encoder.layers.1.layers.3.alpha": torch.zeros(1, 4)}
    assert "encoder.layers.1.layers.3.alpha [1, 4] instead of [4]" in check_refused(flipped, tmp_path)


def test_a_parameter_may_be_there_once(tmp_path: Path) -> None:
    twice = {**flat(tiny_codec()), "encoder.layers.0.weight": torch.zeros(4, 2, 7)}
    assert "holds the parameter 'encoder.layers.0.parametrizations.weight.original" in refused(twice, tmp_path)
    assert "twice: as 'encoder.layers.0.weight" in refused(twice, tmp_path)


def test_numbers_that_cannot_be_weights(tmp_path: Path) -> None:
    tensors = flat(tiny_codec())
    broken = {**tensors, "encoder.layers.0.bias": torch.tensor([0.0, float("nan"), 1.0, 2.0])}
    assert "'encoder.layers.0.bias' has numbers that are not finite" in refused(broken, tmp_path)
    double = {**tensors, "encoder.layers.0.bias": torch.zeros(4, dtype=torch.float64)}
    assert "'encoder.layers.0.bias' is torch.float64; expected one of torch.float32" in refused(double, tmp_path)


def test_the_average_is_preferred_and_the_last_weights_do(tmp_path: Path) -> None:
    average, last = tiny_codec(seed=1), tiny_codec(seed=2)
    torch.save(training(average, last), tmp_path / "both.ckpt")
    torch.save(training(last), tmp_path / "last.ckpt")
    assert_same(average, load(tmp_path / "both.ckpt", average))
    assert_same(last, load(tmp_path / "last.ckpt", last))
