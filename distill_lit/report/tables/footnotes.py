"""What stands below a table: settings, departures, provenance, limits."""

from collections.abc import Iterable, Mapping
from typing import Any

from distill_lit.analysis.scores import Scores
from distill_lit.report.number_format import format_points, join_words

EXCLUDED_MARK = "†"
MAX_STEPS_NAMED = 6  # students whose exported step is told one by one


def tasks_in_words(scores: Scores, tasks: Iterable[str]) -> str:
    """Tasks by their labels, as in a sentence."""
    return join_words([scores.results.display.label(task) for task in tasks])


def task_heads(scores: Scores) -> list[str]:
    """What the tasks are called above their columns, those that are not averaged with a mark."""
    label = scores.results.display.label
    return [f"{label(task)} {EXCLUDED_MARK}" if task in scores.excluded_tasks else label(task) for task in scores.tasks]


def excluded_task_notes(scores: Scores) -> list[str]:
    """A line per reason for which tasks are not averaged."""
    excluded = scores.excluded_tasks
    reasons = dict.fromkeys(excluded.values())
    tasks = {why: tasks_in_words(scores, [t for t, because in excluded.items() if because == why]) for why in reasons}
    return [f"{EXCLUDED_MARK} Not in the average: {names}, because {why}." for why, names in tasks.items()]


def sample_limit_notes(scores: Scores) -> list[str]:
    """One line when documents were limited, else none."""
    known = [scores.results.settings(task) for task in scores.tasks]
    # a limit that leaves out no document is none
    limits = {int(facts.get("limit") or 0) for facts in known if facts.get("n") != facts.get("n_total", -1)} - {0}
    if not limits:
        return []
    seed = scores.results.settings(scores.tasks[0]).get("seed")
    most = " / ".join(str(limit) for limit in sorted(limits))
    return [f"Limited to {most} documents per task, drawn at random (seed {seed}): not the full evaluation."]


def exported_step_notes(scores: Scores, groups: Iterable[int]) -> list[str]:
    """One line where students of these groups have not the weights of their last step (`training.export: best`), else
    none."""
    runs = scores.results.runs
    if "exported_step" not in runs:
        return []
    shown = {model for g in groups for model in scores.groups[g].models}
    rows = runs[runs["model"].isin(shown) & runs["exported_step"].notna()]
    steps = [f"{row.model} {row.exported_step:,.0f} of {row.training_steps:,.0f}" for row in rows.itertuples()]
    if not steps:
        return []
    shares = (rows["exported_step"] / rows["training_steps"]).round(2)
    named = (
        "; ".join(steps) if len(steps) <= MAX_STEPS_NAMED else f"at {shares.min():.0%} to {shares.max():.0%} of the steps"
    )
    return [f"Weights of the step with the lowest validation loss (training.export: best), not of the last: {named}."]


def evaluation_footnotes(scores: Scores) -> list[str]:
    """Footer lines: what students read and how they were evaluated."""
    return [*(training_text_notes(scores) if scores.tasks else []), *evaluation_settings_notes(scores)]


def evaluation_settings_notes(scores: Scores) -> list[str]:
    """Footer lines: harness, settings and every task with version, hash, split, documents and chance."""
    settings = {t: scores.results.settings(t) for t in scores.tasks}
    if not settings:
        return ["No task has been evaluated."]
    shared = [
        f"{words} {_all(settings, key)}"
        for key, words in (
            ("lm_eval_version", "lm-eval"),
            ("harness", "harness"),
            ("dtype", "dtype"),
            ("pack_tokens", "tokens per forward pass"),
            ("apply_chat_template", "chat template"),
            ("seed", "seed"),
        )
        if any(key in s for s in settings.values())
    ]
    tasks = [
        task_line(panel.task, settings[panel.task], panel.n, float(panel.chance.mean())) for panel in scores.responses.tasks
    ]
    q = scores.analysis.confidence_level
    return [
        f"Evaluated with {', '.join(shared)}.",
        *float32_notes(facts for tasks in scores.results.settings_by_model.values() for facts in tasks.values()),
        *_exceptions(scores, settings),
        f"Tasks: {'; '.join(tasks)}.",
        *_probe_notes(scores),
        f"Intervals {q:.0%}: crossed variance of documents (by passage) and seeds; Wilson and Newcombe for single models.",
    ]


