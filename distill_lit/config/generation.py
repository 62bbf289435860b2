"""Fields of text that models write: what writes it, prompts, sampling, a server to ask, which of the answers are kept."""

from typing import Literal

from pydantic import Field

from distill_lit.config.fields import Bool, Count, Float, Int, Templates, Text, config_section
from distill_lit.config.key_paths import HOLDS_PATHS
from distill_lit.config.server import ServerConfig

LOCAL_BACKEND, VLLM_BACKEND, AUTO_BACKEND = "local", "vllm", "auto"


@config_section
class GenerationBackendConfig:
    """What writes the text of local models: of students on their own prompts (`on_policy`), and of generated corpora."""

    backend: Literal["auto", "local", "vllm"] = Field(
        default="local",
        description="local: continuous batching in this process; vllm: vLLM, in a process of its own, which is given a "
        "student's weights after each optimizer step; auto: vllm where it is installed and can write what is asked for",
    )
    vllm_python: Text = Field(
        default="",
        description="Python of the environment that has vLLM, such as /opt/vllm/bin/python; empty: the experiment's own",
        json_schema_extra=HOLDS_PATHS,
    )
    kv_cache_gib: Float = Field(default=4.0, gt=0, description="memory of vLLM's key-value cache, GiB, beside the weights")
    eager: Bool = Field(
        default=False,
        description="true: vLLM neither compiles nor captures CUDA graphs: it starts sooner and writes slower",
    )


@config_section
class DatasetConfig:
    """Rows of a dataset repository or of a file."""

    dataset: Text = Field(default="", description="dataset repository, org/name, from where dataset_source says")
    name: Text = Field(
        default="default", description="configuration of that repository; default: its only one, or the one it calls so"
    )
    revision: Text = Field(
        default="", description="commit, tag or branch of that repository on the hub; empty: the latest commit"
    )
    path: Text = Field(
        default="",
        description="instead of `dataset`: reference of a .jsonl, .json, .csv, .tsv, .parquet or .txt file, or a folder of "
        "them; for training also tokens, .bin or .npy",
        json_schema_extra=HOLDS_PATHS,
    )
    split: Text = Field(default="train", description="split of the dataset")
    max_documents: Count = Field(default=0, ge=0, description="rows drawn at random; 0: all")


@config_section
class PromptsConfig(DatasetConfig):
    """What a teacher is asked: rows, each rendered to one prompt or several."""

    text: Templates = Field(
        default="{{ text }}",
        description="Jinja template of a prompt over the columns of a row, or a list: each row is asked all",
    )
    reference_answer: Text = Field(
        default="", description="Jinja template of the known right answer, for filters.require_correct"
    )
    system_prompt: Text = Field(default="", description="system message before every prompt; chat only")


@config_section
class FiltersConfig:
    """Which answers become training text. An answer must pass all that are set."""

    min_tokens: Count = Field(default=1, ge=0, description="tokens of the shortest answer")
    max_tokens: Count = Field(default=0, ge=0, description="tokens of the longest answer; 0: no limit")
    require_finished: Bool = Field(
        default=False, description="only answers that ended by themselves, not at max_new_tokens"
    )
    max_repetition: Float = Field(
        default=1.0, ge=0, le=1, description="largest share of word 3-grams that occurred before in the answer"
    )
    custom: list[Text] = Field(
        default_factory=list, description="functions registered by a plugin that an answer must pass too"
    )
    answer_pattern: Text = Field(
        default="", description="regular expression whose first group, last match, is the final answer; empty: all of it"
    )
    min_agreement: Float = Field(
        default=0.0, ge=0, le=1, description="smallest mean word overlap (F1) with the prompt's other answers"
    )
    require_correct: Bool = Field(
        default=False,
        description="only where the final answer is prompts.reference_answer, apart from case and punctuation",
    )
    max_duplicate_overlap: Float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="largest overlap of word 5-grams (Jaccard, by MinHash) with an answer kept before; 1: any",
    )
    decontamination_ngram: Count = Field(
        default=0, ge=0, description="words in a row that no evaluation document may share; 0: not looked at"
    )
    perplexity_model: Text = Field(
        default="",
        description="reference of a model that scores the answers; empty: none",
        json_schema_extra=HOLDS_PATHS,
    )
    min_mean_logprob: Float = Field(
        default=-5.0,
        le=0,
        description="least mean log-probability of a token under it, nats: −log of the largest perplexity",
    )


@config_section
class RemoteConfig(ServerConfig):
    """An OpenAI-compatible server that writes the answers."""

    base_url: Text = Field(default="https://api.openai.com/v1", description="address of the server, up to and with /v1")
    protocol: Literal["chat", "completions"] = Field(
        default="chat", description="chat: /chat/completions; completions: /completions"
    )
    logprobs: Bool = Field(default=True, description="ask for token log-probabilities")
    top_logprobs: Int = Field(
        default=0, ge=0, le=1000, description="alternatives of each token to ask for too, for teacher.source: answers"
    )


@config_section
class GeneratedConfig:
    """Training text that a teacher writes: prompts → answers → filters."""

    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="what the teacher is asked")
    model: Text = Field(
        default="",
        description="reference of the model that writes; empty: the experiment's teacher",
        json_schema_extra=HOLDS_PATHS,
    )
    remote: RemoteConfig | None = Field(default=None, description="a server that writes, instead of a local model")
    chat: Bool = Field(
        default=True,
        description="true: prompts are a user's turns, loss on answers only; false: plain text that goes on where its "
        "prompt ends, loss on both, of a local model or of remote.protocol: completions",
    )
    num_samples: Int = Field(default=1, ge=1, le=1024, description="answers per prompt")
    temperature: Float = Field(default=0.0, ge=0, le=10, description="temperature of sampling; 0: the most probable token")
    top_p: Float = Field(default=1.0, gt=0, le=1, description="smallest set of tokens with this probability is drawn from")
    max_new_tokens: Count = Field(default=256, ge=1, description="tokens of the longest answer")
    batch_size: Int = Field(default=16, ge=1, le=1 << 20, description="sequences written at a time")
    seed: Count = Field(default=0, ge=0, description="draws prompts and tokens")
    filters: FiltersConfig = Field(default_factory=FiltersConfig, description="which answers are kept")
