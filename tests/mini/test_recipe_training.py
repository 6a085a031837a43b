"""The training loop that all recipes share."""

import torch

from genval.diffusion.training.loop import Average, Optimisation, fit, warm_cosine


def quadratic(weight):
    optimiser = torch.optim.SGD([weight], lr=0.0)
    return Optimisation(parameters=[weight], optimisers=[(optimiser, 0.5)], schedule=warm_cosine(0.25))


def test_weights_move_and_losses_are_reported_by_name():
    weight, lines, called = torch.nn.Parameter(torch.ones(2)), [], []

    def losses(step):
        called.append(step)
        loss = weight.square().sum()
        return loss, [loss, 2 * loss]

    result = fit("toy", losses, quadratic(weight), labels=["a", "b"], steps=4, log=lines.append)
    assert called == [0, 1, 2, 3] and result.steps == result.new_steps == 4
    assert weight.detach().abs().max() < 1
    assert abs(result.losses["b"] - 2 * result.losses["a"]) < 1e-6
    assert lines[0].startswith("toy step 0 a 2.0000 b 4.0000") and lines[-1].startswith("toy step 3 ")


def test_the_schedule_warms_up_and_falls_to_zero():
    rate = warm_cosine(0.25)
    assert rate(2.0, 0.0) == 0 and 0 < rate(2.0, 0.1) < rate(2.0, 0.25) and rate(2.0, 1.0) < 1e-12


def test_averaged_weights_follow_the_trained_ones():
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    torch.nn.init.constant_(average.model.weight, 0.0)
    torch.nn.init.constant_(model.weight, 1.0)
    average.update(0)
    assert abs(average.model.weight.item() - 0.9) < 1e-6  # the first step keeps a tenth
    average.update(1000)
    assert abs(average.model.weight.item() - 0.91) < 1e-6
