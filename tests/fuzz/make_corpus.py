#!/usr/bin/env python3
"""Writes the seeds of every target to corpus/TARGET/seed-*: `tests/fuzz/make_corpus.py`.

Files beside them with other names were found by fuzzing and stay as they are.
"""
import json
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "clients/python/rollcast"))
import rollcast_pb2 as v1  # noqa: E402

CORPUS = ROOT / "tests/fuzz/corpus"
FIXTURES = ROOT / "tests/fixtures"


def write(target, name, content):
    if isinstance(content, str):
        content = content.encode()
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{name}").write_bytes(content)


# -- frames -----------------------------------------------------------------------------------


def kv_frame(kind, code=0, tokens=0, part=0, size=0, part_bytes=0):
    return (struct.pack("<IBBH", 0x32564B52, kind, code, 0)
            + struct.pack("<QQQIIQI", 7, 1, 42, tokens, part, size, part_bytes) + bytes(range(48)))


def weight_frame(kind, code=0, number=0):
    return (struct.pack("<IBBH", 0x31575752, kind, code, 0)
            + struct.pack("<QQII", 3, 9, number, 1 << 20) + bytes(range(16)))


def draft_frame(kind, group=5, body=b""):
    return struct.pack("<IIQQ", 0x31464452, kind, 0, group) + body


def draft_tokens(response, position, tokens):
    return draft_frame(3, body=struct.pack("<QIII", response, position, 100, len(tokens))
                       + struct.pack(f"<{len(tokens)}i", *tokens))


def draft_follow(*ends):
    return draft_frame(1, body=struct.pack("<I", len(ends))
                       + b"".join(struct.pack("<QII", *e) for e in ends))


def draft_want(response, position):
    return draft_frame(4, body=struct.pack("<QI", response, position))


def write_frames():
    for kind in range(1, 8):
        write("frames", f"kv-{kind}", kv_frame(kind, 0, 16, 2, 4096, 1024))
    for kind in range(1, 5):
        write("frames", f"weight-{kind}", weight_frame(kind, 0, 4))
    drafts = {"follow": draft_follow((1, 8, 8), (2, 0, 3)), "unfollow": draft_frame(2),
              "tokens": draft_tokens(1, 4, [5, 6, 7]), "want": draft_want(1, 2),
              "unknown": draft_frame(5)}
    for name, frame in drafts.items():
        write("frames", f"draft-{name}", frame)
    said = [(0, draft_follow((1, 0, 0))), (1, draft_follow((1, 0, 0), (2, 0, 4))),
            (0, draft_tokens(1, 0, [9, 8, 7])), (1, draft_tokens(2, 0, [9, 8])),
            (2, draft_want(1, 1)), (1, draft_tokens(1, 5, [1])), (0, draft_tokens(1, 1, [3, 3]))]
    steps = b"".join(struct.pack("<BBH", who, 3, len(f)) + f for who, f in said)
    write("draft_board", "relay", steps)
    write("draft_board", "leave", steps + struct.pack("<BBH", 0, 200, 24) + draft_frame(2)
          + struct.pack("<BBH", 255, 0, 0) + struct.pack("<BBH", 0xF0, 255, 0))


# -- envelopes --------------------------------------------------------------------------------


def envelope(body, request_id=1, **fields):
    message = v1.Envelope(version=1, request_id=request_id)
    part = getattr(message, body)
    part.SetInParent()
    part.MergeFrom(type(part)(**fields))
    return message.SerializeToString()


