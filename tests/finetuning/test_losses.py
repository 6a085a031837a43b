"""The losses of outliers equal their definitions, and fall where the score they are for rises."""

import math

import pytest
import torch

from genval.finetuning.losses import energy, margin_loss, outlier_margins, rba, uniform_loss
from genval.finetuning.settings import LOSS_SCORES
from genval.metrics.ood_scores import anomaly_scores, rejected_by_all


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 19, 5, 7, generator=generator)
    return logits, torch.rand(2, 5, 7, generator=generator) < 0.4


def test_uniform_loss_is_the_divergence_from_the_uniform_distribution(pixels):
    logits, outliers = pixels
    probabilities = logits.double().softmax(1).permute(0, 2, 3, 1)[outliers]
    expected = sum(float((1 / 19 * (1 / 19 / row).log()).sum()) for row in probabilities) / len(probabilities)
    assert float(uniform_loss(logits, outliers)) == pytest.approx(expected, rel=1e-5)


def test_margin_loss_is_zero_beyond_the_margins_and_one_at_the_other(pixels):
    _, outliers = pixels
    margins = torch.tensor([-12.0, -2.0])
    right = torch.where(outliers, -1.0, -13.0)
    assert float(margin_loss(right, ~outliers, outliers, margins)) == 0
    wrong = torch.where(outliers, -12.0, -2.0)
    assert float(margin_loss(wrong, ~outliers, outliers, margins)) == pytest.approx(2)


def test_without_outliers_the_losses_are_zero_and_have_a_gradient(pixels):
    logits = pixels[0].requires_grad_(True)
    none = torch.zeros(2, 5, 7, dtype=torch.bool)
    loss = uniform_loss(logits, none) + margin_loss(energy(logits), none, none, torch.tensor([-1.0, 1.0]))
    loss.backward()
    assert float(loss) == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSS_SCORES)
def test_a_step_down_the_loss_raises_the_scores_it_is_for(pixels, loss):
    logits, outliers = pixels
    logits = logits.clone().requires_grad_(True)
    if loss == "uniform":
        value = uniform_loss(logits, outliers)
    else:
        scores = energy(logits) if loss == "energy" else rba(logits, of_queries=False)
        margins = outlier_margins(loss, scores[~outliers].detach(), 19, gap=10, of_queries=False)
        value = margin_loss(scores, ~outliers, outliers, margins)
    value.backward()
    after = (logits - 20 * logits.grad).detach()

    def mean_score(logits, name):
        flat = logits.permute(1, 0, 2, 3)[:, outliers]
        if name == "rba":
            return rejected_by_all(flat).mean()
        rows = dict(zip(("entropy", "confidence", "logits", "energy"), anomaly_scores(flat), strict=True))
        return rows[name].mean()

    for name in LOSS_SCORES[loss]:
        assert mean_score(after, name) > mean_score(logits.detach(), name)


def test_rejected_by_all_is_the_negated_sum_of_hyperbolic_tangents():
    logits = torch.tensor([[0.5], [-2.0]])
    assert float(rejected_by_all(logits)[0]) == pytest.approx(-math.tanh(0.5) - math.tanh(-2))
    queries = torch.tensor([[0.5], [0.1]]).log()
    assert float(rejected_by_all(queries, of_queries=True)[0]) == pytest.approx(-math.tanh(0.5) - math.tanh(0.1))


def test_margins_begin_at_the_known_pixels():
    scores = torch.tensor([-14.0, -10.0])
    assert outlier_margins("energy", scores, 19, 10, False).tolist() == [-12, -2]
    assert outlier_margins("rba", torch.tensor([12.0]), 19, 10, False).tolist() == [12, 19]
    assert outlier_margins("rba", torch.tensor([-0.9]), 19, 10, True).tolist() == [-1, 0]
