"""What is refused and what is said of models that read a chat, end a text or draw it in different ways."""

import shutil
from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model, write_chat_experiment
from helpers.chat_templates import STYLES
from tokenizers import normalizers

from distill_lit.config import EvaluationConfig, load_experiment
from distill_lit.evaluation.tasks import has_generative_tasks
from distill_lit.experiment.checks.agreement import penalty_notes
from distill_lit.experiment.checks.model_checks import check_against_teacher, check_models
from distill_lit.experiment.plan import plan_runs
from distill_lit.models import load_tokenizer
from distill_lit.utils.exceptions import UserError

LABELS_ALONE = "objective.terms={kl: null, ce: {}}"
ON_POLICY = "on_policy.fraction=1.0"
PLAIN = ("data.corpora.chats.messages=''", "data.corpora.chats.text={{ m[0].content }}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: an instruct one of ChatML, the base that it was made of (which has its template and another end, as Qwen3's
    bases), a plain base, and one of Gemma's format with the same tokens."""
    folder = tmp_path_factory.mktemp("models")
    make_chat_model(folder / "instruct", "chatml", "<|im_end|>")
    make_chat_model(folder / "base", "chatml", "<|endoftext|>")
    make_chat_model(folder / "plain", "", "</s>")
    make_chat_model(folder / "gemma", "gemma", "<end_of_turn>")
    make_chat_model(folder / "short", "chatml", "<|im_end|>", vocab_size=474)
    for style, make in (("chatml", STYLES["chatml"][0]), ("zephyr", STYLES["zephyr"][0])):
        (folder / f"{style}.jinja").write_text(make(True))
    return folder


def notes(folder: Path, tmp_path: Path, teacher: str, student: str = "", *overrides: str) -> list[str]:
    """What is said of a teacher and a student made `from` another model, or cut out of the teacher."""
    made = f'{{from: "file:{folder / student}"}}' if student else "{layers: [0]}"
    file = write_chat_experiment(tmp_path, folder / teacher, made)
    overrides = tuple(text.replace("FOLDER", str(folder)) for text in overrides)
    return check_against_teacher(plan_runs(load_experiment(file, list(overrides))))


# ---------------------------------------------------------------- refused


def test_a_base_student_that_ends_otherwise_does_not_start_on_its_own_text(folder: Path, tmp_path: Path) -> None:
    """ms-swift#9526: Qwen3-8B-Base ends with <|endoftext|>, its teacher with <|im_end|>; its texts grew to the limit."""
    with pytest.raises(UserError) as error:
        notes(folder, tmp_path, "instruct", "base", ON_POLICY)
    assert str(error.value) == (
        "on_policy.fraction: students.one ends its texts with '<|endoftext|>', and a turn of these chats ends with "
        "'<|im_end|>': from its own text alone it would not learn to stop; train it on the chats first, or set a fraction "
        "below 1"
    )
    for allowed in ("on_policy.fraction=0.5", "on_policy.fraction=adaptive"):
        assert any("which it learns only here" in note for note in notes(folder, tmp_path, "instruct", "base", allowed))
    mixed = notes(folder, tmp_path, "instruct", "base", ON_POLICY, "on_policy.teacher_mix_fraction=0.2")
    assert any("which it learns only here" in note for note in mixed)
    shutil.copytree(folder / "instruct", tmp_path / "copy")
    assert notes(folder, tmp_path, "instruct", str(tmp_path / "copy"), ON_POLICY) == []
    assert notes(folder, tmp_path, "instruct", "", ON_POLICY) == []


def test_a_teacher_does_not_judge_a_format_that_is_not_its_own(folder: Path, tmp_path: Path) -> None:
    """tinker-cookbook#796: rows in the student's format, and 0.29 nats per token of a teacher that does not know it."""
    with pytest.raises(UserError) as error:
        notes(folder, tmp_path, "instruct", "", "data.chat_template=FOLDER/zephyr.jinja")
    assert str(error.value) == (
        "data.chat_template: it writes a chat with '<|user|>', '</s>', '<|assistant|>', the teacher's own template with "
        "'<|im_start|>', '<|im_end|>': the teacher would score a format that it does not know; leave it empty, or train "
        "the teacher on such chats first"
    )
    without_teacher = (LABELS_ALONE, "data.chat_template=FOLDER/zephyr.jinja")
    (said,) = notes(folder, tmp_path, "instruct", "", *without_teacher)
    assert said.startswith("data.chat_template renders a chat unlike the teacher's own template, for a question ")
    assert notes(folder, tmp_path, "instruct", "", "data.chat_template=FOLDER/chatml.jinja") == []


