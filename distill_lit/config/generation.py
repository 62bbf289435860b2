"""Knobs of text that a teacher writes: prompts, sampling, a server to ask, and what of the answers is kept."""

from dataclasses import dataclass, field
from typing import Any, Optional

from distill_lit.config.fields import knob


@dataclass
class RowsConfig:
    """Rows of a dataset repository or of a file."""

    dataset: str = knob("", "dataset repository, org/name, from where `benchmarks` says")
    name: str = knob("default", "configuration of that repository")
    path: str = knob("", "instead of `dataset`: reference of a .jsonl, .parquet or .txt file, or a folder of them")
    split: str = knob("train", "split of the dataset")
    documents: int = knob(0, "rows drawn at random; 0: all", low=0)


@dataclass
class PromptsConfig(RowsConfig):
    """What a teacher is asked: rows, each rendered to one prompt or several."""

    text: Any = knob("{{ text }}", "Jinja template of a prompt over the columns of a row, or a list: each row is asked all")
    answer: str = knob("", "Jinja template of the known right answer, for filters.correct")
    system: str = knob("", "system message before every prompt; chat only")


@dataclass
class FiltersConfig:
    """Which answers become training text. An answer must pass all that are set."""

    min_tokens: int = knob(1, "shortest answer", low=0)
    max_tokens: int = knob(0, "longest answer; 0: no limit", low=0)
    finished: bool = knob(False, "only answers that ended by themselves, not at max_new_tokens")
    repetition: float = knob(1.0, "largest share of word 3-grams that occurred before in the answer", low=0, high=1)
    pattern: str = knob("", "regular expression whose first group, last match, is the final answer; empty: all of it")
    agreement: float = knob(0.0, "smallest mean word overlap (F1) with the prompt's other answers", low=0, high=1)
    correct: bool = knob(False, "only where the final answer is prompts.answer, apart from case and punctuation")
    duplicates: float = knob(
        1.0, "largest overlap of word 5-grams (Jaccard, by MinHash) with an answer kept before; 1: any", above=0, high=1
    )
    contamination: int = knob(0, "words in a row that no evaluation document may share; 0: not looked at", low=0)
    judge: str = knob("", "reference of a model that reads every answer")
    judge_log_probability: float = knob(-5.0, "smallest mean log-probability of a token to the judge, nats", high=0)


@dataclass
class PriceConfig:
    """What a server charges, in any one currency."""

    input: float = knob(0.0, "per million prompt tokens", low=0)
    output: float = knob(0.0, "per million tokens written", low=0)


@dataclass
class RemoteConfig:
    """An OpenAI-compatible server that writes the answers. Its key comes from the environment only."""

    base_url: str = knob("https://api.openai.com/v1", "its address, up to and with /v1")
    model: str = knob("", "its name for the model")
    protocol: str = knob("chat", "chat: /chat/completions; completions: /completions", choices=("chat", "completions"))
    key_variable: str = knob("OPENAI_API_KEY", "environment variable with the key; a server on this machine needs none")
    logprobs: bool = knob(True, "ask for token log-probabilities")
    concurrency: int = knob(8, "requests at a time", low=1, high=1024)
    requests_per_minute: float = knob(0.0, "most begun in a minute for one corpus, retries too; 0: no limit", low=0)
    retries: int = knob(6, "further tries of a request, after 1, 2, 4, … seconds or as the server says", low=0, high=20)
    timeout: float = knob(120.0, "seconds until a request counts as lost", above=0)
    price: PriceConfig = field(default_factory=PriceConfig)
    budget: float = knob(0.0, "largest sum to spend on this server and model, in the price's currency; 0: no limit", low=0)


@dataclass
class GeneratedConfig:
    """Training text that a teacher writes: prompts → answers → filters."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    model: str = knob("", "reference of the model that writes; empty: the experiment's teacher")
    remote: Optional[RemoteConfig] = None  # instead of a local model
    chat: bool = knob(
        True,
        "prompts are a user's turns, loss on answers only; false: plain text that goes on where its prompt ends, loss on "
        "both, of a local model or of remote.protocol completions",
    )
    samples: int = knob(1, "answers per prompt", low=1, high=1024)
    temperature: float = knob(0.0, "of sampling; 0: the most probable token", low=0, high=10)
    top_p: float = knob(1.0, "smallest set of tokens with this probability is drawn from", above=0, high=1)
    max_new_tokens: int = knob(256, "longest answer, tokens", low=1)
    batch: int = knob(16, "sequences written at a time", low=1, high=1 << 20)
    seed: int = knob(0, "draws prompts and tokens", low=0)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
