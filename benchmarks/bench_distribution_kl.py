from __future__ import annotations

import torch
import torch.nn.functional as F
from sizes import AMAZON_BOOK, COMPILED, EAGER, OURS, Setting, Unavailable, compiled, loss_and_gradients

from prorec_fast import losses
from prorec_fast.reference.distribution_kl import distribution_kl as reference
from prorec_fast.reference.distribution_kl import entropy, scores

CHUNKED = "eager, in chunks of rows"
COMPILED_LSE = "torch.compile, lse - u.(P I)"
LIGER = "Liger-Kernel"
TAU = 0.2
CHUNK = 256


def providers(
    at: Setting = AMAZON_BOOK,
    backward: bool = True,
    eps: float = 0.0,
    divergence: str = "cross_entropy",
    weighting: str = "entropy",
):
    """The supervised reshaping of one step: the batch's distinct users against all items, the teacher frozen."""
    user, item = at.table(at.num_users, 1), at.table(at.num_items, 2)
    teacher_tables = at.table(at.num_users, 3).detach(), at.table(at.num_items, 4).detach()
    users = at.distinct(at.num_users, at.distinct_users)
    options = {"eps": eps, "divergence": divergence, "weighting": weighting}

    def eager():
        return reference(user, item, *teacher_tables, users=users, **options)

    def chunked():
        """What is left where no users x items matrix fits: the gradients of one chunk of rows after another."""
        total, grads = 0.0, [torch.zeros_like(t) for t in (user, item)] if backward else []
        for rows in users.split(CHUNK):
            with torch.set_grad_enabled(backward):
                loss = reference(user, item, *teacher_tables, users=rows, reduction="sum", **options) / len(users)
            total = total + loss.detach()
            for grad, part in zip(grads, torch.autograd.grad(loss, [user, item]) if backward else (), strict=True):
                grad += part
        return [total, *grads]

    found = {EAGER: loss_and_gradients(eager, [user, item], backward), CHUNKED: chunked}
    if at.exact:
        return found
    teacher = losses.TeacherDistribution(*teacher_tables)

    def ours():
        return losses.distribution_kl(user, item, users=users, teacher=teacher, **options)

    found[OURS] = loss_and_gradients(ours, [user, item], backward)
    if not eps and weighting == "entropy":
        for name, form in ((COMPILED, _log_softmax_form), (COMPILED_LSE, _lse_form)):
            stock = compiled(form)
            teacher_rows = teacher_tables[0][users], teacher_tables[1], teacher.lse[users], teacher.weight()[users]
            found[name] = loss_and_gradients(
                lambda stock=stock, rows=teacher_rows: stock(user, item, users, *rows), [user, item], backward
            )
    if divergence == "kl" and weighting == "none":
        found[LIGER] = _liger(at, user, item, users, teacher_tables, backward)
    return found


def teacher_providers(at: Setting = AMAZON_BOOK):
    """What is kept of the teacher: the log-sum-exp and the entropy of every user's row."""
    tables = at.table(at.num_users, 3).detach(), at.table(at.num_items, 4).detach()

    def eager(rows_at_once: int = 1024):
        parts = []
        for rows in tables[0].split(rows_at_once):
            t = scores(rows, tables[1], TAU, True)
            parts.append((t.logsumexp(1), entropy(t.log_softmax(1))))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def ours():
        teacher = losses.TeacherDistribution(*tables)
        return [teacher.lse, teacher.entropy]

    return {EAGER: eager, OURS: ours, COMPILED: compiled(eager)}


def _scores(x, y):
    return F.normalize(x) @ F.normalize(y).T / TAU


def _log_softmax_form(user, item, users, teacher_user, teacher_item, teacher_lse, weight):
    """The teacher's statistics are given, as they are to ours: only what changes is computed."""
    p = (_scores(teacher_user, teacher_item) - teacher_lse[:, None]).exp()
    return -(weight * (p * _scores(user[users], item).log_softmax(1)).sum(1)).mean()


def _lse_form(user, item, users, teacher_user, teacher_item, teacher_lse, weight):
    """The cross entropy as lse(s_u) - u . (P I): a product of matrices in place of a pass over two of them."""
    p = (_scores(teacher_user, teacher_item) - teacher_lse[:, None]).exp().to(item.dtype)
    x, y = F.normalize(user[users]), F.normalize(item)
    return (weight * ((x @ y.T / TAU).logsumexp(1) - (x * (p @ y)).sum(1) / TAU)).mean()


def _liger(at, user, item, users, teacher_tables, backward):
    """Its fused linear Jensen-Shannon divergence, which at beta 0 is KL(teacher || student)."""
    if at.device == "cpu":
        return Unavailable("its kernels need a CUDA device")
    try:
        from liger_kernel.transformers import LigerFusedLinearJSD
    except ImportError as error:
        return Unavailable(f"not importable ({error})")
    loss = LigerFusedLinearJSD(jsd_beta=0.0, temperature=TAU)
    teacher_user, teacher_item = F.normalize(teacher_tables[0][users]), F.normalize(teacher_tables[1])

    def run():
        return loss(F.normalize(user[users]), F.normalize(item), teacher_user, teacher_item, None)

    return loss_and_gradients(run, [user, item], backward)
