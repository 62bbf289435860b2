"""Configs: what is read, what is refused and in which words, and what a grid makes of it."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    ExperimentConfig,
    StudentConfig,
    TermConfig,
    TrainingConfig,
    WidthConfig,
    expand_grid,
    load_experiment,
    load_section,
    non_default_fields,
    to_dict,
)
from distill_lit.models.pruning import LAYER_SELECTION_METHODS
from distill_lit.utils.exceptions import UserError

BASE = (
    "name: x\nteacher: {model: 'file:x'}\nstudents: {one: {num_layers: 2}}\nobjective: {terms: {kl: {kind: forward_kl}}}\n"
)
WRONG = [  # (override, what is said of it)
    ("training.micro_batch_size='8'", "training.micro_batch_size: '8' is text; write it without quotes, as a whole number"),
    ("training.micro_batch_size=eight", "training.micro_batch_size: 'eight' is text; write it without quotes, as a whole"),
    ("training.micro_batch_size=2.0", "training.micro_batch_size: 2.0 is not a whole number; write 2"),
    ("training.max_tokens=1e6", "training.max_tokens: 1000000.0 is not a whole number; write 1000000"),
    ("launcher.slurm.time=24:00:00", "launcher.slurm.time: '24:00:00' is not a whole number (minutes of one job"),
    ("training.micro_batch_size=010", "training.micro_batch_size: '010' is not a whole number (sequences per"),
    ("training.micro_batch_size=true", "training.micro_batch_size: true is not a whole number"),
    ("training.micro_batch_size=null", "training.micro_batch_size: null is not a whole number"),
    ("training.micro_batch_size=[1]", "training.micro_batch_size: [1] is not a whole number"),
    ("training.micro_batch_size=0", "training.micro_batch_size: 0 is below its minimum 1 (sequences per forward pass)"),
    ("training.micro_batch_size=99999999999999999999", "training.micro_batch_size: 99999999999999999999 is above its max"),
    ("seed=4294967296", "seed: 4294967296 is above its maximum 4294967295"),
    ("training.learning_rate=0", "training.learning_rate: 0 must be above 0 (peak learning rate of AdamW)"),
    ("training.learning_rate='1e-3'", "training.learning_rate: '1e-3' is text; write it without quotes, as a number"),
    ("training.learning_rate=.nan", "training.learning_rate: nan is not a finite number"),
    ("training.beta2=1", "training.beta2: 1 is above its maximum 0.9999"),
    ("training.keep_checkpoints=1", "training.keep_checkpoints: 1 is not true or false"),
    ("training.keep_checkpoints='yes'", "training.keep_checkpoints: 'yes' is text; write it without quotes, as true or"),
    ("training.compile=yes", "training.compile: unknown value 'yes'; choose from always"),
    ("training.precision=float23", "training.precision: unknown value 'float23'; did you mean 'float32'? choose from auto"),
    ("training.precision=null", "training.precision: unknown value null; choose from auto"),
    ("training=fast", "training: 'fast' is not a mapping of keys to values"),
    ("training=null", "training: null is not a mapping of keys to values"),
    ("training.micro_batchsize=8", "unknown key 'training.micro_batchsize'; did you mean 'micro_batch_size'? choose"),
    ("trainning.seed=8", "unknown key 'trainning'; did you mean 'training'? choose"),
    ("learning_rate=1", "unknown key 'learning_rate'; there is training.learning_rate; choose from analysis"),
    ("objective.lora.rank=8", "unknown key 'objective.lora'; there is students.NAME.lora; choose from alpha"),
    ("SEED=8", "unknown key 'SEED'; did you mean 'seed'? choose"),
    ("objective.terms.kll=null", "objective.terms.kll: null, and nothing here is called 'kll'; did you mean 'kl'? choose"),
    ("question=null", "question: null is not a text; write '' for an empty one"),
    ("evaluation.tasks=sciq", "evaluation.tasks: 'sciq' is not a list"),
    ("evaluation.tasks=[[sciq]]", "evaluation.tasks: ['sciq'] is not a text"),
    ("evaluation.num_fewshot=65", "evaluation.num_fewshot: 65 is above its maximum 64"),
    ("cost.batch_sizes=[1, 0]", "cost.batch_sizes: 0 is below its minimum 1 (sequences at a time)"),
    ("baselines=[teacher_int9]", "baselines: unknown value 'teacher_int9'; did you mean 'teacher_int8'? choose"),
    ("students.one=2", "students.one: 2 is not a mapping of keys to values"),
    ("students.one.from_=file:x", "unknown key 'students.one.from_'; did you mean 'from'? choose"),
    ("students.one.layers=kl_gredy", "students.one.layers: unknown value 'kl_gredy'; did you mean 'kl_greedy'? choose"),
    ("students.one.layers=[0, -1]", "students.one.layers: -1 is below its minimum 0"),
    ("students.one.layers={a: 1}", "students.one.layers: unknown value '{a: 1}'; choose from block_influence"),
    ("students.one.lora.target_modules=all", "students.one.lora.target_modules: unknown value 'all'; choose from all-"),
    ("students.one.width.hiden_size=2", "unknown key 'students.one.width.hiden_size'; did you mean 'hidden_size'? choose"),
    ("objective.terms.kl=1", "objective.terms.kl: 1 is not a mapping of keys to values"),
    ("objective.terms.kl.weight=-1", "objective.terms.kl.weight: -1 is below its minimum 0"),
    ("objective.terms.kl.weight=half", "objective.terms.kl.weight: 'half' is text; write it without quotes, as a number"),
    ("objective.terms.kl.weight={shape: cosin}", "objective.terms.kl.weight.shape: unknown value 'cosin'; did you mean '"),
    ("objective.terms.kl.weight={begin: 1}", "unknown key 'objective.terms.kl.weight.begin'; choose from end, from"),
    ("objective.terms.kl.weight={start: high}", "objective.terms.kl.weight.start: 'high' is text; write it without"),
    ("objective.terms.kl.weight={points: {0.5: a}}", "objective.terms.kl.weight.points.0.5: 'a' is text; write it"),
    ("objective.terms.kl.temperature=0", "objective.terms.kl.temperature: 0 must be above 0"),
    ("on_policy.fraction=1.5", "on_policy.fraction: 1.5 is above its maximum 1"),
    ("on_policy.fraction=adaptiv", "on_policy.fraction: unknown value 'adaptiv'; did you mean 'adaptive'? choose"),
    ("grid={seed: []}", "grid.seed: has no values"),
    ("cost.batch_sizes=[]", "cost.batch_sizes: has no values"),
    ("students.one.lora.target_modules=[]", "students.one.lora.target_modules: has no values"),
    ("grid={seed: 1}", "grid.seed: 1 is not a list"),
    ("variants={a: 1}", "variants.a: 1 is not a mapping of keys to values"),
    ("external_models={a: [b]}", "external_models.a: ['b'] is not a text; put it in quotes"),
    ("data.corpora.a={generated: {prompts: {text: [a, {b: c}]}}}", "data.corpora.a.generated.prompts.text: {'b': 'c'} is"),
    ("data.corpora.a.max_documents=${seed", "data.corpora.a.max_documents: '${seed' is not the name of a key"),
    ("seed=${nonsuch}", "seed: Interpolation key 'nonsuch' not found"),
    ("seed=${seed}", "seed: "),
    ("seed=[", "seed: '[' is not YAML: "),
    ("seed", "override 'seed' is not key=value"),
    ("question=${data}", "question: {"),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(BASE)
    return tmp_path / "x.yaml"


def refusal(*arguments: Any) -> str:
    with pytest.raises(UserError) as refused:
        list(expand_grid(load_experiment(*arguments)))
    message = str(refused.value)
    assert "\n" not in message and "pydantic" not in message and "Input should" not in message, message
    return message


@pytest.mark.parametrize(("override", "words"), WRONG)
def test_a_wrong_value_is_one_line_that_begins_with_its_key(file: Path, override: str, words: str) -> None:
    assert refusal(file, [override]).startswith(words)


def test_a_wrong_value_names_the_file_that_holds_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/small.yaml").write_text("training: {beta1: 2, micro_batch_size: 4}\n")
    file.write_text(BASE + "defaults: [small]\n")
    assert refusal(file).startswith(f"{tmp_path}/configs/small.yaml: training.beta1: 2 is above")
    assert refusal(file, ["training.beta1=3"]).startswith("training.beta1: 3 is above")
    file.write_text(BASE + "defaults: [small]\ntraining: {beta1: x}\n")
    assert refusal(file).startswith(f"{file}: training.beta1: 'x' is text")
    file.write_text(BASE + "defaults: [small]\ntraining: {beta1: 0.9, beta3: 0.9}\n")
    assert refusal(file).startswith(f"{file}: unknown key 'training.beta3'; did you mean 'beta")


def test_a_wrong_value_names_the_variant_or_the_grid_that_holds_it(file: Path) -> None:
    variants = "variants={a: {training.beta1: 2}}"
    assert refusal(file, [variants, "grid={variant: [a]}"]).startswith("variants.a: training.beta1: 2 is above")
    assert refusal(file, ["grid={training.beta1: [0.9, '1']}"]).startswith("grid: training.beta1: '1' is text")
    assert refusal(file, ["grid={training.beta3: [0.9]}"]).startswith("grid: unknown key 'training.beta3'")
    assert refusal(file, ["variants={a: {}}", "grid={variant: [[a]]}"]).startswith("variant: unknown value ['a']")


def test_a_dotted_key_in_a_file_is_told_how_it_is_written(file: Path) -> None:
    file.write_text(BASE + "training.max_tokens: 5\nobjective.terms.kl.weight: 1\n")
    assert refusal(file) == (
        f"{file}: unknown key 'training.max_tokens'; in a file it is written as training: {{max_tokens: …}}"
    )


@pytest.mark.parametrize("defaults", ["false", "''", "{a: b}", "0"])
def test_defaults_that_are_no_list_are_refused(file: Path, defaults: str) -> None:
    file.write_text(f"{BASE}defaults: {defaults}\n")
    assert refusal(file) == f"{file}: defaults is a list of names below configs/"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("a #b", "a #b"),
        ("#### (.*)", "#### (.*)"),
        ("5 # of 7", "5 # of 7"),
        ("'a' # b", "a"),
        ("''", ""),
        ("a: [b", "a: [b"),
        ("---", "---"),
        (" a ", "a"),
        ("24:00:00", "24:00:00"),
    ],
)
def test_an_override_of_a_text_is_what_was_typed(file: Path, typed: str, value: str) -> None:
    """A comment in YAML, as `####` before the answers of GSM8K would be, is none here."""
    assert load_experiment(file, [f"question={typed}"]).question == value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainingConfig(learning_rate=-1.0), "TrainingConfig.learning_rate: -1.0 must be above 0"),
        (lambda: TrainingConfig(rate=1.0), "unknown key 'TrainingConfig.rate'"),
        (lambda: dataclasses.replace(DataConfig(), sequence_length=1), "DataConfig.sequence_length: 1 is below its"),
        (lambda: StudentConfig(layers="all"), "StudentConfig.layers: unknown value 'all'; choose from block_influence"),
        (lambda: DataConfig(corpora={"a": {"txt": ""}}), "unknown key 'DataConfig.corpora.a.txt'; did you mean 'text'?"),
    ],
)  # fmt: skip
def test_constructors_refuse_wrong_values_in_one_line(make: Any, words: str) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_sections_are_dataclasses() -> None:
    student = StudentConfig(from_="file:x", width=WidthConfig(8, 16))
    assert (student.width.hidden_size, student.width.intermediate_size) == (8, 16)
    other = dataclasses.replace(student, from_="file:y")
    assert (student.from_, other.from_) == ("file:x", "file:y")
    assert copy.deepcopy(student) == student != other
    student.num_layers = 3
    assert non_default_fields(student) == {
        "num_layers": 3,
        "from": "file:x",
        "width": {"hidden_size": 8, "intermediate_size": 16},
    }
    assert to_dict(CorpusConfig())["text"] == "{{ text }}"


def test_a_key_holds_what_its_union_says(file: Path) -> None:
    half = "{shape: cosine, start: 1, end: 0.5, from: 0.2, until: 1}"
    config = load_experiment(file, [f"objective.terms.kl.weight={half}", "students.two.layers=[0, 2]", "student=one"])
    assert config.objective.terms["kl"].weight == {"shape": "cosine", "start": 1, "end": 0.5, "from": 0.2, "until": 1}
    assert config.students["two"].layers == [0, 2]
    steps = load_experiment(file, ["objective.terms.kl.weight={shape: piecewise, points: {0: 1, 0.5: 2}}"])
    assert steps.objective.terms["kl"].weight == {"shape": "piecewise", "points": {"0": 1, "0.5": 2}}
    assert load_experiment(file, ["on_policy.fraction=adaptive"]).on_policy.fraction == "adaptive"
    assert load_experiment(file, ["on_policy.fraction=1"]).on_policy.fraction == 1
    prompts = "data.corpora.a.generated.prompts.text=[1e3, '{{ b }}']"
    generated = load_experiment(file, [prompts]).data.corpora["a"].generated
    assert generated is not None and generated.prompts.text == ["1e3", "{{ b }}"]
    lora = load_experiment(file, ["students.one.lora={rank: 4, target_modules: [q_proj]}"]).students["one"].lora
    assert lora.target_modules == ["q_proj"]


def test_plans_of_finished_experiments_say_true_and_false_of_compiling(file: Path) -> None:
    found = {
        word: load_experiment(file, [f"training.compile={word}"]).training.compile for word in ("true", "false", "auto")
    }
    assert found == {"true": "always", "false": "never", "auto": "auto"}


def test_an_interpolation_is_the_value_of_its_key_or_its_default(file: Path) -> None:
    overrides = [
        "question=${training.micro_batch_size}",  # a number becomes the text of a key of text
        "training.micro_batch_size=${cost.requests}",
        "training.keep_checkpoints=${training.gradient_checkpointing}",
        "data.corpora.a={path: 'file:${name}', text: 'cost \\${b} of ${data.corpora.a.split}'}",
        "student=one",
        "students.two.config={size: '${students.one.width.hidden_size}'}",
    ]
    config = load_experiment(file, overrides)
    assert (config.question, config.training.micro_batch_size, config.training.keep_checkpoints) == ("100", 100, False)
    assert (config.data.corpora["a"].path, config.data.corpora["a"].text) == ("file:x", "cost ${b} of train")
    assert config.students["two"].config == {"size": 0}


def test_points_of_a_grid_share_nothing(file: Path) -> None:
    overrides = ["students.one.config={a: [1]}", "variants={v: {objective.terms.kl.options: {b: [2]}}}"]
    config = load_experiment(file, [*overrides, "grid={variant: [v], seed: [0, 1]}"])
    before = copy.deepcopy(config)
    (_, first), (_, second) = expand_grid(config)
    first.students["one"].config["a"].append(9)
    term = first.objective.terms["kl"]
    assert term is not None
    term.options["b"].append(9)
    assert second.students["one"].config == {"a": [1]}
    assert second.objective.terms["kl"] == TermConfig(kind="forward_kl", options={"b": [2]})
    assert config == before


def test_a_section_alone_is_loaded_from_overrides() -> None:
    assert load_section(TrainingConfig, ["beta1=0.5", "devices=2"]) == TrainingConfig(beta1=0.5, devices=2)
    with pytest.raises(UserError, match="^beta1: 5 is above its maximum"):
        load_section(TrainingConfig, ["beta1=5"])


def test_too_many_levels_are_refused(file: Path) -> None:
    file.write_text(BASE + f"variants: {{a: {'[' * 200}{']' * 200}}}\n")
    assert refusal(file).startswith(f"{file}: not a plain YAML file: more than 100 levels")


def test_configs_are_loaded_without_torch_and_without_omegaconf() -> None:
    """What shows help, refuses bad input or draws a report again must begin at once."""
    script = (
        "import sys; from pathlib import Path; from distill_lit.cli.main import build_parser; build_parser(); "
        "from distill_lit.config import *; list(expand_grid(load_experiment(Path('experiments/quickstart.yaml')))); "
        "print({'torch', 'omegaconf', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "set()\n"


def test_every_field_says_what_it_is() -> None:
    for section in sections_below(ExperimentConfig):
        for name, field in section.__pydantic_fields__.items():
            assert field.description, f"{section.__name__}.{name}"


def sections_below(section: Any) -> set[Any]:
    found = {section}
    for kind in [field.annotation for field in section.__pydantic_fields__.values()]:
        for part in (kind, *getattr(kind, "__args__", ())):
            for inner in (part, *getattr(part, "__args__", ())):
                if hasattr(inner, "__pydantic_fields__"):
                    found |= sections_below(inner)
    return found


def test_a_text_longer_than_a_file_name_is_no_experiment() -> None:
    """As an override is in the place of the file."""
    assert refusal(Path(f"grid={'x' * 300}")).startswith("no experiment file grid=xxx")


def test_a_file_of_the_users_own_is_named_with_its_ending(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in refusal(tmp_path / "mine")


@pytest.mark.parametrize("method", LAYER_SELECTION_METHODS)
def test_every_way_of_choosing_layers_is_a_value_and_in_the_help(file: Path, method: str) -> None:
    config = load_experiment(file, [f"students.one.layers={method}"])
    assert config.students["one"].layers == method
    about = StudentConfig.__dataclass_fields__["layers"].default.description
    assert method in about
