"""Valid and invalid requests generated from the served OpenAPI document: none causes an internal error."""

import collections
import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from running_server import RunningServer

pytest.importorskip("schemathesis")

import schemathesis
from schemathesis.generation import GenerationMode

pytestmark = pytest.mark.slow

EXAMPLES = 30
"""Of each operation, valid and invalid each."""


@pytest.fixture(scope="module")
def server(tiny_teacher):
    running = RunningServer(f"tiny={tiny_teacher}")
    yield running
    running.client.close()
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "internal error" not in log, log


def described(server):
    """The document, restricted to an existing model and short answers, so that requests reach the model."""
    document = server.get("/openapi.json")
    for schema in document["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in fields:
            fields["model"] = {"type": "string", "enum": ["tiny"]}
        if "n" in fields:
            fields["n"] = {"type": "integer", "minimum": 1, "maximum": 3}
        for limit in {"max_tokens", "max_completion_tokens", "max_output_tokens"} & set(fields):
            fields[limit] = {"type": "integer", "minimum": 1, "maximum": 4}
            schema["required"] = [*schema["required"], limit]
        if "options" in fields:
            fields["options"] = {"const": {"num_predict": 4}}
            schema["required"] = [*schema["required"], "options"]
    return schemathesis.openapi.from_dict(document)


def test_the_document_lists_what_is_served(server):
    paths = server.get("/openapi.json")["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= set(paths)
    assert json.loads(json.dumps(paths)) == paths


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_no_request_causes_an_internal_error(server, mode):
    operations = [result.ok() for result in described(server).get_all_operations()]
    assert len(operations) == 17
    statuses = collections.Counter()
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method.upper() == "GET":
            continue  # it has no input that could be invalid

        @settings(
            max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def sound(case):
            reply = case.call(base_url=server.address, timeout=60)
            statuses[reply.status_code] += 1
            assert reply.status_code < 500, (case.as_curl_command(), reply.text)
            assert reply.status_code in (200, 400, 404, 405, 413, 415), reply.text

        sound()
    assert sum(statuses.values()) >= EXAMPLES
    assert statuses[200 if mode is GenerationMode.POSITIVE else 400] > 10
    assert server.idle()
