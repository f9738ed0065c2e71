"""Second-order importance against hand-worked values and against least squares done directly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from onnxdistill.graph import secondorder
from onnxdistill.graph.channels import analyse_channels
from onnxdistill.graph.importance import magnitude
from onnxdistill.graph.secondorder import DAMPING, Consumer, _damped_inverse, _second_moment, second_order
from tests import tiny


def consumer(weight: list[list[float]], moment: list[list[float]]) -> Consumer:
    matrix = torch.tensor(weight, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.tensor(moment, dtype=torch.float64))
    return Consumer(matrix, inverse, torch.ones(len(matrix), dtype=torch.float64), 1)


def test_independent_inputs_lose_what_their_weights_carry() -> None:
    known = consumer([[3.0, 2.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 4.0]])
    columns = [torch.tensor([0]), torch.tensor([1])]
    assert known.losses(columns).tolist() == pytest.approx([3**2 + 1**2, 2**2 * 4])


def test_a_twin_takes_over() -> None:
    known = consumer([[1.0, 2.0]], [[1.0, 0.999], [0.999, 1.0]])
    both = [torch.tensor([0]), torch.tensor([1])]
    assert known.losses(both).tolist() == pytest.approx([0.002, 0.008], rel=1e-2)
    known.remove(torch.tensor([0]))
    assert known.weight.tolist() == [[0.0, pytest.approx(2.999)]]
    # Alone, the twin carries everything.
    assert float(known.losses([torch.tensor([1])])[0]) == pytest.approx(2.999**2)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 6))
def test_the_loss_is_that_of_least_squares(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(50, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, size, generator=generator, dtype=torch.float64)
    moment = inputs.T @ inputs / len(inputs)
    known = Consumer(weight.clone(), torch.linalg.inv(moment), torch.ones(3, dtype=torch.float64), 1)
    gone = torch.tensor([0])
    told = float(known.losses([gone])[0])
    fitted = torch.linalg.lstsq(inputs[:, 1:], inputs @ weight.T).solution
    left = ((inputs @ weight.T - inputs[:, 1:] @ fitted) ** 2).mean(0).sum()
    assert told == pytest.approx(float(left), rel=1e-6)
    known.remove(gone)
    assert torch.allclose(known.weight[:, 1:], fitted.T, atol=1e-8)


def test_channels_of_different_size_and_several_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(inputs.T @ inputs / len(inputs))
    channels = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([2, 4])]
    one, other = (Consumer(weight.clone(), inverse.clone(), torch.ones(3, dtype=torch.float64), 1) for _ in range(2))
    together = one.losses(channels).tolist()
    assert together == pytest.approx([float(one.losses([columns])[0]) for columns in channels])
    for columns in channels:
        one.remove(columns)
    other.remove(torch.cat(channels))
    assert torch.allclose(one.weight, other.weight)
    assert torch.allclose(one.inverse, other.inverse)


def test_constant_inputs_that_are_loud_leave_a_moment_that_can_be_inverted() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = 0.1 * torch.randn(4096, 512, generator=generator)
    columns[:, :16] = 1 + torch.rand(16, generator=generator)
    moment = _second_moment(columns)
    assert torch.allclose(moment, columns.double().T @ columns.double() / 4096, rtol=1e-6, atol=1e-9)
    exact = torch.linalg.eigvalsh(columns.double().T @ columns.double() / 4096)
    assert torch.linalg.eigvalsh(moment)[0] == pytest.approx(float(exact[0]), abs=1e-5)
    # What rounding would have left otherwise is damped more.
    worse = moment - 3e-3 * moment.diagonal().mean() * torch.eye(512)
    assert torch.isfinite(_damped_inverse(worse)).all()
    assert torch.isnan(_damped_inverse(torch.full_like(moment, torch.nan))).all()


def test_several_channels_a_step_cost_what_they_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step for all of them, no channel knows of the others: the scores are those of the network as it is."""
    torch.manual_seed(0)
    network = tiny.Chain().eval()
    analysis = analyse_channels(network, torch.randn(2, 3, 8, 8))
    monkeypatch.setattr(secondorder, "STEPS", 1)
    together = second_order(network, analysis, batches())
    monkeypatch.setattr(secondorder, "STEPS", 10**6)
    greedily = second_order(network, analysis, batches())
    for name, scores in together.items():
        assert float(scores.min()) == pytest.approx(float(greedily[name].min()))
        assert float(scores.max()) < float(greedily[name].max())


