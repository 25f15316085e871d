"""The way from examples to a trained model: stages, engines, optimizers, the loop, checkpoints, callbacks."""
