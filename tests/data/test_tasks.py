"""Built-in and custom tasks."""

import pytest

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Item
from soundomni.core.spec.schema import SegmentTemplate as Template
from soundomni.core.writing.tasks import BUILT_IN, build_tasks, find_task

MUTE = Item(key="a", num_samples=1, sample_rate=8000)
CAPTIONED = Item(key="a", num_samples=1, sample_rate=8000, captions=("x",))
ASKED = Item(key="a", num_samples=1, sample_rate=8000, questions=(("Q", "A"),))


def test_built_in_tasks_need_what_their_texts_name():
    tasks = build_tasks()
    assert set(tasks) == set(BUILT_IN) == {"generate", "describe", "answer", "continue", "fill"}
    for name in ("generate", "describe", "continue", "fill"):
        assert (tasks[name].lacks(MUTE), tasks[name].lacks(CAPTIONED), tasks[name].lacks(ASKED)) == ("caption", None, "caption")
    assert (tasks["answer"].lacks(CAPTIONED), tasks["answer"].lacks(ASKED)) == ("question", None)
    assert [name for name in tasks if tasks[name].uses("target")] == ["generate", "continue", "fill"]
    assert [name for name in tasks if tasks[name].uses("features")] == ["describe", "answer"]


def test_custom_tasks_join_the_built_in_ones():
    tasks = build_tasks({"echo": [Template(audio="context"), Template(text="Once more, {caption}"), Template(audio="target")]})
    assert tasks["echo"].placeholders == {"caption"} and tasks["echo"].uses("context")
    assert build_tasks({"alone": [Template(audio="target")]})["alone"].lacks(MUTE) is None


@pytest.mark.parametrize(
    ("templates", "problem"),
    [
        ([Template()], "segment 1 needs exactly one of text and audio"),
        ([Template(text="x", audio="target")], "exactly one"),
        (
            [Template(audio="target"), Template(text="{captoin}")],
            "segment 2 has an unknown placeholder '{captoin}'.*Did you mean 'caption'",
        ),
        ([Template(text="{}", loss=True)], "unknown placeholder"),
        ([Template(text="{caption", loss=True)], "not a valid pattern"),
        ([Template(text="{caption!r}", loss=True)], "without a format"),
        ([Template(text="{caption:>9}", loss=True)], "without a format"),
        ([Template(audio="features", loss=True)], "loss on audio 'features'"),
        ([Template(audio="target", loss=True)], "loss on audio 'target'"),
        ([Template(audio="context", known=(0.1, 0.2)), Template(audio="target")], "sets known, which only"),
        ([Template(audio="target", known=(0.5, 0.2))], "expected 0 <= least <= most < 1"),
        ([Template(audio="target", known=(0.5, 1.0))], "expected 0 <= least <= most < 1"),
        ([Template(audio="target", gap=(0.5, 1.0))], "sets gap to .*expected 0 <= least <= most < 1"),
        ([Template(audio="features", gap=(0.1, 0.2)), Template(audio="target")], "sets gap, which only"),
        ([Template(audio="target", gap=(0.1, 0.2), known=(0.1, 0.2))], "sets known and gap"),
        ([Template(audio="features"), Template(text="{caption}")], "nothing to learn"),
        ([], "nothing to learn"),
    ],
)
def test_tasks_that_cannot_be_written_are_refused_in_one_line(templates, problem):
    with pytest.raises(SpecError, match=problem) as caught:
        build_tasks({"mine": templates})
    assert "data.tasks.mine" in str(caught.value) and "\n" not in str(caught.value)


def test_a_built_in_task_is_not_replaced():
    with pytest.raises(SpecError, match="'generate' is a built-in task"):
        build_tasks({"generate": [Template(audio="target")]})


def test_unknown_tasks_suggest_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'describe'"):
        find_task("descirbe", build_tasks())


def test_escaped_braces_are_text():
    assert build_tasks({"mine": [Template(text="{{x}} {answer}", loss=True)]})["mine"].placeholders == {"answer"}
