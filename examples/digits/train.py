"""Trains a classifier of handwritten digits with NumPy alone.

`--hidden 0` is softmax regression, any other number is the width of one hidden
layer. The job reads its dataset from `data/digits`, reports a line of
`metrics.jsonl` for each figure of each epoch, and leaves the weights in
`model.npz`. The same seed gives the same bytes.
"""

import argparse
import gzip
import json

import numpy as np

EPOCHS = 200
BATCH = 16
TEST_EVERY = 5  # every fifth picture is kept for the test


def main():
    options = parse()
    random = np.random.default_rng(options.seed)
    train, test = load("data/digits")
    weights = start(random, train[0].shape[1], options.hidden)
    with open("metrics.jsonl", "w", encoding="ascii") as metrics:
        for epoch in range(1, EPOCHS + 1):
            loss = epoch_of_descent(weights, train, options.lr, random)
            accuracy = float((forward(weights, test[0])[-1].argmax(axis=1) == test[1]).mean())
            report(metrics, epoch, loss=loss, accuracy=accuracy)
    np.savez("model.npz", **{f"array_{index}": array for index, array in enumerate(weights)})
    print(f"lr={options.lr} hidden={options.hidden} loss={loss:.4f} accuracy={accuracy:.4f}")


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def load(path):
    """Pictures of 8 x 8 grey values from 0 to 16, the digit in the last column."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.loadtxt(lines, delimiter=",")
    pictures, digits = table[:, :-1] / 16.0, table[:, -1].astype(int)
    kept = np.arange(len(table)) % TEST_EVERY == 0
    return (pictures[~kept], digits[~kept]), (pictures[kept], digits[kept])


def start(random, inputs, hidden):
    """Weights and offsets of each layer, in turn."""
    widths = [inputs, 10] if hidden == 0 else [inputs, hidden, 10]
    arrays = []
    for before, after in zip(widths, widths[1:]):
        arrays += [random.normal(0.0, before**-0.5, (before, after)), np.zeros(after)]
    return arrays


def forward(weights, pictures):
    """The input of every layer, and last the score of each digit."""
    values = [pictures]
    for index in range(0, len(weights), 2):
        value = values[-1] @ weights[index] + weights[index + 1]
        values.append(value if index + 2 == len(weights) else np.maximum(value, 0.0))
    return values


def epoch_of_descent(weights, train, rate, random):
    """One pass over the pictures in a new order; returns the mean loss."""
    pictures, digits = train
    order = random.permutation(len(pictures))
    losses = []
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        values = forward(weights, pictures[batch])
        scores = values[-1] - values[-1].max(axis=1, keepdims=True)
        chances = np.exp(scores)
        chances /= chances.sum(axis=1, keepdims=True)
        rows = np.arange(len(batch))
        losses.append(-np.log(chances[rows, digits[batch]] + 1e-12).mean())
        slope = chances
        slope[rows, digits[batch]] -= 1.0
        slope /= len(batch)
        for index in range(len(weights) - 2, -1, -2):
            below = slope @ weights[index].T * (values[index // 2] > 0.0)
            weights[index] -= rate * values[index // 2].T @ slope
            weights[index + 1] -= rate * slope.sum(axis=0)
            slope = below
    return float(np.mean(losses))


def report(metrics, epoch, **figures):
    for name, value in figures.items():
        line = {"name": name, "value": value, "step": epoch}
        metrics.write(json.dumps(line) + "\n")
    metrics.flush()


main()
