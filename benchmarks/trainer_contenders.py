"""One training by one trainer, in a process of its own: `python benchmarks/trainer_contenders.py NAME FOLDER`, which
`trainers.py` calls. Reads FOLDER/teacher, FOLDER/student, FOLDER/rows.npy and FOLDER/settings.json; writes FOLDER/NAME/,
the trained student, and FOLDER/NAME.json, the seconds of each step and the peak memory.

Every trainer has the same rows in the same order, AdamW with the same numbers at a constant rate, clipping at 1, and the
forward KL at temperature 1. What the others lack is made up for in their favour: rows are ready-made, trl's gradient
checkpointing, which is on by default, is off, and no model keeps keys and values.
"""

# ruff: noqa: E402
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))  # of the floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LEARNING_RATE, BETAS = 1e-4, (0.9, 0.95)


@dataclass
class Job:
    """What is trained, on which rows, and where the end of each step is noted."""

    student: Any
    teacher: Any
    rows: Tensor  # (rows, tokens)
    batch: int
    dtype: str
    folder: Path
    ends: list[float]

    @property
    def steps(self) -> int:
        """Optimizer steps: each row is read once."""
        return len(self.rows) // self.batch

    def note_step(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.ends.append(time.perf_counter())

    def examples(self) -> list[dict[str, list[int]]]:
        """Rows as a data set of Hugging Face's trainers holds them."""
        ones = [1] * self.rows.shape[1]
        return [{"input_ids": row, "labels": row, "attention_mask": ones} for row in self.rows.tolist()]


def collate(examples: Iterable[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows of equal length as a batch."""
    found = list(examples)
    return {name: torch.tensor([example[name] for example in found]) for name in found[0]}


# ---------------------------------------------------------------- Lightning


def lightning_trainer(job: Job) -> Any:
    """A Trainer without files and progress bars."""
    import lightning as L

    end = L.pytorch.callbacks.LambdaCallback(on_train_batch_end=job.note_step)
    precision: Any = "bf16-mixed" if job.dtype == "bfloat16" else "32-true"
    return L.Trainer(
        max_steps=job.steps, gradient_clip_val=1.0, accelerator="cpu", precision=precision,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[end],
        default_root_dir=job.folder,
    )  # fmt: skip


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of all trainers."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)


def loader(job: Job) -> Any:
    """Batches in order."""
    return torch.utils.data.DataLoader(job.examples(), job.batch, collate_fn=collate)  # type: ignore[arg-type]


def distill_lit(job: Job, is_compiled: bool = False) -> None:
    """README's nine lines."""
    from distill_lit import Distiller, losses

    if is_compiled:
        job.student.model.compile()
        job.teacher.model.compile()
    module = Distiller(job.student, job.teacher, loss=losses.ForwardKL(), optimizer=adamw)
    lightning_trainer(job).fit(module, loader(job))


def plain_lightning(job: Job) -> None:
    """What one writes without a library: both logit tensors, and PyTorch's divergence."""
    import lightning as L

    class Plain(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = job.student.train(), job.teacher.eval().requires_grad_(False)

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                teacher = self.teacher(**inputs).logits[:, :-1].flatten(0, 1)
            student = self.student(**inputs).logits[:, :-1].flatten(0, 1)
            student, teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
            return F.kl_div(student, teacher, log_target=True, reduction="batchmean")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.student.parameters())

    lightning_trainer(job).fit(Plain(), loader(job))


# ---------------------------------------------------------------- Hugging Face's Trainer and what is built on it


def training_arguments(job: Job) -> dict[str, Any]:
    """The numbers of all trainers in the words of Hugging Face's."""
    return {
        "output_dir": str(job.folder / "hf"), "max_steps": job.steps, "per_device_train_batch_size": job.batch,
        "learning_rate": LEARNING_RATE, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "weight_decay": 0.0,
        "optim": "adamw_torch_fused", "lr_scheduler_type": "constant", "max_grad_norm": 1.0,
        "bf16": job.dtype == "bfloat16",
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True,
        "gradient_checkpointing": False, "remove_unused_columns": False,
    }  # fmt: skip


def step_callback(job: Job) -> Any:
    """Notes the end of each step."""
    from transformers import TrainerCallback

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            job.note_step()

    return Ends()


def dataset_of(rows: list[dict[str, Any]]) -> Any:
    """As the trainers want it."""
    from datasets import Dataset

    return Dataset.from_list(rows)


def trl_gkd(job: Job) -> None:
    """trl.experimental.gkd, off-policy (lmbda 0), forward KL (beta 0)."""
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    options = {**training_arguments(job), "train_sampling_strategy": "sequential"}
    GKDTrainer(
        job.student,
        job.teacher,
        args=GKDConfig(**options, lmbda=0.0, beta=0.0, temperature=1.0),
        data_collator=collate,
        train_dataset=dataset_of(job.examples()),
        processing_class=AutoTokenizer.from_pretrained(job.folder / "student"),
        callbacks=[step_callback(job)],
    ).train()


def trl_distillation(job: Job) -> None:
    """trl.DistillationTrainer, forward KL (beta 0). It is on-policy: the rows stand in for what it generates."""
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    class OnRows(DistillationTrainer):  # type: ignore[misc]
        def _prepare_inputs(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
            ids = torch.tensor([row["input_ids"] for row in batch])
            ones = torch.ones_like(ids)
            return {
                "prompt_ids": ids[:, :1], "prompt_mask": ones[:, :1], "completion_ids": ids[:, 1:],
                "completion_mask": ones[:, 1:], "num_items_in_batch": ones[:, 1:].sum(),
            }  # fmt: skip

    tokenizer = AutoTokenizer.from_pretrained(job.folder / "student")
    OnRows(
        job.student,
        job.teacher,
        args=DistillationConfig(**training_arguments(job), beta=0.0, shuffle_dataset=False),
        train_dataset=dataset_of([{"prompt": "", "input_ids": row} for row in job.rows.tolist()]),
        processing_class=tokenizer,
        callbacks=[step_callback(job)],
    ).train()


def distillkit(job: Job) -> None:
    """Arcee's DistillKit with its online teacher; it computes a cross-entropy too, whether or not it is a term, and its
    divergence has the last position of a row, which predicts none of its tokens."""
    from distillkit.configuration import DistillationRunConfig
    from distillkit.signals import OnlineSignalSource
    from distillkit.trainer import DistillationTrainer
    from transformers import AutoTokenizer
    from trl import SFTConfig

    config = DistillationRunConfig(
        model="student", output_path=str(job.folder), sequence_length=job.rows.shape[1],
        dataset={"train_dataset": {"disk_path": "rows"}, "prepacked": True},
        teacher={"kind": "hf", "path": "teacher"}, loss_functions=[{"function": "kl", "weight": 1.0, "temperature": 1.0}],
    )  # fmt: skip
    options = {**training_arguments(job), "train_sampling_strategy": "sequential", "max_length": job.rows.shape[1]}
    if job.dtype == "bfloat16":
        job.teacher.to(torch.bfloat16)  # its teacher is under no autocast, and would compute in float32
    DistillationTrainer(
        model=job.student,
        config=config,
        signal_source=OnlineSignalSource(job.teacher, vocab_size=job.student.config.vocab_size),
        true_vocab_size=job.student.config.vocab_size,
        train_dataset=dataset_of(job.examples()),
        args=SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=collate,
        processing_class=AutoTokenizer.from_pretrained(job.folder / "student"),
        callbacks=[step_callback(job)],
    ).train()


# ---------------------------------------------------------------- none of them


def products_alone(job: Job) -> None:
    """The matrix products that no trainer can do without, and nothing else: nothing is learned."""
    from benchmarks.step_floor import step_floor

    shape, dtype = (job.batch, job.rows.shape[1]), getattr(torch, job.dtype)
    run = step_floor(job.student, job.teacher, job.student.config.vocab_size, shape, dtype, torch.device("cpu"))
    for _ in range(job.steps):
        run()
        job.note_step()


FLOOR = "matrix products alone"
CONTENDERS: dict[str, Callable[[Job], None]] = {
    "distill-lit": distill_lit,
    "distill-lit, compiled": functools.partial(distill_lit, is_compiled=True),
    "plain Lightning": plain_lightning,
    "trl GKDTrainer": trl_gkd,
    "trl DistillationTrainer": trl_distillation,
    "DistillKit": distillkit,
    FLOOR: products_alone,
}


def main(name: str, folder: Path) -> None:
    """Trains, and writes what it took."""
    from transformers import AutoModelForCausalLM

    settings = json.loads((folder / "settings.json").read_text())
    models = [AutoModelForCausalLM.from_pretrained(folder / part, dtype=torch.float32) for part in ("student", "teacher")]
    rows = torch.from_numpy(np.load(folder / "rows.npy"))
    for model in models:
        model.config.use_cache = False  # no trainer copies keys and values for a generation that never comes
    job = Job(*models, rows, settings["batch"], settings["dtype"], folder, [])
    torch.manual_seed(0)
    start = time.perf_counter()
    CONTENDERS[name](job)
    from distill_lit.profiling.memory import read_peak_memory  # imported when the peak is past

    peak = read_peak_memory(torch.device("cpu"))  # not ru_maxrss, which begins at the peak of the process that started this
    seconds = np.diff([start, *job.ends]).tolist()
    job.student.save_pretrained(folder / name)
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
