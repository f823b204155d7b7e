"""Fits a line with PyTorch and logs as PyTorch scripts do: a loss for each epoch, what
was chosen, the weights, which are loaded again from the run."""

import mlflow
import mlflow.pytorch
import torch
from torch import nn

torch.manual_seed(7)
x = torch.arange(1.0, 26.0).reshape(-1, 1) / 25
y = 2 * x + 1
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
mlflow.set_experiment("lines")
with mlflow.start_run() as run:
    mlflow.log_params({"lr": 0.5, "epochs": 200})
    for epoch in range(200):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mlflow.log_metric("loss", loss.item(), step=epoch)
    mlflow.pytorch.log_state_dict(model.state_dict(), "line")
    mlflow.set_tag("framework", f"torch {torch.__version__}")
again = nn.Linear(1, 1)
again.load_state_dict(mlflow.pytorch.load_state_dict(f"runs:/{run.info.run_id}/line"))
assert abs(again(torch.tensor([[2.0]])).item() - 5) < 0.05
