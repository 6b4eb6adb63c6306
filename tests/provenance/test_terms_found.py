"""Which entry a model falls under; the expected answers are written by hand."""

import pytest
from hypothesis import given, strategies as st

from stillhouse.errors import RecipeError
from stillhouse.provenance import all_terms, find_terms
from stillhouse.provenance.terms_lookup import model_name

BY_REFERENCE = {
    # embedded models and hub names
    "embedded:smollm2": "smollm",
    "hub:HuggingFaceTB/SmolLM2-1.7B-Instruct": "smollm",
    "hub:meta-llama/Llama-2-7b-chat-hf": "llama-2",
    "hub:codellama/CodeLlama-13b-hf": "llama-2",
    "hub:meta-llama/Meta-Llama-3-8B-Instruct": "llama-3",
    "hub:meta-llama/Llama-3.1-8B": "llama-3.1",
    "hub:meta-llama/Llama-3.1-8B@0123abc": "llama-3.1",
    "hub:meta-llama/Llama-3.2-1B": "llama-3.2",
    "hub:meta-llama/Llama-3.3-70B-Instruct": "llama-3.3",
    "hub:meta-llama/Llama-4-Scout-17B-16E": "llama-4",
    "hub:nvidia/Llama-3.1-Nemotron-70B-Instruct": "llama-3.1",
    "hub:google/gemma-3-270m": "gemma",
    "hub:google/gemma-2-9b-it": "gemma",
    "hub:google/gemma-4-12b-it": "gemma-4",
    "hub:Qwen/Qwen3-8B": "qwen-apache",
    "hub:Qwen/Qwen2.5-7B-Instruct": "qwen-apache",
    "hub:Qwen/Qwen2.5-3B-Instruct": "qwen-research",
    "hub:Qwen/Qwen2.5-Coder-3B": "qwen-research",
    "hub:Qwen/Qwen2.5-72B-Instruct": "qwen",
    "hub:Qwen/Qwen2-72B-Instruct": "tongyi-qianwen",
    "hub:Qwen/Qwen2-7B-Instruct": "qwen-apache",
    "hub:Qwen/Qwen-7B-Chat": "tongyi-qianwen",
    "hub:Qwen/Qwen-1_8B": "tongyi-qianwen-research",
    "hub:Qwen/Qwen1.5-14B-Chat": "tongyi-qianwen",
    "hub:Qwen/Qwen1.5-0.5B": "tongyi-qianwen-research",
    "hub:Qwen/Qwen3.8-Flash-Next": "qwen-community",
    "hub:Qwen/QwQ-32B": "qwen-apache",
    "hub:deepseek-ai/DeepSeek-R1": "deepseek-mit",
    "hub:deepseek-ai/DeepSeek-V3": "deepseek-license",
    "hub:deepseek-ai/DeepSeek-V3-0324": "deepseek-mit",
    "hub:deepseek-ai/DeepSeek-V3.1": "deepseek-mit",
    "hub:deepseek-ai/deepseek-coder-6.7b-instruct": "deepseek-license",
    "hub:deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "deepseek-mit",
    "hub:deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "llama-3.1",  # whatever its label says
    "hub:mistralai/Mistral-7B-Instruct-v0.3": "mistral-apache",
    "hub:mistralai/Mixtral-8x7B-v0.1": "mistral-apache",
    "hub:mistralai/Mistral-Large-Instruct-2411": "mistral-research",
    "hub:CohereForAI/c4ai-command-r-v01": "cohere-cc-by-nc",
    "hub:bigcode/starcoder2-3b": "bigcode-openrail-m",
    "hub:openai/gpt-oss-20b": "gpt-oss",
    "hub:xai-org/grok-2": "xai-community",  # weights: not the terms of the API
    "hub:xai-org/grok-1": "grok-1",
    "/models/grok-2": "xai-community",
    "api:https://openrouter.ai/api/v1#x-ai/grok-2": "xai-api",
    "api:http://127.0.0.1:8000/v1#grok-3-mini": "xai-api",
    "hub:moonshotai/Kimi-K2-Instruct-0905": "kimi",
    "hub:moonshotai/Kimi-K2.5": "kimi",
    "hub:moonshotai/Kimi-Linear-48B-A3B-Instruct": "kimi-mit",
    "hub:zai-org/GLM-4.5-Air": "glm",
    "hub:zai-org/GLM-4.6": "glm",
    "hub:zai-org/GLM-4.7-Flash": "glm",
    "hub:THUDM/GLM-4-9B-0414": "glm",
    "hub:THUDM/glm-4-9b-chat": "glm-license",
    "hub:THUDM/chatglm3-6b": "glm-license",
    "hub:MiniMaxAI/MiniMax-M2": "minimax-m2",
    "hub:MiniMaxAI/MiniMax-M2.5": "minimax-other",
    "hub:MiniMaxAI/MiniMax-Text-01": "minimax-other",
    "hub:microsoft/phi-4": "phi",
    "hub:microsoft/Phi-4-mini-instruct": "phi",
    "hub:microsoft/Phi-3.5-mini-instruct": "phi",
    "api:http://127.0.0.1:11434/v1#phi4:14b": "phi",
    "hub:someone/dolphin-2.9-great": "unknown",  # has "phi" inside
    "hub:allenai/OLMo-2-1124-7B-Instruct": "olmo",
    "hub:allenai/Olmo-3-7B-Think": "olmo",
    "hub:allenai/OLMoE-1B-7B-0924": "olmo",
    "hub:ibm-granite/granite-3.3-8b-instruct": "granite",
    "hub:ibm-granite/granite-4.0-h-small": "granite",
    "hub:mistralai/Codestral-22B-v0.1": "codestral",
    "hub:01-ai/Yi-1.5-9B-Chat": "yi",
    "hub:01-ai/Yi-34B": "yi",
    "hub:tiiuae/falcon-7b-instruct": "falcon-apache",
    "hub:tiiuae/falcon-11B": "falcon",
    "hub:tiiuae/Falcon3-7B-Instruct": "falcon",
    "hub:tiiuae/Falcon-H1-0.5B-Instruct": "falcon",
    "hub:tiiuae/falcon-mamba-7b": "falcon",
    "hub:tiiuae/falcon-180B": "falcon-180b",
    "hub:databricks/dbrx-instruct": "dbrx",
    "hub:bigscience/bloom-560m": "bloom",
    "hub:bigscience/bloomz-7b1": "bloom",
    "hub:bloomberg/bloomer": "unknown",
    "hub:NousResearch/Hermes-3-Llama-3.1-8B": "llama-3.1",
    "hub:NousResearch/Hermes-3-Llama-3.2-3B": "llama-3.2",
    "hub:NousResearch/Hermes-4-70B": "llama-3.1",
    "hub:NousResearch/Hermes-4-14B": "qwen-apache",
    "hub:NousResearch/Nous-Hermes-Llama2-13b": "llama-2",
    "hub:NousResearch/Hermes-2-Pro-Llama-3-8B": "llama-3",
    "api:http://127.0.0.1:11434/v1#hermes3:8b": "llama-3.1",
    "hub:nvidia/Llama-3_3-Nemotron-Super-49B-v1_5": "llama-3.3",
    "hub:nvidia/Llama-3_1-Nemotron-Ultra-253B-v1": "llama-3.1",
    "hub:nvidia/NVIDIA-Nemotron-Nano-9B-v2": "nvidia-open",
    "hub:nvidia/Nemotron-3-Nano-30B-A3B": "nvidia-open",
    "hub:nvidia/Nemotron-H-8B-Base-8K": "nvidia-research",
    "hub:nvidia/Cosmos-Reason1-7B": "nvidia-cosmos",
    "hub:someone/Llama-3-1B": "llama-3",  # a size, not the version
    "hub:someone/llama_3_2_1b_mine": "llama-3.2",
    "hub:HuggingFaceTB/SmolLM3-3B": "smollm",
    "hub:google/gemma-3n-E4B-it": "gemma",
    "hub:meta-llama/Llama-4-Maverick-17B-128E-Instruct": "llama-4",
    "hub:Qwen/Qwen3.5-9B": "qwen-apache",
    "hub:Qwen/Qwen3.6-35B-A3B": "qwen-apache",
    "api:https://dashscope.aliyuncs.com/compatible-mode/v1#qwen3.5-9b": "alibaba-api",
    "api:https://openrouter.ai/api/v1#qwen/qwen3-max": "alibaba-api",
    "api:https://api.moonshot.ai/v1#kimi-k2-0905-preview": "moonshot-api",
    "api:https://api.minimax.io/v1#MiniMax-M2": "minimax-api",
    "hub:openai/gpt-oss-safeguard-20b": "gpt-oss",
    "hub:LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct": "exaone",
    # services, by host
    "api:https://api.openai.com/v1#gpt-5": "openai",
    "api:https://api.openai.com/v1#anything": "openai",
    "api:https://API.OpenAI.com:443/v1#gpt-5": "openai",
    "api:https://eu.api.openai.com/v1#gpt-5": "openai",
    "api:https://api.openai.com./v1#anything": "openai",  # the same host, fully qualified
    "api:https://api.anthropic.com/v1#claude-opus-4": "anthropic",
    "api:https://generativelanguage.googleapis.com/v1beta/openai#gemini-2.5-pro": "gemini-api",
    "api:https://generativelanguage.googleapis.com/v1beta/openai#gemma-4-12b-it": "gemini-api",
    "api:https://api.mistral.ai/v1#mistral-small-latest": "mistral-api",
    "api:https://api.x.ai/v1#grok-4": "xai-api",
    "api:https://api.deepseek.com#deepseek-chat": "deepseek-api",
    "api:https://api.cohere.ai/compatibility/v1#command-a": "cohere-api",
    # other servers, by the model's name
    "api:https://openrouter.ai/api/v1#anthropic/claude-opus-4": "anthropic",
    "api:https://openrouter.ai/api/v1#openai/gpt-5": "openai",
    "api:https://openrouter.ai/api/v1#openai/o3": "openai",
    "api:https://openrouter.ai/api/v1#google/gemini-2.5-pro": "gemini-api",
    "api:https://openrouter.ai/api/v1#openai/gpt-oss-120b": "gpt-oss",
    "api:https://api.together.xyz/v1#meta-llama/Llama-3.1-8B": "llama-3.1",
    "api:http://127.0.0.1:8000/v1#meta-llama/Llama-3.1-8B": "llama-3.1",
    "api:http://127.0.0.1:11434/v1#llama3.2:1b": "llama-3.2",
    "api:http://localhost:8000/v1#gpt-4o": "openai",
    # unknown
    "api:http://127.0.0.1:8000/v1#my-model": "unknown",
    "api:https://openai.com.evil.example/v1#m": "unknown",
    "api:https://notapi.openai.com/v1#m": "unknown",
    "api:http://[::1#my-model": "unknown",
    "hub:someone/great-model": "unknown",
    "hub:openai-community/gpt2": "unknown",
    "hub:EleutherAI/gpt-j-6b": "unknown",
    "hub:TinyLlama/TinyLlama-1.1B": "unknown",
    # files, by their own name and not by their directories
    "/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf": "llama-3.1",
    "/home/llama-2-fan/models/mine": "unknown",
    "C:\\models\\gemma-3-4b": "gemma",
    "runs/quickstart/student/": "unknown",
    # keys and bare names
    "llama-2": "llama-2",
    "own": "own",
    "google/gemma-3-270m": "gemma",
}


