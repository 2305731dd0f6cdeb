"""Optimisers with steps of one length: against torch's Muon and Adam, and against singular values."""

import pytest
import torch
from torch import Tensor, nn

from mdrelax.training.matrix_optimizers import Muon, NormalisedAdam, is_matrix, largest_singular_value, orthogonalise

SHAPES = [(12, 12), (3, 8, 5), (5, 8), (1, 6, 6), (4, 3, 2, 2), (7,), (1,), (1, 4, 1), ()]


def parameters(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """A parameter of each shape, with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
    return made


def blocks(tensor: Tensor) -> Tensor:
    """The matrices of a tensor as (K, rows, columns), said once more."""
    if tensor.ndim < 2:
        return tensor.reshape(1, 1, -1)
    return tensor.flatten(1).unsqueeze(0) if tensor.ndim == 4 else tensor.reshape(-1, *tensor.shape[-2:])


def test_matrices_stacks_and_kernels_are_matrices():
    """Vectors are not, however many dimensions they are written with."""
    assert [is_matrix(p) for p in parameters()] == [True, True, True, True, True, False, False, False, False]


@pytest.mark.parametrize("shape", [(6, 32, 32), (2, 64, 16), (2, 16, 64), (3, 1, 9), (1, 120, 120)])
def test_the_largest_singular_value_is_the_largest(shape):
    """From below, within 2 % of the decomposition's, whatever the size of the numbers; exact for vectors."""
    sizes = torch.tensor([1e-6, 1.0, 1e4] * 2)[: shape[0]].view(-1, 1, 1)
    stack = sizes * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ratio = largest_singular_value(stack).flatten() / torch.linalg.matrix_norm(stack, 2)
    assert (ratio <= 1 + 1e-5).all()
    assert (ratio > (0.98 if min(shape[1:]) > 1 else 1 - 1e-5)).all()


def test_its_worst_case_is_2_percent():
    """One singular value of 1 among 63 equal ones: whatever those are, the estimate is above 0.98."""
    values = torch.ones(100, 64)
    values[:, 1:] = torch.linspace(0.8, 1.0, 100).unsqueeze(1)
    estimate = largest_singular_value(torch.diag_embed(values)).flatten()
    assert estimate.min() > 0.98
    assert torch.equal(largest_singular_value(torch.zeros(2, 3, 4)), torch.zeros(2, 1, 1))


def test_orthogonalised_matrices_have_singular_values_near_one():
    """Between 0.6 and 1.25 where the matrix is not nearly singular, with the singular vectors of the matrix."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(4, 16, 24, generator=generator), full_matrices=False)
    stack = (left * torch.linspace(0.1, 3, 16)) @ right
    for found, u, v in ((orthogonalise(stack), left, right.mT), (orthogonalise(stack.mT), right.mT, left)):
        inner = u.mT @ found @ v  # U^T (U S V^T) V
        values = inner.diagonal(dim1=1, dim2=2)
        assert ((values > 0.6) & (values < 1.25)).all()
        torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-4)


def test_muon_is_torchs_muon_on_square_matrices():
    """Four steps with momentum and decay; torch computes in bfloat16 (relative error 2^-8 an operation), hence 3 %."""
    ours, theirs = (nn.Parameter(torch.eye(24)) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    mine = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.2)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(4):
        ours.grad = torch.randn(24, 24, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step(), reference.step()
    moved, expected = ours.detach() - torch.eye(24), theirs.detach() - torch.eye(24)
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_muon_moves_every_matrix_by_the_rate():
    """All singular values of a step are near the rate, of each matrix of a stack, and of kernels."""
    subjects = [p for p in parameters() if is_matrix(p)]
    for p in subjects:  # away from singular gradients, whose smallest singular values stay small
        u, _, v = torch.linalg.svd(blocks(p.grad), full_matrices=False)
        p.grad = (u @ v).reshape(p.shape)
    before = [p.detach().clone() for p in subjects]
    Muon(subjects, lr=0.3, momentum=0.9, weight_decay=0.0).step()
    for p, old in zip(subjects, before, strict=True):
        values = torch.linalg.svdvals(blocks(p.detach() - old)) / 0.3
        assert ((values > 0.6) & (values < 1.25)).all(), p.shape


def test_matrices_of_a_stack_do_not_know_of_each_other():
    """A stack moves like its matrices one by one, to rounding."""
    whole = parameters()[1]
    parts = [nn.Parameter(part.clone()) for part in whole.detach()]
    for part, gradient in zip(parts, whole.grad, strict=True):
        part.grad = gradient.clone()
    for subjects in ([whole], parts):
        Muon(subjects, lr=0.1, momentum=0.9, weight_decay=0.1).step()
        NormalisedAdam(subjects, lr=0.1, betas=(0.9, 0.99), weight_decay=0.1).step()
    torch.testing.assert_close(whole.detach(), torch.stack([p.detach() for p in parts]), rtol=0, atol=1e-12)


def test_muon_refuses_vectors():
    """With their shapes."""
    with pytest.raises(ValueError, match=r"these shapes are none: \[\(7,\)\]"):
        Muon([parameters()[5]], lr=0.1, momentum=0.9, weight_decay=0.0)


def test_normalised_steps_are_adams_with_the_length_of_the_rate():
    """Block by block: parallel to the step of torch's Adam, and of spectral norm eta (2 % for its estimate).

    Three steps of each; torch's Adam starts every one from where ours is.
    """
    ours, theirs = parameters(), parameters()
    optimizer = NormalisedAdam(ours, lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    adam = torch.optim.Adam(theirs, lr=1.0, betas=(0.9, 0.95), foreach=False)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        starts = [p.detach().clone() for p in ours]
        for p, q, start in zip(ours, theirs, starts, strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
            q.data.copy_(start)
        optimizer.step(), adam.step()
        for p, q, start in zip(ours, theirs, starts, strict=True):
            moved, direction = blocks(p.detach() - start), blocks(q.detach() - start)
            norms = torch.linalg.matrix_norm(moved, 2)
            assert ((norms > 0.05 * (1 - 1e-9)) & (norms < 0.05 * 1.02)).all(), p.shape
            cosine = (moved * direction).sum((1, 2)) / (moved.norm(dim=(1, 2)) * direction.norm(dim=(1, 2)))
            torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["muon", "normalised"])
def test_nothing_to_learn_moves_nothing(kind):
    """Zero gradients and missing ones: no step and no NaN; only the decay of matrices, p (1 - lr d), is left."""
    subjects = [p for p in parameters() if kind == "normalised" or is_matrix(p)]
    for k, p in enumerate(subjects):
        p.grad = torch.zeros_like(p) if k % 2 else None
    before = [p.detach().clone() for p in subjects]
    if kind == "muon":
        Muon(subjects, lr=0.1, momentum=0.9, weight_decay=0.5).step()
    else:
        NormalisedAdam(subjects, lr=0.1, betas=(0.9, 0.99), weight_decay=0.5).step()
    for p, old in zip(subjects, before, strict=True):
        torch.testing.assert_close(p.detach(), old * (0.95 if is_matrix(p) else 1.0), rtol=1e-12, atol=0)


def test_a_state_of_another_network_is_refused():
    """A checkpoint that was put there by hand: nothing is stretched to fit."""
    made = [Muon([parameters()[k]], lr=0.1, momentum=0.9, weight_decay=0.0) for k in (0, 2)]
    made[0].step()
    with pytest.raises(ValueError, match=r"A tensor of the optimiser is \(1, 12, 12\), not \(1, 5, 8\)"):
        made[1].load_state_dict(made[0].state_dict())
