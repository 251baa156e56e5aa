"""What the loss looks like around a trained model: curvature, a slice of it, what features are made of."""
