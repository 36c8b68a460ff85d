"""ProMax's reshaping of the softmax over all items in existing code, before and after.

python benchmarks/examples/promax_loss.py
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from side_by_side import Provider, Setting, compare, loss_and_gradients
from torch import Tensor, nn

from prorec_fast import losses


class Before(nn.Module):
    """Draws the recommender's softmax to that of the frozen profiles, the more the sharper theirs is."""

    def __init__(self, profile_user: Tensor, profile_item: Tensor) -> None:
        super().__init__()
        # these lines:
        self.profile_user = F.normalize(profile_user)
        self.profile_item = F.normalize(profile_item)
        # up to here

    def forward(self, user: Tensor, item: Tensor, users: Tensor) -> Tensor:
        """user [M, d] and item [N, d]: the tables; users [B]: the batch's, each once."""
        # these lines:
        student = F.normalize(user[users]) @ F.normalize(item).T / 0.2  # [B, N]
        teacher = (self.profile_user[users] @ self.profile_item.T / 0.2).softmax(1)
        entropy = -(teacher * teacher.log()).sum(1)
        weight = (1 - entropy / math.log(len(item))).clamp(0.1, 1.0)
        loss = -(weight * (teacher * student.log_softmax(1)).sum(1)).mean()
        # up to here
        return loss


class After(nn.Module):
    """The same; the entropies of all profiles are found once, when it is made."""

    def __init__(self, profile_user: Tensor, profile_item: Tensor) -> None:
        super().__init__()
        # become:
        self.teacher = losses.TeacherDistribution(profile_user, profile_item, temperature=0.2)
        # up to here

    def forward(self, user: Tensor, item: Tensor, users: Tensor) -> Tensor:
        # become:
        loss = losses.distribution_kl(user, item, users=users, teacher=self.teacher, temperature=0.2)
        # up to here
        return loss


def build(at: Setting) -> tuple[Provider, Provider]:
    user, item = at.table(at.num_users, 1), at.table(at.num_items, 2)
    profiles = at.table(at.num_users, 3).detach(), at.table(at.num_items, 4).detach()
    users = at.distinct(at.num_users, at.distinct_users)

    def run(loss: nn.Module) -> Provider:
        return loss_and_gradients(lambda: loss(user, item, users), [user, item], True)

    return run(Before(*profiles)), run(After(*profiles))


if __name__ == "__main__":
    compare("ProMax's softmax and entropy", build)