def write_requests():
    sampling = v1.Sampling(temperature=0.8, top_p=0.9, top_k=40, min_p=0.05, max_new_tokens=64,
                           min_new_tokens=2, ignore_eos=True)
    sampling.stop_token_ids.ids.extend([1, 2])
    groups = [v1.Group(id="a", prompt_token_ids=[50, 55], group_size=4),
              v1.Group(prompt_token_ids=[58], group_size=1, seed=7, sampling=v1.Sampling(top_k=3))]
    part = v1.TensorSlice(name="model.norm.weight", dtype="BF16", shape=[2, 4], offset=4,
                          data=b"12345678")
    text = v1.Sequence(token_ids=[1, 2, 3], prompt_tokens=1, temperature=0.5)
    requests = {
        "submit_batch": dict(batch_key="k", groups=groups, sampling=sampling, seed=3,
                             required_weight_version=1, policy="context", chunk_tokens=16,
                             echo_prompts=True, routed_experts_from=2),
        "cancel_batch": dict(batch_key="k"), "ack_results": dict(batch_key="k", sequence=5),
        "resume_results": dict(batch_key="k", after_sequence=2), "get_status": {},
        "score": dict(sequences=[text], weight_version=1),
        "begin_weights": dict(epoch=2, changed_only=True, flip=1),
        "weight_bucket": dict(epoch=2, bucket=1, slices=[part]),
        "commit_weights": dict(epoch=2, content_hash="0123456789abcdef" * 2, tensors=1),
        "abort_weights": dict(epoch=2), "load_weights": dict(directory="/models/x", flip=1),
        "rollback_weights": {}, "pause": {}, "resume": {}}
    for name, fields in requests.items():
        write("requests", name, envelope(name, **fields))


def write_events():
    worker = v1.WorkerStatus(worker=1, name="w", state="ready", pid=4, endpoint="tcp://h:1",
                             kv_blocks_total=8, busy_s=0.5, epoch=1)
    weights = v1.WeightsStatus(phase="idle", epoch=1,
                               workers=[v1.WorkerWeights(worker=1, bytes=9, prepared=True)])
    spans = [v1.WeightSpan(version=1, start=0, end=1), v1.WeightSpan(version=2, start=1, end=2)]
    summary = v1.Summary(responses=1, tokens=2, wall_s=0.5, numerics_profile="cpu-f32-v1",
                         workers=[v1.WorkerSummary(worker=1, name="w", tokens=2)])
    events = {
        "batch_accepted": dict(batch_key="k", responses=4, first_sequence=1), "ok": {},
        "status": dict(numerics_profile="cpu-f32-v1", weight_version=1, model="m",
                       workers=[worker], batches=[v1.BatchStatus(batch_key="k", responses=4)],
                       uptime_s=2.5, weights=weights),
        "error": dict(code="queue_full", message="too much", detail="more", batch_key="k"),
        "weights_begun": dict(epoch=2, bucket_bytes_max=1 << 25),
        "weights_served": dict(epoch=2, content_hash="0123456789abcdef" * 2, tensors=1, bytes=16,
                               phases=[v1.PhaseSeconds(phase="flipping", seconds=0.1)]),
        "scored": dict(rows=[v1.ScoredRow(logprobs=[-0.5, -1.25])], weight_version=1),
        "result": dict(batch_key="k", sequence=1, group=0, index=1, id="a", token_ids=[3, 4],
                       logprobs=[-0.5, -1.0], kept_mass=[1.0, 0.9], finish_reason=1,
                       weight_versions=spans, response_seed=77, numerics_profile="cpu-f32-v1",
                       routed_experts=v1.RoutedExperts(start=1, layers=2, per_token=3, id_bytes=1,
                                                       ids=bytes(range(12)))),
        "batch_done": dict(batch_key="k", sequence=2, summary=summary)}
    for name, fields in events.items():
        write("events", name, envelope(name, 0 if name in ("result", "batch_done") else 1,
                                       **fields))


# -- files ------------------------------------------------------------------------------------


def safetensors(header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_models():
    norm = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    head = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]}
    write("safetensors", "one", safetensors({"a": norm}, bytes(8)))
    write("safetensors", "two", safetensors({"__metadata__": {"format": "pt"}, "a": norm,
                                             "b": head}, bytes(20)))
    write("safetensors", "empty", safetensors({}, b""))
    write("safetensors", "gap", safetensors({"b": head}, bytes(20)))
    for family in ("qwen3", "qwen2", "llama", "mimo", "qwen3_moe", "glm4_moe", "deepseek_v3",
                   "moonlight", "kimi_k2"):
        config = json.loads((FIXTURES / "models" / family / "config.json").read_text())
        text = json.dumps(config, separators=(",", ":"))
        if family == "qwen2":
            text += "\0" + '{"eos_token_id":[199,198]}'
        write("model_config", family, text)
    write("model_config", "linear",
          json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64,
                      "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
                      "vocab_size": 200, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
                      "rope_theta": 10000, "layer_types": ["full_attention"],
                      "rope_scaling": {"rope_type": "linear", "factor": 2},
                      "torch_dtype": "torch.bfloat16", "sliding_window": None}))


