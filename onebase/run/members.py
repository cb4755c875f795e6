"""The finished reward stages that an ensemble is made of."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onebase.errors import RecordError
from onebase.inference.scoring import member_names
from onebase.model.roles import Roles
from onebase.run.record import FinishedStage


def read_members(folders: Sequence[Path], read: Callable[[Path], FinishedStage]) -> dict[str, FinishedStage]:
    """The finished reward stages by role, each read and verified by `read`; RecordError when one is given twice."""
    members: dict[str, FinishedStage] = {}
    for name, folder in zip(member_names(len(folders)), folders, strict=True):
        member = read(folder)
        twin = next((other for other in members.values() if other.sha256 == member.sha256), None)
        if twin is not None:
            raise RecordError(
                f"parents.reward: {folder} is the stage that {twin.folder} is, and copies always agree. "
                "Train another one (with another seed), or remove it."
            )
        members[name] = member
    return members


def load_members(roles: Roles, members: Mapping[str, FinishedStage]) -> Roles:
    """An adapter and a head for each member, on the base that is there."""
    for name, member in members.items():
        roles.load(name, member.adapter)
    return roles
