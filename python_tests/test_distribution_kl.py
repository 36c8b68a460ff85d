from __future__ import annotations

import pytest
import torch
from helpers import assert_as_good_as_eager, assert_compiled_equals_eager, check_against_reference, leaves
from processes import run_python

from prorec_fast import losses
from prorec_fast.reference.distribution_kl import distribution_kl as reference

DIVERGENCES = ("cross_entropy", "kl", "reverse_kl", "js")


def tables(num_users: int, num_items: int, dim: int, teacher_dim: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(num_users * 1000 + num_items + dim)
    shapes = [(num_users, dim), (num_items, dim), (num_users, teacher_dim), (num_items, teacher_dim)]
    return [(scale * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes]


def check(tensors, *, least=1e-30, **options):
    """Values and gradients of user and item against float64; the teacher is constant, in the tensors' own dtype."""
    user, item, teacher_user, teacher_item = tensors

    def run(function):
        return lambda u, i: function(u, i, teacher_user.to(u.dtype), teacher_item.to(u.dtype), **options)

    check_against_reference(run(losses.distribution_kl), run(reference), [user, item], least=least)


@pytest.mark.every_level
@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_matches_reference(divergence, reduction, eps):
    for sizes in ((1, 9, 8, 8), (7, 65, 33, 17), (129, 507, 32, 48)):
        check(tables(*sizes), divergence=divergence, eps=eps, reduction=reduction)


@pytest.mark.every_level
@pytest.mark.parametrize("temperature", [0.01, 0.024, 0.2, 10.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_matches_reference_at_extreme_temperatures(divergence, normalize, temperature):
    options = dict(divergence=divergence, normalize=normalize, temperature=temperature, weighting="none")
    # At 0.01 and without normalisation a row is all one item, and a divergence's gradient is rounding.
    check(tables(33, 200, 24, 24), teacher_temperature=temperature, least=1e-2 if normalize else 0.1, **options)


@pytest.mark.every_level
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_matches_reference_in_half_precision(divergence, dtype):
    check(tables(65, 300, 40, 24, dtype), divergence=divergence)


@pytest.mark.every_level
@pytest.mark.parametrize("dim", [8, 16, 17, 100, 129, 512])
def test_distribution_kl_matches_reference_for_any_width(dim):
    check(tables(50, 321, dim, dim // 2 + 1))


@pytest.mark.every_level
@pytest.mark.parametrize("num_items", [1, 2, 63, 64, 65, 128, 4000])
def test_distribution_kl_matches_reference_for_any_number_of_items(num_items):
    # Of a single item every distribution is the same: the truth is 0.
    check(tables(50, num_items, 16, 16), divergence="kl", least=1.0 if num_items == 1 else 1e-30)


@pytest.mark.every_level
def test_distribution_kl_strided_and_confident():
    check([t[:, ::2] for t in tables(40, 90, 32, 32)])
    check([t.T for t in tables(32, 32, 40, 40)])
    check([t[::2] for t in tables(40, 90, 32, 32)], temperature=0.03, teacher_temperature=0.03)
    user, item, *_ = tables(40, 90, 32, 32)
    # The student is the teacher: the gradients are differences of equal numbers.
    check([user, item, user, item], temperature=0.05, teacher_temperature=0.05, least=0.1)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("divergence", ["cross_entropy", "js"])
@pytest.mark.parametrize("cached", [True, False])
def test_distribution_kl_users_and_cached_teacher(divergence, eps, cached):
    user, item, teacher_user, teacher_item = tables(80, 150, 24, 20)
    users = torch.tensor([3, 79, 3, 0, 41, 3, 12])
    weighting = torch.rand(7, generator=torch.Generator().manual_seed(0))
    teacher = losses.TeacherDistribution(teacher_user, teacher_item, temperature=0.3)
    ours = dict(teacher_user=None, teacher_item=None, teacher=teacher) if cached else dict(
        teacher_user=teacher_user, teacher_item=teacher_item, teacher_temperature=0.3
    )  # fmt: skip
    for choice in ("entropy", "none", weighting):
        options = dict(users=users, divergence=divergence, eps=eps, weighting=choice, weight_range=(0.0, 0.5))

        def truth(u, i, options=options):
            return reference(
                u, i, teacher_user.to(u.dtype), teacher_item.to(u.dtype), teacher_temperature=0.3, **options
            )

        check_against_reference(
            lambda u, i, options=options: losses.distribution_kl(u, i, **ours, **options), truth, [user, item]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # the kernel, and the definition
@pytest.mark.parametrize("weighting", ["entropy", "none", "given", "learned"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distribution_kl_count_is_the_sliced_call(reduction, weighting, dtype):
    user, item, teacher_user, teacher_item = tables(80, 150, 24, 20, dtype)
    users = torch.tensor([3, 79, 3, 0, 41, 3, 12])
    teacher = losses.TeacherDistribution(teacher_user, teacher_item)
    generator = torch.Generator().manual_seed(0)
    own = weighting in ("entropy", "none")
    for indexed, counts in ((True, (0, 1, 5, 7)), (False, (0, 64, 65, 80))):
        batch = len(users) if indexed else len(user)
        weight = torch.rand(batch, dtype=dtype, generator=generator)
        for count in counts:
            sliced, whole = (
                [t.clone().requires_grad_(t is not weight or weighting == "learned") for t in (user, item, weight)]
                for _ in range(2)
            )
            with torch.no_grad():  # what does not count may be anything
                whole[2][count:] = torch.nan
                if not indexed:
                    whole[0][count:] = torch.nan

            def loss(inputs, n, indexed=indexed, **counted):
                u, i, w = inputs
                options = dict(weighting=weighting if own else w[:n], reduction=reduction, **counted)
                if indexed:
                    return losses.distribution_kl(u, i, None, None, users=users[:n], teacher=teacher, **options)
                return losses.distribution_kl(u[:n], i, teacher_user[:n], teacher_item, **options)

            want, got = loss(sliced, count), loss(whole, batch, count=torch.tensor(count))
            if reduction == "none":
                assert not got[count:].any()
                got = got[:count]
            torch.testing.assert_close(got, want)
            grad_out = torch.randn(want.shape, dtype=dtype, generator=generator)
            wrt = slice(0, 3 if weighting == "learned" else 2)
            grads = (torch.autograd.grad(x, t[wrt], grad_out) for x, t in ((got, whole), (want, sliced)))
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b)


def test_distribution_kl_gradient_of_the_weights():
    user, item, teacher_user, teacher_item = tables(20, 50, 16, 16)
    weighting = torch.rand(20)

    def run(function):
        return lambda u, w: function(
            u, item.to(u.dtype), teacher_user.to(u.dtype), teacher_item.to(u.dtype), weighting=w
        )

    check_against_reference(run(losses.distribution_kl), run(reference), [user, weighting])


def test_distribution_kl_teacher_is_constant():
    tensors = [t.requires_grad_() for t in tables(6, 20, 8, 8)]
    losses.distribution_kl(*tensors).backward()
    assert tensors[0].grad is not None and tensors[2].grad is None and tensors[3].grad is None


@pytest.mark.parametrize("which", [0, 1])
def test_distribution_kl_grad_of_each_input_alone(which):
    tensors = tables(30, 70, 16, 16)
    both = leaves(tensors[:2])
    losses.distribution_kl(*both, *tensors[2:]).backward()
    tensors[which].requires_grad_()
    losses.distribution_kl(*tensors).backward()
    assert torch.equal(tensors[which].grad, both[which].grad) and tensors[1 - which].grad is None


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_distribution_kl_gradcheck_float64(divergence):
    user, item, teacher_user, teacher_item = tables(4, 9, 5, 5, torch.float64)
    inputs = user.requires_grad_(), item.requires_grad_()
    for eps in (0.0, 1e-3):
        assert torch.autograd.gradcheck(
            lambda u, i, eps=eps: losses.distribution_kl(
                u, i, teacher_user, teacher_item, divergence=divergence, eps=eps
            ),
            inputs,
        )


def test_distribution_kl_properties():
    user, item, teacher_user, teacher_item = tables(200, 400, 32, 32)
    same = dict(weighting="none", temperature=0.2, teacher_temperature=0.2, reduction="none")
    for divergence in DIVERGENCES[1:]:
        rows = losses.distribution_kl(user, item, user, item, divergence=divergence, **same)
        assert rows.abs().max() < 5e-6, divergence  # a distribution does not differ from itself
        rows = losses.distribution_kl(user, item, teacher_user, teacher_item, divergence=divergence, **same)
        assert (rows > 0).all(), divergence
    assert losses.distribution_kl(user[:0], item, teacher_user[:0], teacher_item) == 0
    # A row that is zero is equally far from every item; its loss is finite.
    user[3] = 0
    rows = losses.distribution_kl(user, item, teacher_user, teacher_item, **same)
    assert torch.isfinite(rows).all()
    # A NaN row poisons its own loss only.
    user[5, 2] = float("nan")
    rows = losses.distribution_kl(user, item, teacher_user, teacher_item, **same)
    assert rows.isnan().nonzero().tolist() == [[5]]


def test_distribution_kl_does_not_depend_on_the_number_of_threads():
    tensors = tables(500, 3000, 32, 32)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            inputs = leaves(tensors[:2])
            loss = losses.distribution_kl(*inputs, *tensors[2:])
            loss.backward()
            results.append((loss.detach(), *(t.grad for t in inputs)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_teacher_distribution_statistics():
    _, _, teacher_user, teacher_item = tables(70, 333, 8, 24)
    for temperature, normalize in ((0.01, True), (0.2, True), (10.0, True), (0.5, False)):
        teacher = losses.TeacherDistribution(teacher_user, teacher_item, temperature=temperature, normalize=normalize)
        truth = losses.TeacherDistribution(
            teacher_user.double(), teacher_item.double(), temperature=temperature, normalize=normalize
        )
        p = (truth.user @ truth.item.T / temperature).softmax(1) if not normalize else None
        if p is not None:
            torch.testing.assert_close(truth.entropy, torch.special.entr(p).sum(1))
        torch.testing.assert_close(teacher.lse.double(), truth.lse, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(teacher.entropy.double(), truth.entropy, rtol=1e-5, atol=2e-5)
        weight = teacher.weight((0.2, 0.9))
        assert weight.shape == (70,) and weight.min() >= 0.2 and weight.max() <= 0.9
    assert losses.TeacherDistribution(teacher_user[:0], teacher_item).entropy.shape == (0,)


def test_distribution_kl_compiles_and_registers():
    user, item, teacher_user, teacher_item = tables(20, 90, 16, 16)
    teacher = losses.TeacherDistribution(teacher_user, teacher_item)
    users = torch.tensor([1, 5, 5, 19])
    inputs = user.requires_grad_(), item.requires_grad_()
    statistics = teacher.lse, teacher.entropy
    for count in (None, torch.tensor(3)):
        arguments = (*inputs, users, count, teacher.user, teacher.item, users, *statistics, 0.2, 0.2, "kl", 0.0, True)
        torch.library.opcheck(torch.ops.prorec_fast.distribution_kl, (*arguments, torch.rand(4)))
        torch.library.opcheck(torch.ops.prorec_fast.distribution_kl_rows, arguments)
    torch.library.opcheck(torch.ops.prorec_fast.teacher_stats, (teacher_user, teacher_item, 0.2, True))
    for reduction in ("mean", "none"):
        for count in (None, torch.tensor(3)):
            assert_compiled_equals_eager(
                lambda u, i, r=reduction, c=count: losses.distribution_kl(
                    u, i, None, None, users=users, count=c, teacher=teacher, reduction=r
                ),
                inputs,
            )
    assert_compiled_equals_eager(lambda u, i: losses.distribution_kl(u, i, teacher_user, teacher_item), inputs)


def test_distribution_kl_takes_a_teacher_for_its_tables():
    user, item, teacher_user, teacher_item = tables(20, 90, 16, 24)
    teacher = losses.TeacherDistribution(teacher_user, teacher_item, temperature=0.3)
    want = losses.distribution_kl(user, item, teacher_user, teacher_item, teacher_temperature=0.3)
    own = teacher_user.view(20, 24), torch.nn.Parameter(teacher_item)  # the same memory
    for given in ((), (None, None), own, (teacher.user, teacher.item), (None, teacher_item)):
        for temperature in (None, 0.3):
            got = losses.distribution_kl(user, item, *given, teacher=teacher, teacher_temperature=temperature)
            torch.testing.assert_close(got, want)
    assert losses.distribution_kl(user, item, teacher_user, teacher_item) != want  # 0.2

    narrow = [t.bfloat16() for t in (teacher_user, teacher_item)]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which would copy them
        losses.distribution_kl(user, item, *narrow, teacher=losses.TeacherDistribution(*narrow))
    assert_compiled_equals_eager(
        lambda u, i: losses.distribution_kl(
            u, i, teacher_user, teacher_item, teacher=teacher, teacher_temperature=0.3
        ),
        (user.requires_grad_(), item.requires_grad_()),
    )  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(teacher_temperature=0.2), "teacher_temperature: want None or that of teacher=, 0.3, got 0.2"),
        (dict(teacher_temperature=float("nan")), "teacher_temperature: want None or that of teacher=, 0.3, got nan"),
        (dict(teacher_user=torch.zeros(5, 4)), r"teacher_user: want .* teacher=, a .*, got another: a float32"),
        (dict(teacher_item=torch.zeros(3, 4)), r"teacher_item: want .* of shape \(9, 4\).* of shape \(3, 4\)"),
        (dict(teacher_item=[0.5]), r"teacher_item: want .* got another: list of 1"),
        (dict(normalize=False), "teacher: want one made with normalize=False, got True"),
    ],
)
def test_distribution_kl_rejects_what_contradicts_its_teacher(change, message):
    user, item, *teacher_tables = tables(5, 9, 8, 4)
    teacher = losses.TeacherDistribution(*teacher_tables, temperature=0.3)
    with pytest.raises(ValueError, match=f"^{message}"):
        losses.distribution_kl(user, item, teacher=teacher, **change)


def test_teacher_distribution_moves():
    teacher = losses.TeacherDistribution(*tables(5, 9, 8, 4)[2:], temperature=0.3, normalize=False)
    assert teacher.to("cpu") is teacher is teacher.to(torch.device("cpu"))
    moved = teacher.to("meta")
    assert moved is not teacher and type(moved) is losses.TeacherDistribution
    assert (moved.temperature, moved.normalize) == (0.3, False)
    for name in ("user", "item", "lse", "entropy"):
        own, there = getattr(teacher, name), getattr(moved, name)
        assert (own.device.type, there.device.type) == ("cpu", "meta")
        assert (there.shape, there.dtype) == (own.shape, own.dtype)
    assert moved.weight().device.type == "meta" and moved.to("meta") is moved
    for device, error in ((torch.bfloat16, TypeError), (None, TypeError), ("float32", ValueError)):
        with pytest.raises(error, match=r"^device: want a device or its name, got "):
            teacher.to(device)


def test_distribution_kl_memory_at_two_hundred_thousand_items():
    """Users x items in float32 would be 1526 MiB, several times over in eager PyTorch."""
    grown = run_python(
        """
        import torch
        from processes import peak_memory
        from prorec_fast import losses

        def tables(users, items):
            sizes = (users, items, users, items)
            return [torch.randn(n, 64).requires_grad_(i < 2) for i, n in enumerate(sizes)]

        losses.distribution_kl(*tables(64, 1000)).backward()
        large = tables(2000, 200_000)
        before = peak_memory()
        losses.distribution_kl(*large).backward()
        print((peak_memory() - before) / 2**20)
        """
    )
    assert 0 < float(grown) < 300, f"{float(grown):.0f} MiB"


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(user=torch.zeros(3)), ValueError, "user: want shape"),
        (dict(item=torch.zeros(9, 7)), ValueError, r"item: want shape \[any, 8\]"),
        (dict(item=torch.zeros(0, 8)), ValueError, "item: want at least one row"),
        (dict(item=torch.zeros(9, 8, dtype=torch.float64)), ValueError, "item: want the device and dtype of user"),
        (dict(teacher_user=torch.zeros(2, 4)), ValueError, "teacher_user: want 5 rows"),
        (dict(teacher_user=torch.zeros(2, 4), users=torch.tensor([0])), ValueError, "teacher_user: want 5 rows, or"),
        (dict(teacher=3), TypeError, "teacher: want a TeacherDistribution"),
        (dict(temperature=1e-40), ValueError, r"temperature: want a number in"),
        (dict(eps=1e-40), ValueError, "eps: want 0 or"),
        (dict(teacher_item=None), ValueError, "teacher_user, teacher_item: want both"),
        (dict(users=torch.tensor([5])), IndexError, r"users: want entries in \[0, 5\)"),
        (dict(users=torch.tensor([1.0])), TypeError, "users: want a 1-d int64"),
        (dict(temperature=0.0), ValueError, "temperature: want a finite number above 0"),
        (dict(teacher_temperature=float("nan")), ValueError, "teacher_temperature"),
        (dict(count=3), TypeError, "count: want a 0-d int64 tensor, got int 3"),
        (dict(count=torch.tensor(6)), IndexError, r"count: want entries in \[0, 6\)"),
        (dict(divergence="hellinger"), ValueError, "divergence: want one of"),
        (dict(weighting="uniform"), ValueError, "weighting: want one of"),
        (dict(weighting=torch.ones(4)), ValueError, r"weighting: want \[5\]"),
        (dict(weight_range=(1.0, 0.1)), ValueError, "weight_range"),
        (dict(eps=-1e-8), ValueError, "eps"),
        (dict(reduction="max"), ValueError, "reduction"),
    ],
)
def test_distribution_kl_rejects(change, error, message):
    user, item, teacher_user, teacher_item = tables(5, 9, 8, 4)
    arguments = dict(user=user, item=item, teacher_user=teacher_user, teacher_item=teacher_item) | change
    with pytest.raises(error, match=message):
        losses.distribution_kl(**arguments)


def test_distribution_kl_rejects_double_backward():
    user, item, teacher_user, teacher_item = tables(5, 9, 8, 4)
    user.requires_grad_()
    loss = losses.distribution_kl(user, item, teacher_user, teacher_item)
    (grad,) = torch.autograd.grad(loss, user, create_graph=True)
    with pytest.raises(RuntimeError, match="distribution_kl: its second derivative"):
        grad.sum().backward()


def test_distribution_kl_is_as_good_as_eager_at_scale():
    tensors = tables(300, 9332, 32, 32)
    outputs = [
        losses.distribution_kl(*tensors),
        reference(*tensors),
        reference(*(t.double() for t in tensors)),
    ]
    assert_as_good_as_eager(*outputs)