def write_tokenizers():
    # Byte 1 stands for the 256 byte tokens (tokenizer_fuzz.cpp), which every file must have.
    for name in ("gpt2", "llama", "qwen", "strips", "collatz"):
        file = json.loads((FIXTURES / f"tokenizer/{name}.tokenizer.json").read_text())
        file["model"]["vocab"] = {"ab": 256, "abc": 257, "\u0120a": 258}
        file["model"]["merges"] = ["a b", ["ab", "c"], "\u0120 a"]
        for at, token in enumerate(file["added_tokens"][:4]):
            token["id"] = 259 + at
        file["added_tokens"] = file["added_tokens"][:4]
        if name == "llama":
            file["added_tokens"].append(dict(file["added_tokens"][0], id=270,
                                             content="<|begin_of_text|>"))
        text = json.dumps(file, separators=(",", ":"), ensure_ascii=False)
        write("tokenizer", name, text.replace('"vocab":{', '"vocab":{\x01,'))
    strings = json.loads((FIXTURES / "tokenizer/strings.json").read_text())
    texts = {"words": "The 27 dogs' caf\u00e9s, it's  two  spaces\r\n\ttabs",
             "special": "<|im_start|>user\n<think>x</think><|im_end|> <mask> a",
             "marks": "e\u0301\u0323 \u1100\u1161\u11a8 \u4f60\u597d \U0001f600 \u200d",
             "broken": b"a\xff\xc3( \xe4\xbd \xf0\x9f\x98 end\xc0\x80"}
    for name, text in texts.items():
        write("token_text", name, text)
    for at, entry in enumerate(strings[:200:10]):
        write("token_text", f"string-{at}", entry["text"][:400])


def write_lines():
    write("prompts", "texts",
          '{"prompt":"27:"}\n\n{"prompt":"a","id":"x","group_size":2,"seed":3}\n')
    write("prompts", "ids", '{"prompt_token_ids":[50,55],"id":7,"sampling":{"temperature":0.5,'
          '"top_p":0.9,"top_k":4,"min_p":0.1,"max_new_tokens":8,"min_new_tokens":1,'
          '"stop_token_ids":[1,2],"ignore_eos":true}}\r\n')
    write("prompts", "unknown", '{"prompt":"a","sampling":{"heat":1}}\n')
    write("prompts", "wrong", '{"prompt_token_ids":[-1]}\n{"prompt":3}\n[]\n')
    record = {"group": 0, "index": 1, "id": "a", "prompt_token_ids": [50], "token_ids": [3, 4],
              "logprobs": [-0.5, None], "kept_masses": [1, 0.75], "finish_reason": "stop",
              "weight_versions": [{"version": 1, "start": 0, "end": 2}],
              "seed": 12345678901234567890, "temperature": 0.8,
              "numerics_profile": "cpu-f32-v1", "text": "caf\u00e9\n"}
    bare = {"prompt_token_ids": [], "token_ids": [], "logprobs": []}
    line = json.dumps(record, separators=(",", ":"))
    experts = {"start": 1, "shape": [2, 1, 2], "dtype": "uint16", "ids": "AQACAAMABAA="}
    write("responses", "experts", json.dumps({**record, "routed_experts": experts}))
    write("responses", "whole", line + "\n" + json.dumps(bare) + "\n")
    write("responses", "bare", json.dumps(bare))
    write("responses", "negative", line.replace('"group":0', '"group":-1'))
    write("config_file", "flat", 'model = "/m"\nthreads = 3\nno-metrics = true\n# end\n')
    write("config_file", "sections", '[worker]\nname = "w 1"\nlisten = [1, "b"]\n[scheduler]\n'
          "listen='tcp://*:1'\n[worker.more]\nx=1\n")
    write("config_file", "odd", 'name="""a\nb"""\n[unknown]\nx = 0x1F ; y\n"quoted" = \'v\'\n')
    header = "group,index,prompt_tokens,output_tokens"
    write("trace", "plain", header + "\n0,0,5,100\n0,1,5,7\n1,0,3,9\n")
    write("trace", "odd", header + "\r\n7,1,1,1073741823\r\n\r\n7,0,1,1")
    write("trace", "twice", header + "\n0,0,5,1\n0,0,5,7\n")


