"""Chains of models: what a stage is given is what the ones before it made, and stages that do not fit are refused.

Shape letters: K levels, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stages import COARSE, LEVELS, RATE, TOKENIZER, Name, sound, spec_of, stage

from soundomni import Chain, Kept, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.modality import CodecModality
from soundomni.core.errors import CheckpointError, DataError, SoundOmniError, SpecError
from soundomni.core.pretrained.chain import stage_seed
from soundomni.core.pretrained.directory import Origin
from soundomni.core.pretrained.stage_paths import is_chain
from soundomni.core.representation import Representation
from soundomni.core.spec.load import dump_spec, load_spec
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.waveform import convert

NAMES: tuple[Name, ...] = ("semantic", "coarse", "fine", "fine-masked", "storm", "whole")
MODELS: dict[str, SoundOmni] = {name: stage(name, seed=i) for i, name in enumerate(NAMES)}


def chain(*names: str) -> Chain:
    return Chain({name.replace("-", "_"): MODELS[name] for name in names})


CHAINS = [("semantic", "coarse", "fine"), ("semantic", "coarse", "fine-masked"), ("semantic", "storm"), ("semantic", "whole")]
WORDS = st.sampled_from(["", "one", "two three"])


def equal(a: Representation, b: Representation) -> bool:
    return a.frame_counts == b.frame_counts and torch.equal(a.values, b.values) and a.spec == b.spec


@pytest.mark.parametrize("names", CHAINS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_a_stage_is_given_exactly_what_the_one_before_made(names: tuple[str, ...], data: st.DataObject) -> None:
    """Each stage, called by hand with what the others made, makes the same; batched is single, and ragged."""
    prompts = data.draw(st.lists(WORDS, min_size=1, max_size=3))
    seconds = [data.draw(st.integers(20, 90)) / 500 for _ in prompts]
    seeds = data.draw(st.lists(st.integers(0, 1000), min_size=len(prompts), max_size=len(prompts)))
    made = chain(*names).make(prompts, seconds=seconds, seeds=seeds)
    audio = chain(*names).generate(prompts, seconds=seconds, seeds=seeds)
    assert list(made) == [name.replace("-", "_") for name in names]
    for i, (prompt, longest, seed) in enumerate(zip(prompts, seconds, seeds, strict=True)):
        semantic = made["semantic"][i]
        (alone,) = MODELS["semantic"].make(prompt, seconds=longest, seeds=seed)
        assert equal(semantic, alone)
        latest = {"semantic": semantic}
        for place, name in enumerate(names[1:], start=1):
            follows = "semantic" if name == "storm" else "acoustic" if name.startswith("fine") else None
            lasts = longest if follows is None else min(longest, latest[follows].spec.seconds(latest[follows].frame_counts[0]))
            taken = {"storm": ["semantic"], "coarse": ["semantic"], "whole": ["semantic"]}.get(name, ["acoustic"])
            handed = {modality: latest[modality] for modality in taken}
            text = prompt if MODELS[name].takes_text else ""
            (by_hand,) = MODELS[name].make(text, seconds=lasts, seeds=stage_seed(seed, place), given=handed)
            found = made[name.replace("-", "_")][i]
            assert equal(found, by_hand), name
            if name.startswith("fine"):
                assert torch.equal(found.values[:, :COARSE], latest["acoustic"].values) and found.values.shape[1] == LEVELS
            latest["acoustic"] = found
        last = latest["acoustic"]
        waveform = MODELS[names[-1]].model.made().codec.decode(last)[0].detach().numpy()
        count = min(round(longest * RATE), last.spec.num_samples(last.frame_counts[0]))
        assert audio[i].waveform.shape[1] == count and np.allclose(audio[i].waveform, waveform[:, :count], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("names", CHAINS)
@pytest.mark.parametrize("rate", [500, 1000, 1600])
def test_every_stage_keeps_a_prompt_as_its_own_codec_encodes_it(names: tuple[str, ...], rate: int) -> None:
    """The prompt has a rate of its own, and each stage resamples it for itself, by the rate and not by the length."""
    clip = sound(5, round(0.1 * rate), rate)
    made = chain(*names).make(["one", "two", ""], seconds=0.2, known=Kept(clip, [(0.0, 0.064)]), seeds=3)
    for name, clips in made.items():
        modality = MODELS[name.replace("_", "-")].model.made()
        waveform = torch.from_numpy(convert(clip, channels=1, sample_rate=modality.sample_rate))[None]
        own = modality.codec.encode(waveform, torch.tensor([waveform.shape[-1]])).values
        for one in clips:
            frames = 8  # of 8 ms each
            assert torch.equal(one.values[..., :frames], own[:, : one.values.shape[1], :frames]), name


def test_a_clip_that_ends_where_its_prompt_does_is_the_prompt() -> None:
    """The semantic stage may end at once; the acoustic one then has nothing to make, next to clips of which it makes a lot."""
    model = MODELS["semantic"]
    kept = Kept(sound(5, 100), [(0.0, 0.08)])
    for last in (("storm",), ("coarse", "fine"), ("coarse", "fine-masked")):
        stages = Chain({"semantic": model, **{name.replace("-", "_"): MODELS[name] for name in last}})
        made = stages.make(["one"] * 24, seconds=0.2, known=kept, seeds=1)
        counts = [clip.frame_counts[0] for clip in made["semantic"]]
        assert min(counts) == 10 < max(counts), "some end at once"
        final = list(made.values())[-1]
        if last == ("storm",):
            assert [clip.frame_counts[0] for clip in final] == counts
        assert len(stages.generate(["one"] * 24, seconds=0.2, known=kept, seeds=1)) == 24


def test_each_stage_has_its_own_guidance_and_seed() -> None:
    stages, prompts = chain("semantic", "coarse", "fine"), ["one"] * 5

    def same(one: dict[str, list[Representation]], other: dict[str, list[Representation]], name: str) -> bool:
        return all(equal(a, b) for a, b in zip(one[name], other[name], strict=True))

    made = stages.make(prompts, seconds=0.1)
    for name, before in (("semantic", ()), ("coarse", ("semantic",)), ("fine", ("semantic", "coarse"))):
        other = stages.make(prompts, seconds=0.1, guidance_scale={name: 6.0})
        assert all(same(other, made, earlier) for earlier in before)
        assert name == "fine" or not same(other, made, name), "guidance works in each stage that has a prompt"
    everywhere = stages.make(prompts, seconds=0.1, guidance_scale=1.0)
    assert same(everywhere, stages.make(prompts, seconds=0.1, guidance_scale={"semantic": 1.0}), "semantic")
    assert not same(stages.make(prompts, seconds=0.1, negative_prompt="two"), made, "semantic")


def test_a_saved_chain_gives_the_same_bytes(tmp_path: Path) -> None:
    stages = chain("semantic", "coarse", "fine")
    folder = stages.save_pretrained(tmp_path / "chain", license="mit")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "coarse", "config.json", "fine", "semantic", "spec.yaml"]
    loaded = Chain.from_pretrained(folder)
    wanted = {"prompts": ["one", ""], "seconds": 0.1, "seeds": 4, "known": Kept(sound(1), [(0.0, 0.04)])}
    for first, second in zip(stages.generate(**wanted), loaded.generate(**wanted), strict=True):  # type: ignore[arg-type]
        assert first.waveform.tobytes() == second.waveform.tobytes()
    kept = loaded.save_pretrained(tmp_path / "copy")
    again = Chain.from_pretrained(kept).save_pretrained(folder)  # in place of the older one
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file()) and len(files) == 3 + 3 * 5
    assert all((kept / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert SoundOmni.from_pretrained(folder / "coarse").make("one", seconds=0.1)
    hotter = Chain.from_pretrained(folder, overrides={"stages.semantic.model.modalities.semantic.sampler.temperature": 3})
    assert not equal(hotter.make("one", seconds=0.1)["semantic"][0], loaded.make("one", seconds=0.1)["semantic"][0])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"also holds 'notes.txt', which would be lost"):
        stages.save_pretrained(folder)
    (folder / "notes.txt").rename(folder / "coarse" / "notes.txt")
    with pytest.raises(CheckpointError, match=r"also holds 'notes.txt', which would be lost"):
        stages.save_pretrained(folder)


def test_a_spec_of_stages_names_directories_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("semantic", "whole"):
        MODELS[name].save_pretrained(tmp_path / "models" / name)
    file = tmp_path / "speech.yaml"
    file.write_text("stages:\n  semantic: models/semantic\n  acoustic: models/whole\n")
    assert is_chain(file) and not is_chain(tmp_path) and not is_chain(tmp_path / "models" / "semantic")
    loaded = Chain.from_pretrained(file)
    assert list(loaded.stages) == ["semantic", "acoustic"]
    expected = chain("semantic", "whole").generate("one", seconds=0.1)
    assert np.array_equal(loaded.generate("one", seconds=0.1)[0].waveform, expected[0].waveform)
    abilities = loaded.abilities()
    assert [one.name for one in abilities.made] == ["acoustic"] and abilities.takes_text and abilities.made[0].ends
    assert abilities.made[0].num_steps is None and abilities.made[0].taken == ()
    file.write_text("stages:\n  semantic: models/semantic\n  acoustic: models/nothing\n")
    with pytest.raises(CheckpointError, match=r"stages.acoustic is 'models/nothing', but there is no directory .*Train or export it first"):
        Chain.from_pretrained(file)
    with pytest.raises(SpecError, match=r"the spec is a chain \(semantic, acoustic\); expected the spec of one model. Use the spec of one"):
        load_spec([file]).of_model  # noqa: B018


@pytest.mark.parametrize("stages", ["../models/semantic", "/models/semantic", ".."])
def test_a_directory_names_only_its_own_folders(tmp_path: Path, stages: str) -> None:
    (tmp_path / "chain").mkdir()
    MODELS["semantic"].save_pretrained(tmp_path / "models" / "semantic")
    (tmp_path / "chain" / "spec.yaml").write_text(f"stages:\n  semantic: {stages}\n")
    with pytest.raises(CheckpointError, match=r"stages.semantic is '.*'; expected the name of a folder in '.*chain'"):
        Chain.from_pretrained(tmp_path / "chain")


@pytest.mark.parametrize("inside", [True, False])
def test_a_directory_holds_its_stages_and_no_links_to_others(tmp_path: Path, inside: bool) -> None:
    folder = chain("semantic", "whole").save_pretrained(tmp_path / "chain")
    target = folder / "real" if inside else tmp_path / "elsewhere"
    (folder / "whole").rename(target)
    (folder / "whole").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"'.*whole' is a link; expected a folder in '.*chain'. Copy the stage, or name it in a spec"):
        Chain.from_pretrained(folder)


def test_what_is_not_a_chain_or_not_a_model_is_one_line(tmp_path: Path) -> None:
    folder = chain("semantic", "whole").save_pretrained(tmp_path / "chain")
    with pytest.raises(
        CheckpointError, match=r"is a chain of models, and chains can only generate. Use one of its .*, such as '.*semantic'"
    ):
        SoundOmni.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="is not a chain; expected a spec with the section stages"):
        Chain.from_pretrained(folder / "semantic")
    with pytest.raises(CheckpointError, match="chains are not fetched from the Hub"):
        Chain.from_pretrained("someone/chain")
    for key, expected in (
        ("sampler", "sampler is not a key of a chain; write stages.STAGE.KEY, such as stages.semantic.sampler"),
        ("stages.semantik.sampler", "names the stage 'semantik'; expected one of semantic, whole. Did you mean 'semantic'"),
        ("stages.semantik", "names the stage 'semantik'; expected one of semantic, whole. Did you mean 'semantic'"),
        ("stages.whole", "stages.whole cannot be replaced as a whole; expected one key of a stage, such as stages.whole.sampler"),
        ("stages", "stages cannot be replaced as a whole; expected one key of a stage, such as stages.semantic.sampler"),
        ("stages.whole.samplr", r"^stages.whole: .*samplr"),
    ):
        with pytest.raises(SpecError, match=expected):
            Chain.from_pretrained(folder, overrides={key: "x"})


NOT_SPECS = {
    "stages: {semantic: a": "^/.*broken.yaml:1:21: not valid YAML",
    "stage: {semantic: a}": "broken.yaml': unknown key 'stage'. Did you mean 'stages'",
    "stages:": "broken.yaml': the spec has none of the sections model, codec and stages",
    "stages: [a]": "broken.yaml': stages is",
    "a text": "expected a mapping with keys such as model",
    'stages: {a: ""}': "stages.a is ''; expected the directory of a model or of a run. Name it, or remove the stage",
    'stages: {a: " "}': "stages.a is ' '; expected the directory of a model or of a run",
    "stages: {lock: a, checkpoints: b}": "the name of a stage is 'checkpoints', which is reserved for runs",
}
"""Texts that are no chain, and what is said of them."""


@pytest.mark.parametrize("text", NOT_SPECS)
@pytest.mark.parametrize("load", [SoundOmni.from_pretrained, Chain.from_pretrained])
def test_what_is_wrong_with_a_spec_is_said_by_whoever_is_given_it(tmp_path: Path, text: str, load: Callable[[Path], object]) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(SoundOmniError, match=NOT_SPECS[text]) as raised:
        load(file)
    told = str(raised.value)
    assert told.count("broken.yaml") == 1 and "shipped model" not in told and "\n" not in str(raised.value)


def test_the_spec_of_one_model_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(dump_spec(MODELS["semantic"].spec))
    with pytest.raises(CheckpointError, match="'.*one.yaml' is the spec of a model; expected a model directory. Train the spec with"):
        SoundOmni.from_pretrained(file)
    with pytest.raises(CheckpointError, match="'audiolm-toy' is a chain of models, and chains can only generate. Use one of its stages"):
        SoundOmni.from_pretrained("audiolm-toy")


@pytest.mark.parametrize(
    "name", ["../../evil", "/tmp/evil", "..", ".", "", "my stage", "a/b", "a.b", "checkpoints", "Checkpoints", "1", 1, None]
)
def test_a_stage_has_a_name_that_its_folder_may_have(name: Any) -> None:
    with pytest.raises(SpecError, match="the name of a stage is .*; expected .*such as semantic") as raised:
        Chain({name: MODELS["semantic"], "whole": MODELS["whole"]})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([MODELS["semantic"]], "stages is .*; expected a mapping of names to models"),
        (None, "stages is None; expected a mapping of names to models"),
        (
            {"semantic": "models/semantic"},
            "stage 'semantic' is 'models/semantic'; expected a model. Load it with SoundOmni.from_pretrained",
        ),
        ({"semantic": MODELS["semantic"], "whole": None}, "stage 'whole' is None; expected a model"),
    ],
)
def test_what_is_not_a_mapping_of_models_is_one_line(stages: Any, expected: str) -> None:
    with pytest.raises(SpecError, match=expected) as raised:
        Chain(stages)
    assert "\n" not in str(raised.value)


def test_only_a_chain_replaces_a_chain(tmp_path: Path) -> None:
    folder = chain("semantic", "whole").save_pretrained(tmp_path / "chain")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="is a chain of models, whose stages would be lost; choose another directory"):
        MODELS["semantic"].save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert chain("semantic", "storm").save_pretrained(folder) == folder and not (folder / "whole").exists()
    assert SoundOmni.from_pretrained(MODELS["semantic"].save_pretrained(folder / "semantic"))


@pytest.mark.parametrize(("arguments", "error"), [({"card": 3}, DataError), ({"license": 3}, DataError), ({"dtype": "int8"}, SpecError)])
def test_wrong_arguments_of_saving_leave_nothing_behind(tmp_path: Path, arguments: dict[str, Any], error: type[SoundOmniError]) -> None:
    with pytest.raises(error) as raised:
        chain("semantic", "whole").save_pretrained(tmp_path / "chain", **arguments)
    assert ".part" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("of", [0, 1])
def test_a_full_disk_is_said_of_the_target(tmp_path: Path, of: int) -> None:
    """A stage cannot write its tokenizer, as if the disk were full: the file is a folder already."""
    stages = chain("semantic", "whole")

    class Full(SoundOmni):
        def write(self, folder: Path, **settings: Any) -> None:
            (folder / "tokenizer.json").mkdir()
            super().write(folder, **settings)

    name = list(stages.stages)[of]
    own = stages.stages[name]
    stages.stages[name] = Full(own.model, own.spec, own.tokenizer)
    with pytest.raises(
        CheckpointError, match=f"cannot write the model directory '{tmp_path / 'chain'}': .*{tmp_path / 'chain' / name}"
    ) as raised:
        stages.save_pretrained(tmp_path / "chain")
    assert ".part" not in str(raised.value) and not list(tmp_path.iterdir())


def with_origin(name: str, **origin: str) -> SoundOmni:
    model = MODELS[name]
    return SoundOmni(model.model, model.spec, TOKENIZER, origin=Origin(**origin))


def test_the_card_of_a_chain_keeps_the_licenses_of_its_stages(tmp_path: Path) -> None:
    def card(first: dict[str, str], second: dict[str, str], license: str | None = None, card: str | None = None) -> str:
        stages = Chain({"semantic": with_origin("semantic", **first), "whole": with_origin("whole", **second)})
        return (stages.save_pretrained(tmp_path / "chain", license=license, card=card) / "README.md").read_text()

    mit, theirs = {"license": "mit"}, {"license": "cc-by-nc-4.0", "source": "someone/else"}
    assert "license: mit\n" in card(mit, mit)
    both = card(mit, theirs)
    assert "license:" not in both.split("---")[1] and "- semantic: makes `semantic`, license mit\n" in both
    assert "- whole: makes `acoustic`, weights from `someone/else`, license cc-by-nc-4.0" in both
    assert "license:" not in card(mit, {}).split("---")[1] and "license" not in card({}, {})
    assert "license: apache-2.0\n" in card(mit, theirs, license="apache-2.0")
    assert card(mit, mit, card="") == "" and card(mit, mit, card="mine") == "mine"
    assert (MODELS["whole"].save_pretrained(tmp_path / "one", card="") / "README.md").read_text() == ""


def other_codec(model: SoundOmni, change: Callable[[torch.nn.Module], None]) -> SoundOmni:
    """The same model with another codec of its semantic tokens."""
    new = SoundOmni(build_model(spec_of("coarse"), vocab_size=TOKENIZER.vocab_size), model.spec, TOKENIZER)
    new.model.load_state_dict(model.model.state_dict())
    semantic = next(one for one in new.model.each() if one.name == "semantic")
    assert isinstance(semantic, CodecModality)
    change(semantic.codec)
    return new


def scaled(codec: torch.nn.Module) -> None:
    codec.quantizer.codebooks.mul_(2)  # type: ignore[union-attr,operator]


def renamed(model: SoundOmni, **arguments: object) -> SoundOmni:
    """A semantic model whose codec has other arguments."""
    modality = model.spec.of_model.used["semantic"]
    assert modality.codec is not None
    codec = Slot(modality.codec.class_path, {**modality.codec.init_args, **arguments})
    spec = replace(model.spec.of_model, modalities={"semantic": replace(modality, codec=codec)})
    return SoundOmni(build_model(spec, vocab_size=TOKENIZER.vocab_size), Spec(model=spec), TOKENIZER)


def levels(name: Name, first: int, end: int) -> SoundOmni:
    spec = spec_of(name)
    acoustic = spec.used["acoustic"]
    assert acoustic.objective is not None
    objective = Slot(acoustic.objective.class_path, {**acoustic.objective.init_args, "levels": [first, end]})
    spec = replace(spec, modalities={**spec.modalities, "acoustic": replace(acoustic, objective=objective)})
    return SoundOmni(build_model(spec, vocab_size=TOKENIZER.vocab_size), Spec(model=spec), TOKENIZER)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (lambda: {}, "the chain has no stages"),
        (lambda: {"fine": MODELS["fine"]}, "stage 'fine' needs the levels of 'acoustic' below 2, which no stage before it makes. Add the"),
        (
            lambda: {"semantic": MODELS["semantic"], "fine": MODELS["fine"]},
            "stage 'fine' needs the levels of 'acoustic' below 2, which no stage before it makes. Add the missing stage",
        ),
        (
            lambda: {"coarse": MODELS["coarse"], "storm": MODELS["storm"]},
            "stage 'coarse' makes 'acoustic', which no later stage takes: 'storm' takes semantic",
        ),
        (
            lambda: {"semantic": MODELS["semantic"]},
            "stage 'semantic' is the last one, but the codec of 'semantic', .* only encodes",
        ),
        (
            lambda: {"semantic": MODELS["semantic"], "coarse": MODELS["coarse"], "fine": levels("fine", 1, 3)},
            "stage 'fine' needs the levels of 'acoustic' below 1, but stage 'coarse' makes those below 2. Set the levels",
        ),
        (
            lambda: {"semantic": MODELS["semantic"], "coarse": other_codec(MODELS["coarse"], scaled)},
            "stage 'semantic' hands 'semantic' on to stage 'coarse', but their codecs differ in settings or weights",
        ),
        (
            lambda: {"semantic": renamed(MODELS["semantic"], floor=0.5), "coarse": MODELS["coarse"]},
            "but their codecs differ in settings or weights",
        ),
        (
            lambda: {"semantic": renamed(MODELS["semantic"], sample_rate=1000), "coarse": MODELS["coarse"]},
            "its codec has sample_rate 1000, and that of 'coarse' 500. Use the same codec for both",
        ),
        (
            lambda: {"semantic": renamed(MODELS["semantic"], num_clusters=9), "coarse": MODELS["coarse"]},
            r"its codec has codebook_sizes \(9,\), and that of 'coarse' \(6,\)",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused_in_one_line(stages: Callable[[], Mapping[str, SoundOmni]], expected: str) -> None:
    with pytest.raises(SpecError, match=expected) as raised:
        Chain(stages())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"guidance_scale": {"semantik": 2.0}}, SpecError, "names the stage 'semantik'; expected one of semantic, coarse, fine. Did you"),
        ({"num_steps": 5}, SpecError, "num_steps is 5, but all stages of this chain make clips token after token"),
        ({"negative_prompt": "two", "guidance_scale": 1.0}, SpecError, "a negative prompt does nothing with the guidance scale 1"),
        ({"of": "semantic"}, SpecError, "the chain makes 'acoustic', not 'semantic'"),
        ({"seconds": [0.1, 0.2]}, SpecError, "seconds has length 2; expected 1"),
        ({"seconds": 0}, SpecError, "seconds is 0; expected a number above 0"),
        ({"known": "clip.wav"}, DataError, "known is 'clip.wav'"),
    ],
)
def test_what_a_chain_cannot_be_asked_is_one_line(arguments: dict[str, Any], error: type[SoundOmniError], expected: str) -> None:
    with pytest.raises(error, match=expected):
        chain("semantic", "coarse", "fine").generate("one", **{"seconds": 0.1, **arguments})


def test_a_chain_whose_first_stage_takes_no_text_refuses_a_prompt() -> None:
    spec = replace(spec_of("semantic"), prompt=[])
    silent = SoundOmni(MODELS["semantic"].model, Spec(model=spec), TOKENIZER)
    stages = Chain({"semantic": silent, "whole": MODELS["whole"]})
    with pytest.raises(SpecError, match="the prompt is 'one', but the first stage of this chain, 'semantic', takes no text. Leave"):
        stages.generate(["", "one"], seconds=0.1)
    assert stages.generate("", seconds=0.1) and not stages.abilities().takes_text
    for ask in (silent.make, silent.check_request):
        with pytest.raises(SpecError, match="the prompt is 'one', but this model takes no text. Leave the prompt empty"):
            ask("one", seconds=0.1)
    assert silent.make("", seconds=0.1) and not silent.abilities().takes_text and not silent.takes_text
