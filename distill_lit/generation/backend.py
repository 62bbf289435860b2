"""What writes the text of local models: this suite, or vLLM where it is installed and can write what is asked for."""

import contextlib
import functools
import subprocess
from importlib import metadata
from importlib.util import find_spec

from distill_lit.config import ExperimentConfig, GenerationBackendConfig
from distill_lit.config.fields import with_values
from distill_lit.config.generation import AUTO_BACKEND, LOCAL_BACKEND, VLLM_BACKEND
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.path_variables import expand_path

FIND_VLLM = "import importlib.metadata as m, importlib.util as u; print(m.version('vllm') if u.find_spec('vllm') else '')"
FIND_SECONDS = 60.0


def resolve_backend(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with `generation.backend: auto` replaced by what it means here."""
    if config.generation.backend != AUTO_BACKEND:
        return config
    is_able = _is_text_written(config) and not _vllm_obstacle(config) and vllm_version(config.generation)
    backend = with_values(config.generation, backend=VLLM_BACKEND if is_able else LOCAL_BACKEND)
    return with_values(config, generation=backend)


def check_backend(config: ExperimentConfig) -> None:
    """Raises UserError where vLLM is asked for and is not installed, or cannot write what is asked for."""
    if config.generation.backend != VLLM_BACKEND or not _is_text_written(config):
        return
    if obstacle := _vllm_obstacle(config):
        raise UserError(f"generation.backend: vllm cannot be with {obstacle}; set it to local")
    if not vllm_version(config.generation):
        where = config.generation.vllm_python or "the environment of this program"
        raise UserError(
            f"generation.backend: vllm is not installed in {where}; install it, or name in generation.vllm_python the "
            "Python of an environment that has it"
        )


def python_with_vllm(config: GenerationBackendConfig) -> str:
    """The path of `vllm_python`; empty where it is this program's own."""
    return str(expand_path(config.vllm_python, "generation.vllm_python")) if config.vllm_python else ""


def vllm_version(config: GenerationBackendConfig) -> str:
    """The version of vLLM in the environment of `vllm_python`; empty where there is none."""
    return _vllm_version(python_with_vllm(config))


@functools.cache
def _vllm_version(python: str) -> str:
    if not python:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version("vllm") if find_spec("vllm") else ""
        return ""
    command = [python, "-I", "-c", FIND_VLLM]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=FIND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"generation.vllm_python: {python} is no Python that can be run: {error}") from None
    return found.stdout.strip() if found.returncode == 0 else ""


def _is_text_written(config: ExperimentConfig) -> bool:
    generated = [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]
    return is_on_policy_enabled(config.on_policy) or any(one.remote is None for one in generated)


def _vllm_obstacle(config: ExperimentConfig) -> str:
    """What of a config needs the student's logits, or weights that are no plain numbers; empty for nothing."""
    if not is_on_policy_enabled(config.on_policy):
        return ""
    if config.on_policy.teacher_mix_fraction:
        return "on_policy.teacher_mix_fraction, for which the teacher changes every distribution that is drawn from"
    student = config.students.get(config.student)
    if student is not None and student.quantization_aware != "none":
        return f"students.{config.student}.quantization_aware, whose weights are rounded in every forward pass here"
    return ""