def batches() -> Iterator[Callable[[nn.Module], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        inputs = torch.randn(16, 3, 8, 8, generator=generator)
        labels = torch.randint(2, (16,), generator=generator)
        yield lambda network, inputs=inputs, labels=labels: F.cross_entropy(network(inputs), labels)  # type: ignore[misc]


def test_of_twins_one_is_worth_nothing_and_a_dead_channel_neither() -> None:
    torch.manual_seed(0)
    network = tiny.Chain().eval()
    with torch.no_grad():
        for layer in (network.conv1, network.bn1):
            layer.weight[1] = layer.weight[0]
            layer.bias[1] = layer.bias[0]
        network.conv2.weight[:, 2] = 0.0
    analysis = analyse_channels(network, torch.randn(2, 3, 8, 8))
    scores = second_order(network, analysis, batches())["conv1"]
    twins, dead, others = scores[:2], scores[2], scores[3:]
    assert float(dead) < 1e-9
    assert float(twins.min()) < 0.05 * float(others.min())
    assert float(twins.max()) > 0.05 * float(others.min())
    assert network.conv1.weight.grad is None


def test_groups_are_counted_in_the_loss_that_they_cost() -> None:
    """What the head hardly looks at costs less than what it looks at much."""
    torch.manual_seed(0)
    network = tiny.Concatenated().eval()
    with torch.no_grad():
        network.joint.weight[:, :4] *= 0.01
    scores = second_order(network, analyse_channels(network, torch.randn(2, 3, 8, 8)), batches())
    assert float(scores["left"].max()) < 0.01 * float(scores["right"].min())


def test_scores_are_in_the_unit_of_the_loss() -> None:
    """With gradients of 3 at every output of every sample, E[g^2] = 9: 1/2 * 64 positions * 9 * what is lost."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 1), nn.Flatten()).eval()
    inputs = [torch.randn(8, 3, 8, 8) for _ in range(2)]

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return 3 * network(batch).sum() / len(batch)

    analysis = analyse_channels(network, inputs[0][:2])
    scores = second_order(network, analysis, [lambda net, batch=batch: loss(net, batch) for batch in inputs])["0"]
    with torch.no_grad():
        hidden = torch.cat([F.relu(network[0](batch)) for batch in inputs]).permute(0, 2, 3, 1).reshape(-1, 6).double()
    moment = hidden.T @ hidden / len(hidden)
    inverse = torch.linalg.inv(moment + DAMPING * moment.diagonal().mean() * torch.eye(6, dtype=torch.float64))
    layer = network[2]
    assert isinstance(layer, nn.Conv2d)
    lost = (layer.weight.detach().double().flatten(1) ** 2).sum(0) / inverse.diagonal()
    assert float(scores.min()) == pytest.approx(0.5 * 64 * 9 * float(lost.min()), rel=1e-4)


def test_what_has_no_columns_is_scored_by_magnitude_at_the_others_mean() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2), nn.Flatten()
    ).eval()
    inputs = torch.randn(8, 3, 4, 4)
    analysis = analyse_channels(network, inputs)
    scores = second_order(network, analysis, [lambda net: net(inputs).square().sum() / 8])
    expected = float(scores["0"].mean()) * magnitude(network, analysis, 2)["2"]
    assert torch.allclose(scores["2"], expected)


def test_nothing_to_score_is_no_error() -> None:
    network, inputs = nn.Linear(4, 2).eval(), torch.randn(3, 4)
    assert second_order(network, analyse_channels(network, inputs), [lambda net: net(inputs).sum()]) == {}
