"""Which role computes after a `with roles.active(...)` block has ended."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.model.roles import Roles

IDS = torch.tensor([[5, 9, 40, 7]])


def states(roles: Roles) -> Tensor:
    """Of whatever role is active now."""
    with torch.no_grad():
        return roles.forwards.hidden_states(IDS)


def test_a_block_ends_with_the_role_that_was_active_before_it(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("policy", "reference")
    before = states(roles)
    with roles.active("policy"):
        policy = states(roles)
        with roles.active("reference"):
            reference = states(roles)
        assert torch.equal(states(roles), policy)
    assert torch.equal(states(roles), before)
    assert not torch.allclose(policy, reference)


def test_an_exception_inside_a_block_leaves_no_role_active(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("policy")
    before = states(roles)
    with pytest.raises(KeyError), roles.active("policy"):
        raise KeyError
    assert torch.equal(states(roles), before)
