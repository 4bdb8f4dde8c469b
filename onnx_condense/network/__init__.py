"""The network as it is read: files, nodes, shapes, and what is known of tensors without running it."""