def test_an_end_that_nobody_learns_is_refused(folder: Path, tmp_path: Path) -> None:
    """{% generation %} around the text alone."""
    template = STYLES["chatml"][0](True).replace(
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}<|im_end|>"
    )
    (tmp_path / "own.jinja").write_text(template)
    with pytest.raises(UserError, match=r"data.chat_template: its \{% generation %\} block ends before '<\|im_end\|>'"):
        notes(folder, tmp_path, "instruct", "", f"data.chat_template={tmp_path / 'own.jinja'}")


def test_chats_need_a_template_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chat messages need a tokenizer with a chat template"):
        notes(folder, tmp_path, "plain")


def test_a_token_beyond_a_models_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    """The tokenizers are the same; the student's embeddings end before <|im_end|>, token 474."""
    with pytest.raises(UserError, match="the teacher's tokenizer ends texts with token 474, and it has 474 tokens"):
        notes(folder, tmp_path, "instruct", "short")
    with pytest.raises(UserError, match=r"template: it writes '<\|im_end\|>', token 474, and students.one has 474 tokens"):
        notes(folder, tmp_path, "plain", "short", "data.chat_template=FOLDER/chatml.jinja")


def generated(tmp_path: Path, more: str = "", fields: str = "") -> str:
    prompts = f"path: 'file:{tmp_path / 'chats.jsonl'}', text: '{{{{ m[0].content }}}}'{more}"
    return f"data.corpora={{chats: null, written: {{generated: {{prompts: {{{prompts}}}{fields}}}}}}}"


def test_a_writer_must_be_able_to_read_its_prompts(folder: Path, tmp_path: Path) -> None:
    chatml = "data.chat_template=FOLDER/chatml.jinja"
    with pytest.raises(UserError, match=r"data.corpora.written.generated.chat: the tokenizer of the teacher has no chat"):
        notes(folder, tmp_path, "plain", "", generated(tmp_path), chatml)
    refusing = make_chat_model(tmp_path / "refusing", "gemma", "<end_of_turn>")
    template = (refusing / "chat_template.jinja").read_text()
    raises = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (refusing / "chat_template.jinja").write_text(raises + template)
    with pytest.raises(UserError, match=r"generated.prompts.system_prompt: of the teacher: .* no system"):
        notes(tmp_path, tmp_path, "refusing", "", generated(tmp_path, ", system_prompt: Be brief."))
    assert notes(tmp_path, tmp_path, "refusing", "", generated(tmp_path)) == []


# ---------------------------------------------------------------- said


def test_models_that_agree_are_passed_over_in_silence(folder: Path, tmp_path: Path) -> None:
    assert notes(folder, tmp_path, "instruct") == []
    assert notes(folder, tmp_path, "plain", "", *PLAIN) == []


def test_a_teacher_that_ends_otherwise_is_said(folder: Path, tmp_path: Path) -> None:
    (said,) = notes(folder, tmp_path, "plain", "", "data.chat_template=FOLDER/chatml.jinja")
    assert said.startswith("the teacher ends its texts with '</s>', and a turn of these chats ends with '<|im_end|>': ")
    assert notes(folder, tmp_path, "plain", "", "data.chat_template=FOLDER/zephyr.jinja") == []
    assert notes(folder, tmp_path, "plain", "", "data.chat_template=FOLDER/chatml.jinja", LABELS_ALONE) == []


def test_a_student_of_another_format_is_said(folder: Path, tmp_path: Path) -> None:
    said = notes(folder, tmp_path, "instruct", "gemma")
    assert [line.split(",")[0] for line in said] == [
        "students.one: documents end with '<|im_end|>'",
        "students.one: it is trained on chats of the teacher's chat template",
        "students.one ends its texts with '<end_of_turn>'",
    ]


def test_a_template_without_an_end_is_said(folder: Path, tmp_path: Path) -> None:
    """tinker-cookbook's role_colon."""
    template = "{% for m in messages %}{{ m.role | title + ': ' + m.content + '\\n\\n' }}{% endfor %}"
    (tmp_path / "own.jinja").write_text(template)
    (said,) = notes(folder, tmp_path, "plain", "", f"data.chat_template={tmp_path / 'own.jinja'}")
    assert said == "data.chat_template: no token ends a response, so that students learn no end of a turn from these chats"


