import json
import shutil
import sys
import threading
from datetime import UTC, datetime

import pytest

torch = pytest.importorskip("torch", reason="local models need the extra [train]")
transformers = pytest.importorskip("transformers", reason="local models need the extra [train]")

from memory_r1 import extract, manage  # noqa: E402
from memory_r1.data.words import pool  # noqa: E402
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable  # noqa: E402
from memory_r1.llm import LLM, Agents, Streams  # noqa: E402
from memory_r1.llm.local import LocalLLM, use_threads  # noqa: E402
from memory_r1.llm.sampler import Sample  # noqa: E402
from memory_r1.llm.usage import Tally, usage_of  # noqa: E402
from memory_r1.train import tokenizer as tiny_tokenizer  # noqa: E402
from memory_r1.types import Entry, Owner, Prompt  # noqa: E402

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)


def write_model(folder, style="compact", positions=1024):
    folder.mkdir()
    words = tiny_tokenizer.build()
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=True,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    if style:
        (folder / "memory_r1.json").write_text(json.dumps({"style": style}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "little")


@pytest.fixture
def edited(folder, tmp_path):
    """A copy of the model's folder, to be damaged."""
    return shutil.copytree(folder, tmp_path / "edited")


@pytest.fixture(scope="module")
def llm(folder):
    return LocalLLM(folder)


def says(text, role="user"):
    return Prompt(((role, text),))


def test_it_is_an_llm_and_its_folder_says_the_style(llm):
    assert isinstance(llm, LLM)
    assert (llm.name, llm.style) == ("little", "compact")


def test_a_reply_is_what_generate_writes(folder):
    llm = LocalLLM(folder)
    prompts = [says("fact Ida's dog is Rex =>"), says("question Where does Ida live? =>")]
    for prompt, got in zip(prompts, llm.complete(prompts, max_tokens=30), strict=True):
        ids = llm.tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        whole = llm.model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
        assert got.text == llm.tokenizer.decode(whole, skip_special_tokens=True)
        assert (got.prompt_tokens, got.completion_tokens) == (ids.shape[1], len(whole))
        assert got.finished == (whole[-1] == llm.tokenizer.eos_token_id)


def test_our_tokenizer_survives_its_folder(llm):
    """AutoTokenizer makes a Qwen2Tokenizer of it, by the model's type, and every name breaks."""
    built = tiny_tokenizer.build()
    people = [name for words in ("train", "unseen") for name in pool("person", words)]
    names = people + [f"{name} => <s{i % 64}>" for i, name in enumerate(people)]
    assert len(names) >= 300
    for name in names:
        ids = llm.encode(says(name))
        assert ids == built(name)["input_ids"]
        assert llm.decode(ids) == name
    broken = transformers.AutoTokenizer.from_pretrained(llm.path)
    assert broken(names[0])["input_ids"] != llm.encode(says(names[0]))


def test_decoding_stops_at_the_end_token(llm):
    (end,) = llm.end_ids
    ids = llm.encode(says("Ida has a dog"))
    assert llm.decode([*ids, end, *ids]) == "Ida has a dog"
    assert llm.decode([end]) == llm.decode([]) == ""


def test_equal_greedy_prompts_are_computed_once(folder):
    llm = LocalLLM(folder)
    prompt, other = says("Ida has a dog"), says("Ida has a cat")
    one, two = llm.complete([prompt, prompt], max_tokens=5)
    assert one == two and llm.cache_hits == 1
    again = llm.complete([prompt, other], max_tokens=5)
    assert again[0] == one and llm.cache_hits == 2
    llm.complete([prompt], max_tokens=4)
    assert llm.cache_hits == 2
    llm.complete([prompt, prompt], max_tokens=5, temperature=1.0)
    assert llm.cache_hits == 2


def test_changed_weights_are_heard_once_the_replies_are_forgotten(folder):
    llm = LocalLLM(folder).copy()
    prompt = says("Ida has a dog")
    (before,) = llm.complete([prompt], max_tokens=8)
    with torch.no_grad():
        for parameter in llm.model.parameters():
            parameter.mul_(-1)
    assert llm.complete([prompt], max_tokens=8) == [before]
    llm.forget_replies()
    assert llm.complete([prompt], max_tokens=8) != [before]


def test_sampled_replies_differ_from_call_to_call_and_repeat_with_the_seed(folder):
    def talk(seed):
        llm = LocalLLM(folder, seed=seed)
        calls = (llm.complete([says("Ida")] * 2, max_tokens=12, temperature=1.0) for _ in "12")
        return [reply.text for call in calls for reply in call]

    assert len(set(talk(1))) == 4
    assert talk(1) == talk(1) != talk(2)


def test_a_rambling_compact_model_is_stopped(folder):
    llm = LocalLLM(folder)
    llm.end_ids = frozenset()
    (reply,) = llm.complete([says("Ida has a dog")], max_tokens=500)
    assert reply.completion_tokens == 160 and not reply.finished


def test_a_prompt_that_does_not_fit_is_refused_with_its_size(tmp_path):
    llm = LocalLLM(write_model(tmp_path / "short", positions=64))
    assert llm.complete([says("a " * 56)], max_tokens=8)[0].prompt_tokens == 56
    with pytest.raises(ModelUnavailable, match="57 tokens and a reply of up to 8 .* 64 tokens"):
        llm.complete([says("a " * 57)], max_tokens=8)


def test_half_a_surrogate_pair_is_a_prompt_too(llm):
    assert llm.complete([says("Ida \ud800 has")], max_tokens=3)[0].prompt_tokens


def test_an_instruct_model_sees_its_chat_template(edited):
    (edited / "memory_r1.json").unlink()
    llm = LocalLLM(edited)
    assert llm.style == "instruct"
    talk = Prompt((("system", "Be brief"), ("user", "Hi"), ("assistant", "Yes"), ("user", "On")))
    plain = llm.tokenizer("Be brief\n\nHi\n\nYes\n\nOn")["input_ids"]
    assert llm.encode(talk) == plain
    llm.tokenizer.chat_template = TEMPLATE
    shown = "[system]Be brief[/][user]Hi[/][assistant]Yes[/][user]On[/][assistant]"
    assert llm.encode(talk) == llm.tokenizer(shown)["input_ids"]
    llm.tokenizer.chat_template = NO_SYSTEM + TEMPLATE
    shown = "[user]Be brief\n\nHi[/][assistant]Yes[/][user]On[/][assistant]"
    assert llm.encode(talk) == llm.tokenizer(shown)["input_ids"]


def test_the_style_can_be_said(folder):
    assert LocalLLM(folder, style="instruct", name="mine").style == "instruct"
    assert LocalLLM("someone/some-model").style == "instruct"
    assert LocalLLM("someone/some-model").name == "someone/some-model"


def test_a_copy_has_its_own_weights_and_is_read_back_as_saved(folder, tmp_path):
    llm = LocalLLM(folder)
    prompt = says("Ida has a dog")
    before = llm.complete([prompt], max_tokens=8)
    trained = llm.copy()
    with torch.no_grad():
        trained.model.model.norm.weight.mul_(-1)
    after = trained.complete([prompt], max_tokens=8)
    llm.forget_replies()
    assert llm.complete([prompt], max_tokens=8) == before != after
    trained.save(tmp_path / "saved")
    again = LocalLLM(tmp_path / "saved")
    assert again.style == "compact" and again.complete([prompt], max_tokens=8) == after


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_an_adapter_is_loaded_on_its_base(folder, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need the extra [train]")
    base = LocalLLM(folder)
    prompt = says("Ida has a dog")
    plain = base.complete([prompt], max_tokens=8)
    wrapped = peft.get_peft_model(base.copy().model, peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=3.0)
    wrapped.save_pretrained(tmp_path / "adapter")
    adapted = LocalLLM(tmp_path / "adapter")
    assert (adapted.name, adapted.style) == ("adapter", "compact")
    (reply,) = adapted.complete([prompt], max_tokens=8)
    ids = torch.tensor([adapted.encode(prompt)])
    whole = wrapped.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert reply.text == adapted.decode(whole[0, ids.shape[1] :].tolist())
    assert [reply] != plain


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        (["config.json"], r"expected config\.json"),
        (["model.safetensors"], "expected weights"),
        (["tokenizer.json", "tokenizer_config.json"], "expected a tokenizer"),
    ],
)
def test_a_folder_with_something_missing_is_refused_at_once(edited, removed, expected):
    for name in removed:
        (edited / name).unlink()
    with pytest.raises(ModelUnavailable, match=expected):
        LocalLLM(edited)


