"""faults.md, security: lines 23 to 31. Hostile files, names and environments."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_processes
from helpers.caches import new_cache
from helpers.training_processes import SABOTAGE, SECRETS, cli

import distill_lit
from distill_lit import assets
from distill_lit.config import load_experiment
from distill_lit.models import load_model, model_folder
from distill_lit.training.checkpoint import SafeCheckpointIO, checksum_path, load_checkpoint_weights_only
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import sha256_of, write_json
from distill_lit.utils.redaction import redact, redact_file

FORCED = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}


class Builds:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("forced", [False, True])
def test_23_a_checkpoint_that_names_a_class_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    """Also with a right checksum, and with torch's own variable that says to load anything."""
    if forced:
        monkeypatch.setenv(*next(iter(FORCED.items())))
    path, trace = tmp_path / "step=1.ckpt", tmp_path / "built"
    torch.save({"state_dict": {}, "loops": Builds(trace)}, path)
    write_json(checksum_path(path), {"sha256": sha256_of(path)})
    for load in (load_checkpoint_weights_only, SafeCheckpointIO().load_checkpoint):
        with pytest.raises(UserError, match="is refused"):
            load(path)
    assert not trace.exists()
    if forced:
        assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
        torch.load(path)  # what would have happened
        assert trace.exists()


def test_23_a_checkpoint_from_an_address_is_refused() -> None:
    for address in ("https://example.org/step=1.ckpt", "s3://bucket/step=1.ckpt"):
        with pytest.raises(UserError, match="never loaded from an address"):
            load_checkpoint_weights_only(Path(address))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_23_pickled_weights_are_refused_whatever_the_environment_says(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last is a pickle under a safe name."""
    monkeypatch.setenv(*next(iter(FORCED.items())))
    folder, trace = tmp_path / "model", tmp_path / "built"
    shutil.copytree(tiny_teacher, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Builds(trace)))
    with pytest.raises(UserError, match=r"pickles \(.bin, .pt\) are never loaded|not a causal language model"):
        load_model(model_folder(f"file:{folder}"))
    assert not trace.exists()


def folder_with_code(folder: Path, teacher: Path, where: str, trace: Path) -> Path:
    """A model whose classes are its own, which make a folder when they are imported."""
    shutil.copytree(teacher, folder)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")
    settings = json.loads((folder / where).read_text())
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    settings |= {"auto_map": names, "model_type": "evil"} if where == "config.json" else {"auto_map": names}
    (folder / where).write_text(json.dumps(settings))
    return folder


def hub_with_code(hub: Path, teacher: Path) -> str:
    """The revision of org/mine in the hub's cache, whose model class is its own."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    folder = hub / "models--org--mine/snapshots" / revision
    shutil.copytree(teacher, folder)
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    settings = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps({**settings, "model_type": "mine", "auto_map": names}))
    return revision


