"""What the planner chooses, and how it refuses."""

import pytest
import torch
from attention_layouts import CPU, stored_of, table_of

from soundomni.core.attention import merged, plan_attention
from soundomni.core.attention.planner import EXECUTORS, _choose
from soundomni.core.errors import SpecError
from soundomni.core.sequence import Attend

CAUSAL, FULL, NOISE = Attend.CAUSAL, Attend.FULL, Attend.NOISE
CUDA = torch.device("cuda")


def plan(executor, *documents, **kwargs):
    table = table_of(*(documents or ([(CAUSAL, 3), (NOISE, 4)],)))
    return plan_attention(table, stored_of(table), device=CPU, executor=executor, **kwargs)


def test_auto_is_merged_on_the_cpu_and_says_why():
    chosen = plan("auto")
    assert chosen.executor == "merged"
    assert "on the CPU" in chosen.reason


@pytest.mark.parametrize("executor", ["merged", "padded", "reference"])
def test_what_is_asked_for_is_used(executor):
    chosen = plan(executor)
    assert (chosen.executor, chosen.reason) == (executor, "asked for")


@pytest.mark.parametrize(
    ("document", "dtype", "head_dim", "training", "otherwise", "reason"),
    [
        ([(CAUSAL, 4), (NOISE, 5)], torch.bfloat16, 64, "varlen", "varlen", "no causal segment follows a full one"),
        ([(CAUSAL, 4)], torch.float16, None, "varlen", "varlen", "no causal segment follows a full one"),
        ([(CAUSAL, 4), (FULL, 5), (CAUSAL, 2)], torch.bfloat16, 64, "flex", "padded", "a causal segment follows a full one"),
        ([(CAUSAL, 4)], torch.float32, 64, "flex", "padded", "bfloat16 or float16, not float32"),
        ([(CAUSAL, 4)], torch.float32, 8, "padded", "padded", "bfloat16 or float16, not float32"),
        ([(CAUSAL, 4)], torch.bfloat16, 8, "varlen", "varlen", "no causal segment follows a full one"),
        ([(CAUSAL, 4)], torch.bfloat16, 12, "padded", "padded", "multiple of 8 up to 256 dimensions, not 12"),
        ([(CAUSAL, 4)], torch.bfloat16, 20, "flex", "padded", "multiple of 8 up to 256 dimensions, not 20"),
        ([(CAUSAL, 4)], torch.bfloat16, 264, "flex", "padded", "multiple of 8 up to 256 dimensions, not 264"),
    ],
)
def test_auto_on_cuda(document, dtype, head_dim, training, otherwise, reason):
    for grad, executor in ((True, training), (False, otherwise)):
        with torch.set_grad_enabled(grad):
            chosen, why = _choose(table_of(document), CUDA, dtype, head_dim)
        assert chosen == executor
        assert reason in why


@pytest.mark.parametrize(("executor", "head_dim"), [("varlen", 12), ("flex", 8)])
def test_heads_that_a_kernel_does_not_take_are_refused_by_name(executor, head_dim):
    table = table_of([(CAUSAL, 4)])
    with pytest.raises(SpecError, match=rf"'{executor}' cannot run here: .* not {head_dim}"):
        plan_attention(table, stored_of(table), device=CUDA, executor=executor, dtype=torch.bfloat16, head_dim=head_dim)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(SpecError, match=r"unknown attention executor 'merge'; expected one of auto, .*Did you mean 'merged'\?"):
        plan("merge")


def test_varlen_on_the_cpu_is_refused():
    with pytest.raises(SpecError, match=r"'varlen' cannot run here: varlen kernels need a CUDA device"):
        plan("varlen")


def test_the_reference_refuses_large_batches():
    with pytest.raises(SpecError, match=r"'reference' cannot run here: .* at most 16384 tokens, and the batch has 16385"):
        plan("reference", [(CAUSAL, 16385)])


def test_devices_that_nothing_runs_on():
    assert "for the CPU, and the batch is on 'cuda'" in merged.obstacle(CUDA)
    table = table_of([(CAUSAL, 2)])
    with pytest.raises(SpecError, match=r"'flex' cannot run here: .* on 'mps'"):
        plan_attention(table, stored_of(table), device=torch.device("mps"), executor="flex")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_auto_runs_on_other_devices(device):
    chosen, why = _choose(table_of([(CAUSAL, 2), (FULL, 3), (CAUSAL, 1)]), torch.device(device), torch.float32)
    assert chosen == "padded"
    assert f"on '{device}'" in why


def test_flex_runs_forward_on_the_cpu():
    with torch.no_grad():
        assert plan("flex").executor == "flex"


def test_every_executor_is_documented_by_its_name():
    with pytest.raises(SpecError, match=", ".join(EXECUTORS)):
        plan("nothing like it")
