"""An API suspect against the real server of `still serve`, in this process, and against a failing one."""

import json

import pytest
from loopback import bound_server, running
from test_resample import delivered, write_log

from stillhouse.errors import ApiError, CorpusError
from stillhouse.models import ChatTemplate, Reply, Request, Sampling, load_weights
from stillhouse.serve.app import create_app
from stillhouse.serve.model_pool import ModelPool
from stillhouse.trace.delivered_log import read_log
from stillhouse.trace.detectors.exchangeable.judge import judge
from stillhouse.trace.detectors.exchangeable.observe import observe
from stillhouse.trace.plan import PlannedTests, TeacherPlan, TracePlan
from stillhouse.trace.resample import resample
from stillhouse.trace.run import run_trace
from stillhouse.trace.suspects.open import open_suspect


class Counted:
    """The application with counted requests; answers with ``status`` while it is set."""

    def __init__(self, app):
        self.app, self.paths, self.status, self.keys = app, [], None, set()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.paths.append(scope["path"])
            self.keys |= {value for name, value in scope["headers"] if name == b"authorization"}
            if self.status and not scope["path"].endswith("models"):
                body = json.dumps({"error": {"message": "no", "type": "x"}}).encode()
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": self.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def server(tiny_teacher):
    pool = ModelPool({"tiny": str(tiny_teacher)}, idle_s=0)
    counted = Counted(create_app(pool, queue_size=64, hosts={"127.0.0.1"}, api_key=None))
    runner, bound, address = bound_server(counted)
    with running(runner, bound):
        yield counted, f"api:{address}/v1#tiny"


@pytest.fixture(autouse=True)
def healthy(server):
    server[0].status = None
    server[0].paths.clear()
    server[0].keys.clear()


PROMPT = ({"role": "user", "content": "what does the still keep"},)
TEXTS = ["it keeps what matters", "it takes a large spirit apart"]


def test_its_log_probabilities_are_those_of_the_model_itself(server, tiny_teacher):
    suspect = open_suspect(server[1])
    assert suspect.can.logprobs and suspect.can.generate and not suspect.can.weights
    weights = load_weights(str(tiny_teacher))
    start = ChatTemplate.plain().render(list(PROMPT), add_generation_prompt=True)
    before = len(weights.tokenizer.encode(start))
    for text, scored in zip(TEXTS, suspect.loglik([PROMPT, PROMPT], TEXTS), strict=True):
        ids = weights.tokenizer(start + text, return_tensors="pt")["input_ids"]
        logp_TV = weights.model(ids).logits[0].float().log_softmax(-1)
        expected = [logp_TV[t - 1, ids[0, t]].item() for t in range(before, ids.shape[1])]
        assert scored.tokens == len(expected)
        assert scored.token_logps.tolist() == pytest.approx(expected, abs=0.15)  # bfloat16 on the server
    [alone] = suspect.loglik([()], [TEXTS[0]])
    assert alone.tokens == len(weights.tokenizer.encode(TEXTS[0])) - 1, "the first token follows nothing"
    suspect.close()


def test_a_whole_case_over_the_api(server, tiny_teacher, tmp_path):
    log = read_log(write_log(tmp_path / "log.jsonl", delivered(tiny_teacher, 8, max_tokens=40)))
    resamples = resample(str(tiny_teacher), log, 2, 1, tmp_path / "r.parquet")
    suspect = open_suspect(server[1], journal=tmp_path / "answers.jsonl")
    finding = judge(observe(suspect, log, resamples, scores=["loglik", "overlap"]), {"score": "overlap"})
    assert finding.n > 0 and finding.p_value > 0.001
    suspect.close()


def test_what_was_answered_is_not_asked_again(server, tmp_path):
    counted, reference = server
    journal = tmp_path / "answers.jsonl"
    first = open_suspect(reference, journal=journal)
    scored = first.loglik([PROMPT, PROMPT], TEXTS)
    said = first.continuations([PROMPT], ["it keeps"], [4])
    used = first.tokens
    first.close()
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')  # killed in the middle of a line
    counted.paths.clear()
    second = open_suspect(reference, journal=journal)
    again = second.loglik([PROMPT, PROMPT], TEXTS)
    assert [one.loglik for one in again] == [one.loglik for one in scored]
    assert second.continuations([PROMPT], ["it keeps"], [4]) == said and said[0] is not None
    assert len(counted.paths) == 1, "only the question what it can do"
    assert second.tokens == used > 0
    second.loglik([PROMPT], ["another text that is new"])
    assert len(counted.paths) == 2
    second.close()
    with pytest.raises(CorpusError, match="another model"):
        open_suspect(reference.replace("#tiny", "#other"), journal=journal)