# -- transfers --------------------------------------------------------------------------------


def tensor(name, kind, *shape):
    return bytes([len(name)]) + name + bytes([kind | len(shape) << 2]) + bytes(shape)


def write_transfers():
    tensors = tensor(b"a", 0, 4) + tensor(b"b", 1, 3, 5) + tensor(b"c", 2)
    good = b"".join(struct.pack("<BBH", 0, at, size)
                    for at, size in ((1, 8), (0, 8), (2, 8), (2, 8), (3, 8), (4, 8), (5, 6),
                                     (6, 2)))
    write("weight_manifest", "whole", struct.pack("<IB", 8, 3) + tensors + good)
    write("weight_manifest", "wrong", struct.pack("<IB", 8, 3) + tensors
          + struct.pack("<BBH", 2, 0, 8) + bytes(8) + good[4:] + good)
    write("weight_manifest", "huge", struct.pack("<IB", 64, 1) + b"\1a" + b"\x8a"
          + struct.pack("<QQ", 1 << 20, 1 << 18))
    # asks, then what the holder says: manifest of 4 tokens in parts of 64, its two parts
    manifest = bytes([2, 0, 4, 64, 0])
    write("kv_exchange", "whole", bytes([0]) + manifest + bytes([4, 0, 64]) + bytes([4, 1, 64]))
    write("kv_exchange", "wrong-part", bytes([0]) + manifest + bytes([4, 1, 64]))
    write("kv_exchange", "wrong-content", bytes([0]) + manifest
          + bytes([4 | 64, 0, 64]) + bytes(64) + bytes([4, 1, 64]))
    write("kv_exchange", "huge", bytes([0]) + bytes([2 | 16, 0, 4])
          + struct.pack("<QBB", 1 << 40, 64, 0))
    write("kv_exchange", "asks", bytes([3]) + bytes([1, 3]) + b"abc" + bytes([0, 0, 1, 7, 2, 0])
          + bytes([2, 0, 5, 9, 1, 1]) + bytes([6, 0]))


def write_journals():
    # number of row changes (+ 128: sums put right): column, row, how, value; then bytes of the file
    write("journal", "whole", b"")
    write("journal", "rows", bytes([3, 3, 0, 1, 200, 16, 1, 1, 4, 22, 0, 1, 2]))
    write("journal", "sums", bytes([0x82, 27, 1, 8]) + bytes(8) + bytes([28, 1, 8]) + bytes(8))
    write("journal", "delete", bytes([2, 23, 0, 255, 25, 2, 255]))
    write("journal", "texts", bytes([2, 10, 0, 3]) + b"new" + bytes([21, 0, 5]) + b"a\nb\0c")
    write("journal", "bytes", bytes([0]) + bytes([18, 0, 0, 2, 9, 9])
          + bytes([0, 16, 0, 3, 1, 2, 3]))
    # + 64: hashes of prompts put right; a blob with 128: bytes of it changed
    write("journal", "prompts", bytes([0x42, 25, 0, 0x80, 6, 0, 3, 25, 1, 0x81, 9, 0, 1, 20, 0, 2]))
    write("journal", "finished", bytes([4, 33, 0, 1, 2, 34, 1, 1, 1, 35, 2, 1, 0, 32, 0, 0xff]))
    write("journal", "times", bytes([3, 38, 0, 8]) + b"\xff" * 8 + bytes([39, 1, 1, 5, 37, 2, 0]))
    write("journal", "short", bytes([0, 100, 40, 0, 0]))


if __name__ == "__main__":
    write_frames()
    write_requests()
    write_events()
    write_models()
    write_tokenizers()
    write_lines()
    write_transfers()
    write_journals()
    print(f"{len(list(CORPUS.glob('*/seed-*')))} seeds below {CORPUS}")
