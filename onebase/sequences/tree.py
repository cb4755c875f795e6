"""Sequences in one row, each prefix that several of them share once, and no padding.

Responses to one prompt, or prompts under one system text, share a prefix. It goes through the model once. Every token
after it sees its own ancestors only, at the position that it would have in a row of its own. Its hidden state is
therefore that of such a row, up to rounding.

    sequences    p1 p2 p3 a1 a2          row          p1 p2 p3 | a1 a2 | b1 b2 b3
                 p1 p2 p3 b1 b2 b3       positions     0  1  2 |  3  4 |  3  4  5
                                         segments            0 |     1 |        2      1 and 2 under 0

Attention runs segment by segment: causally inside it, and over its ancestors' keys and values. Nothing is computed and
thrown away under a mask, and no query attends to more than in a row of its own, so a row never costs more than the
rows that it stands for. Cascade and tree attention of inference engines are the same idea (Juravsky et al. 2024,
https://arxiv.org/abs/2402.05099); here it carries gradients.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "onebase_tree"
"""Of this attention, in transformers' table of attention functions."""

WORTH_SHARING = 4
"""Tokens that a segment must save: each costs a few small kernels in every layer."""


@dataclass(frozen=True)
class Segment:
    """A run of tokens that the same sequences have in common."""

    length: int
    ancestors: tuple[int, ...]
    """The segments before it in its sequences, from the root."""
    seen: int
    """Tokens of the ancestors."""


@dataclass(frozen=True)
class Packed:
    """Sequences as one row of T tokens, and how these see each other."""

    input_ids: Int[Tensor, "1 T"]
    positions: Int[Tensor, "1 T"]
    segments: tuple[Segment, ...]
    columns: tuple[list[int], ...]
    """For each sequence, the column in the row of each of its tokens."""
    masks: dict[Any, Tensor] = field(default_factory=dict)
    """[copies x L, seen + L], by length, `seen` and copies of a segment's queries: which keys each query sees. The same
    for every layer."""


def pack(sequences: Sequence[Sequence[int]], *, device: torch.device) -> Packed:
    """One row for sequences of token ids, none of them empty."""
    assert all(sequences), "a sequence needs tokens"
    rows = [tuple(sequence) for sequence in sequences]
    segments: list[Segment] = []
    ids: list[int] = []
    positions: list[int] = []
    columns: list[list[int]] = [[]] * len(rows)

    def grow(members: list[int], depth: int, parents: tuple[int, ...], path: list[int]) -> None:
        """Place sorted sequences that agree up to `depth`; `path` has the columns of the tokens that are in the row."""
        first, last = rows[members[0]], rows[members[-1]]
        depth += shared_prefix(first[depth:], last[depth:])
        alike = len(last) == depth  # the longest of them ends here, so they are one sequence
        start = len(path)
        if depth > start and (alike or (depth - start) * (len(members) - 1) >= WORTH_SHARING):
            segments.append(Segment(depth - start, parents, start))
            path = [*path, *range(len(ids), len(ids) + depth - start)]
            ids.extend(first[start:depth])
            positions.extend(range(start, depth))
            parents = (*parents, len(segments) - 1)
        for following, group in itertools.groupby(members, key=lambda row: rows[row][depth : depth + 1]):
            branch = list(group)
            if following or len(path) < depth:
                grow(branch, depth, parents, path)
                continue
            for row in branch:
                columns[row] = path

    grow(sorted(range(len(rows)), key=rows.__getitem__), 0, (), [])
    return Packed(
        input_ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        segments=tuple(segments),
        columns=tuple(columns),
    )


def pack_size(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the row that these sequences make, or a few less: short prefixes count as shared here."""
    ordered = sorted(tuple(sequence) for sequence in sequences)
    return sum(map(len, ordered)) - sum(itertools.starmap(shared_prefix, itertools.pairwise(ordered)))


def pack_by_tokens(sequences: Sequence[Sequence[int]], *, tokens: int) -> list[list[int]]:
    """Indices in groups with rows of about `tokens`; a longer sequence is alone.

    In the order of the tokens themselves: sequences with a common prefix go together. Every index occurs exactly once.
    """
    rows = [tuple(sequence) for sequence in sequences]
    groups: list[list[int]] = []
    size = 0
    for index in sorted(range(len(rows)), key=lambda index: (rows[index], index)):
        more = len(rows[index]) - (shared_prefix(rows[groups[-1][-1]], rows[index]) if groups else 0)
        if groups and size + more <= tokens:
            groups[-1].append(index)
            size += more
        else:
            groups.append([index])
            size = len(rows[index])
    return groups


def fill(sizes: Sequence[int], *, tokens: int, padded: bool = False) -> list[list[int]]:
    """Indices in groups with sizes that add up to at most `tokens`; a larger size is alone.

    padded: each size counts as the largest of its group, to which rows are padded. Largest first: what does not fit in
    memory fails at once, and rows of similar length share a group. Ties by index. The grouping depends on the sizes
    only. Every index occurs exactly once.
    """
    groups: list[list[int]] = []
    filled = 0
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[groups[-1][0]] if padded and groups else sizes[index]
        if groups and filled + size <= tokens:
            groups[-1].append(index)
            filled += size
        else:
            groups.append([index])
            filled = sizes[index]
    return groups


def shared_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their start."""
    count = 0
    for first, second in zip(left, right, strict=False):
        if first != second:
            break
        count += 1
    return count


def install(model: PreTrainedModel) -> None:
    """Let a model's attention take trees; without one it is SDPA as before. ValueError where it cannot."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def tree_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "B Q T D"],
    key: Float[Tensor, "B G S D"],
    value: Float[Tensor, "B G S E"],
    attention_mask: Tensor | None,
    *,
    tree: Packed | None = None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Float[Tensor, "B T Q E"], None]:
    """Attention of a packed row, with the signature that transformers gives its attention functions.

    Q query heads share G heads of keys and values in order, Q / G a head (Ainslie et al. 2023, arXiv:2305.13245).
    """
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    for name in ("sliding_window", "softcap", "position_bias", "s_aux"):
        if settings.get(name) is not None:
            raise ValueError(f"a packed row knows no {name}")
    lengths = [segment.length for segment in tree.segments]
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    heads, groups = query.shape[1], key.shape[1]
    outputs = []
    for index, segment in enumerate(tree.segments):
        if not segment.ancestors:
            alone = queries[index], keys[index], values[index]
            outputs.append(
                scaled_dot_product_attention(*alone, is_causal=True, scale=scaling, enable_gqa=heads != groups)
            )
            continue
        path = (*segment.ancestors, index)
        seen, read = (torch.cat([states[step] for step in path], dim=2) for states in (keys, values))
        # The query heads of a group one behind the other: its keys and values are read once and never repeated.
        folded = queries[index].reshape(1, groups, -1, query.shape[3])
        key_of_mask = segment.length, segment.seen, heads // groups
        if key_of_mask not in tree.masks:
            whole = torch.ones(segment.length, segment.seen + segment.length, dtype=torch.bool, device=query.device)
            tree.masks[key_of_mask] = whole.tril(segment.seen).repeat(heads // groups, 1)
        out = scaled_dot_product_attention(folded, seen, read, attn_mask=tree.masks[key_of_mask], scale=scaling)
        outputs.append(out.reshape(1, heads, segment.length, value.shape[3]))
    return torch.cat(outputs, dim=2).transpose(1, 2), None