def test_a_missing_folder_is_refused_at_once(tmp_path):
    with pytest.raises(ModelUnavailable, match="there is none"):
        LocalLLM(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "[]", '{"style": "loud"}', "{}"])
def test_an_unusable_style_file_is_refused_at_once(edited, text):
    (edited / "memory_r1.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"memory_r1\.json"):
        LocalLLM(edited)


@pytest.mark.parametrize("text", ["{}", '{"base_model_name_or_path": 3}', "["])
def test_an_adapter_without_its_base_is_refused_at_once(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"adapter_config\.json"):
        LocalLLM(tmp_path)


@pytest.mark.parametrize("damaged", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_a_model_that_is_not_there(edited, damaged):
    (edited / damaged).write_text("{nonsense")
    with pytest.raises(ModelUnavailable, match="can't be loaded"):
        LocalLLM(edited).complete([says("Ida")])


def test_missing_weights_are_not_made_up(edited):
    from safetensors.torch import load_file, save_file

    weights = load_file(edited / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, edited / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"missing, such as model\.norm\.weight"):
        LocalLLM(edited).complete([says("Ida")])


def test_an_id_without_a_network_is_a_model_that_is_not_there(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="no-one/nothing"):
        LocalLLM("no-one/nothing").complete([says("Ida")])


@pytest.mark.parametrize("package", ["torch", "transformers", "llguidance"])
def test_without_what_it_needs_the_extra_is_named(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"memory-r1\[train\]"):
        LocalLLM(folder)


def test_threads_of_a_server_take_turns(folder):
    llm = LocalLLM(folder)
    expected = LocalLLM(folder).complete([says(f"Ida has {n} dogs") for n in range(8)])
    got = {}

    def ask(n):
        (got[n],) = llm.complete([says(f"Ida has {n} dogs")])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(8)] == expected


def test_models_that_are_loaded_by_several_threads_are_whole(folder):
    """transformers alone says of some of them that weights are missing."""
    expected = LocalLLM(folder).complete([says("Ida has a dog")], max_tokens=5)
    got, models = [], [LocalLLM(folder) for _ in range(6)]
    ask = [
        threading.Thread(
            target=lambda llm=llm: got.append(llm.complete([says("Ida has a dog")], max_tokens=5))
        )
        for llm in models
    ]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert got == [expected] * 6


def test_threads_are_set_on_purpose_only(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("MEMORY_R1_THREADS", raising=False)
    try:
        assert use_threads() == before
        assert use_threads(1) == torch.get_num_threads() == 1
        monkeypatch.setenv("MEMORY_R1_THREADS", "2")
        assert use_threads() == 2
        for wrong in ("0", "many", "-1"):
            monkeypatch.setenv("MEMORY_R1_THREADS", wrong)
            with pytest.raises(ConfigError, match="MEMORY_R1_THREADS"):
                use_threads()
    finally:
        torch.set_num_threads(before)


LETTERS = 'abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ äé狗 0123456789 {}[]",: ADD UPDATE'


def write_chat_model(folder, seed=0, kind="byte-level", extra=5):
    """An instruct model of random weights; it knows some tokens more than its tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = Tokenizer(models.BPE(unk_token=None, byte_fallback=kind == "byte-fallback"))
    alphabet = []
    if kind == "byte-level":
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "byte-fallback":  # as Llama 2 has it
        words.normalizer = normalizers.Replace(" ", "▁")
        words.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    elif kind == "without spaces":  # llguidance reads it, and reads its spaces wrong
        words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        words.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        words.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["</s>", "<|end|>", *(alphabet if kind == "byte-fallback" else ())],
        initial_alphabet=alphabet if kind == "byte-level" else [],
        show_progress=False,
    )
    words.train_from_iterator([LETTERS, '{"operations": [{"op": "NOOP"}]}'] * 3, trainer)
    if kind == "byte-fallback":  # to be written as bytes, they must not be special
        plain = json.loads(words.to_str())
        plain["added_tokens"] = [t for t in plain["added_tokens"] if "0x" not in t["content"]]
        words = Tokenizer.from_str(json.dumps(plain))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + extra,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=[0, 1],
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("seed", range(8))
def test_a_reply_can_be_read_while_it_is_written(tmp_path, seed):
    llm = LocalLLM(write_chat_model(tmp_path / "chat", seed))
    assert isinstance(llm, Streams)
    pieces = []
    told = llm.stream(says("Ida has a dog"), pieces.append, max_tokens=60)
    assert "".join(pieces) == told.text and all(pieces) and len(pieces) > 1
    assert [told] == llm.complete([says("Ida has a dog")], max_tokens=60)
    assert usage_of(Agents(answer=llm)).calls == 2


def test_a_letter_of_several_tokens_is_told_when_it_is_whole(tmp_path, monkeypatch):
    llm = LocalLLM(write_chat_model(tmp_path / "chat"))
    ids, shown = llm.tokenizer("é 🐕!")["input_ids"], []
    sample = Sample(tuple(ids), (0.0,) * len(ids), True)

    def write(*args, watch, **kwargs):
        for end in range(1, len(ids) + 1):
            watch(ids[:end])
        return [[sample]]

    monkeypatch.setattr("memory_r1.llm.sampler.sample", write)
    assert llm.stream(says("Hi"), shown.append).text == "é 🐕!"
    assert shown == ["é", " ", "🐕", "!"]


def bounded(schema):
    """The same schema with an end to every text and list, so that random weights get there."""
    match schema:
        case {"type": "string", **rest} if "enum" not in rest:
            return {**schema, "maxLength": 12}
        case {"type": "array"}:
            return {**schema, "items": bounded(schema["items"]), "minItems": 1, "maxItems": 4}
        case {"properties": properties}:
            inner = {name: bounded(form) for name, form in properties.items()}
            return {**schema, "properties": inner}
        case {"anyOf": forms}:
            return {"anyOf": [bounded(form) for form in forms]}
    return schema


def obeys(value, schema):
    """Whether a value follows a schema of the few kinds that are used here."""
    match schema:
        case {"enum": allowed}:
            return value in allowed and not isinstance(value, bool)
        case {"anyOf": forms}:
            return any(obeys(value, form) for form in forms)
        case {"type": "string"}:
            return isinstance(value, str) and len(value) <= 12
        case {"type": "array", "items": items}:
            return isinstance(value, list) and all(obeys(item, items) for item in value)
    return value.keys() == schema["properties"].keys() and all(
        obeys(value[name], form) for name, form in schema["properties"].items()
    )


def entries(number):
    moment = datetime(2023, 5, 8, tzinfo=UTC)
    return [Entry(str(n), f"Ida has {n} dogs", Owner("ida"), moment) for n in range(number)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_an_instruct_model_follows_the_schema_whatever_its_weights(tmp_path, seed, kind):
    llm = LocalLLM(write_chat_model(tmp_path / "chat", seed, kind), seed=seed)
    assert llm.obeys_schemas
    texts = set()
    for schema in (bounded(manage.schema(entries(11))), bounded(extract.SCHEMA)):
        prompts = [says(f"Ida has {n} dogs" * n) for n in range(1, 9)]
        for temperature in (0.0, 1.0, 50.0):
            for reply in llm.complete(
                prompts, max_tokens=2000, temperature=temperature, schema=schema
            ):
                assert reply.finished
                assert obeys(json.loads(reply.text), schema), reply.text
                texts.add(reply.text)
    assert len(texts) > 10


def test_what_a_constrained_model_says_is_an_operation(tmp_path):
    shown = entries(3)
    schema = bounded(manage.schema(shown))
    schema["properties"]["operations"]["maxItems"] = 1  # each memory is changed at most once
    llm = LocalLLM(write_chat_model(tmp_path / "chat"))
    replies = llm.complete([says("Hi")] * 20, max_tokens=500, temperature=3.0, schema=schema)
    read = [json.loads(reply.text)["operations"][0] for reply in replies]
    assert len({op["op"] for op in read}) > 1
    for reply, op in zip(replies, read, strict=True):
        if op.get("text", "x").strip():
            assert len(manage.parse(reply.text, shown, "instruct")) == 1


@pytest.mark.parametrize("kind", ["of somebody's own", "without spaces"])
def test_a_tokenizer_of_an_unknown_kind_leaves_the_schema_to_the_parsers(tmp_path, kind):
    llm = LocalLLM(write_chat_model(tmp_path / "chat", kind=kind))
    assert not llm.obeys_schemas
    replies = [llm.complete([says("Hi")], max_tokens=9, schema=s) for s in (extract.SCHEMA, None)]
    assert replies[0] == replies[1]


def test_a_reply_that_is_cut_off_is_the_beginning_of_one_and_says_so(tmp_path):
    llm = LocalLLM(write_chat_model(tmp_path / "chat"))
    (reply,) = llm.complete([says("Hi")], max_tokens=30, schema=extract.SCHEMA)
    assert not reply.finished and reply.text.startswith('{"facts": [')
    with pytest.raises(ValueError):
        json.loads(reply.text)


def test_without_a_schema_and_with_another_the_reply_is_computed_anew(tmp_path):
    llm = LocalLLM(write_chat_model(tmp_path / "chat"))
    one, two = ({"type": "string", "enum": [word]} for word in ("yes", "no"))
    texts = [llm.complete([says("Hi")], max_tokens=9, schema=s)[0].text for s in (one, two, None)]
    assert texts[:2] == ['"yes"', '"no"'] and texts[2] not in texts[:2]
    assert llm.cache_hits == 0
    llm.complete([says("Hi")], max_tokens=9, schema=dict(one))
    assert llm.cache_hits == 1


def test_a_schema_that_cannot_be_enforced_is_refused(tmp_path):
    llm = LocalLLM(write_chat_model(tmp_path / "chat"))
    with pytest.raises(ConfigError, match="can't be enforced"):
        llm.complete([says("Hi")], schema={"type": "banana"})


def test_a_compact_model_knows_no_schema(llm):
    plain = llm.complete([says("fact Ida has a dog =>")], max_tokens=6)
    assert llm.complete([says("fact Ida has a dog =>")], max_tokens=6, schema={"type": "null"}) == (
        plain
    )
    assert not llm.obeys_schemas


def test_calls_and_tokens_are_counted_where_they_were_computed(folder):
    llm = LocalLLM(folder)
    one, two = says("Ida has a dog"), says("Ida has a cat")
    replies = llm.complete([one, one, two], max_tokens=5)
    counted = Tally(
        2,
        replies[0].prompt_tokens + replies[2].prompt_tokens,
        replies[0].completion_tokens + replies[2].completion_tokens,
    )
    assert llm.usage.tally == counted
    llm.complete([two], max_tokens=5)
    assert llm.usage.tally == counted
    assert usage_of(Agents(llm, llm, None)) == counted
    llm.complete([one], max_tokens=5, temperature=1.0)
    assert (llm.usage.tally - counted).calls == 1
