"""What runs inside a TensorFlow process: model, input, steps, checkpoints."""
