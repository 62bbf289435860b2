"""Which training text is in files, mostly the user's own, and what stands in them: a config holds their names alone."""

from collections.abc import Iterator
from typing import Any

from distill_lit.config import DataConfig
from distill_lit.config.generation import DatasetConfig
from distill_lit.data.corpora import TRAINING_SECTION, VALIDATION_SECTION
from distill_lit.data.sources import own_files_fingerprint
from distill_lit.data.templates import CHAT_TEMPLATE_KEY, read_template
from distill_lit.data.token_files import is_token_corpus, token_files
from distill_lit.utils.files import fingerprint


def own_text_fingerprints(data: DataConfig) -> dict[str, str]:
    """{key of the config: a hash of what stands in the files that it names} of corpora, of prompts that answers are written
    to, and of the chat template. Raises UserError where one is gone."""
    found = {key: facts for key, facts in _facts(data) if facts}
    return {key: fingerprint(facts) for key, facts in found.items()}


def _facts(data: DataConfig) -> Iterator[tuple[str, Any]]:
    for section, corpora in ((TRAINING_SECTION, data.corpora), (VALIDATION_SECTION, data.validation)):
        for name, corpus in corpora.items():
            key = f"{section}.{name}"
            if corpus.generated is not None:
                prompts: DatasetConfig = corpus.generated.prompts
                yield f"{key}.generated.prompts", own_files_fingerprint(f"{key}.generated.prompts", prompts)
            elif is_token_corpus(key, corpus):
                yield key, [file.fingerprint() for file in token_files(key, corpus)]
            else:
                yield key, own_files_fingerprint(key, corpus)
    yield CHAT_TEMPLATE_KEY, read_template(data.chat_template)
