"""AdaMod in eight lines: a regression at a learning rate of 0.01, without warm-up."""

import torch

from adamod import AdaMod

torch.manual_seed(0)
x = torch.randn(1024, 16)
y = torch.sin(x @ torch.randn(16, 1))

model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
optimizer = AdaMod(model.parameters(), lr=1e-2)  # was: torch.optim.AdamW(model.parameters(), lr=1e-2)
for epoch in range(500):
    loss = torch.nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if epoch % 100 == 99:
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
