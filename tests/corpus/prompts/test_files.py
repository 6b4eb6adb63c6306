"""Files as people have them: compressed, in directories, with another delimiter, in another encoding."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.corpus import load_prompts, read_prompts
from stillhouse.errors import CorpusError

TEXTS = ["First, with a comma", 'Second; "quoted"', "Drittens: ä 中"]
LINES = "".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS)


def texts(source):
    return [prompt.messages[0]["content"] for prompt in load_prompts(str(source))]


def zstandard(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)],
)
def test_compressed_text(tmp_path, suffix, compress):
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes(compress(LINES.encode()))
    assert texts(path) == TEXTS
    half = len(path.read_bytes()) // 2
    path.write_bytes(path.read_bytes()[:half])
    with pytest.raises(CorpusError, match=rf"p\.jsonl\{suffix}"):
        load_prompts(str(path))


def test_a_large_zst_file_of_several_frames(tmp_path):
    lines = [json.dumps({"prompt": f"{n} {'x' * 500}"}) + "\n" for n in range(2000)]
    frames = [zstandard("".join(lines[start : start + 500]).encode()) for start in range(0, 2000, 500)]
    (tmp_path / "p.jsonl.zst").write_bytes(b"".join(frames))
    assert [int(text.split()[0]) for text in texts(tmp_path / "p.jsonl.zst")] == list(range(2000))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_with_any_usual_delimiter_and_encoding(tmp_path, delimiter, encoding):
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    lines = [f"id{delimiter}prompt", *(f"{n}{delimiter}{text}" for n, text in enumerate(quoted))]
    (tmp_path / "p.csv").write_bytes("\r\n".join(lines).encode(encoding))
    assert texts(tmp_path / "p.csv") == TEXTS


def test_tsv_and_ndjson(tmp_path):
    (tmp_path / "p.tsv").write_text("id\tprompt\n1\tone, two; three\n")
    (tmp_path / "p.ndjson").write_text(LINES)
    assert texts(tmp_path / "p.tsv") == ["one, two; three"]
    assert texts(tmp_path / "p.ndjson") == TEXTS


def test_windows_1252_says_what_to_do(tmp_path):
    (tmp_path / "p.csv").write_bytes("prompt\nKäse\n".encode("cp1252"))
    with pytest.raises(CorpusError, match=r"not UTF-8 text: .*0xe4") as caught:
        load_prompts(str(tmp_path / "p.csv"))
    assert "iconv -f WINDOWS-1252" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files(tmp_path, kind):
    table = pa.table({"prompt": TEXTS, "when": pa.array([2**62] * 3, pa.timestamp("ms"))})
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(tmp_path / "p.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert texts(tmp_path / "p.arrow") == TEXTS
    (tmp_path / "bad.arrow").write_bytes(b"ARROW1 or not")
    with pytest.raises(CorpusError, match=r"bad\.arrow is not readable as Arrow"):
        load_prompts(str(tmp_path / "bad.arrow"))


def saved(directory, *shards):
    """A directory as `datasets.save_to_disk` writes it."""
    directory.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(shards):05d}.arrow" for n in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        table = pa.table({"prompt": shard})
        with pa.ipc.new_stream(str(directory / name), table.schema) as writer:
            writer.write_table(table)
    (directory / "dataset_info.json").write_text("{}")
    (directory / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


def test_directories_of_save_to_disk(tmp_path):
    saved(tmp_path / "one", TEXTS[:2], TEXTS[2:])
    assert texts(tmp_path / "one") == TEXTS
    saved(tmp_path / "dict" / "train", TEXTS)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert texts(tmp_path / "dict") == TEXTS
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(CorpusError, match="several splits: train, test"):
        load_prompts(str(tmp_path / "dict"))


def test_directories_patterns_and_lists_of_files(tmp_path):
    for number, text in enumerate(TEXTS):
        (tmp_path / f"part-{number}.jsonl").write_text(json.dumps({"prompt": text}))
    (tmp_path / "README.md").write_text("# no data")
    assert texts(tmp_path) == TEXTS
    assert texts(tmp_path / "*.jsonl") == TEXTS
    assert texts(f"{tmp_path}/part-2.jsonl, part-0.jsonl") == [TEXTS[2], TEXTS[0]]
    assert read_prompts(str(tmp_path)).files == 3
    with pytest.raises(CorpusError, match="no file matches"):
        load_prompts(str(tmp_path / "*.parquet"))
    (tmp_path / "LICENSE.txt").write_text("MIT")
    with pytest.raises(CorpusError, match=r"several kinds: 3 \.jsonl, 1 \.txt") as caught:
        load_prompts(str(tmp_path))
    assert "/*.jsonl" in (caught.value.hint or "")


def test_a_directory_with_two_splits_is_not_mixed(tmp_path):
    for split in ("train", "test"):
        pq.write_table(pa.table({"prompt": [split]}), tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(CorpusError, match="several splits: test, train"):
        load_prompts(str(tmp_path))
    assert texts(tmp_path / "train*") == ["train"]


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_key_that_occurs_twice_rejects_its_record_alone(tmp_path, name):
    records = ['{"prompt": "a", "prompt": "b"}', '{"prompt": "c", "prompt": "c"}', '{"prompt": "d"}']
    text = "\n".join(records) if name == "p.jsonl" else f"[{', '.join(records)}]"
    (tmp_path / name).write_text(text)
    prompt_set = read_prompts(str(tmp_path / name), tolerated=0.5)
    assert [prompt.messages[0]["content"] for prompt in prompt_set.prompts] == ["c", "d"]
    assert "'prompt' occurs twice" in prompt_set.rejected[0].detail