@pytest.mark.parametrize(("reference", "key"), BY_REFERENCE.items())
def test_by_reference(reference, key):
    assert find_terms(reference).key == key


SMOLLM2_GGUF = {"general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2", "general.license": "apache-2.0"}

BY_METADATA = [
    (SMOLLM2_GGUF | {"general.architecture": "llama"}, "smollm"),
    ({"license": "apache-2.0", "model_type": "llama"}, "apache-2.0"),
    ({"license": "Apache 2.0"}, "apache-2.0"),
    ({"general.license": "MIT"}, "mit"),
    ({"license": "other", "license_name": "qwen-research"}, "qwen-research"),
    (
        {"license": "other", "license_name": "mrl", "license_link": "https://mistral.ai/licenses/MRL-0.1.md"},
        "mistral-research",
    ),
    ({"license": "other", "license_link": "https://mistral.ai/licenses/MRL-0.1.md"}, "mistral-research"),
    ({"license": "llama3.1", "name": "my-finetune"}, "llama-3.1"),
    ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
    ({"license": "other", "license_name": "modified-mit"}, "kimi"),
    ({"license": "other", "license_name": "databricks-open-model-license"}, "dbrx"),
    ({"license": "other", "license_name": "nvidia-open-model-license"}, "nvidia-open"),
    ({"license": "bigscience-bloom-rail-1.0"}, "bloom"),
    (
        {
            "license": "other",
            "license_name": "nvidia-open-model-license",
            "base_model": "meta-llama/Llama-3.3-70B",
        },
        "llama-3.3",
    ),
    ({"general.name": "Meta Llama 3.1 8B Instruct"}, "llama-3.1"),
    # a permissive label never overrides a strict origin
    ({"license": "mit", "name": "Llama-3.1-8B-mine"}, "llama-3.1"),
    ({"license": "apache-2.0", "base_model": "google/gemma-2-2b"}, "gemma"),
    ({"license": "apache-2.0", "base_model": "a/b meta-llama/Llama-2-7b-hf"}, "llama-2"),
    ({"license": "mit", "teacher_model": "api:https://api.openai.com/v1#gpt-4o"}, "openai"),
    # nor does a permissive name override an unknown licence
    ({"license": "acme-proprietary", "name": "SmolLM2-acme"}, "unknown"),
    # architectures of a single family
    ({"model_type": "gemma3_text"}, "gemma"),
    ({"general.architecture": "gemma3"}, "gemma"),
    ({"model_type": "llama4"}, "llama-4"),
    ({"model_type": "gemma3_text", "license": "mit"}, "mit"),
    # architectures of many families identify nothing
    ({"model_type": "llama"}, "unknown"),
    ({"model_type": "qwen3"}, "unknown"),
    ({"license": "other"}, "unknown"),
    ({"license": ""}, "unknown"),
    ({}, "unknown"),
]


