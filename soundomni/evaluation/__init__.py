"""Measuring a model from Python: `evaluate` does everything in one call, and each step has its own function.

| step | name |
|---|---|
| open the data | `open_data`, `open_list`, `shipped_lists` |
| let the model do its tasks | `run_model`, with `Settings`, gives an `Outcome` |
| score what it made and said | `score_outcome`, with `load_judges` for networks that judge |
| compare generated clips with those of training | `open_reference`, `read_reference` |
| save the outcome | `save_outcome`, `made_with` |
| show a score | `score_text`, `comparison_text` |
| compare a clip with what came back through a codec | `compare` |
| average comparisons over clips, for each number of levels | `codec_table` |

The library prints nothing. An `Observer` receives reports of what is going on.

Names are imported on first use: importing this package imports neither torch nor numpy.
"""

from typing import TYPE_CHECKING

from soundomni.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from soundomni.evaluation.codec_rows import CodecRow, codec_table
    from soundomni.evaluation.evaluating import evaluate
    from soundomni.evaluation.evaluation_data import EvaluationData, open_data
    from soundomni.evaluation.fixed_lists import FixedList, open_list, shipped_lists
    from soundomni.evaluation.judges import Judges, load_judges
    from soundomni.evaluation.observer import Observer, Progress, Silent
    from soundomni.evaluation.outcome import Outcome
    from soundomni.evaluation.provenance import made_with
    from soundomni.evaluation.reference import Reference, open_reference, read_reference
    from soundomni.evaluation.result_text import comparison_text, score_text
    from soundomni.evaluation.running import run_model
    from soundomni.evaluation.saving import save_outcome
    from soundomni.evaluation.score import Score
    from soundomni.evaluation.scoring import score_outcome
    from soundomni.evaluation.settings import COMMON_TASKS, DEFAULT_LIST, TASKS, Settings
    from soundomni.evaluation.tasks.reconstruction import Comparison, compare

_MODULES = {
    "codec_rows": ("CodecRow", "codec_table"),
    "evaluating": ("evaluate",),
    "evaluation_data": ("EvaluationData", "open_data"),
    "fixed_lists": ("FixedList", "open_list", "shipped_lists"),
    "judges": ("Judges", "load_judges"),
    "observer": ("Observer", "Progress", "Silent"),
    "outcome": ("Outcome",),
    "provenance": ("made_with",),
    "reference": ("Reference", "open_reference", "read_reference"),
    "result_text": ("comparison_text", "score_text"),
    "running": ("run_model",),
    "saving": ("save_outcome",),
    "score": ("Score",),
    "scoring": ("score_outcome",),
    "settings": ("COMMON_TASKS", "DEFAULT_LIST", "TASKS", "Settings"),
    "tasks.reconstruction": ("Comparison", "compare"),
}

__all__ = [
    "COMMON_TASKS",
    "DEFAULT_LIST",
    "TASKS",
    "CodecRow",
    "Comparison",
    "EvaluationData",
    "FixedList",
    "Judges",
    "Observer",
    "Outcome",
    "Progress",
    "Reference",
    "Score",
    "Settings",
    "Silent",
    "codec_table",
    "compare",
    "comparison_text",
    "evaluate",
    "load_judges",
    "made_with",
    "open_data",
    "open_list",
    "open_reference",
    "read_reference",
    "run_model",
    "save_outcome",
    "score_outcome",
    "score_text",
    "shipped_lists",
]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
