"""Chat templates as models have them, and what a model has to write in a chat of each: (template, responses)."""

from collections.abc import Callable
from typing import Any

Messages = list[dict[str, Any]]
SPECIAL = (
    "<s> </s> <|im_start|> <|im_end|> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> [INST] [/INST] "
    "<start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|end|> <|endoftext|> <｜User｜> <｜Assistant｜>"
).split()


def answers(messages: Messages) -> list[str]:
    return [m["content"] for m in messages if m["role"] == "assistant"]


def block(text: str, with_generation_tags: bool) -> str:
    """Text of a template, within {% generation %} where it marks what the assistant writes."""
    return "{% generation %}" + text + "{% endgeneration %}" if with_generation_tags else text


def chatml(marked: bool) -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        + block("{{ m['content'] + '<|im_end|>' }}", marked)
        + "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def llama2(marked: bool) -> str:
    return (
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}"
        "{{ '<s>[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '')"
        " + m['content'].strip() + ' [/INST]' }}{% else %}"
        + block("{{ ' ' + m['content'].strip() + ' </s>' }}", marked)
        + "{% endif %}{% endfor %}"
    )


def llama3(marked: bool) -> str:
    return (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}{% if m['role'] == 'assistant' %}"
        + block("{{ m['content'] | trim + '<|eot_id|>' }}", marked)
        + "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )


def mistral(marked: bool) -> str:
    return (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] != 'assistant' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}" + block("{{ ' ' + m['content'] + '</s>' }}", marked) + "{% endif %}{% endfor %}"
    )


def gemma(marked: bool) -> str:
    return (
        "{{ '<s>' }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' }}{% if role == 'model' %}"
        + block("{{ m['content'] | trim + '<end_of_turn>' }}", marked)
        + "{% else %}{{ m['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    )


def phi3(marked: bool) -> str:
    return (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}{% if m['role'] == 'assistant' %}"
        + block("{{ m['content'] + '<|end|>' }}", marked)
        + "{% else %}{{ m['content'] + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
    )


def qwen3(marked: bool) -> str:
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
        + block(
            "{{ ('<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' if loop.last else '') + m['content']"
            " + '<|im_end|>' }}",
            marked,
        )
        + "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


def zephyr(marked: bool) -> str:
    return (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' }}{% if m['role'] == 'assistant' %}"
        + block("{{ m['content'] + '</s>' }}", marked)
        + "{% else %}{{ m['content'] + '</s>' }}{% endif %}{{ '\\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' + '\\n' }}{% endif %}{% endfor %}"
    )


def deepseek(marked: bool) -> str:
    return (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<｜Assistant｜>' }}"
        + block("{{ m['content'].split('</think>')[-1] + '</s>' }}", marked)
        + "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
    )


def vicuna(marked: bool) -> str:
    return (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT:' }}"
        + block("{{ ' ' + m['content'] + '</s>' }}", marked)
        + "{% else %}{{ m['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def _qwen3_responses(messages: Messages, marked: bool) -> list[str]:
    """Without {% generation %} only a response that the whole chat shows as the model has to write it: the last message."""
    said = [m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant"]
    if messages[-1]["role"] != "assistant":
        return said if marked else []
    said[-1] = "<think>\n\n</think>\n\n" + said[-1]
    return said if marked else said[-1:]


def _each(make: Callable[[str], str]) -> Callable[[Messages, bool], list[str]]:
    return lambda messages, marked: [make(text) for text in answers(messages)]


STYLES: dict[str, tuple[Callable[[bool], str], Callable[[Messages, bool], list[str]]]] = {
    "chatml": (chatml, _each(lambda text: text + "<|im_end|>")),
    "llama2": (llama2, _each(lambda text: f" {text.strip()} </s>")),
    "llama3": (llama3, _each(lambda text: text.strip() + "<|eot_id|>")),
    "mistral": (mistral, _each(lambda text: f" {text}</s>")),
    "gemma": (gemma, _each(lambda text: text.strip() + "<end_of_turn>")),
    "phi3": (phi3, _each(lambda text: text + "<|end|>")),
    "qwen3": (qwen3, _qwen3_responses),
    "zephyr": (zephyr, _each(lambda text: text + "</s>")),
    "deepseek": (deepseek, _each(lambda text: text.split("</think>")[-1] + "</s>")),
    "vicuna": (vicuna, _each(lambda text: f" {text}</s>")),
}