@pytest.mark.parametrize(("metadata", "key"), BY_METADATA)
def test_by_what_the_files_say(metadata, key):
    assert find_terms("/models/mine", metadata=metadata).key == key


def test_the_embedded_model_is_known_by_its_own_header_too():
    assert find_terms("embedded:smollm2", metadata=SMOLLM2_GGUF).key == "smollm"


def test_the_metadata_of_the_embedded_model_is_enough():
    from stillhouse.models import describe

    metadata = describe("embedded:smollm2").metadata
    assert find_terms("some.gguf", metadata=metadata).key == "smollm"


def test_a_declared_key_wins_over_everything():
    assert find_terms("api:https://api.openai.com/v1#gpt-5", declared="agreement").key == "agreement"
    assert find_terms("/x/y", declared="own", metadata={"license": "gemma"}).key == "own"


def test_a_directory_is_not_taken_for_a_key():
    assert find_terms("own", metadata={"model_type": "llama"}).key == "unknown"


def test_a_wrong_declaration_names_the_nearest_right_one():
    with pytest.raises(RecipeError, match=r"lama-3\.1") as caught:
        find_terms("/x/y", declared="lama-3.1")
    assert caught.value.exit_status == 2
    assert "llama-3.1" in (caught.value.hint or "")
    with pytest.raises(RecipeError):
        find_terms("/x/y", declared="zzzzzzz")


@given(
    st.text(), st.dictionaries(st.sampled_from(["license", "name", "model_type", "general.name"]), st.text())
)
def test_any_text_finds_an_entry_of_the_table(reference, metadata):
    assert find_terms(reference, metadata=metadata) in all_terms()


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("hub:a/b@main", "a/b"),
        ("api:https://h/v1#a/b:free", "a/b:free"),
        ("embedded:smollm2", "smollm2"),
        ("/x/y.gguf", "y.gguf"),
        ("a/b", "a/b"),
        ("b", "b"),
    ],
)
def test_the_name_in_a_reference(reference, name):
    assert model_name(reference) == name
