"""Packed trees: what is computed once for all branches is what each would have computed alone."""

import copy
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memory_r1.errors import ConfigError  # noqa: E402
from memory_r1.train.attention import (  # noqa: E402
    attention_for,
    attention_mask,
    hidden_states,
    layout,
)
from memory_r1.train.batch import (  # noqa: E402
    Branch,
    Tree,
    by_tokens,
    pack,
)
from memory_r1.train.teach import backward  # noqa: E402

VOCABULARY = 50
TOKENS = st.integers(1, VOCABULARY - 1)


@pytest.fixture(scope="module", params=["tree", "fused_tree", "eager"])
def model(request):
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.5,  # large enough for a token seen or not seen to matter
        attn_implementation=request.param,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def reference(model):
    """The same weights with the library's plain attention."""
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


@st.composite
def branches(draw):
    ids = tuple(draw(st.lists(TOKENS, min_size=1, max_size=6)))
    return Branch(ids, draw(st.integers(0, len(ids) - 1)))


def trees(branch=branches()):  # noqa: B008 - a strategy is a value
    prefix = st.lists(TOKENS, min_size=1, max_size=7).map(tuple)
    return st.builds(Tree, prefix, st.lists(branch, min_size=1, max_size=4).map(tuple))


SOME_TREES = st.lists(trees(), min_size=1, max_size=4)


def logits_alone(reference, trees):
    """Logits that predict the learned tokens, each branch run by itself without any padding."""
    rows = []
    for tree in trees:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.prefix, *branch.ids]])
            first = len(tree.prefix) + branch.given - 1
            rows.append(reference(input_ids=ids, use_cache=False).logits[0, first:-1])
    return torch.cat(rows)


def logits_packed(model, trees, pad=0):
    packed = pack(trees, pad)
    return model.lm_head(hidden_states(model.model, packed, torch.float32)), packed


def test_one_tree_in_tensors():
    packed = pack([Tree((1, 2), (Branch((3, 4)), Branch((5, 6, 7), given=1)))], pad=0)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert packed.segments.tolist() == [[0, 0, 1, 1, 2, 2, 2]]
    assert packed.target.tolist() == [3, 4, 6, 7]
    assert packed.parent.tolist() == [1, 2, 4, 5]
    assert packed.branch.tolist() == [0, 0, 1, 1]
    assert packed.offset.tolist() == [0, 1, 0, 1]
    assert packed.row.tolist() == [0, 0, 0, 0]


def test_smaller_trees_are_padded_and_branches_counted_over_all_rows():
    packed = pack([Tree((1,), (Branch((2,)),)), Tree((3, 4), (Branch((5,)), Branch((6,))))], pad=9)
    assert packed.ids.tolist() == [[1, 2, 9, 9], [3, 4, 5, 6]]
    assert packed.segments.tolist() == [[0, 1, -1, -1], [0, 0, 1, 2]]
    assert packed.branch.tolist() == [0, 1, 2]
    assert packed.row.tolist() == [0, 1, 1]


def test_who_sees_whom():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    mask = attention_mask(segments, torch.float32)
    assert mask.shape == (1, 1, 6, 6)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    assert (mask[mask != 0] == torch.finfo(torch.float32).min).all()


