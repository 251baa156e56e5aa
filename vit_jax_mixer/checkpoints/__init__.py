"""What lies in a run's checkpoints: which steps there are, whether they are whole, which is the best."""
