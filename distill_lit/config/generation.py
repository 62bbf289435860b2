"""Knobs of text that a teacher writes: prompts, sampling, a server to ask, and what of the answers is kept."""

from dataclasses import dataclass, field
from typing import Any, Optional

from distill_lit.config.fields import config_field


@dataclass
class DatasetConfig:
    """Rows of a dataset repository or of a file."""

    dataset: str = config_field("", "dataset repository, org/name, from where `benchmarks` says")
    name: str = config_field("default", "configuration of that repository")
    path: str = config_field("", "instead of `dataset`: reference of a .jsonl, .parquet or .txt file, or a folder of them")
    split: str = config_field("train", "split of the dataset")
    max_documents: int = config_field(0, "rows drawn at random; 0: all", ge=0)


@dataclass
class PromptsConfig(DatasetConfig):
    """What a teacher is asked: rows, each rendered to one prompt or several."""

    text: Any = config_field(
        "{{ text }}", "Jinja template of a prompt over the columns of a row, or a list: each row is asked all"
    )
    reference_answer: str = config_field("", "Jinja template of the known right answer, for filters.correct")
    system_prompt: str = config_field("", "system message before every prompt; chat only")


@dataclass
class FiltersConfig:
    """Which answers become training text. An answer must pass all that are set."""

    min_tokens: int = config_field(1, "shortest answer", ge=0)
    max_tokens: int = config_field(0, "longest answer; 0: no limit", ge=0)
    require_finished: bool = config_field(False, "only answers that ended by themselves, not at max_new_tokens")
    max_repetition: float = config_field(
        1.0, "largest share of word 3-grams that occurred before in the answer", ge=0, le=1
    )
    answer_pattern: str = config_field(
        "", "regular expression whose first group, last match, is the final answer; empty: all of it"
    )
    min_agreement: float = config_field(0.0, "smallest mean word overlap (F1) with the prompt's other answers", ge=0, le=1)
    require_correct: bool = config_field(
        False, "only where the final answer is prompts.answer, apart from case and punctuation"
    )
    max_duplicate_overlap: float = config_field(
        1.0, "largest overlap of word 5-grams (Jaccard, by MinHash) with an answer kept before; 1: any", gt=0, le=1
    )
    decontamination_ngram: int = config_field(
        0, "words in a row that no evaluation document may share; 0: not looked at", ge=0
    )
    perplexity_model: str = config_field("", "reference of a model that reads every answer")
    min_mean_logprob: float = config_field(-5.0, "smallest mean log-probability of a token to the judge, nats", le=0)


@dataclass
class PriceConfig:
    """What a server charges, in any one currency."""

    input: float = config_field(0.0, "per million prompt tokens", ge=0)
    output: float = config_field(0.0, "per million tokens written", ge=0)


@dataclass
class RemoteConfig:
    """An OpenAI-compatible server that writes the answers. Its key comes from the environment only."""

    base_url: str = config_field("https://api.openai.com/v1", "its address, up to and with /v1")
    model: str = config_field("", "its name for the model")
    protocol: str = config_field(
        "chat", "chat: /chat/completions; completions: /completions", choices=("chat", "completions")
    )
    api_key_variable: str = config_field(
        "OPENAI_API_KEY", "environment variable with the key; a server on this machine needs none"
    )
    logprobs: bool = config_field(True, "ask for token log-probabilities")
    concurrency: int = config_field(8, "requests at a time", ge=1, le=1024)
    requests_per_minute: float = config_field(0.0, "most begun in a minute for one corpus, retries too; 0: no limit", ge=0)
    max_retries: int = config_field(
        6, "further tries of a request, after 1, 2, 4, … seconds or as the server says", ge=0, le=20
    )
    timeout: float = config_field(120.0, "seconds until a request counts as lost", gt=0)
    price: PriceConfig = field(default_factory=PriceConfig)
    budget: float = config_field(
        0.0, "largest sum to spend on this server and model, in the price's currency; 0: no limit", ge=0
    )


@dataclass
class GeneratedConfig:
    """Training text that a teacher writes: prompts → answers → filters."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    model: str = config_field("", "reference of the model that writes; empty: the experiment's teacher")
    remote: Optional[RemoteConfig] = None  # instead of a local model
    chat: bool = config_field(
        True,
        "prompts are a user's turns, loss on answers only; false: plain text that goes on where its prompt ends, loss on "
        "both, of a local model or of remote.protocol completions",
    )
    num_samples: int = config_field(1, "answers per prompt", ge=1, le=1024)
    temperature: float = config_field(0.0, "of sampling; 0: the most probable token", ge=0, le=10)
    top_p: float = config_field(1.0, "smallest set of tokens with this probability is drawn from", gt=0, le=1)
    max_new_tokens: int = config_field(256, "longest answer, tokens", ge=1)
    batch_size: int = config_field(16, "sequences written at a time", ge=1, le=1 << 20)
    seed: int = config_field(0, "draws prompts and tokens", ge=0)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
