"""Cost: arithmetic against torch's counter, memory and energy against known amounts, intervals by hand, the whole way."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_models
from helpers.command_line import run as run_command
from helpers.synthetic_results import build, copy_model
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from distill_lit.analysis.inference_cost import add_costs, read_costs, summarize_costs
from distill_lit.analysis.pareto import CLAIM_FAILS, CLAIM_HOLDS, CLAIM_UNDECIDED, efficiency_claims
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import compute_scores
from distill_lit.config import AnalysisConfig, CostConfig
from distill_lit.models import load_model, load_model_config, size_of
from distill_lit.profiling.energy import _processor_meter
from distill_lit.profiling.inference import check_positions, greedy_decode, measure_costs
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.report.tables.inference_cost import break_even, cost_table
from distill_lit.utils.exceptions import UserError

CPU = torch.device("cpu")
LLAMA = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
MODELS = {
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "untied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=False)),
    "wide_heads": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, head_dim=16)),
    "mixture": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=8, num_experts_per_tok=2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return MODELS[request.param]().eval()


def test_flops_are_those_of_the_counter(model: PreTrainedModel) -> None:
    length, size = 24, size_of(model)
    model.set_attn_implementation("eager")  # the products are then all seen by the counter
    model.set_experts_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(2, length, dtype=torch.int64))
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    weights += sum(p.numel() for p in model.parameters() if p.ndim == 3) * 2 // 8  # two of eight experts
    weights += size.lm_head_parameters if size.is_tied else 0
    attention = 4 * size.attention_width * length  # a mask saves nothing: every token is multiplied with all of them
    assert counter.get_total_flops() == 2 * length * (2 * weights + attention)
    # what the formula says, which counts norms and biases too; they weigh more in small models
    assert 2 * length * size.flops_per_token(context=length) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_cache_is_as_wide_as_it_is(model: PreTrainedModel) -> None:
    cache = model(input_ids=torch.zeros(1, 7, dtype=torch.int64), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert size_of(model).kv_cache_values_per_token * 7 == numbers


def test_tokens_are_those_of_greedy_generation(tiny_teacher: Path) -> None:
    model, prompts = load_model(tiny_teacher), torch.randint(3, 300, (3, 9))
    written, (first, steps) = greedy_decode(model, prompts, 6)
    expected = model.generate(prompts, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None)
    assert written.tolist() == expected[:, 9:].tolist()
    assert first > 0 and len(steps) == 5 and min(steps) > 0


@pytest.mark.slow
def test_measurement_has_every_model_block_and_point(tiny_teacher: Path, tmp_path: Path) -> None:
    small = tiny_models.make_model(tmp_path / "small", num_layers=1)
    settings = CostConfig(batch_sizes=[1, 2], prompt_lengths=[8], output_lengths=[3])
    turns: list[str] = []
    rows = measure_costs({"teacher": tiny_teacher, "small": small}, settings, CPU, lambda stage, *_: turns.append(stage))
    assert turns == ["measure teacher", "measure small"] * 5
    assert len(rows) == 2 * 5 * 3
    assert rows.loc[rows["kind"] == "requests", "requests"].eq(20).all()
    timed = ["ttft_s", "prefill_s_per_token", "decode_s_per_token", "itl_p50_s", "itl_p95_s", "peak_memory_bytes"]
    assert (rows[timed] > 0).all(axis=None)
    assert (rows["itl_p50_s"] <= rows["itl_p95_s"]).all()
    one = rows[(rows["kind"] == "grid") & (rows["batch"] == 2)].iloc[0]
    assert one["prefill_s_per_token"] == pytest.approx(one["ttft_s"] / 16)
    found = summarize_costs(rows, "teacher", 0.95).set_index(["model", "axis"])
    assert found.loc[("teacher", "decode_s_per_token"), "ratio"] == pytest.approx(1)
    assert found.loc[("small", "decode_s_per_token"), "ratio"] > 1
    assert ("teacher", "joules_per_token") in found.index or rows["joules"].isna().all()


def test_a_grid_beyond_the_positions_is_refused(tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"cost.prompt_lengths: 332 tokens .* teacher has 256 positions"):
        check_positions({"teacher": load_model_config(tiny_teacher)}, CostConfig(prompt_lengths=[8, 300]))


def made_up_rows(slower: float, noise: float) -> pd.DataFrame:
    """A student `slower` times as fast as its teacher at both points of a grid, in blocks that differ by `noise`."""
    draw, rows = np.random.default_rng(0), []
    for block in range(6):
        machine = float(np.exp(noise * draw.normal()))
        for model, factor in (("teacher", slower), ("student", 1.0)):
            for batch, seconds in ((1, 4e-3), (8, 1e-3)):
                timed = dict.fromkeys(("prefill_s_per_token", "decode_s_per_token", "ttft_s", "itl_p50_s", "itl_p95_s"),
                                      seconds * factor * machine)  # fmt: skip
                rows.append({"model": model, "block": block, "kind": "grid", "batch": batch, "joules": np.nan,
                             "peak_memory_bytes": 3e8 if model == "teacher" else 1e8, **timed})  # fmt: skip
    return pd.DataFrame(rows)


def test_what_falls_on_all_models_of_a_block_is_not_in_the_ratio() -> None:
    found = summarize_costs(made_up_rows(4.0, noise=0.5), "teacher", 0.95).set_index(["model", "axis"])
    row = found.loc[("student", "decode_s_per_token")]
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == pytest.approx((4, 4, 4))
    assert row["low"] < row["value"] < row["high"]
    assert found.loc[("student", "peak_memory_bytes"), "ratio"] == pytest.approx(3)
    assert "joules_per_token" not in found.index.get_level_values("axis")
    calm = summarize_costs(made_up_rows(4.0, noise=0.0), "teacher", 0.95).set_index(["model", "axis"])
    assert calm.loc[("student", "decode_s_per_token"), "value"] == pytest.approx(2e-3)  # √(4 ms · 1 ms)


def test_blocks_have_students_interval_and_a_report_draws_it_from_the_measurements(tmp_path: Path) -> None:
    rows = made_up_rows(4.0, noise=0.3)
    found = summarize_costs(rows, "teacher", 0.95).set_index(["model", "axis"]).loc[("student", "decode_s_per_token")]
    student = rows[rows["model"] == "student"]
    blocks = np.log(student["decode_s_per_token"]).groupby(student["block"]).mean()
    by_hand = stats.t.interval(0.95, 5, blocks.mean(), blocks.std(ddof=1) / 6**0.5)
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.exp(by_hand)))
    assert read_costs(tmp_path) == {}
    (tmp_path / "cost.json").write_text(json.dumps({"axes": [{"model": "old"}], "stands_for": {"teacher": ["teacher"]}}))
    rows.to_csv(tmp_path / "cost.csv", index=False)
    drawn = pd.DataFrame(read_costs(tmp_path)["axes"]).set_index(["model", "axis"])
    assert drawn.loc[("student", "decode_s_per_token"), "low"] == pytest.approx(found["low"])


@pytest.mark.parametrize(
    ("ratio", "low", "high", "rate", "verdict"),
    [(12, 11, 13, "1.2k", CLAIM_HOLDS), (12, 9, 15, "1.2k", CLAIM_UNDECIDED), (7, 6, 8, "700", CLAIM_FAILS)],
)
def test_the_claim_needs_the_lower_bound_of_the_measured_ratio(
    tmp_path: Path, ratio: float, low: float, high: float, rate: str, verdict: str
) -> None:
    build(tmp_path, documents=300, students={"deep": 0.5})
    copy_model(tmp_path, "teacher", "deep-distilled-0")  # the student answers as its teacher does
    axes = [{"model": "teacher", "axis": "decode_s_per_token", "value": 1e-2, "low": 1e-2, "high": 1e-2, "ratio": 1.0,
             "ratio_low": 1.0, "ratio_high": 1.0},
            {"model": "deep", "axis": "decode_s_per_token", "value": 1e-2 / ratio, "low": 0.0, "high": 1.0, "ratio": ratio,
             "ratio_low": low, "ratio_high": high}]  # fmt: skip
    costs = {"axes": axes, "stands_for": {"teacher": ["teacher"], "deep": ["deep-distilled-0"]},
             "settings": {"price_per_hour": 3.6, "blocks": 5}, "machine": {"device": "cpu"}}  # fmt: skip
    (tmp_path / "cost.json").write_text(json.dumps(costs))
    scores = compute_scores(load_results(tmp_path), AnalysisConfig(n_resamples=500))
    found = efficiency_claims(scores).set_index(["role", "axis"])
    assert found.loc[("distilled", "decode_s_per_token"), "verdict"] == verdict
    assert ("ce_only", "decode_s_per_token") not in found.index  # it was not measured
    # 3.6 an hour is a thousandth a second; a token takes a hundredth of one
    assert scores.results.runs.set_index("model").loc["teacher", "price_per_million_tokens"] == pytest.approx(10.0)
    table = cost_table(scores)
    place = table.columns.index("decode tokens/s")
    row = next(r for r in table.rows if r[0].text == "deep distilled")
    assert row[place].text == f"{rate} ({ratio:.2f}× [{low:.2f}, {high:.2f}])"


def test_costs_of_another_shape_are_not_used() -> None:
    runs = pd.DataFrame({"model": ["a"], "parameters": [10]})
    row = {
        "model": "a",
        "axis": "decode_s_per_token",
        **dict.fromkeys(("value", "low", "high", "ratio", "ratio_low", "ratio_high"), 1.0),
    }
    costs = {"axes": [row], "stands_for": {"a": ["a"]}, "parameters": {"a": 11}}
    assert "decode_s_per_token" not in add_costs(runs, costs) or add_costs(runs, costs)["decode_s_per_token"].isna().all()
    assert add_costs(runs, {**costs, "parameters": {"a": 10}})["decode_s_per_token"].tolist() == [1.0]


def test_break_even_by_hand(tmp_path: Path) -> None:
    build(tmp_path, documents=20, students={"deep": 0.5})
    scores = compute_scores(load_results(tmp_path), AnalysisConfig(n_resamples=200))
    runs = scores.results.runs.set_index("role")
    saved = runs.loc["teacher", "flops_per_token"] - runs.loc["distilled", "flops_per_token"]
    spent = runs.loc["distilled", "student_training_flops"] + runs.loc["distilled", "teacher_training_flops"]
    by_role = {group.role: break_even(scores, group) for group in scores.groups}
    assert by_role["distilled"] == pytest.approx(spent / saved)
    assert by_role["ce_only"] < by_role["distilled"]
    assert np.isnan(by_role["teacher"])
    behind = scores.results.runs["role"].map({"distilled": 5 * spent, "untrained": spent})  # as of a corrected teacher
    scores.results.runs["pipeline_training_flops"] = behind
    paid = {group.role: break_even(scores, group) for group in scores.groups}
    assert paid["distilled"] == pytest.approx(5 * spent / saved)
    assert paid["ce_only"] == by_role["ce_only"]  # made from no other model
    assert np.isnan(paid["untrained"])


def test_peak_memory_sees_what_was_there_and_forgets_it() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not forget its peak")
    before = reset_peak_memory(CPU)
    torch.ones(256 * 2**20 // 4).sum()  # more than this process has freed and kept in one piece
    assert 256e6 < read_peak_memory(CPU) - before < 320e6
    before = reset_peak_memory(CPU)
    assert read_peak_memory(CPU) - before < 8e6


def test_energy_counter_goes_round(tmp_path: Path) -> None:
    package, core = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"
    for folder, energy in ((package, 900_000), (core, 5)):
        folder.mkdir()
        (folder / "max_energy_range_uj").write_text("999999")
        (folder / "energy_uj").write_text(f"{energy}\n")
    meter = _processor_meter(tmp_path)
    assert meter is not None
    (package / "energy_uj").write_text("100000")
    assert meter() == pytest.approx(0.2)
    (package / "energy_uj").write_text("400000")
    assert meter() == pytest.approx(0.5)
    assert _processor_meter(tmp_path / "nothing") is None


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{tiny_teacher}", dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 1024, corpora: {{text: {{path: "file:{tiny_corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 1024, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 8}}
cost: {{batch_sizes: [1], prompt_lengths: [8], output_lengths: [2], price_per_hour: 1.0}}
analysis: {{n_resamples: 200}}
grid: {{seed: [0, 1]}}
baselines: [teacher]
""")

    def run(command: str, *more: str) -> subprocess.CompletedProcess[str]:
        return run_command(command, str(file), "--root", str(tmp_path), *more)

    early = run("cost")
    assert early.returncode == 2 and "run the experiment first" in early.stderr
    long = run("run", "cost.measure=true", "cost.prompt_lengths=[300]")
    assert long.returncode == 2 and "the teacher has 256 positions" in long.stderr
    assert not list(tmp_path.glob("runs/tiny/*/manifest.json"))
    done = run("run", "cost.measure=true")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "results/tiny"
    costs = json.loads((folder / "cost.json").read_text())
    assert costs["stands_for"] == {"teacher": ["teacher"], "one-seed=0": ["one-seed=0", "one-seed=1"]}
    assert {row["axis"] for row in costs["axes"]} >= {
        "prefill_s_per_token",
        "decode_s_per_token",
        "ttft_s",
        "itl_p95_s",
        "peak_memory_bytes",
    }
    assert "decode tokens/s" in (folder / "table.md").read_text()
    assert "decode tokens/s" in (folder / "report.html").read_text()
    made = (folder / "cost.csv").stat().st_mtime_ns
    again = run("cost", "cost.price_per_hour=2.0")
    assert again.returncode == 0 and "have been measured" in again.stdout
    assert json.loads((folder / "cost.json").read_text())["settings"]["price_per_hour"] == 2.0
    assert (folder / "cost.csv").stat().st_mtime_ns == made
    assert run("cost", "cost.blocks=4").returncode == 2
    (student,) = (tmp_path / "runs/tiny").glob("one-seed=1-*")
    shutil.rmtree(student)  # as if it had not been trained yet
    done = run("cost")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "cost.json").read_text())["stands_for"] == costs["stands_for"]