def float32_notes(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line where answers in a lower precision were asked again in float32. settings: of records of tasks and models."""
    known = list(settings)
    asked = sum(facts.get("float32_documents", 0) for facts in known)
    others = sum(facts.get("float32_other_answers", 0) for facts in known)
    return [f"Of {asked} answers that were asked again in float32, {others} differ."] if asked else []


def _probe_notes(scores: Scores) -> list[str]:
    """Which held-out text was scored."""
    probes = scores.results.probes
    if probes is None:
        return []
    lines = []
    for name in probes.tasks:
        facts = probes.settings(name)
        source = " ".join(str(facts[key]) for key in ("dataset", "dataset_name") if facts.get(key))
        parts = [f"{facts.get('n', '?')} passages", *([source] if source else [])]
        parts.append(f"split {facts.get('eval_split', 'unknown')}")
        parts += [
            f"{words} {str(facts.get(key, 'unknown'))[:12]}" for words, key in (("hash", "task_hash"), ("data", "data"))
        ]
        lines.append(f"{name} v{facts.get('version', '?')} ({', '.join(parts)})")
    return [f"Probes: {'; '.join(lines)}."]


def training_text_notes(scores: Scores) -> list[str]:
    """What the students read, and of which tasks it is the training split; nothing where plan.yaml does not say."""
    corpora = _corpora(scores)
    if not corpora:
        return []
    named = join_words([_corpus_in_words(name, facts) for name, facts in corpora.items()])
    train = {name for name, facts in corpora.items() if str(facts.get("split", "")).startswith("train")}
    ours = [task for task in scores.tasks if task in train and not corpora[task].get("generated")]
    others = [task for task in scores.tasks if task not in ours]
    text = f"Training text: {named}."
    if ours:
        text += f" Of {len(scores.tasks)} tasks it holds the training split of {len(ours)}"
        text += f" (not of {join_words(others)})" if others else ""
        text += ", so scores there are on familiar text and formats."
    variants = _section(scores, "variants")
    others = [name for name, keys in variants.items() if any(str(key).startswith("data.") for key in keys)]
    if others:
        text += f" Other text for {join_words(others)}: see plan.yaml."
    return [text]


def _corpora(scores: Scores) -> dict[str, dict[str, Any]]:
    found = _section(scores, "data").get("corpora")
    return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _section(scores: Scores, name: str) -> dict[str, dict[str, Any]]:
    """A section of plan.yaml; empty where it has none."""
    found = scores.results.plan.get(name)
    return {str(k): v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _corpus_in_words(name: str, facts: Mapping[str, Any]) -> str:
    if facts.get("generated"):
        return f"{name} (written by a model)"
    source = " ".join(str(facts[key]) for key in ("dataset", "path", "name") if facts.get(key) not in (None, "", "default"))
    return f"{name} ({', '.join(part for part in (source, str(facts.get('split') or '')) if part)})"


def _all(settings: Mapping[str, Mapping[str, Any]], key: str) -> str:
    return " / ".join(dict.fromkeys(str(s.get(key, "unknown")) for s in settings.values()))


def task_line(task: str, settings: Mapping[str, Any], documents: int, chance: float) -> str:
    """How a task was asked. settings: of records of it; chance: as a share."""
    total = settings.get("n_total")
    of = f" of {total}" if total and total != documents else ""
    parts = f"{settings['tasks']} tasks, " if settings.get("tasks") else ""
    split = str(settings.get("eval_split", "unknown"))
    official = settings.get("official_split")
    if official and official != split:
        split += f" (official: {official})"
    return (
        f"{task} v{settings.get('version', '?')} ({settings.get('metric', '?')}, {settings.get('num_fewshot', 0)}-shot, "
        f"{parts}"
        f"{documents}{of} documents, chance {format_points(chance)}, split {split}, "
        f"hash {str(settings.get('task_hash', 'unknown'))[:12]}, data {str(settings.get('data', 'unknown'))[:12]})"
    )


def _exceptions(scores: Scores, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every model that was evaluated in another way than the footer says, or did not read whole prompts."""
    found: dict[str, list[str]] = {}
    for model, tasks in scores.results.settings_by_model.items():
        for task, facts in tasks.items():
            why = f" ({facts['fallback']})" if facts.get("fallback") else ""
            ways = [f"{key} {facts[key]}{why if key == 'harness' else ''}" for key in ("harness", "dtype")
                    if task in settings and facts.get(key) != settings[task].get(key)]  # fmt: skip
            ways += truncation_notes(facts)
            for way in ways:
                found.setdefault(f"{model} with {way}", []).append(task)
    whole = len(scores.tasks) if len(scores.tasks) > 2 else 0
    named = {way: "every task" if len(tasks) == whole else join_words(tasks) for way, tasks in found.items()}
    return [f"But {way}, on {tasks}." for way, tasks in named.items()]


def truncation_notes(facts: Mapping[str, Any]) -> list[str]:
    """What a model did not read of a task."""
    return [f"{facts['truncated']} prompts cut to its context"] if facts.get("truncated") else []
