"""GA-SAM over SGD: two rings, a quarter of whose labels are wrong."""

import math

import torch

from gasam import GASAM

torch.manual_seed(0)


def rings(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.randint(2, (n,))
    angle, radius = torch.rand(n) * 2 * math.pi, 1 + label + 0.3 * torch.randn(n)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 1), label


x, clean = rings(400)
y = torch.where(torch.rand(400) < 0.25, 1 - clean, clean)
x_test, y_test = rings(4000)

model = torch.nn.Sequential(torch.nn.Linear(2, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
optimizer = GASAM(model, torch.optim.SGD, rho=0.1, lr=0.3, momentum=0.9)


def closure() -> torch.Tensor:
    loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


for step in range(500):
    loss = optimizer.step(closure)  # the closure runs twice: at the weights, and above them
    if step % 100 == 99:
        accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
        print(f"step {step + 1}: loss {loss:.3f}, sharpness {optimizer.sharpness():.4f}, accuracy {accuracy:.3f}")
