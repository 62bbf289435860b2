"""How a training is spread over ranks and nodes: what is refused, what identifies it, and what memory it takes."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, pipelines, tiny_models

from distill_lit.config import load_experiment
from distill_lit.data.loader import rows_per_step
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.estimates import strategy
from distill_lit.experiment.estimates.memory_estimate import estimate_memory
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.utils.distributed.node import ONLY_NODE, Node, node_from_environment
from distill_lit.utils.exceptions import UserError

QUICKSTART = ROOT / "experiments/quickstart.yaml"
FSDP = ["training.strategy=fsdp", "training.devices=2"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["training.strategy=fsdp"], "training.strategy: fsdp is for several ranks"),
        (["training.strategy=ddp"], "training.strategy: ddp is for several ranks"),
        (["training.strategy=ddp", "training.devices=2", "training.checkpoint=sharded"], "training.checkpoint: sharded"),
        ([*FSDP, "training.teacher_shards=3"], "training.teacher_shards: 3 does not divide the 2 ranks"),
        ([*FSDP, "objective.terms.maps={kind: attention}"], "objective.terms.maps"),
        ([*FSDP, "on_policy.fraction=1"], "on_policy"),
        ([*FSDP, "evaluation.interval=0.5"], "evaluation.interval"),
        ([*FSDP, "training.compile=always"], "training.compile"),
        ([*FSDP, "teacher.source=ema"], "teacher.source ema"),
        ([*FSDP, "teacher.quantize=int8"], "teacher.quantize int8"),
        ([*FSDP, "teacher.quantize=int8", "objective={terms: {ce: {}}}"], "teacher.quantize int8"),
        ([*FSDP, "students.deep.quantization_aware=int4"], "students.deep.quantization_aware"),
        (["teacher.source=self", "teacher.quantize=int8"], "teacher.quantize"),
        (["launcher.teacher_device=auto", "teacher.source=online"], "launcher.teacher_device: auto"),
        (["launcher.teacher_device=auto", "teacher.source=offline", "teacher.quantize=int8"], "teacher.quantize"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_anything_is_loaded(changes: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_experiment(load_experiment(QUICKSTART, changes))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nodes_count_like_devices_and_the_strategy_decides_nothing() -> None:
    names = {
        change: [run.name for run in plan_runs(load_experiment(QUICKSTART, change.split()))]
        for change in (
            "seed=0",
            "training.nodes=1",
            "training.devices=2",
            "training.nodes=2",
            "training.devices=2 training.strategy=fsdp training.checkpoint=sharded training.teacher_shards=2",
        )
    }
    plain, one, devices, nodes, sharded = names.values()
    assert plain == one
    assert devices == nodes == sharded != plain  # two ranks read the same rows, wherever they are
    ranks = ["training.nodes=3", "training.devices=2", "training.micro_batch_size=5"]
    training = load_experiment(QUICKSTART, ranks).training
    assert rows_per_step(training) == 3 * 2 * 5 * training.gradient_accumulation_steps


def test_memory_of_a_rank_by_hand(tmp_path: Path) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher", num_layers=4, tie_word_embeddings=False)
    corpus = tiny_models.make_corpus(tmp_path / "corpus.jsonl")
    run = pipelines.plan(pipelines.write(tmp_path, teacher, corpus))["two-seed=0"]
    architectures = Architectures([run])
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32  # q, k and v, o; gate, up, down; two norms
    ends, norm = 2 * 300 * 32, 32

    def needed(**changes: object) -> tuple[int, int, int]:
        training = replace(run.config.training, **changes)
        memory = estimate_memory(replace(run, config=replace(run.config, training=training)), architectures)
        return memory.weights, memory.moments, memory.teacher

    student, body = 2 * layer + norm + ends, 4 * layer + norm
    weights, moments, whole_teacher = needed()
    assert (weights, moments) == (student * 8, student * 8)
    weights, moments, teacher_bytes = needed(strategy="fsdp", devices=2, nodes=2)
    gathered = ends * 8 + (2 * layer + norm) // 2 * (2 * 4 + 4)
    assert (weights, moments) == (student * 8 // 4 + gathered, student * 8 // 4)
    assert whole_teacher - teacher_bytes == body * 4 - int(body * 4 / 4 + 2 * body * 4 / 4)
    assert needed(strategy="fsdp", devices=2, nodes=2, teacher_shards=1)[2] == whole_teacher


def test_auto_shards_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_models.make_model(tmp_path / "teacher", num_layers=4)
    corpus = tiny_models.make_corpus(tmp_path / "corpus.jsonl")
    file = pipelines.write(tmp_path, teacher, corpus, more="")
    run = pipelines.plan(file, "training.devices=2")["two-seed=0"]
    architectures = Architectures([run])
    memory = estimate_memory(run, architectures)
    assert strategy.with_strategy(run).config.training.strategy == "ddp"
    assert strategy.fit_line(run, memory, architectures) == ""
    monkeypatch.setattr(strategy.hardware, "device_memory", lambda *_: memory.total - 1)
    assert strategy.with_strategy(run).config.training.strategy == "fsdp"
    assert "two-seed=0 needs" in strategy.fit_line(run, memory, architectures)
    plain = pipelines.plan(file, "training.devices=2", "baselines=[ce_only]")["two-ce_only-seed=0"]
    beside = estimate_memory(plain, architectures).teacher
    assert beside > 4 * architectures.teacher(plain).size.parameters  # it is validated beside the whole teacher
    monkeypatch.setattr(strategy.hardware, "device_memory", lambda *_: (memory.total - beside) / 0.9 + 1)
    assert strategy.with_strategy(plain).config.training.strategy == "fsdp"
    monkeypatch.setattr(strategy.hardware, "device_memory", lambda *_: memory.total / 0.9 + 1)
    assert strategy.with_strategy(plain).config.training.strategy == "ddp"
    alone = pipelines.plan(file)["two-seed=0"]
    assert strategy.with_strategy(alone).config.training.strategy == "auto"


def test_which_node_this_is() -> None:
    assert node_from_environment(1, {"DISTILL_LIT_NODE_RANK": "5"}) == ONLY_NODE
    by_hand = {"DISTILL_LIT_NODE_RANK": "1", "DISTILL_LIT_MAIN_ADDRESS": "node1:15000"}
    assert node_from_environment(2, by_hand) == Node(1, 2, "node1", 15000)
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[3-4]", "SLURM_JOB_ID": "901234"}
    assert node_from_environment(2, slurm) == Node(1, 2, "node3", 16234)
    for environment in ({}, {**slurm, "SLURM_NNODES": "4"}, {"NODE_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}):
        with pytest.raises(UserError, match="nothing says which one this is"):
            node_from_environment(2, environment)
    for wrong in ({"DISTILL_LIT_NODE_RANK": "2"}, {"DISTILL_LIT_MAIN_ADDRESS": "node1"}, {"DISTILL_LIT_NODE_RANK": "x"}):
        with pytest.raises(UserError, match="give a number below"):
            node_from_environment(2, {**by_hand, **wrong})