def test_plain_text_asks_for_ends_and_tokens_alone(folder: Path, tmp_path: Path) -> None:
    assert notes(folder, tmp_path, "instruct", "base", *PLAIN, ON_POLICY) == [
        "students.one: documents end with '<|im_end|>', the teacher's, and its own texts with '<|endoftext|>'"
    ]
    assert notes(folder, tmp_path, "base", "instruct", *PLAIN) == [
        "students.one: documents end with '<|endoftext|>', the teacher's, and its own texts with '<|im_end|>'"
    ]
    lower = make_chat_model(tmp_path / "lower")
    tokenizer = load_tokenizer(lower)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(lower)
    shutil.copytree(folder / "plain", tmp_path / "plain")
    (said,) = notes(tmp_path, tmp_path, "plain", "lower", *PLAIN)
    assert said.startswith("students.one: it reads with the teacher's tokenizer, which cuts text unlike its own: ['W', ")


def test_what_a_generation_config_recommends_is_said_where_text_is_drawn(folder: Path, tmp_path: Path) -> None:
    thinker = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1}
    make_chat_model(tmp_path / "thinker", "chatml", "<|im_end|>", **thinker)
    rest = "generation_config.json of %s says: temperature 0.6, top_k 20, top_p 0.95, repetition_penalty 1.1"
    assert notes(tmp_path, tmp_path, "thinker") == []
    assert notes(tmp_path, tmp_path, "thinker", "", ON_POLICY) == [
        f"on_policy: text is drawn at temperature 1 and top_p 1, whatever {rest % 'the teacher'}"
    ]
    assert notes(tmp_path, tmp_path, "thinker", "", generated(tmp_path)) == [
        f"data.corpora.written.generated: text is drawn at temperature 0 and top_p 1, whatever {rest % 'the teacher'}"
    ]
    make_chat_model(tmp_path / "calm", "chatml", "<|im_end|>", do_sample=True, temperature=0.6, top_p=0.9)
    assert notes(tmp_path, tmp_path, "calm", "", generated(tmp_path, "", ", temperature: 0.6, top_p: 0.9")) == []
    assert penalty_notes({name: tmp_path / name for name in ("thinker", "calm")}) == [
        "evaluation.tasks: thinker writes its answers under repetition_penalty 1.1 of its generation_config.json"
    ]


@pytest.mark.parametrize(("tasks", "generative"), [(["arc_easy"], False), (["arc_easy", "gsm8k"], True)])
def test_penalties_count_where_a_task_has_models_write(tasks: list[str], generative: bool) -> None:
    assert has_generative_tasks(EvaluationConfig(tasks=tasks), "hub") is generative


def test_questions_in_chats_of_students_that_read_none(folder: Path, tmp_path: Path) -> None:
    asked = ("evaluation.apply_chat_template=true", "evaluation.tasks=[arc_easy]")
    assert notes(folder, tmp_path, "instruct", "", *PLAIN, *asked) == []  # cut out of one that knows chats
    assert "evaluation.apply_chat_template: students.one is asked in chats, and its corpora have none" in notes(
        folder, tmp_path, "instruct", "base", *PLAIN, *asked
    )
    with_teacher = notes(
        folder,
        tmp_path,
        "instruct",
        "",
        *asked,
        "data.chat_template=FOLDER/zephyr.jinja",
        LABELS_ALONE,
    )
    assert any(line.startswith("evaluation.apply_chat_template: students are asked in data.chat") for line in with_teacher)


# ---------------------------------------------------------------- several teachers, and models that are made here

GEMMA_TOO = "teacher.mixture.teachers.g={model: 'file:FOLDER/gemma', weight: 0.5}"
PLAIN_CORPUS = "data.corpora.plain={path: 'file:TEXT', text: '{{ m[0].content }}', teacher: g}"


