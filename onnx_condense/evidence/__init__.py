"""What tells that channels are redundant: the weights, and moments of activations."""
