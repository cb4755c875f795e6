"""Log-probabilities against a full log-softmax in double."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebase.inference.logprobs import token_kl, token_logprobs

CHUNKS = [1, 2, 3, 7, 8, 100]
LENGTH, HIDDEN, VOCABULARY = 7, 5, 11


def problem() -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Hidden states, targets, the LM head's weight, and how much each result counts in the loss to differentiate."""
    draws = torch.Generator().manual_seed(4)
    hidden = torch.randn(LENGTH, HIDDEN, generator=draws)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=draws) / 2
    targets = torch.randint(VOCABULARY, (LENGTH,), generator=draws)
    return hidden, targets, weight, (torch.randn(LENGTH, generator=draws), torch.randn(LENGTH, generator=draws))


def full_log_softmax(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies by the whole table in double."""
    logits = hidden.double() @ weight.double().T / temperature
    table = logits - logits.exp().sum(dim=1, keepdim=True).log()
    return table[torch.arange(len(targets)), targets], -(table.exp() * table).sum(dim=1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_gradients_are_those_of_a_full_log_softmax(chunk: int, temperature: float) -> None:
    hidden, targets, weight, (for_logprob, for_entropy) = problem()
    hidden.requires_grad_()
    weight.requires_grad_()
    logprobs, entropies = token_logprobs(hidden, targets, lambda x: x @ weight.T, temperature=temperature, chunk=chunk)
    (logprobs @ for_logprob + entropies @ for_entropy).backward()

    double = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected, spread = full_log_softmax(*double, targets, temperature)
    (expected @ for_logprob.double() + spread @ for_entropy.double()).backward()

    torch.testing.assert_close(logprobs.detach(), expected.detach().float())
    torch.testing.assert_close(entropies.detach(), spread.detach().float())
    for gradient, wanted in ((hidden.grad, double[0].grad), (weight.grad, double[1].grad)):
        assert gradient is not None and wanted is not None
        torch.testing.assert_close(gradient, wanted.float())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_chunks_never_change_a_result_not_even_its_last_bit(chunk: int) -> None:
    """With an LM head that is no matrix product, for those round by their shapes."""
    logits = torch.randn(LENGTH, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    targets = torch.arange(LENGTH)

    def results(chunk: int) -> tuple[Tensor, ...]:
        hidden = logits.clone().requires_grad_()
        logprobs, entropies = token_logprobs(hidden, targets, lambda x: x, temperature=1.0, chunk=chunk)
        (logprobs.sum() + entropies.sum()).backward()
        assert hidden.grad is not None
        return logprobs.detach(), entropies.detach(), hidden.grad

    for result, whole in zip(results(chunk), results(LENGTH), strict=True):
        assert torch.equal(result, whole)


def test_no_more_than_a_chunk_of_logits_exists_and_they_are_computed_again_for_the_gradient() -> None:
    hidden, targets, weight, _ = problem()
    sizes: list[int] = []

    def lm_head(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return states @ weight.T

    logprobs, _ = token_logprobs(hidden.requires_grad_(), targets, lm_head, temperature=1.0, chunk=3)
    assert sizes == [3, 3, 1]
    logprobs.sum().backward()
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_gradient_kept_from_the_forward_is_that_of_the_plain_way(chunk: int, temperature: float) -> None:
    """Values to the bit; the gradient up to the order of its sums. Entropies have none."""
    hidden, targets, weight, (for_logprob, _) = problem()
    outcomes: dict[bool, tuple[Tensor, Tensor, Tensor]] = {}
    for plain in (True, False):
        states = hidden.clone().requires_grad_()
        logprobs, entropies = token_logprobs(
            states, targets, lambda x: x @ weight.T, temperature=temperature, chunk=chunk, entropy_gradient=plain
        )
        assert entropies.requires_grad == plain
        (logprobs @ for_logprob).backward()
        assert states.grad is not None
        outcomes[plain] = logprobs.detach(), entropies.detach(), states.grad
    assert torch.equal(outcomes[True][0], outcomes[False][0])
    assert torch.equal(outcomes[True][1], outcomes[False][1])
    torch.testing.assert_close(outcomes[True][2], outcomes[False][2])


def test_with_its_gradient_kept_a_chunk_of_logits_is_computed_once() -> None:
    hidden, targets, weight, _ = problem()
    sizes: list[int] = []

    def lm_head(states: Tensor) -> Tensor:
        sizes.append(len(states))
        return states @ weight.T

    options = {"temperature": 1.0, "chunk": 3, "entropy_gradient": False}
    logprobs, _ = token_logprobs(hidden.requires_grad_(), targets, lm_head, **options)  # type: ignore[arg-type]  # mixed
    logprobs.sum().backward()
    assert sizes == [3, 3, 1]
    with torch.no_grad():
        token_logprobs(hidden, targets, lm_head, **options)  # type: ignore[arg-type]  # mixed
    assert sizes == [3, 3, 1, 3, 3, 1]


def test_a_coarse_lm_head_keeps_a_gradient_in_its_own_type() -> None:
    hidden, targets, weight, (for_logprob, _) = problem()
    grads = []
    for plain in (True, False):
        states = hidden.bfloat16().requires_grad_()
        logprobs, _ = token_logprobs(
            states, targets, lambda x: x @ weight.bfloat16().T, temperature=0.5, chunk=3, entropy_gradient=plain
        )
        (logprobs @ for_logprob).backward()
        assert states.grad is not None and states.grad.dtype == torch.bfloat16
        grads.append(states.grad.float())
    torch.testing.assert_close(*grads, atol=0.05, rtol=0.05)


def test_gradients_are_the_same_when_hidden_states_need_none() -> None:
    """Only the LM head learns: nothing is computed twice, and its gradient is still that of the full softmax."""
    hidden, targets, weight, (for_logprob, _) = problem()
    weight.requires_grad_()
    logprobs, _ = token_logprobs(hidden, targets, lambda x: x @ weight.T, temperature=1.0, chunk=3)
    (logprobs @ for_logprob).backward()
    double = weight.detach().double().requires_grad_()
    (full_log_softmax(hidden, double, targets, 1.0)[0] @ for_logprob.double()).backward()
    assert weight.grad is not None and double.grad is not None
    torch.testing.assert_close(weight.grad, double.grad.float())


@pytest.mark.parametrize("vocabulary", [2, 3, 1000])
def test_a_uniform_distribution_has_logprob_minus_log_v_and_entropy_log_v(vocabulary: int) -> None:
    logprobs, entropies = token_logprobs(
        torch.full((4, vocabulary), 1.5), torch.arange(4) % vocabulary, lambda x: x, temperature=0.7, chunk=3
    )
    torch.testing.assert_close(logprobs, torch.full((4,), -math.log(vocabulary)))
    torch.testing.assert_close(entropies, torch.full((4,), math.log(vocabulary)))


def test_a_certain_token_has_logprob_and_entropy_zero() -> None:
    logprobs, entropies = token_logprobs(
        torch.tensor([[0.0, 200.0, 0.0]]), torch.tensor([1]), lambda x: x, temperature=1.0, chunk=8
    )
    assert logprobs.item() == 0.0 and entropies.item() == 0.0


def test_logits_are_fp32_whatever_the_lm_head_computes_in() -> None:
    hidden, targets, weight, _ = problem()
    coarse = hidden.bfloat16(), weight.bfloat16()
    logprobs, entropies = token_logprobs(coarse[0], targets, lambda x: x @ coarse[1].T, temperature=1.0, chunk=3)
    rounded = (coarse[0] @ coarse[1].T).double()
    expected = rounded - rounded.exp().sum(dim=1, keepdim=True).log()
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected[torch.arange(LENGTH), targets].float())


@pytest.mark.parametrize("maths", [token_logprobs, token_kl])
def test_no_tokens_give_no_numbers(maths: Callable[..., Tensor | tuple[Tensor, Tensor]]) -> None:
    nothing = torch.zeros(0, HIDDEN)
    second = torch.zeros(0, dtype=torch.long) if maths is token_logprobs else nothing
    outcome = maths(nothing, second, lambda x: x, temperature=1.0, chunk=3)
    for tensor in outcome if isinstance(outcome, tuple) else (outcome,):
        assert tensor.shape == (0,) and tensor.dtype == torch.float32


@pytest.mark.parametrize("chunk", CHUNKS)
def test_exact_kl_is_that_of_the_two_distributions(chunk: int) -> None:
    hidden, _, weight, _ = problem()
    other = hidden.flip(0)
    kl = token_kl(hidden, other, lambda x: x @ weight.T, temperature=0.7, chunk=chunk)
    for row in range(LENGTH):
        p, q = ([math.exp(z / 0.7) for z in (weight @ states[row]).tolist()] for states in (hidden, other))
        wanted = sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
        # The logits are fp32 here: sums over the vocabulary differ by a few of its last bits.
        assert kl[row].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.0, 30.0), temperature=st.floats(0.3, 3.0))
def test_exact_kl_is_never_negative_and_that_of_double_precision(seed: int, scale: float, temperature: float) -> None:
    """Near 0 fp32 would say less than nothing; there the sum of double precision is at most its rounding."""
    draws = torch.Generator().manual_seed(seed)
    states, other = (scale * torch.randn(LENGTH, 7, generator=draws) for _ in range(2))
    kl = token_kl(states, other, lambda logits: logits, temperature=temperature, chunk=3)
    p, q = (torch.log_softmax(logits.double() / temperature, dim=1) for logits in (states, other))
    wanted = (p.exp() * (p - q)).sum(dim=1)
    assert (kl >= 0).all()
    torch.testing.assert_close(kl.double(), wanted, rtol=1e-4, atol=1e-5)


def test_exact_kl_of_equal_states_is_zero_and_has_no_gradient() -> None:
    hidden, _, weight, _ = problem()
    kl = token_kl(hidden.requires_grad_(), hidden, lambda x: x @ weight.T, temperature=1.0, chunk=2)
    assert kl.tolist() == [0.0] * LENGTH
    assert not kl.requires_grad