def test_every_teacher_of_chats_is_to_know_their_format(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        notes(folder, tmp_path, "instruct", "", GEMMA_TOO)
    assert str(error.value) == (
        "the teacher's chat template: it writes a chat with '<|im_start|>', '<|im_end|>', the teacher g's own template "
        "with '<s>', '<start_of_turn>', '<end_of_turn>': the teacher g would score a format that it does not know; have it "
        "score plain text alone, or train the teacher g on such chats first"
    )
    assert notes(folder, tmp_path, "instruct", "", GEMMA_TOO, LABELS_ALONE) == []
    assert notes(folder, tmp_path, "instruct", "", GEMMA_TOO.replace("gemma", "instruct")) == []
    (said,) = notes(folder, tmp_path, "instruct", "", GEMMA_TOO.replace("gemma", "base"))
    assert said.startswith("the teacher g ends its texts with '<|endoftext|>', and a turn of these chats ends with")
    for_plain_text = GEMMA_TOO.replace(", weight: 0.5", "")
    assert (
        notes(folder, tmp_path, "instruct", "", for_plain_text, PLAIN_CORPUS.replace("TEXT", f"{tmp_path}/chats.jsonl"))
        == []
    )


def test_a_teacher_that_is_not_asked_about_chats_need_not_know_them(folder: Path, tmp_path: Path) -> None:
    routed = ("teacher.mixture.teachers.g={model: 'file:FOLDER/plain'}", "data.corpora.chats.teacher=g")
    said = notes(folder, tmp_path, "instruct", "", *routed, "data.chat_template=FOLDER/zephyr.jinja")
    assert [line.split(",")[0] for line in said] == [
        "data.chat_template renders a chat unlike the teacher's own template",
        "the teacher ends its texts with '<|im_end|>'",  # as which the student begins
    ]


TUNED = "models={tuned: {from: teacher, objective: {terms: {ce: {}}}, data.chat_template: FOLDER/zephyr.jinja}}"


def test_a_teacher_that_was_trained_on_such_chats_first_knows_them(folder: Path, tmp_path: Path) -> None:
    """As the refusal says to."""
    zephyr, tuned = "data.chat_template=FOLDER/zephyr.jinja", "grid={teacher: [tuned]}"
    said = notes(folder, tmp_path, "instruct", "", TUNED, zephyr, tuned)
    assert [line.split(",")[0] for line in said] == [  # of the one that is tuned, when it is not yet
        "data.chat_template renders a chat unlike the teacher's own template",
        "the teacher: it is trained on chats of data.chat_template",
    ]
    with pytest.raises(UserError, match=r"the teacher would score a format that it does not know"):
        notes(folder, tmp_path, "instruct", "", TUNED, zephyr, "grid={teacher: [tuned, teacher]}")
    plain_text = "data: {corpora: {chats: {messages: '', text: '{{ m[0].content }}'}}}"
    on_plain_text = TUNED.replace("{tuned: {", f"{{tuned: {{{plain_text}, ")
    with pytest.raises(UserError, match=r"the teacher would score a format that it does not know"):
        notes(folder, tmp_path, "instruct", "", on_plain_text, zephyr, tuned)
    assert notes(folder, tmp_path, "plain", "", TUNED, tuned) == []  # the rows are written in the template that it brings


def test_stages_before_decide_whether_a_student_ends_its_turns(folder: Path, tmp_path: Path) -> None:
    warm_up = "warm_up: {objective: {terms: {ce: {}}}%s}"
    stages = f"stages={{{warm_up}, own: {{on_policy: {{fraction: 1.0}}}}}}"
    ends = load_tokenizer(folder / "instruct").convert_tokens_to_ids(["</s>", "<|im_end|>"])
    make_chat_model(tmp_path / "teacher", "chatml", "</s>", eos_token_id=ends)
    shutil.copytree(folder / "base", tmp_path / "base")
    said = notes(tmp_path, tmp_path, "teacher", "base", stages % "")
    assert any("which it learns only here" in line for line in said)
    plain_text = ", data: {corpora: {chats: {messages: '', text: '{{ m[0].content }}'}}}"
    with pytest.raises(UserError, match=r"ends its texts with '</s>', '<\|endoftext\|>', and a turn of these chats"):
        notes(tmp_path, tmp_path, "teacher", "base", stages % plain_text)


def test_the_same_name_of_two_models_is_checked_twice(folder: Path, tmp_path: Path) -> None:
    """At one point of the grid `made` has two layers, at another one."""
    made = ("models={made: {from: teacher, num_layers: 2}}", "students.one={from: made, num_layers: 2, layers: uniform}")
    with pytest.raises(UserError, match="2 exceeds the teacher's 1 layers"):
        notes(folder, tmp_path, "instruct", "", *made, "grid={models.made.num_layers: [2, 1]}")


def test_students_of_every_teacher_are_to_be_asked_in_chats(folder: Path, tmp_path: Path) -> None:
    """Those of the first teacher have no chat template, those of the last have one."""
    axis = f"grid={{teacher: ['file:{folder}/plain', 'file:{folder}/instruct']}}"
    asked = ("evaluation.apply_chat_template=true", "evaluation.tasks=[arc_easy]")
    file = write_chat_experiment(tmp_path, folder / "instruct")
    config = load_experiment(file, [*PLAIN, *asked, axis])
    with pytest.raises(UserError, match=r"apply_chat_template.*one.*chat template"):
        check_models(config, plan_runs(config))