@torch.no_grad()
@settings(max_examples=25)
@given(SOME_TREES)
def test_packed_logits_are_those_of_each_branch_alone(model, reference, some):
    packed, _ = logits_packed(model, some)
    torch.testing.assert_close(packed, logits_alone(reference, some), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@settings(max_examples=20)
@given(st.lists(trees(st.builds(Branch, st.tuples(TOKENS, TOKENS))), min_size=1, max_size=3))
def test_log_probabilities_of_a_groups_completions(model, reference, groups):
    """GRPO's trees: one prompt, several completions, all of their tokens learned (given = 0)."""
    logits, packed = logits_packed(model, groups)
    logp = logits.log_softmax(-1).gather(1, packed.target[:, None])[:, 0]
    alone = logits_alone(reference, groups).log_softmax(-1).gather(1, packed.target[:, None])[:, 0]
    torch.testing.assert_close(logp, alone, atol=1e-4, rtol=1e-4)
    assert len(logp) == 2 * sum(len(tree.branches) for tree in groups)
    firsts = packed.parent[packed.offset == 0]
    lasts = [len(tree.prefix) - 1 for tree in groups for _ in tree.branches]
    assert firsts.tolist() == lasts


@torch.no_grad()
def test_a_branch_does_not_feel_its_neighbours(model):
    one = Branch((7, 8, 9))
    many = Tree((1, 2, 3), (Branch((4, 5)), one, Branch((6,))))
    alone, _ = logits_packed(model, [replace(many, branches=(one,))])
    among, packed = logits_packed(model, [many])
    torch.testing.assert_close(among[packed.branch == 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_stands_in_the_padding_does_not_matter(model):
    some = [Tree((1,), (Branch((2,)),)), Tree((3, 4, 5), (Branch((6, 7)), Branch((8, 9, 10))))]
    torch.testing.assert_close(
        logits_packed(model, some, pad=0)[0], logits_packed(model, some, pad=33)[0]
    )


# Rows of every shape: many branches and one, a prefix of one token, lengths of one to four.
UNEVEN = [
    Tree((1, 2, 3), (Branch((4,)), Branch((5, 6, 7, 8), given=2), Branch((9,)), Branch((10, 11)))),
    Tree((12,), (Branch((13, 14)),)),
    Tree((15, 16, 17, 18, 19, 20), (Branch((21, 22, 23)), Branch((4,)))),
]


def with_attention(model, name):
    other = copy.deepcopy(model)
    other.set_attn_implementation(name)
    return other


@settings(max_examples=25)
@given(SOME_TREES)
@example(UNEVEN)
def test_tree_attention_is_attention_under_the_mask(model, some):
    packed, outputs, gradients = pack(some, pad=0), [], []
    for name in ("tree", "fused_tree", "eager"):
        one = with_attention(model, name)
        outputs.append(hidden_states(one.model, packed, torch.float32))
        outputs[-1].sin().sum().backward()
        gradients.append([p.grad for p in one.model.parameters()])
    *ours, reference = outputs
    *our_gradients, right = gradients
    for output, gradient in zip(ours, our_gradients, strict=True):
        torch.testing.assert_close(output, reference, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gradient, right, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_tree_attention_is_attention_under_the_mask_in_half_precision_too(model):
    packed = pack(UNEVEN, pad=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tree, fused, masked = (
            hidden_states(with_attention(model, name).model, packed, torch.bfloat16)
            for name in ("tree", "fused_tree", "eager")
        )
    torch.testing.assert_close(tree.float(), masked.float(), atol=0.15, rtol=0.05)
    torch.testing.assert_close(fused.float(), masked.float(), atol=0.15, rtol=0.05)


def test_a_gpu_computes_trees_under_a_mask_and_a_cpu_in_two_parts():
    assert attention_for("cpu") == "tree"
    assert {attention_for(device) for device in ("cuda", "xpu", "mps")} == {"fused_tree"}


@pytest.mark.parametrize("attention", ["tree", "fused_tree"])
def test_a_window_that_a_tree_does_not_fit_is_refused_and_not_ignored(attention):
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        sliding_window=6,
        attn_implementation="eager",
    )
    model = transformers.MistralForCausalLM(config).eval()
    fits = Tree((1, 2, 3), (Branch((4, 5, 6)), Branch((7,))))
    one = with_attention(model, attention)
    torch.testing.assert_close(
        logits_packed(one, [fits])[0], logits_alone(model, [fits]), atol=1e-4, rtol=1e-4
    )
    with pytest.raises(ConfigError, match="7 tokens and a layer of the model looks back 6"):
        logits_packed(one, [Tree((1, 2, 3, 4), (Branch((4, 5, 6)),))])


def test_trees_laid_end_to_end_know_where_their_tokens_belong():
    some = [Tree((1, 2), (Branch((3, 4, 5)),)), Tree((6,), (Branch((7,)), Branch((8, 9))))]
    tree, number = layout(pack(some, pad=0), torch.float32)
    assert number[0].tolist() == [0, 1, 2, 3, 4]
    assert number[1, :4].tolist() == [5, 6, 7, 8]
    assert tree.prefix[0].tolist() == [0, 1] and tree.prefix[1, 0] == 5
    assert tree.branch[0, 0].tolist() == [2, 3, 4]
    assert tree.branch[1, 0, 0] == 6 and tree.branch[1, 1, :2].tolist() == [7, 8]
    assert (tree.unseen[:, 0, 0] == 0).tolist() == [[True, True], [True, False]]


@given(SOME_TREES)
def test_every_token_finds_its_way_back(some):
    tree, _ = layout(pack(some, pad=0), torch.float32)
    places = torch.cat([tree.prefix.flatten(), tree.branch.flatten()])
    assert places[tree.back].tolist() == list(range(sum(t.size for t in some)))


class MarkerIds:
    """What teaching asks of a tokenizer."""

    pad_token_id = 0

    def convert_tokens_to_ids(self, tokens):
        return list(range(5, 5 + len(tokens)))


def gradients(model, trees, micro):
    model.zero_grad()
    learned = sum(len(b.ids) - b.given for tree in trees for b in tree.branches)
    loss = backward(model, MarkerIds(), trees, learned, bf16=False, micro=micro)
    return loss, [p.grad.clone() for p in model.parameters()]


@settings(max_examples=10)
@given(SOME_TREES)
def test_loss_and_gradients_do_not_depend_on_the_micro_batches(model, some):
    each_alone, all_at_once = gradients(model, some, 1), gradients(model, some, 10**6)
    torch.testing.assert_close(each_alone, all_at_once, atol=1e-4, rtol=1e-3)


@settings(max_examples=40)
@given(st.lists(trees(), max_size=12), st.integers(1, 80))
def test_micro_batches_hold_every_tree_once_and_keep_to_the_budget(some, budget):
    batches = list(by_tokens(some, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(some)))
    for batch in batches:
        widest = max(some[i].size for i in batch)
        assert len(batch) == 1 or len(batch) * widest <= budget