def test_a_budget_ends_between_outputs(server, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("stillhouse.trace.detectors.exchangeable.observe.SMALL_CHUNK", 2)
    log = read_log(write_log(tmp_path / "log.jsonl", delivered(tiny_teacher, 10, max_tokens=40)))
    resamples = resample(str(tiny_teacher), log, 2, 1, tmp_path / "r.parquet")
    suspect = open_suspect(server[1], max_tokens=2000)
    transcript = observe(suspect, log, resamples)
    rows = transcript.to_pylist()
    assert 0 < len(rows) < 3 * len(log.rows) and len(rows) % 6 == 0
    assert suspect.tokens <= 2000 * 1.25
    assert judge(transcript, {}).n <= len(rows) / 3
    suspect.close()


def test_a_server_that_breaks_down_stops_the_asking_and_keeps_what_there_is(server, tmp_path, monkeypatch):
    monkeypatch.setattr("stillhouse.trace.suspects.api.RETRIES", 0)
    counted, reference = server
    journal = tmp_path / "answers.jsonl"
    suspect = open_suspect(reference, journal=journal)
    suspect.loglik([PROMPT], TEXTS[:1])
    counted.status = 500
    with pytest.raises(ApiError, match="one after another"):
        suspect.loglik([PROMPT] * 40, [f"text number {n} of many" for n in range(40)])
    suspect.close()
    counted.status = None
    counted.paths.clear()
    suspect = open_suspect(reference, journal=journal)
    assert suspect.loglik([PROMPT], TEXTS[:1])[0] is not None
    assert len(counted.paths) == 1
    suspect.close()


def test_an_api_without_echo_can_only_continue(server):
    counted, reference = server
    counted.status = 400
    suspect = open_suspect(reference)
    assert suspect.can.generate and not suspect.can.logprobs
    suspect.close()
    counted.status = 404
    suspect = open_suspect(reference)
    assert not suspect.can.logprobs and not suspect.completes
    counted.status = None
    counted.paths.clear()
    [said] = suspect.continuations([PROMPT], ["it keeps"], [4])
    assert isinstance(said, str) and counted.paths == ["/v1/chat/completions"]
    suspect.close()


def test_a_plan_has_a_budget_and_the_name_of_a_key(server, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("stillhouse.trace.detectors.exchangeable.observe.SMALL_CHUNK", 2)
    monkeypatch.setenv("RIVAL_KEY", "sesame")
    counted, reference = server
    log = write_log(tmp_path / "log.jsonl", delivered(tiny_teacher, 10, max_tokens=40))
    ours = TeacherPlan(name="ours", model=str(tiny_teacher), log=str(log))
    tests = PlannedTests(radioactivity=None, canaries=None, style=None, identity=None, weights=None)

    def asked(name, **keys):
        plan = TracePlan(suspect=reference, teachers=(ours,), tests=tests, api_key_env="RIVAL_KEY", **keys)
        (teacher,) = run_trace(plan, tmp_path / name).teachers
        return teacher.tests[0].finding.n

    whole, part = asked("whole"), asked("part", budget=2000)
    assert whole == len(read_log(log).rows) and 0 < part < whole
    assert counted.keys == {b"Bearer sesame"}


def requests(count):
    sampling = Sampling(max_tokens=8, seed=1)
    return [Request(str(n), [{"role": "user", "content": f"what is {n}"}], sampling) for n in range(count)]


def test_answers_are_kept_like_everything_else(server, tmp_path):
    counted, reference = server
    first = open_suspect(reference, journal=tmp_path / "answers.jsonl")
    said, used = [reply.text for reply in first.generate(requests(5))], first.tokens
    first.close()
    counted.paths.clear()
    second = open_suspect(reference, journal=tmp_path / "answers.jsonl")
    again = second.generate(requests(6))
    assert [reply.text for reply in again[:5]] == said and second.tokens > used > 0
    assert counted.paths.count("/v1/chat/completions") == 1
    second.close()


def test_answers_end_with_the_budget_and_say_so(server, capsys):
    suspect = open_suspect(server[1], max_tokens=150)
    replies = suspect.generate(requests(40))
    kept = [reply for reply in replies if isinstance(reply, Reply)]
    assert 0 < len(kept) < 40 and suspect.tokens <= 150 * 1.25
    assert all("budget of 150 tokens" in str(reply) for reply in replies if not isinstance(reply, Reply))
    assert capsys.readouterr().err.count("budget of 150 tokens") == 1
    assert suspect.loglik([PROMPT], ["long enough to be more than what is left of it " * 9]) == [None]
    suspect.close()