def test_24_remote_code_runs_where_it_is_asked_for_and_pinned_and_nowhere_else(tmp_path: Path, tiny_teacher: Path) -> None:
    """Of folders nothing asks for it: nothing of it is imported. A repository's is refused without `+code`, run with it. In
    one process: a library reads its variables when it is imported."""
    places = ("config.json", "tokenizer_config.json")
    traces = [tmp_path / f"imported {where}" for where in places]
    pairs = zip(places, traces, strict=True)
    folders = [folder_with_code(tmp_path / where, tiny_teacher, where, trace) for where, trace in pairs]
    revision = hub_with_code(tmp_path / "hub", tiny_teacher)
    code = (
        "from distill_lit.models import *; from distill_lit.utils.exceptions import UserError\n"
        f"for folder in {[f'file:{folder}' for folder in folders]}:\n"
        "    for load in (load_model_config, load_model, load_tokenizer):\n"
        "        try: load(model_folder(folder))\n"
        "        except (UserError, ValueError) as error: print(error)\n"
        f"for reference in ('hf:org/mine@{revision}', 'hf:org/mine@{revision}+code'):\n"
        "    try: print(type(load_model(model_folder(reference))).__name__)\n"
        "    except Exception as error: print('refused')\n"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "m")}
    forced = {"HF_HUB_TRUST_REMOTE_CODE": "1", "TRANSFORMERS_TRUST_REMOTE_CODE": "1"}
    found, said = training_processes.python(code, **environment, **forced)
    assert found == 0, said
    assert not any(trace.exists() for trace in traces)
    assert [line for line in said.splitlines() if line in ("refused", "Mine")] == ["refused", "Mine"], said


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("hf:org/name+code", "needs a revision of 40 hexadecimal digits"),
        ("hf:org/name@main+code", "needs a revision of 40 hexadecimal digits"),
        ("hf:org/name@" + "a" * 39 + "+code", "needs a revision of 40 hexadecimal digits"),
        ("hf:org/name@" + "A" * 40 + "+code", "needs a revision of 40 hexadecimal digits"),
        ("file:/nowhere+code", "no such file or folder"),
    ],
)
def test_24_remote_code_needs_a_pin(reference: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        assets.check_reference(reference)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.mkdir [{trace}]",
        "name: !!python/name:os.mkdir",
        "students: !!python/object/new:os.mkdir [{trace}]",
        "name: !include /etc/passwd",
    ],
)
def test_25_object_tags_are_refused(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "built"
    (tmp_path / "x.yaml").write_text(text.replace("{trace}", f"'{trace}'") + "\n")
    with pytest.raises(UserError, match="not a plain YAML file"):
        load_experiment(tmp_path / "x.yaml")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../b", "..", "a/b", "", ".", "-x", "a\nb", "a\x00b"])
def test_25_names_that_leave_the_root_are_refused(experiment: Path, tmp_path: Path, name: str) -> None:
    text = experiment.read_text()
    changed = tmp_path / "names.yaml"
    changed.write_text(text.replace("name: tiny", f"name: {json.dumps(name)}"))
    with pytest.raises(UserError, match="name: (.* must be a plain folder name|it is required)"):
        load_experiment(changed)
    changed.write_text(text.replace("students: {one:", f"students: {{{json.dumps(name)}:"))
    with pytest.raises(UserError, match=r"(?s)students\..* a name is made of letters"):
        load_experiment(changed)


def test_25_defaults_and_grid_values_do_not_leave_the_root(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("../../etc/passwd", "/etc/passwd"):
        (tmp_path / "x.yaml").write_text(f"name: x\ndefaults: [{name}]\n")
        with pytest.raises(UserError, match="leaves the configs folder"):
            load_experiment(tmp_path / "x.yaml")
    from distill_lit.experiment.plan import plan_runs

    text = experiment.read_text() + 'variants: {"../../out": {seed: 1}}\ngrid: {variant: ["../../out"]}\n'
    (tmp_path / "y.yaml").write_text(text)
    for run in plan_runs(load_experiment(tmp_path / "y.yaml")):
        assert Path(run.name).name == run.name


RUNNER = """
import json, os, socket, subprocess, resource
def run(doc, results):
    seen = {"environment": dict(os.environ), "folder": os.getcwd(), "files": os.listdir(),
            "largest": resource.getrlimit(resource.RLIMIT_FSIZE)[0]}
    try:
        socket.create_connection(("127.0.0.1", int(doc["port"])), 2)
        seen["connected"] = True
    except OSError:
        seen["connected"] = False
    open(doc["trace"], "w").write(json.dumps(seen))
    return {"passed": 1.0}
"""


@pytest.mark.slow
def test_26_generated_code_runs_only_on_request_and_confined(
    tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    from distill_lit.config.evaluation import EvaluationConfig
    from distill_lit.evaluation.evaluator import evaluate_model

    server = socket.create_server(("127.0.0.1", 0))
    folder, trace = tmp_path / "tasks", tmp_path / "trace.json"
    folder.mkdir()
    (folder / "code.py").write_text(RUNNER)
    row = {"q": "river", "trace": str(trace), "port": str(server.getsockname()[1])}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "runs.yaml").write_text(
        f"task: runs\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\n"
        "output_type: generate_until\ntest_split: test\nunsafe_code: true\n"
        'doc_to_text: "{{q}}"\ndoc_to_target: "{{q}}"\nprocess_results: !function code.run\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 4}\n'
        "metric_list: [{metric: passed, aggregation: mean, higher_is_better: true}]\n"
    )
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = EvaluationConfig(tasks=["runs"], include_path=str(folder))
    with pytest.raises(UserError, match="unless evaluation.confirm_run_unsafe_code=true"):
        evaluate_model(tiny_teacher, settings, "pypi")
    assert not trace.exists()
    settings.confirm_run_unsafe_code = True
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    result = evaluate_model(tiny_teacher, settings, "pypi")
    assert result.meta["runs"]["lm_eval_results"]["passed,none"] == 1.0
    seen = json.loads(trace.read_text())
    assert not set(seen["environment"].values()) & set(SECRETS.values())
    allowed = {"PATH", "HOME", "TMPDIR", "PYTHONPATH", "DISTILL_LIT_CACHE", "TOKENIZERS_PARALLELISM", "LC_CTYPE"}
    assert {name for name in seen["environment"] if not name.startswith(("HF_", "OMP_", "TORCH", "KMP"))} <= allowed
    assert Path(seen["folder"]).name.startswith("distill-lit-confined-")
    assert not Path(seen["folder"]).exists()
    assert seen["largest"] <= 256 << 20
    if shutil.which("unshare") and not subprocess.run(["unshare", "-Un", "true"], capture_output=True).returncode:
        assert not seen["connected"]


def test_27_a_token_longer_than_a_file_name_and_one_that_is_no_text_are_taken_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of clouds are, which are no paths; and one of bytes that are no UTF-8."""
    long, odd = "A1b2" * 200, "p\udce4ssword"
    monkeypatch.setenv("AWS_SESSION_TOKEN", long)
    monkeypatch.setenv("DB_PASSWORD", odd)
    assert redact(f"it is {long}, says {odd}") == "it is [hidden], says [hidden]"
    log = tmp_path / "log.txt"
    log.write_bytes(b"it is " + long.encode() + b", says p\xe4ssword.")
    size = log.stat().st_size
    redact_file(log)
    assert log.read_bytes().split() == [b"it", b"is", b"[hidden]", b",", b"says", b"[hidden]."]
    assert log.stat().st_size == size


def test_27_not_even_where_a_library_says_them(experiment: Path, tmp_path: Path) -> None:
    """A run fails with the token in its message and its log; the reason, the table and the log have it taken out."""
    root = tmp_path / "root"
    secret = SECRETS["HF_TOKEN"]
    environment = {**SECRETS, "FAULTS": "tell one train 3", "PYTHONPATH": SABOTAGE}
    code, said = cli("run", experiment, "baselines=[teacher]", "--root", root, **environment)
    assert code == 3, said
    assert secret not in said
    assert "[hidden]" in said
    for path in [p for p in root.rglob("*") if p.is_file()]:
        assert secret.encode() not in path.read_bytes(), path
    log = next(root.glob("runs/tiny/one-*/log.txt")).read_text()
    assert "the token is [hidden]" in log


def test_27_an_experiment_file_cannot_read_the_environment(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    with pytest.raises(UserError, match=r"oc\.env"):
        load_experiment(experiment, ["question=${oc.env:HF_TOKEN}"])


HOSTILE = "<script>alert(1)</script> | \\input{x} _&%$ =cmd|' /C calc'!A0"


def test_28_what_a_model_or_data_set_wrote_is_escaped(tmp_path: Path) -> None:
    import pandas as pd
    from helpers import synthetic_results

    from distill_lit import report
    from distill_lit.config.evaluation import AnalysisConfig

    folder = synthetic_results.build(tmp_path, documents=12)
    with synthetic_results.edited_records(folder) as content:
        content.documents["prompt"] = HOSTILE
        content.documents["choices"] = [[HOSTILE] * len(choices) for choices in content.documents["choices"]]
    runs = pd.read_csv(folder / "runs.csv").astype(object)
    runs.loc[runs["model"] == "deep-ce_only-0", ["status", "reason"]] = "failed", HOSTILE
    runs.to_csv(folder / "runs.csv", index=False)
    analysed = report.build_report_bundle(folder, AnalysisConfig(n_resamples=100), "<b>x</b>", HOSTILE)
    report.render_report(folder, analysed, all_formats=True)
    written = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".html", ".md", ".tex", ".csv")}
    assert {"table.md", "table.tex", "table.csv", "longtail.md", "report.html"} <= set(written)
    assert "<script>alert(1)" not in written["report.html"]
    for name in ("table.md", "longtail.md"):
        assert "<script>" not in written[name], name
        assert not re.search(r"(?<!\\)\|\s*\\input", written[name])
    assert "\\input{x}" not in written["table.tex"]
    assert not re.search(r"(?m)(^|,)\"?[=+@]", written["table.csv"])


def test_30_the_guard_itself_notices_an_attempt(tmp_path: Path) -> None:
    code = "import urllib.request as u\ntry: u.urlopen('http://127.0.0.1:9')\nexcept OSError as error: print(error)"
    _, said = training_processes.python(code, NO_SOCKETS=str(tmp_path / "attempts"), PYTHONPATH=SABOTAGE)
    assert "forbidden" in said or "not resolved" in said
    assert (tmp_path / "attempts").read_text()


@pytest.mark.slow
def test_30_offline_with_the_benchmark_packages(tmp_path: Path, experiment: Path) -> None:
    file = tmp_path / "sciq.yaml"
    file.write_text(experiment.read_text())
    change = (
        "evaluation.tasks=[sciq,boolq]",
        "evaluation.limit=8",
        "name=sciq",
        "teacher.source=offline",
        "baselines=[teacher]",
    )
    assert cli("fetch", file, *change)[0] == 0
    log = tmp_path / "connections"
    environment = {"HF_HUB_OFFLINE": "1", "NO_SOCKETS": str(log), "PYTHONPATH": SABOTAGE}
    code, said = cli("run", file, *change, "--root", tmp_path, **environment)
    assert code == 0, said
    assert not log.exists(), log.read_text()


@pytest.mark.parametrize("reason", ["no repository", "another repository"])
def test_31_without_git_it_says_unknown(tmp_path: Path, experiment: Path, reason: str) -> None:
    """The package copied to where it is not checked out, also when that is inside the repository of something else; and
    where there is no git."""
    shutil.copytree(
        Path(distill_lit.__file__).parent, tmp_path / "place/distill_lit", ignore=shutil.ignore_patterns("__pycache__")
    )
    if reason == "another repository":
        git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
        for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run([*git, *arguments], check=True)
    code = (
        f"import os, sys; sys.path.insert(0, {str(tmp_path / 'place')!r})\n"
        "from pathlib import Path; from distill_lit.config import load_experiment\n"
        "from distill_lit.experiment.execution.provenance import collect_provenance\n"
        f"for path in (os.environ['PATH'], {str(Path(sys.executable).parent)!r}):\n"
        "    os.environ['PATH'] = path\n"
        f"    made = collect_provenance(load_experiment(Path({str(experiment)!r})), [], Path())\n"
        "    print(made['commit'], made['changes'])"
    )
    found, said = training_processes.python(code, PYTHONPATH=str(tmp_path / "place"))
    assert found == 0, said
    assert said.splitlines() == ["unknown unknown"] * 2
