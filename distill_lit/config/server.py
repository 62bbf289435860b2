"""Fields of a server that is asked: how it is reached, what it costs, and what a teacher behind it says."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from distill_lit.config.fields import Bool, Count, Float, Int, Text, config_section

# fields of a server that cannot change what it answers
SERVER_KEYS_NOT_IN_FINGERPRINT = (
    "api_key_variable",
    "concurrency",
    "requests_per_minute",
    "max_retries",
    "timeout",
    "price",
    "budget",
)
# and of a teacher's server, whose model is known by what it says of a probe: where it is, and how it is spoken to
TEACHER_SERVER_KEYS_NOT_IN_FINGERPRINT = (*SERVER_KEYS_NOT_IN_FINGERPRINT, "base_url", "engine", "allow_http", "service")


@config_section
class PriceConfig:
    """What a server charges, in any one currency."""

    input: Float = Field(default=0.0, ge=0, description="price of a million prompt tokens")
    output: Float = Field(default=0.0, ge=0, description="price of a million generated tokens")


@config_section
class ServerConfig:
    """A server that is asked side by side. Its key comes from the environment only."""

    base_url: Text = Field(default="", description="address of the server, up to and with /v1")
    model: Text = Field(default="", description="name of the model on the server")
    api_key_variable: Text = Field(
        default="OPENAI_API_KEY", description="environment variable with the key; a server on this machine needs none"
    )
    concurrency: Int = Field(default=8, ge=1, le=1024, description="requests at a time")
    requests_per_minute: Float = Field(
        default=0.0, ge=0, description="most begun in a minute for one corpus, retries too; 0: no limit"
    )
    max_retries: Int = Field(
        default=6, ge=0, le=20, description="further tries of a request, after 1, 2, 4, … seconds or as the server says"
    )
    timeout: Float = Field(default=120.0, gt=0, description="seconds until a request counts as lost")
    price: PriceConfig = Field(default_factory=PriceConfig, description="what the server charges")
    budget: Float = Field(
        default=0.0, ge=0, description="largest sum to spend on this server and model, in the price's currency; 0: no limit"
    )


@config_section
class ServiceConfig:
    """A server that the experiment starts itself, keeps alive while students need it, and stops."""

    command: Text = Field(
        default="",
        description="command that starts it, with {port} where the port goes, as in: vllm serve org/name --port {port}; "
        "empty: it runs already",
    )
    port: Count = Field(default=0, ge=0, le=65535, description="port that it listens on; 0: a free one")
    health: Text = Field(default="/health", description="path that answers with status 200 once it is ready")
    start_timeout: Float = Field(default=1800.0, gt=0, description="seconds until a server that is not ready has failed")
    max_restarts: Int = Field(default=3, ge=0, le=1000, description="times that a server which has died is started again")
    devices: Text = Field(
        default="", description="its GPUs, as CUDA_VISIBLE_DEVICES has them, such as 2,3; empty: all that are visible"
    )


@config_section
class TeacherServerConfig(ServerConfig):
    """The server behind teacher.source: served, which says how probable given tokens are, and which are most probable."""

    engine: Literal["vllm", "sglang"] = Field(
        default="vllm", description="how it is asked. vllm: prompt_logprobs of /v1/completions; sglang: /generate"
    )
    outputs: Literal["logprobs", "hidden_states"] = Field(
        default="logprobs",
        description="what it gives of a token. logprobs: the teacher.top_k most probable tokens; hidden_states: the last "
        "hidden state, of which the head of teacher.model makes the whole distribution here (vllm serve --runner pooling)",
    )
    live: Bool = Field(
        default=False,
        description="true: asked while students train, one batch ahead; false: once, by a run that writes a cache",
    )
    revision: Text = Field(
        default="", description="any word; another one says that another model behind the same name is meant"
    )
    local_validation: Bool = Field(
        default=False,
        description="true: teacher.model is the same model, and its weights read the held-out rows here, over the whole "
        "vocabulary; false: the server is asked about them too",
    )
    allow_http: Bool = Field(
        default=False, description="true: plain http to another machine too, in a network that one trusts"
    )
    service: ServiceConfig = Field(default_factory=ServiceConfig, description="how the experiment starts it itself")


def without_neutral_server_fields(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a teacher, as plain values, without those of its server that cannot change what it says."""
    kept = {
        key: value for key, value in teacher.get("server", {}).items() if key not in TEACHER_SERVER_KEYS_NOT_IN_FINGERPRINT
    }
    others = {key: value for key, value in teacher.items() if key != "server"}
    return {**others, "server": kept} if kept else others
