"""Models that read or end a chat differently, on the command line: one line and exit code 2, or a note."""

import json
from pathlib import Path

import pytest
from helpers.caches import new_cache
from helpers.chat_models import make_chat_model, write_chat_experiment
from helpers.chat_templates import STYLES
from helpers.training_processes import cli

from distill_lit.models import load_tokenizer
from distill_lit.models.generation_files import generation_eos_token_ids, load_generation_config

ASKED = 'evaluation: {{tasks: [colours], include_path: "{}", limit: 4}}\nanalysis: {{n_resamples: 100}}\n'

ONE_TOKEN = """
import torch
from distill_lit.models.initializers import register_initializer

@register_initializer("one_token")
def one_token(student, teacher):
    with torch.no_grad():
        for layer in student.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        student.model.embed_tokens.weight.fill_(1.0)
        student.lm_head.weight.zero_()[7] = 10.0
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instruct model of ChatML, the base that ends its texts otherwise, and a plain base."""
    folder = tmp_path_factory.mktemp("models")
    make_chat_model(folder / "instruct", "chatml", "<|im_end|>")
    make_chat_model(folder / "base", "chatml", "<|endoftext|>")
    make_chat_model(folder / "plain", "", "</s>")
    (folder / "zephyr.jinja").write_text(STYLES["zephyr"][0](True))
    unclosed = STYLES["chatml"][0](True).replace(
        " + '<|im_end|>' }}{% endgeneration %}", " }}{% endgeneration %}<|im_end|>"
    )
    (folder / "unclosed.jinja").write_text(unclosed)
    return folder


@pytest.mark.parametrize(
    ("teacher", "student", "override", "words"),
    [
        ("instruct", "base", "on_policy.fraction=1.0", "on_policy.fraction: students.one ends its texts with "),
        ("instruct", "", "data.chat_template=FOLDER/zephyr.jinja", "data.chat_template: it writes a chat with "),
        ("instruct", "", "data.chat_template=FOLDER/unclosed.jinja", "block ends before '<|im_end|>'"),
        ("plain", "", "seed=1", "data.corpora: chat messages need a tokenizer with a chat template"),
    ],
)
def test_what_breaks_an_experiment_is_one_line(
    models: Path, tmp_path: Path, tasks_folder: Path, teacher: str, student: str, override: str, words: str
) -> None:
    made = f'{{from: "file:{models / student}"}}' if student else "{layers: [0]}"
    file = write_chat_experiment(tmp_path, models / teacher, made, ASKED.format(tasks_folder))
    override = override.replace("FOLDER", str(models))
    cache = str(new_cache(tmp_path / "cache"))
    for command in ("plan", "run"):
        code, said = cli(command, file, "--root", tmp_path, override, DISTILL_LIT_CACHE=cache)
        assert code == 2, said
        (line,) = said.strip().splitlines()
        assert words in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_is_only_to_be_known_is_a_note_and_the_student_stops_at_a_turn(
    models: Path, tmp_path: Path, tasks_folder: Path
) -> None:
    """A base of another end, whose students learn the template's: the note is in the plan and the report, the token in
    generation_config.json, where `generate` and lm-eval look for it."""
    template = STYLES["chatml"][0](True)
    (tmp_path / "own.jinja").write_text(template)
    file = write_chat_experiment(tmp_path, models / "plain", more=ASKED.format(tasks_folder))
    own = f"data.chat_template={tmp_path / 'own.jinja'}"
    cache = str(new_cache(tmp_path / "cache"))
    code, said = cli("run", file, "--root", tmp_path, own, DISTILL_LIT_CACHE=cache)
    assert code == 0, said
    note = "the teacher ends its texts with '</s>', and a turn of these chats ends with '<|im_end|>'"
    assert said.count(f"note: {note}") == 1
    results = tmp_path / "results/chats"
    (entry,) = json.loads((results / "provenance.json").read_text()).values()
    (kept,) = entry["notes"]
    assert kept.startswith(note)
    assert "Note: the teacher ends its texts with" in (results / "report.html").read_text()
    (student,) = (tmp_path / "runs/chats").glob("*/student")
    tokenizer = load_tokenizer(student)
    assert tokenizer.chat_template == template
    ends = tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"])
    assert generation_eos_token_ids(load_generation_config(student)) == ends


@pytest.mark.slow
def test_a_student_that_repeats_itself_is_said_on_the_terminal_in_the_log_and_in_the_report(
    models: Path, tmp_path: Path, tasks_folder: Path
) -> None:
    """A student of one token, whatever it reads, and a learning rate that leaves it so."""
    (tmp_path / "own.py").write_text(ONE_TOKEN)
    more = ASKED.format(tasks_folder) + "plugins: [own.py]\n"
    student = "{config: {tie_word_embeddings: false}, initializer: one_token}"
    file = write_chat_experiment(tmp_path, models / "instruct", student, more)
    own_text = ["on_policy.fraction=1.0", "on_policy.max_new_tokens=16", "training.learning_rate=1.0e-9"]
    size = ["training.micro_batch_size=16", "training.max_tokens=20480"]
    cache = str(new_cache(tmp_path / "cache"))
    code, said = cli("run", file, "--root", tmp_path, *own_text, *size, DISTILL_LIT_CACHE=cache)
    assert code == 0, said
    line = "on_policy: the student repeats itself: 92% of the 4-grams"  # 12 of the 13 in 16 tokens
    assert said.count(f"one: {line}") == 1, said
    (log,) = (tmp_path / "runs/chats").glob("*/log.txt")
    assert log.read_text().count(line) == 1
    (entry,) = json.loads((tmp_path / "results/chats/provenance.json").read_text()).values()
    assert [note.startswith(line) for note in entry["notes"]] == [True]
