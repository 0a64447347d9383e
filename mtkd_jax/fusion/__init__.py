"""Decision fusion: the logits of K teachers to one decision."""
