"""The smallest recipe that trains, for the tests of training."""

SMALLEST = {
    "backbone": "ann-basic",
    "weights": "random",
    "loss": "cosface",
    "scale": 8.0,
    "margin": 0.1,
    "epochs": 2,
    "batch_size": 12,
    "learning_rate": 0.003,
    "normalisation": "none",
}
