"""Which tensor of a small classifier is fragile, how bad the worst small change is, and how much chance would do."""

import torch

import paramcorrupt
from paramcorrupt import corrupted, corruption, relative

torch.manual_seed(0)
x = torch.randn(600, 8)
y = (x[:, 0] * x[:, 1] > 0).long()  # the sign of a product
data = list(zip(x.split(100), y.split(100), strict=True))

model = torch.nn.Sequential(
    torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(40):
    for inputs, target in data:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()

report = paramcorrupt.scan(model, "cross_entropy", data, eps=relative(0.05), verify=3, random=5)
print(report)

worst = paramcorrupt.indicator(model, "cross_entropy", data, eps=0.5, n=10)
accuracy = f"accuracy {worst.accuracy:.3f} -> {worst.accuracy_corrupted:.3f}"
print(f"\nten weights: loss {worst.loss:.3f} -> {worst.loss_corrupted:.3f}, {accuracy}")

torch.nn.functional.cross_entropy(model(x), y).backward()
with corrupted(model, corruption(model, eps=0.5)) as applied:
    print(f"inside: {applied.changed} weights changed, loss {torch.nn.functional.cross_entropy(model(x), y):.3f}")
print(f"after:  every bit as it was, loss {torch.nn.functional.cross_entropy(model(x), y):.3f}")
